//! VolumeBinding: a pod runs only where its volumes can be had; claims that wait for their first pod are told the node.

use std::sync::Arc;

use coracle_meta::volume::{allows_node, best_match, class_of_claim, is_bound};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, ClusterWide, PluginDef, PreFilter, Prepared, Verdict, events};
use crate::pod_info::PodInfo;
use crate::pod_terms::Labels;

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[
        ClusterEvent::NodeAdd,
        ClusterEvent::NodeLabel,
        ClusterEvent::Volume,
        ClusterEvent::PodUpdate,
    ]),
    pre_filter: Some(&VolumeBinding),
    cluster_wide: Some(&VolumeBinding),
    ..PluginDef::named("VolumeBinding")
};

struct VolumeBinding;

/// Classes of this provisioner have volumes that an administrator makes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Names of the claims that a pod uses, and whether each was made for the pod.
fn claims_of(pod: &PodInfo) -> Vec<(String, bool)> {
    let object = pod.pod();
    let volumes = object.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let name = |volume: &k8s_openapi::api::core::v1::Volume| match (
        &volume.persistent_volume_claim,
        &volume.ephemeral,
    ) {
        (Some(claim), _) => Some((claim.claim_name.clone(), false)),
        (None, Some(_)) => Some((format!("{}-{}", pod.name, volume.name), true)),
        (None, None) => None,
    };
    volumes.filter_map(name).collect()
}

/// Whether the claim gets its volume only when a pod that uses it has a node.
fn is_delayed(cache: &Cache, claim: &PersistentVolumeClaim) -> bool {
    let class = cache.volumes.class(class_of_claim(claim));
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// The pod's claims that are bound when its node is known.
pub fn delayed_claims(pod: &PodInfo, cache: &Cache) -> Vec<String> {
    let waits = |(name, _): &(String, bool)| {
        cache.volumes.claim(&pod.namespace, name).is_some_and(|c| !is_bound(c) && is_delayed(cache, c))
    };
    claims_of(pod).into_iter().filter(waits).map(|(name, _)| name).collect()
}

impl PreFilter for VolumeBinding {
    fn pre_filter(&self, pod: &PodInfo, cache: &Cache) -> Option<String> {
        let mut unbound = false;
        for (name, own) in claims_of(pod) {
            let Some(claim) = cache.volumes.claim(&pod.namespace, &name) else {
                return Some(match own {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    ),
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                let volume =
                    claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
                return Some(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            unbound |= !is_bound(claim) && !is_delayed(cache, claim);
        }
        unbound.then(|| "pod has unbound immediate PersistentVolumeClaims".to_owned())
    }
}

#[derive(Clone)]
struct Wanted {
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims to be bound, and whether somebody makes volumes for them.
    delayed: Vec<(Arc<PersistentVolumeClaim>, bool)>,
    volumes: Vec<Arc<PersistentVolume>>,
}

impl ClusterWide for VolumeBinding {
    fn prepare(&self, pod: &PodInfo, cache: &Cache) -> Option<Box<dyn Prepared>> {
        let claims = claims_of(pod);
        if claims.is_empty() {
            return None;
        }
        let mut wanted = Wanted { bound: Vec::new(), delayed: Vec::new(), volumes: Vec::new() };
        for (name, _) in claims {
            let Some(claim) = cache.volumes.claim(&pod.namespace, &name) else { continue };
            if is_bound(claim) {
                let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
                wanted.bound.extend(cache.volumes.volume(volume).cloned());
            } else {
                let class = cache.volumes.class(class_of_claim(claim));
                let made = class.is_some_and(|class| class.provisioner != NO_PROVISIONER);
                wanted.delayed.push((claim.clone(), made));
            }
        }
        if wanted.delayed.iter().any(|(_, made)| !made) {
            wanted.volumes = cache.volumes.all();
        }
        Some(Box::new(wanted))
    }
}

impl Prepared for Wanted {
    fn filter(&self, _: &PodInfo, node: &NodeInfo) -> Verdict {
        if !self.bound.iter().all(|volume| allows_node(volume, &node.name, &node.labels)) {
            return Verdict::unresolvable("node(s) had volume node affinity conflict");
        }
        let here = Some((node.name.as_str(), &node.labels));
        let lacks = |(claim, made): &(Arc<PersistentVolumeClaim>, bool)| {
            !made && best_match(&self.volumes, claim, here).is_none()
        };
        if self.delayed.iter().any(lacks) {
            return Verdict::unresolvable("node(s) didn't find available persistent volumes to bind");
        }
        Verdict::Success
    }

    fn change(&mut self, _: &PodInfo, _: &PodInfo, _: &Labels, _: &NodeInfo, _: i64) {}

    fn duplicate(&self) -> Box<dyn Prepared> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cycle::Cycle;
    use crate::plugins;

    fn look(objects: &[Value]) -> Result<String, String> {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name, "labels": {"host": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            cache.set_node(&serde_json::from_value(node).expect("node"));
        }
        for object in objects {
            match object["kind"].as_str() {
                Some("PersistentVolume") => {
                    cache
                        .volumes
                        .set_volume(Arc::new(serde_json::from_value(object.clone()).expect("volume")));
                }
                Some("StorageClass") => {
                    cache.volumes.set_class(Arc::new(serde_json::from_value(object.clone()).expect("class")));
                }
                _ => {
                    cache.volumes.set_claim(Arc::new(serde_json::from_value(object.clone()).expect("claim")))
                }
            }
        }
        let pod = plugins::testing::pod(json!({"volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}));
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|_| 0));
        let slot = cycle.schedule(&pod, &cache).map_err(|e| e.to_string())?;
        Ok(cache.node(slot).expect("node").name.clone())
    }

    fn claim(class: &str, volume: &str) -> Value {
        json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "default",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"storageClassName": class, "volumeName": volume, "accessModes": ["ReadWriteOnce"]}})
    }

    fn volume(host: &str) -> Value {
        json!({"kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {"storageClassName": "local",
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "host", "operator": "In", "values": [host]}]}]}}}})
    }

    #[test]
    fn volumes_decide_where_a_pod_runs() {
        let message = "0/2 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/2 nodes are \
                       available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(look(&[]), Err(message.into()));
        assert_eq!(look(&[claim("local", "pv"), volume("b")]).as_deref(), Ok("b"));
        let conflict = look(&[claim("local", "pv"), volume("nowhere")]).expect_err("no node");
        assert!(
            conflict.starts_with("0/2 nodes are available: 2 node(s) had volume node affinity conflict.")
        );
        let unbound = look(&[claim("", "")]).expect_err("not bound");
        assert!(
            unbound.starts_with("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
        );
        let class = json!({"kind": "StorageClass", "metadata": {"name": "local"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
        assert_eq!(look(&[claim("local", ""), volume("b"), class.clone()]).as_deref(), Ok("b"));
        let none = look(&[claim("local", ""), class]).expect_err("no volume");
        assert!(none.contains("2 node(s) didn't find available persistent volumes to bind"), "{none}");
    }
}
