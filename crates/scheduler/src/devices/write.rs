//! Writes down which devices a claim got and for whom it is reserved, and waits for devices that must be made ready.

use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Api, Client, Informer, PatchKind};
use coracle_meta::{Reason, Status};
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimConsumerReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{allocation, is_reserved_for, key};
use crate::pod_info::PodInfo;

/// Keeps a claim while it has devices.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a write is tried that others were faster than.
const TRIES: usize = 5;
/// How long devices may take to be made ready.
const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// A claim that a pod needs, with the devices that were chosen for it if it had none.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The claim.
    pub claim: Arc<ResourceClaim>,
    /// Its devices, where they are not written down yet.
    pub devices: Option<AllocationResult>,
}

/// Writes down devices and reservations of a pod's claims, and waits until the devices can be used.
///
/// # Errors
/// What the API refused, or devices that are not made ready.
pub async fn bind(
    client: &Client,
    claims: &Informer<ResourceClaim>,
    pod: &PodInfo,
    reservations: &[Reservation],
    now: Timestamp,
) -> Result<(), Status> {
    let api = client.api::<ResourceClaim>();
    for reservation in reservations.iter().filter(|r| !is_reserved_for(&r.claim, &pod.uid)) {
        reserve(&api, pod, reservation, now).await?;
    }
    await_ready(claims, reservations).await
}

async fn reserve(
    api: &Api<ResourceClaim>,
    pod: &PodInfo,
    reservation: &Reservation,
    now: Timestamp,
) -> Result<(), Status> {
    let (namespace, name) = key(&reservation.claim.metadata);
    let mut claim = reservation.claim.clone();
    for attempt in 1.. {
        if attempt > 1 {
            claim = api.get(&namespace, &name).await?;
        }
        match try_reserve(api, pod, reservation, (*claim).clone(), now).await {
            Err(status) if status.reason() == Reason::Conflict && attempt < TRIES => {}
            outcome => return outcome,
        }
    }
    Ok(())
}

async fn try_reserve(
    api: &Api<ResourceClaim>,
    pod: &PodInfo,
    reservation: &Reservation,
    mut claim: ResourceClaim,
    now: Timestamp,
) -> Result<(), Status> {
    let (namespace, name) = key(&claim.metadata);
    let refused =
        |why: &str| Err(Status::internal(format!("claim {namespace}/{name} got {why} in the meantime")));
    if claim.metadata.deletion_timestamp.is_some() {
        return refused("deleted");
    }
    if let Some(devices) = &reservation.devices {
        if allocation(&claim).is_some() {
            return refused("allocated elsewhere");
        }
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            claim = (*api.update(&namespace, claim).await?).clone();
        }
        let devices = AllocationResult { allocation_timestamp: Some(Time(now)), ..devices.clone() };
        claim.status.get_or_insert_default().allocation = Some(devices);
    } else if allocation(&claim).is_none() {
        return refused("deallocated elsewhere");
    }
    let consumer = ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".to_owned(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    };
    claim.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
    api.update_status(&namespace, claim).await.map(drop)
}

/// Whether a device says of itself that it is ready.
///
/// # Errors
/// It says that it never will be.
fn is_ready(claim: &ResourceClaim, result: &DeviceRequestAllocationResult) -> Result<bool, Status> {
    let wanted = result.binding_conditions.as_deref().unwrap_or(&[]);
    if wanted.is_empty() {
        return Ok(true);
    }
    let devices = claim.status.iter().flat_map(|status| status.devices.iter().flatten());
    let is_it = |device: &&k8s_openapi::api::resource::v1::AllocatedDeviceStatus| {
        device.driver == result.driver
            && device.pool == result.pool
            && device.device == result.device
            && device.share_id == result.share_id
    };
    let Some(told) = devices.into_iter().find(is_it) else { return Ok(false) };
    let holds =
        |kind: &String| told.conditions.iter().flatten().find(|c| c.type_ == *kind && c.status == "True");
    if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
        let (name, reason, message) = (key(&claim.metadata).1, &failed.reason, &failed.message);
        return Err(Status::internal(format!(
            "device binding failed: claim={name}, reason={reason}, message={message:?}"
        )));
    }
    Ok(wanted.iter().all(|kind| holds(kind).is_some()))
}

async fn await_ready(claims: &Informer<ResourceClaim>, reservations: &[Reservation]) -> Result<(), Status> {
    let conditional = |reservation: &&Reservation| {
        let devices = reservation.devices.as_ref().or(allocation(&reservation.claim));
        let results =
            devices.and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_deref()).unwrap_or(&[]);
        results.iter().any(|result| result.binding_conditions.as_ref().is_some_and(|list| !list.is_empty()))
    };
    let waited: Vec<(String, String)> =
        reservations.iter().filter(conditional).map(|r| key(&r.claim.metadata)).collect();
    if waited.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    let all_ready = || {
        for (namespace, name) in &waited {
            let Some(claim) = claims.get(namespace, name) else { return Ok(false) };
            let results =
                allocation(&claim).and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_deref());
            let Some(results) = results else { return Ok(false) };
            for result in results {
                if !is_ready(&claim, result)? {
                    return Ok(false);
                }
            }
        }
        Ok::<_, Status>(true)
    };
    let wait = async {
        while !all_ready()? {
            if changes.next().await.is_none() {
                return Err(Status::unavailable("the scheduler ends"));
            }
        }
        Ok(())
    };
    match tokio::time::timeout(READY_TIMEOUT, wait).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::timeout("device binding timeout: context deadline exceeded")),
    }
}

/// Takes a claim's devices away, so that it can get others.
pub async fn free(client: &Client, claim: &ResourceClaim) {
    let (namespace, name) = key(&claim.metadata);
    let mut claim = claim.clone();
    let status = claim.status.get_or_insert_default();
    (status.allocation, status.reserved_for, status.devices) = (None, None, None);
    match client.api::<ResourceClaim>().update_status(&namespace, claim).await {
        Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) => {
            tracing::warn!(namespace, name, %status, "cannot take a claim's devices away");
        }
        _ => {}
    }
}

/// Takes back the reservations of a pod that could not be bound.
pub async fn unreserve(client: &Client, pod: &PodInfo, reservations: &[Reservation]) {
    let api = client.api::<ResourceClaim>();
    for reservation in reservations {
        let (namespace, name) = key(&reservation.claim.metadata);
        let patch = json!({ "metadata": { "uid": reservation.claim.metadata.uid },
            "status": { "reservedFor": [{ "$patch": "delete", "uid": pod.uid }] } });
        if let Err(status) = api.patch_status(&namespace, &name, PatchKind::Strategic, patch).await
            && status.reason() != Reason::NotFound
        {
            tracing::warn!(namespace, name, %status, "cannot take the reservation of a claim back");
        }
    }
}
