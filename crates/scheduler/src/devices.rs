//! Devices as the scheduler knows them: claims, classes and slices (`resource.k8s.io`), and who gets which.

mod allocate;
mod capacity;
mod constraint;
mod outcome;
mod pools;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_cel::device::Selector;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, DeviceRequestAllocationResult, DeviceSelector, ResourceClaim,
    ResourceClaimConsumerReference, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

pub(crate) use allocate::allocate;
pub use write::{Reservation, bind, free, unreserve};

/// Most pods that one claim serves.
const MOST_CONSUMERS: usize = 256;

/// A device: driver, pool, name.
pub(crate) type Id = (String, String, String);
/// Amounts that are taken of a device's capacities.
pub(crate) type Consumed = BTreeMap<String, Quantity>;

/// A selector that was compiled, or why it cannot be.
type Compiled = Arc<Result<Selector, String>>;

/// The three kinds, by name, and what was decided and is not yet written.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    claims: HashMap<(String, String), Arc<ResourceClaim>>,
    classes: HashMap<String, Arc<DeviceClass>>,
    slices: BTreeMap<String, Arc<ResourceSlice>>,
    /// By uid of the claim.
    in_flight: HashMap<String, AllocationResult>,
    /// By expression.
    selectors: Arc<Mutex<HashMap<String, Compiled>>>,
}

/// Devices that claims have.
#[derive(Debug, Default)]
pub(crate) struct Allocated {
    /// Those that one claim has for itself.
    pub exclusive: HashSet<Id>,
    /// What is taken of those that several claims share.
    pub shared: HashMap<Id, Consumed>,
}

impl Allocated {
    fn take(&mut self, result: &DeviceRequestAllocationResult) {
        if result.admin_access == Some(true) {
            return;
        }
        let id = (result.driver.clone(), result.pool.clone(), result.device.clone());
        if result.share_id.is_none() {
            self.exclusive.insert(id);
            return;
        }
        let consumed = self.shared.entry(id).or_default();
        for (name, amount) in result.consumed_capacity.iter().flatten() {
            *consumed.entry(name.clone()).or_default() += Quantity::from_api(amount);
        }
    }

    /// Whether any claim has a part of the device.
    pub fn has(&self, id: &Id) -> bool {
        self.exclusive.contains(id) || self.shared.contains_key(id)
    }
}

fn key(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or("")
}

/// What is written down of a claim's devices.
pub(crate) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// Whom a claim is reserved for.
pub(crate) fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or(&[])
}

/// Whether a claim is reserved for the pod with this uid.
pub(crate) fn is_reserved_for(claim: &ResourceClaim, pod_uid: &str) -> bool {
    reserved(claim).iter().any(|consumer| consumer.uid == pod_uid)
}

/// Names of a pod's claims; for one that is made of a template, once it is made. The flag tells that the pod owns it.
///
/// # Errors
/// A claim that is still to be made.
pub(crate) fn claims_of(pod: &Pod) -> Result<Vec<(String, bool)>, String> {
    let wanted = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let told =
        pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or(&[]);
    let mut names = Vec::new();
    for claim in wanted {
        if let Some(name) = &claim.resource_claim_name {
            names.push((name.clone(), false));
            continue;
        }
        let Some(made) = told.iter().find(|status| status.name == claim.name) else {
            let (namespace, name) = key(&pod.metadata);
            return Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"));
        };
        // A template may stand for no claim at all.
        names.extend(made.resource_claim_name.clone().map(|name| (name, true)));
    }
    Ok(names)
}

