//! Changes of pods and nodes, taken into cache and queue.

use std::sync::Arc;

use coracle_client::Change;
use coracle_meta::pod as meta_pod;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::cache::Cache;
use crate::framework::ClusterEvent;
use crate::pod_info::PodInfo;
use crate::queue::Queue;

/// What the scheduler knows.
#[derive(Debug)]
pub(crate) struct World {
    pub cache: Cache,
    pub queue: Queue,
    pub scheduler_name: String,
}

/// What matters of a node, compared field by field.
fn node_events(old: &Node, new: &Node) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    let taints = |n: &Node| n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable.unwrap_or(false)));
    if allocatable(old) != allocatable(new) {
        events.push(ClusterEvent::NodeAllocatable);
    }
    if old.metadata.labels != new.metadata.labels {
        events.push(ClusterEvent::NodeLabel);
    }
    if taints(old) != taints(new) {
        events.push(ClusterEvent::NodeTaint);
    }
    events
}

fn images(node: &Node) -> usize {
    node.status.as_ref().and_then(|s| s.images.as_ref()).map_or(0, Vec::len)
}

impl World {
    /// Takes a node's change in.
    pub fn node(&mut self, change: &Change<Node>, now: Timestamp) {
        match change {
            Change::Added(node) => {
                self.cache.set_node(node);
                self.queue.happened(ClusterEvent::NodeAdd, now);
            }
            Change::Modified { old, new } => {
                let events = node_events(old, new);
                // Heartbeats change nothing that plugins see.
                if !events.is_empty() || images(old) != images(new) {
                    self.cache.set_node(new);
                }
                events.into_iter().for_each(|event| self.queue.happened(event, now));
            }
            Change::Deleted(node) => self.cache.remove_node(node.metadata.name.as_deref().unwrap_or("")),
        }
    }

    /// Takes a namespace's change in.
    pub fn namespace(&mut self, change: &Change<Namespace>) {
        let namespace = change.object();
        let labels = match change {
            Change::Deleted(_) => None,
            _ => Some(namespace.metadata.labels.clone().unwrap_or_default()),
        };
        self.cache.set_namespace(namespace.metadata.name.as_deref().unwrap_or(""), labels);
    }

    /// Takes a claim's change in.
    pub fn claim(&mut self, change: &Change<PersistentVolumeClaim>, now: Timestamp) {
        match change {
            Change::Deleted(claim) => self.cache.volumes.remove_claim(claim),
            _ => self.cache.volumes.set_claim(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Volume, now);
    }

    /// Takes a volume's change in.
    pub fn volume(&mut self, change: &Change<PersistentVolume>, now: Timestamp) {
        match change {
            Change::Deleted(volume) => self.cache.volumes.remove_volume(volume),
            _ => self.cache.volumes.set_volume(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Volume, now);
    }

    /// Takes a storage class's change in.
    pub fn class(&mut self, change: &Change<StorageClass>, now: Timestamp) {
        match change {
            Change::Deleted(class) => self.cache.volumes.remove_class(class),
            _ => self.cache.volumes.set_class(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Volume, now);
    }

    /// Takes a resource claim's change in.
    pub fn resource_claim(&mut self, change: &Change<ResourceClaim>, now: Timestamp) {
        match change {
            Change::Deleted(claim) => self.cache.devices_mut().remove_claim(claim),
            _ => self.cache.devices_mut().set_claim(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Device, now);
    }

    /// Takes a device class's change in.
    pub fn device_class(&mut self, change: &Change<DeviceClass>, now: Timestamp) {
        match change {
            Change::Deleted(class) => self.cache.devices_mut().remove_class(class),
            _ => self.cache.devices_mut().set_class(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Device, now);
    }

    /// Takes a resource slice's change in.
    pub fn resource_slice(&mut self, change: &Change<ResourceSlice>, now: Timestamp) {
        match change {
            Change::Deleted(slice) => self.cache.devices_mut().remove_slice(slice),
            _ => self.cache.devices_mut().set_slice(change.object().clone()),
        }
        self.queue.happened(ClusterEvent::Device, now);
    }

    /// Takes a pod's change in.
    pub fn pod(&mut self, change: &Change<Pod>, now: Timestamp) {
        match change {
            Change::Added(pod) => self.set_pod(pod, true, now),
            Change::Modified { old, new } => {
                let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
                let relevant = old.spec != new.spec
                    || old.metadata.labels != new.metadata.labels
                    || leaves(old) != leaves(new);
                self.set_pod(new, relevant, now);
            }
            Change::Deleted(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or(""), now),
        }
    }

    fn remove_pod(&mut self, uid: &str, now: Timestamp) {
        self.queue.remove(uid);
        self.cache.forget_nomination(uid);
        if self.cache.remove_pod(uid) {
            self.queue.happened(ClusterEvent::AssignedPodDelete, now);
        }
    }

    fn set_pod(&mut self, pod: &Arc<Pod>, relevant: bool, now: Timestamp) {
        let uid = pod.metadata.uid.as_deref().unwrap_or("");
        if meta_pod::is_terminal(pod) {
            self.remove_pod(uid, now);
            return;
        }
        if let Some(node) = meta_pod::node_name(pod).filter(|n| !n.is_empty()) {
            self.queue.remove(uid);
            // The status of a running pod changes often; its requests hardly ever.
            if relevant || !self.cache.refresh(uid, pod) {
                let less = self.cache.set_pod(Arc::new(PodInfo::new(pod.clone())), node);
                self.queue.happened(ClusterEvent::AssignedPodAdd, now);
                if less {
                    self.queue.happened(ClusterEvent::AssignedPodDelete, now);
                }
            }
            return;
        }
        let scheduler =
            pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        if scheduler != self.scheduler_name || pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(uid);
            return;
        }
        if self.cache.has_pod(uid) {
            // Decided already; the change is older than the binding.
            return;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        // Room that was made before this scheduler started, or by another one.
        let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        match nominated.filter(|node| !node.is_empty()) {
            Some(node) => self.cache.nominate(info.clone(), node),
            None if relevant => self.cache.forget_nomination(uid),
            None => {}
        }
        self.queue.set(info, relevant, now);
    }
}
