//! DynamicResources: a pod runs only where its claims get their devices.

use std::sync::Arc;

use coracle_meta::placement::selects_node;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use crate::cache::{Cache, NodeInfo};
use crate::devices::{self, Allocated, Reservation};
use crate::framework::{
    ClusterEvent, ClusterWide, MAX_NODE_SCORE, PluginDef, PreEnqueue, PreFilter, Prepared, Verdict, events,
};
use crate::pod_info::PodInfo;
use crate::pod_terms::Labels;

pub(super) const DEF: PluginDef = PluginDef {
    weight: 2,
    wakes_on: events(&[
        ClusterEvent::NodeAdd,
        ClusterEvent::NodeLabel,
        ClusterEvent::Device,
        ClusterEvent::PodUpdate,
    ]),
    pre_enqueue: Some(&DynamicResources),
    pre_filter: Some(&DynamicResources),
    cluster_wide: Some(&DynamicResources),
    ..PluginDef::named("DynamicResources")
};

/// Most alternatives of a request; the first is worth as many points.
const MOST_ALTERNATIVES: i64 = 8;

struct DynamicResources;

fn has_claims(pod: &PodInfo) -> bool {
    pod.pod()
        .spec
        .as_ref()
        .is_some_and(|spec| spec.resource_claims.as_ref().is_some_and(|all| !all.is_empty()))
}

/// What is to be written before a pod is bound to a node, in the order of its claims.
///
/// # Errors
/// What is wrong with a claim, or that the node has not enough devices after all.
pub fn reservations(pod: &PodInfo, cache: &Cache, node: &NodeInfo) -> Result<Vec<Reservation>, String> {
    if !has_claims(pod) {
        return Ok(Vec::new());
    }
    let claims = cache.devices.ready_claims(&pod.pod())?;
    let open: Vec<Arc<ResourceClaim>> =
        claims.iter().filter(|claim| devices::allocation(claim).is_none()).cloned().collect();
    let chosen = match open.is_empty() {
        true => Vec::new(),
        false => devices::allocate(&cache.devices, &cache.devices.allocated(), &open, node)?
            .ok_or("cannot allocate all claims")?,
    };
    let mut chosen = chosen.into_iter();
    let with_devices = |claim: Arc<ResourceClaim>| {
        let devices = if devices::allocation(&claim).is_none() { chosen.next() } else { None };
        Reservation { claim, devices }
    };
    Ok(claims.into_iter().map(with_devices).collect())
}

/// A claim that has devices where a pod cannot run, and that nobody else uses: it may look for others.
pub fn claim_to_free(pod: &PodInfo, cache: &Cache) -> Option<Arc<ResourceClaim>> {
    let claims = if has_claims(pod) { cache.devices.ready_claims(&pod.pod()).ok()? } else { Vec::new() };
    let is_elsewhere = |claim: &Arc<ResourceClaim>| {
        let selector = devices::allocation(claim).and_then(|a| a.node_selector.as_ref());
        selector.is_some_and(|selector| {
            cache.nodes().any(|node| !selects_node(selector, &node.name, &node.labels))
        })
    };
    let is_free = |claim: &Arc<ResourceClaim>| match devices::reserved(claim) {
        [] => true,
        [only] => only.uid == pod.uid,
        _ => false,
    };
    claims.into_iter().find(|claim| is_elsewhere(claim) && is_free(claim))
}

impl PreEnqueue for DynamicResources {
    fn pre_enqueue(&self, pod: &PodInfo) -> Verdict {
        match devices::claims_of(&pod.pod()) {
            Ok(_) => Verdict::Success,
            Err(why) => Verdict::unresolvable(why),
        }
    }
}

impl PreFilter for DynamicResources {
    fn pre_filter(&self, pod: &PodInfo, cache: &Cache) -> Option<String> {
        if has_claims(pod) { cache.devices.ready_claims(&pod.pod()).err() } else { None }
    }
}

/// The pod's claims, and what is free.
struct Wanted {
    claims: Vec<Arc<ResourceClaim>>,
    open: Vec<Arc<ResourceClaim>>,
    allocated: Arc<Allocated>,
    devices: Arc<devices::Devices>,
}

impl Wanted {
    fn allocate(&self, node: &NodeInfo) -> Result<Option<Vec<AllocationResult>>, String> {
        devices::allocate(&self.devices, &self.allocated, &self.open, node)
    }
}

impl ClusterWide for DynamicResources {
    fn prepare(&self, pod: &PodInfo, cache: &Cache) -> Option<Box<dyn Prepared>> {
        if !has_claims(pod) {
            return None;
        }
        let claims = cache.devices.ready_claims(&pod.pod()).ok()?;
        let open = claims.iter().filter(|claim| devices::allocation(claim).is_none()).cloned().collect();
        let (allocated, devices) = (Arc::new(cache.devices.allocated()), cache.devices.clone());
        Some(Box::new(Wanted { claims, open, allocated, devices }))
    }
}

/// How many points the alternatives of a claim are worth that it got.
fn points(claim: &ResourceClaim, result: &AllocationResult) -> i64 {
    let results = result.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or(&[]);
    let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    let of_request = |request: &k8s_openapi::api::resource::v1::DeviceRequest| {
        let alternatives = request.first_available.iter().flatten().zip(0..);
        let got = |name: &str| results.iter().any(|result| result.request == name);
        let worth = |(sub, place): (&k8s_openapi::api::resource::v1::DeviceSubRequest, i64)| {
            let name = format!("{}/{}", request.name, sub.name);
            if got(&name) { MOST_ALTERNATIVES - place } else { 0 }
        };
        alternatives.map(worth).sum::<i64>()
    };
    requests.map(of_request).sum()
}

impl Prepared for Wanted {
    fn filter(&self, _: &PodInfo, node: &NodeInfo) -> Verdict {
        if !self.open.is_empty() {
            match self.allocate(node) {
                Ok(Some(_)) => {}
                Ok(None) => return Verdict::unresolvable("cannot allocate all claims"),
                Err(why) => return Verdict::unresolvable(why),
            }
        }
        let is_away = |claim: &Arc<ResourceClaim>| {
            let selector = devices::allocation(claim).and_then(|a| a.node_selector.as_ref());
            selector.is_some_and(|selector| !selects_node(selector, &node.name, &node.labels))
        };
        if self.claims.iter().any(is_away) {
            return Verdict::unresolvable("resourceclaim not available on the node");
        }
        Verdict::Success
    }

    fn score(&self, _: &PodInfo, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let has_alternatives = |claim: &Arc<ResourceClaim>| {
            let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
            requests.into_iter().any(|request| request.first_available.is_some())
        };
        if !self.open.iter().any(has_alternatives) {
            return None;
        }
        let raw: Vec<i64> = nodes
            .iter()
            .map(|node| match self.allocate(node) {
                Ok(Some(results)) => self.open.iter().zip(&results).map(|(c, r)| points(c, r)).sum(),
                _ => 0,
            })
            .collect();
        let most = raw.iter().copied().max().filter(|most| *most > 0)?;
        Some(raw.into_iter().map(|points| MAX_NODE_SCORE * points / most).collect())
    }

    fn change(&mut self, _: &PodInfo, _: &PodInfo, _: &Labels, _: &NodeInfo, _: i64) {}

    fn duplicate(&self) -> Box<dyn Prepared> {
        Box::new(Self {
            claims: self.claims.clone(),
            open: self.open.clone(),
            allocated: self.allocated.clone(),
            devices: self.devices.clone(),
        })
    }
}
