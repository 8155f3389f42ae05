//! ResourceClaim: devices that are wanted, and those that were given.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceRequestAllocationResult, NetworkDeviceData, ResourceClaim, ResourceClaimConsumerReference,
    ResourceClaimStatus,
};
use serde_json::{Value, json};

use super::claim_spec::{self, Requests};
use super::{MAX_LIST, binding_conditions, configuration, items, pool_name, raw_object, set, shown, uuid};
use crate::address;
use crate::check::{about_text, each, named, one_of};
use crate::common::{column, keep_metadata, text};
use crate::conditions;
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::podspec::scheduling;
use crate::storage::driver_name;

const COLUMNS: &[Column] = &[
    NAME,
    column("State", "string", "", "A summary of the current state (allocated, pending, reserved, etc.)."),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<ResourceClaim>("resourceclaim", &Typed::<ResourceClaim, _>::new(Claims))
};

struct Claims;

/// Users of one claim.
const MAX_RESERVED: usize = 256;
/// Conditions of one device.
const MAX_CONDITIONS: usize = 8;
const MAX_INTERFACE_NAME: usize = 256;
const MAX_HARDWARE_ADDRESS: usize = 128;
const MAX_IPS: usize = 16;

impl Strategy<ResourceClaim> for Claims {
    fn default(&self, obj: &mut ResourceClaim) {
        claim_spec::default(&mut obj.spec);
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ResourceClaim) {
        obj.status = Some(ResourceClaimStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ResourceClaim, old: &ResourceClaim) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut ResourceClaim, old: &ResourceClaim) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
        // The status of a device goes with its allocation.
        let (before, now) = (allocated(old), allocated(new));
        let status = new.status.get_or_insert_default();
        if let Some(devices) = &mut status.devices {
            devices.retain(|d| !before.contains(&id_of(d)) || now.contains(&id_of(d)));
        }
        status.devices = status.devices.take().filter(|devices| !devices.is_empty());
    }

    fn validate(&self, obj: &ResourceClaim, errs: &mut ErrorList) {
        claim_spec::check(&obj.spec, &Path::new("spec"), errs);
    }

    fn validate_update(&self, new: &ResourceClaim, old: &ResourceClaim, errs: &mut ErrorList) {
        if new.spec != old.spec {
            let shown = shown::spec(&new.spec);
            about_text(errs, ErrorKind::Invalid, &Path::new("spec"), shown, "field is immutable");
        }
    }

    fn validate_status_update(&self, new: &ResourceClaim, old: &ResourceClaim, errs: &mut ErrorList) {
        let (empty, path) = (ResourceClaimStatus::default(), Path::new("status"));
        let (status, before) = (new.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty));
        reserved(new, status, before, &path.child("reservedFor"), errs);
        devices(new, status, &path.child("devices"), errs);
        let at = path.child("allocation");
        match (&status.allocation, &before.allocation) {
            (Some(now), Some(before)) if now != before => {
                errs.invalid(at, json!(now), "field is immutable");
            }
            (Some(now), None) => allocation(now, &claim_spec::requests(&new.spec), &at, errs),
            _ => {}
        }
    }

    fn row(&self, obj: &ResourceClaim, now: Timestamp) -> Vec<Value> {
        let status = obj.status.as_ref();
        let deleted = obj.metadata.deletion_timestamp.is_some();
        let mut states = Vec::new();
        states.extend(deleted.then_some("deleted"));
        if status.is_some_and(|s| s.allocation.is_some()) {
            states.push("allocated");
            let users = status.and_then(|s| s.reserved_for.as_ref());
            states.extend(users.is_some_and(|u| !u.is_empty()).then_some("reserved"));
        } else if !deleted {
            states.push("pending");
        }
        vec![
            obj.metadata.name.clone().into(),
            states.join(",").into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// What tells a device from all others, as messages show it.
fn device_id(driver: &str, pool: &str, device: &str, share: Option<&String>) -> String {
    let share = share.map_or(String::new(), |share| format!("/{share}"));
    format!("{driver}/{pool}/{device}{share}")
}

fn id_of(device: &AllocatedDeviceStatus) -> String {
    device_id(&device.driver, &device.pool, &device.device, device.share_id.as_ref())
}

fn allocated(claim: &ResourceClaim) -> BTreeSet<String> {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    let results = allocation.and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_ref());
    let id =
        |r: &DeviceRequestAllocationResult| device_id(&r.driver, &r.pool, &r.device, r.share_id.as_ref());
    results.into_iter().flatten().map(id).collect()
}

fn reserved(
    claim: &ResourceClaim,
    status: &ResourceClaimStatus,
    before: &ResourceClaimStatus,
    path: &Path,
    errs: &mut ErrorList,
) {
    let users = status.reserved_for.as_deref().unwrap_or_default();
    let user = |user: &ResourceClaimConsumerReference, path: &Path, errs: &mut ErrorList| {
        for (field, value) in [("resource", &user.resource), ("name", &user.name), ("uid", &user.uid)] {
            if value.is_empty() {
                errs.required(path.child(field), "");
            }
        }
    };
    set(users, MAX_RESERVED, path, errs, |user| &user.uid, user);
    if users.is_empty() {
        return;
    }
    if status.allocation.is_none() {
        errs.forbidden(path, "may not be specified when `allocated` is not set");
    } else if claim.metadata.deletion_timestamp.is_some() {
        let known = before.reserved_for.as_deref().unwrap_or_default();
        if users.iter().any(|user| !known.contains(user)) {
            let why =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errs.forbidden(path, why);
        }
    }
}

fn devices(claim: &ResourceClaim, status: &ResourceClaimStatus, list: &Path, errs: &mut ErrorList) {
    let known = allocated(claim);
    let mut seen = BTreeSet::new();
    for (i, device) in status.devices.iter().flatten().enumerate() {
        let (path, id) = (list.index(i), id_of(device));
        driver_name(&device.driver, &path.child("driver"), errs);
        pool_name(&device.pool, &path.child("pool"), errs);
        named(errs, &path.child("device"), &device.device, names::dns1123_label);
        if let Some(share) = &device.share_id {
            uuid(share, &path.child("shareID"), errs);
        }
        if !known.contains(&id) {
            let text = |text: &str| Value::from(text).to_string();
            let (driver, pool, name) = (text(&device.driver), text(&device.pool), text(&device.device));
            let share = text(device.share_id.as_deref().unwrap_or(""));
            let shown = format!(r#"{{"Driver":{driver},"Pool":{pool},"Device":{name},"ShareID":{share}}}"#);
            let why = "must be an allocated device in the claim";
            about_text(errs, ErrorKind::Invalid, &path, shown, why);
        }
        let conditions = device.conditions.as_deref().unwrap_or_default();
        if conditions.len() > MAX_CONDITIONS {
            errs.too_many(path.child("conditions"), conditions.len(), MAX_CONDITIONS);
        }
        conditions::check(conditions, &path.child("conditions"), errs);
        if let Some(data) = device.data.as_ref().filter(|data| !data.0.is_null()) {
            raw_object(data, &path.child("data"), errs);
        }
        if let Some(network) = &device.network_data {
            network_data(network, &path.child("networkData"), errs);
        }
        if !seen.insert(id.clone()) {
            errs.duplicate(&path, id);
        }
    }
}

fn network_data(data: &NetworkDeviceData, path: &Path, errs: &mut ErrorList) {
    if text(data.interface_name.as_ref()).len() > MAX_INTERFACE_NAME {
        errs.too_long(path.child("interfaceName"), MAX_INTERFACE_NAME);
    }
    if text(data.hardware_address.as_ref()).len() > MAX_HARDWARE_ADDRESS {
        errs.too_long(path.child("hardwareAddress"), MAX_HARDWARE_ADDRESS);
    }
    let ips = data.ips.as_deref().unwrap_or_default();
    set(
        ips,
        MAX_IPS,
        &path.child("ips"),
        errs,
        |ip| ip,
        |ip, path, errs| {
            each(errs, path, ip.as_str(), address::interface_address(ip));
        },
    );
}

fn allocation(of: &AllocationResult, known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    let (empty, at) = (DeviceAllocationResult::default(), path.child("devices"));
    let devices = of.devices.as_ref().unwrap_or(&empty);
    let list = devices.results.as_deref().unwrap_or_default();
    items(list, MAX_LIST, &at.child("results"), errs, |one, path, errs| result(one, known, path, errs));
    let list = devices.config.as_deref().unwrap_or_default();
    items(list, 2 * MAX_LIST, &at.child("config"), errs, |one, path, errs| config(one, known, path, errs));
    if let Some(selector) = &of.node_selector {
        scheduling::node_selector(selector, &path.child("nodeSelector"), errs);
    }
}

fn result(one: &DeviceRequestAllocationResult, known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    claim_spec::request_name(&one.request, known, &path.child("request"), errs);
    driver_name(&one.driver, &path.child("driver"), errs);
    pool_name(&one.pool, &path.child("pool"), errs);
    named(errs, &path.child("device"), &one.device, names::dns1123_label);
    binding_conditions(
        one.binding_conditions.as_deref().unwrap_or_default(),
        one.binding_failure_conditions.as_deref().unwrap_or_default(),
        path,
        errs,
    );
    if let Some(share) = &one.share_id {
        uuid(share, &path.child("shareID"), errs);
    }
}

fn config(one: &DeviceAllocationConfiguration, known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    match one.source.as_str() {
        "" => errs.required(path.child("source"), ""),
        source => one_of(errs, &path.child("source"), source, &["FromClaim", "FromClass"]),
    }
    let requests = one.requests.as_deref().unwrap_or_default();
    claim_spec::request_names(requests, known, &path.child("requests"), errs);
    configuration(one.opaque.as_ref(), path, errs);
}