impl Devices {
    /// A claim.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }
    /// A class.
    pub(crate) fn class(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.classes.get(name)
    }
    /// All slices, by name.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &Arc<ResourceSlice>> {
        self.slices.values()
    }
    /// Takes a claim in.
    pub fn set_claim(&mut self, claim: Arc<ResourceClaim>) {
        if allocation(&claim).is_some() {
            self.in_flight.remove(uid(&claim));
        }
        self.claims.insert(key(&claim.metadata), claim);
    }
    /// Forgets a claim.
    pub fn remove_claim(&mut self, claim: &ResourceClaim) {
        self.in_flight.remove(uid(claim));
        self.claims.remove(&key(&claim.metadata));
    }
    /// Takes a class in.
    pub fn set_class(&mut self, class: Arc<DeviceClass>) {
        self.classes.insert(key(&class.metadata).1, class);
    }
    /// Forgets a class.
    pub fn remove_class(&mut self, class: &DeviceClass) {
        self.classes.remove(&key(&class.metadata).1);
    }
    /// Takes a slice in.
    pub fn set_slice(&mut self, slice: Arc<ResourceSlice>) {
        self.slices.insert(key(&slice.metadata).1, slice);
    }
    /// Forgets a slice.
    pub fn remove_slice(&mut self, slice: &ResourceSlice) {
        self.slices.remove(&key(&slice.metadata).1);
    }

    /// Whether devices were chosen for the claim and are not yet written down.
    pub(crate) fn is_in_flight(&self, claim: &ResourceClaim) -> bool {
        self.in_flight.contains_key(uid(claim))
    }
    /// Keeps devices for a claim until they are written down.
    pub fn assume(&mut self, claim: &ResourceClaim, devices: AllocationResult) {
        self.in_flight.insert(uid(claim).to_owned(), devices);
    }
    /// Lets devices go that could not be written down.
    pub fn forget(&mut self, claim: &ResourceClaim) {
        self.in_flight.remove(uid(claim));
    }

    /// The devices that claims have, or will have in a moment.
    pub(crate) fn allocated(&self) -> Allocated {
        let mut all = Allocated::default();
        let known = self.claims.values().filter_map(|claim| allocation(claim));
        for result in known.chain(self.in_flight.values()).filter_map(|a| a.devices.as_ref()) {
            result.results.iter().flatten().for_each(|result| all.take(result));
        }
        all
    }

    /// A selector, compiled once.
    pub(crate) fn selector(&self, selector: &DeviceSelector) -> Compiled {
        let expression = selector.cel.as_ref().map_or("", |cel| cel.expression.as_str());
        let mut known = self.selectors.lock();
        if let Some(compiled) = known.get(expression) {
            return compiled.clone();
        }
        let compiled = Arc::new(Selector::compile(expression).map_err(|why| why.detail));
        known.insert(expression.to_owned(), compiled.clone());
        compiled
    }

    /// The claims of a pod that no node is looked at for, or why none can be.
    ///
    /// # Errors
    /// In upstream's words, why the pod has to wait.
    pub(crate) fn ready_claims(&self, pod: &Pod) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let (namespace, pod_name) = key(&pod.metadata);
        let pod_uid = pod.metadata.uid.as_deref().unwrap_or("");
        let mut claims = Vec::new();
        for (name, owned) in claims_of(pod)? {
            let Some(claim) = self.claim(&namespace, &name) else {
                return Err(format!("resourceclaim.resource.k8s.io {name:?} not found"));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("resourceclaim {name:?} is being deleted"));
            }
            let is_owner =
                || claim.metadata.owner_references.iter().flatten().any(|owner| owner.uid == pod_uid);
            if owned && !is_owner() {
                return Err(format!(
                    "ResourceClaim {namespace}/{name} was not created for pod {namespace}/{pod_name} (pod is not owner)"
                ));
            }
            self.check(claim, pod_uid)?;
            claims.push(claim.clone());
        }
        Ok(claims)
    }

    fn check(&self, claim: &ResourceClaim, pod_uid: &str) -> Result<(), String> {
        let (namespace, name) = key(&claim.metadata);
        if allocation(claim).is_some() {
            let full = reserved(claim).len() >= MOST_CONSUMERS && !is_reserved_for(claim, pod_uid);
            return if full { Err("resourceclaim in use".to_owned()) } else { Ok(()) };
        }
        if self.is_in_flight(claim) {
            return Err(format!("resource claim {namespace}/{name} is in the process of being allocated"));
        }
        let lacks = |class: &str| self.class(class).is_none();
        let absent = |request: &str, class: &str| {
            Err(format!("request {request}: device class {class} does not exist"))
        };
        let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
        for request in requests {
            match (&request.exactly, request.first_available.as_deref()) {
                (Some(exact), _) if lacks(&exact.device_class_name) => {
                    return absent(&request.name, &exact.device_class_name);
                }
                (Some(_), _) => {}
                (None, Some(alternatives @ [_, ..])) => {
                    for sub in alternatives {
                        if lacks(&sub.device_class_name) {
                            return absent(&format!("{}/{}", request.name, sub.name), &sub.device_class_name);
                        }
                    }
                }
                _ => {
                    let request = &request.name;
                    return Err(format!(
                        "resource claim {namespace}/{name}, request {request}: unknown request type"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
