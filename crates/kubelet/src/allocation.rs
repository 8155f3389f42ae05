//! What room the pods of this node have: who was admitted with which requests and limits.
//!
//! A pod's room is what it was admitted with, or what a later resize was granted. Everything in the kubelet works
//! with the pod as allocated; what the API asks for beyond that is a pending resize.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::admit::{self, NodeView};
use crate::names;
use crate::pod::{Role, containers};
use crate::state::Failure;

/// File in a pod's directory; there only once a resize was asked for.
const FILE: &str = "allocated.json";

/// Requests and limits of a pod and of its containers that can be resized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocated {
    pod: Option<ResourceRequirements>,
    containers: BTreeMap<String, ResourceRequirements>,
}

impl Allocated {
    /// What a pod's specification asks for.
    pub fn of(pod: &Pod) -> Self {
        let resizable = containers(pod).filter(|(_, role)| matches!(role, Role::App | Role::Sidecar));
        Self {
            pod: crate::pod::spec(pod).resources.clone(),
            containers: resizable
                .map(|(c, _)| (c.name.clone(), c.resources.clone().unwrap_or_default()))
                .collect(),
        }
    }

    /// The pod with these resources instead of its own.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if Self::of(pod) == *self {
            return pod.clone();
        }
        let mut pod = (**pod).clone();
        let Some(spec) = pod.spec.as_mut() else { return Arc::new(pod) };
        spec.resources.clone_from(&self.pod);
        let sidecars = spec.init_containers.iter_mut().flatten();
        let set = |c: &mut Container| {
            if let Some(resources) = self.containers.get(&c.name) {
                c.resources = Some(resources.clone());
            }
        };
        sidecars.for_each(set);
        spec.containers.iter_mut().for_each(set);
        Arc::new(pod)
    }

    /// What was kept in a pod's directory.
    pub fn load(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(directory.join(FILE)).ok()?).ok()
    }

    /// Keeps it in a pod's directory, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        crate::checkpoint::write(&directory.join(FILE), &text)
    }
}

/// The pods that take room on this node.
pub struct Allocations {
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    node: RwLock<NodeView>,
    /// Counts how often room was given back.
    freed: watch::Sender<u64>,
}

impl Allocations {
    /// An empty node.
    pub fn new(node: NodeView) -> Self {
        Self { pods: Mutex::default(), node: RwLock::new(node), freed: watch::Sender::new(0) }
    }

    /// The node has changed.
    pub fn set_node(&self, node: NodeView) {
        *self.node.write() = node;
        self.freed.send_modify(|count| *count += 1);
    }

    /// The node as it is now.
    pub fn node(&self) -> NodeView {
        self.node.read().clone()
    }

    /// Completes when room may have become free.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    /// Takes a pod in, or says why not. `adopted` pods ran here before: they are not asked again.
    ///
    /// # Errors
    /// Reason and message of the refusal.
    pub fn admit(&self, pod: &Arc<Pod>, adopted: bool, is_static: bool) -> Result<(), Failure> {
        let uid = names::uid(pod);
        let mut pods = self.pods.lock();
        if !adopted {
            let others: Vec<Arc<Pod>> =
                pods.iter().filter(|(other, _)| *other != uid).map(|(_, p)| p.clone()).collect();
            let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
            if let Some(refused) = admit::refusal(pod, &others, &self.node.read(), is_static) {
                return Err(refused);
            }
        }
        pods.insert(uid.to_owned(), pod.clone());
        Ok(())
    }

    /// A newer state of a pod that was taken in, with what it was granted.
    pub fn refresh(&self, pod: &Arc<Pod>) {
        if let Some(known) = self.pods.lock().get_mut(names::uid(pod)) {
            known.clone_from(pod);
        }
    }

    /// Grants a pod the resources of its new specification if they fit.
    ///
    /// # Errors
    /// Which resource is short.
    pub fn resize(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        let uid = names::uid(pod);
        let mut pods = self.pods.lock();
        let others: Vec<&Pod> = pods.iter().filter(|(other, _)| *other != uid).map(|(_, p)| &**p).collect();
        if let Some(refused) = admit::fit(pod, &others, &self.node.read()) {
            return Err(refused);
        }
        pods.insert(uid.to_owned(), pod.clone());
        drop(pods);
        self.freed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// A pod takes no room any more.
    pub fn forget(&self, uid: &str) {
        if self.pods.lock().remove(uid).is_some() {
            self.freed.send_modify(|count| *count += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_meta::quantity::Quantity;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &str) -> Arc<Pod> {
        let mut pod = crate::pod::tests::pod(json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": cpu}}}]}));
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    fn node() -> NodeView {
        let amounts = [("cpu", "2"), ("pods", "10")];
        NodeView {
            allocatable: amounts.map(|(k, v)| (k.to_owned(), Quantity::parse(v).expect("quantity"))).into(),
            ..NodeView::default()
        }
    }

    #[test]
    fn room_is_taken_by_admission_and_resize_and_given_back_by_the_end() {
        let room = Allocations::new(node());
        assert_eq!(room.admit(&pod("1", "1500m"), false, false), Ok(()));
        assert!(room.admit(&pod("2", "1"), false, false).is_err_and(|f| f.reason == "OutOfcpu"));
        assert_eq!(room.admit(&pod("2", "500m"), false, false), Ok(()));
        assert!(room.resize(&pod("2", "600m")).is_err());
        let mut freed = room.freed();
        freed.mark_unchanged();
        room.forget("1");
        assert!(freed.has_changed().expect("open"));
        assert_eq!(room.resize(&pod("2", "600m")), Ok(()));
    }

    #[test]
    fn a_pod_is_seen_with_what_it_was_given() {
        let given = Allocated::of(&pod("1", "1"));
        let asked = pod("1", "2");
        let seen = given.apply(&asked);
        assert_eq!(Allocated::of(&seen), given);
        let dir = tempfile::tempdir().expect("directory");
        given.save(dir.path()).expect("saved");
        assert_eq!(Allocated::load(dir.path()), Some(given));
        assert!(Arc::ptr_eq(&Allocated::of(&asked).apply(&asked), &asked));
    }
}
