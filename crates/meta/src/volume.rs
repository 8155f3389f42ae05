//! Persistent volumes and claims: which volume a claim can have.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::placement::selects_node;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

/// Set on a claim, and on a volume, by what bound them.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Set on a claim once it is bound for good.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The node that was chosen for the first pod that uses a claim.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The class of old manifests.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The claim's storage class; empty for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, OLD_CLASS).or(class).unwrap_or("")
}

/// The volume's storage class; empty for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, OLD_CLASS).or(class).unwrap_or("")
}

/// Whether the claim is bound for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
    !named.is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// The node chosen for the claim's first pod.
pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE)
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    capacity.map(Quantity::from_api).unwrap_or_default()
}

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let request = resources.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    request.map(Quantity::from_api).unwrap_or_default()
}

/// Whether a reference names the claim, by uid if it has one.
pub fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().unwrap_or("");
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
}

/// Why a volume cannot be the claim's: size, class, modes; `None` if it can.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return Some("spec is missing") };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    if capacity(volume) < requested(claim) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Some("storageClassName does not match");
    }
    if mode(&has.volume_mode) != mode(&wants.volume_mode) {
        return Some("incompatible volumeMode");
    }
    let modes = has.access_modes.clone().unwrap_or_default();
    let all = wants.access_modes.iter().flatten().all(|mode| modes.contains(mode));
    (!all).then_some("incompatible accessMode")
}

/// Whether pods that use the volume may run on a node.
pub fn allows_node(volume: &PersistentVolume, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|selector| selects_node(selector, name, labels))
}

/// The volume for a claim: the one that is kept for it, else the smallest free one that fits. With `node`, only
/// volumes that can be reached there.
pub fn best_match(
    volumes: &[Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    node: Option<(&str, &BTreeMap<String, String>)>,
) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(LabelSelector::from_api);
    let reference = |volume: &PersistentVolume| volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
    let usable = |volume: &&Arc<PersistentVolume>| {
        volume.metadata.deletion_timestamp.is_none()
            && mismatch(volume, claim).is_none()
            && node.is_none_or(|(name, labels)| allows_node(volume, name, labels))
    };
    let kept = |volume: &&Arc<PersistentVolume>| reference(volume).is_some_and(|r| refers_to(&r, claim));
    if let Some(volume) = volumes.iter().filter(usable).find(kept) {
        return Some(volume.clone());
    }
    let free = |volume: &&Arc<PersistentVolume>| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
        let selected = match &selector {
            None => true,
            Some(Ok(selector)) => selector.matches_option(volume.metadata.labels.as_ref()),
            Some(Err(_)) => false,
        };
        reference(volume).is_none() && matches!(phase, "" | "Pending" | "Available") && selected
    };
    let found = volumes.iter().filter(usable).filter(free);
    found.min_by_key(|volume| (capacity(volume), volume.metadata.name.clone())).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, extra: &Value) -> Arc<PersistentVolume> {
        let mut spec = json!({ "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"] });
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).expect("a volume"),
        )
    }

    fn claim(extra: &Value) -> PersistentVolumeClaim {
        let mut spec =
            json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "2Gi" } } });
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let meta = json!({ "name": "c", "namespace": "ns", "uid": "u" });
        serde_json::from_value(json!({ "metadata": meta, "spec": spec })).expect("a claim")
    }

    #[test]
    fn the_smallest_free_volume_that_fits_is_taken_unless_one_is_kept() {
        let other = json!({ "claimRef": { "name": "x", "namespace": "ns" } });
        let own = json!({ "claimRef": { "name": "c", "namespace": "ns" } });
        let all = [
            volume("small", "1Gi", &json!({})),
            volume("large", "9Gi", &json!({})),
            volume("fits", "3Gi", &json!({})),
            volume("class", "2Gi", &json!({ "storageClassName": "fast" })),
            volume("taken", "2Gi", &other),
            volume("block", "2Gi", &json!({ "volumeMode": "Block" })),
        ];
        let pick = |volumes: &[Arc<PersistentVolume>], claim: &PersistentVolumeClaim| {
            best_match(volumes, claim, None).and_then(|v| v.metadata.name.clone())
        };
        assert_eq!(pick(&all, &claim(&json!({}))).as_deref(), Some("fits"));
        assert_eq!(pick(&all, &claim(&json!({ "storageClassName": "fast" }))).as_deref(), Some("class"));
        assert_eq!(pick(&all, &claim(&json!({ "accessModes": ["ReadWriteMany"] }))), None);
        let mut kept = all.to_vec();
        kept.push(volume("kept", "50Gi", &own));
        assert_eq!(pick(&kept, &claim(&json!({}))).as_deref(), Some("kept"));
    }

    #[test]
    fn a_local_volume_is_for_its_node() {
        let affinity = json!({ "nodeAffinity": { "required": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "host", "operator": "In", "values": ["a"] }] }] } } });
        let all = [volume("local", "3Gi", &affinity)];
        let labels = |host: &str| BTreeMap::from([("host".to_owned(), host.to_owned())]);
        assert!(best_match(&all, &claim(&json!({})), Some(("a", &labels("a")))).is_some());
        assert!(best_match(&all, &claim(&json!({})), Some(("b", &labels("b")))).is_none());
    }
}
