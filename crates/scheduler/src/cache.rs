//! The nodes and what runs, or is about to run, on them. Kept up to date change by change; nothing is
//! rescanned.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use crate::devices::Devices;
use crate::pod_info::{Amounts, HostPort, PodInfo};
use crate::pod_terms::Labels;
use crate::volumes::Volumes;

/// A node with the sums over its pods.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// What it has to give.
    pub allocatable: Amounts,
    /// How many pods it takes.
    pub allowed_pods: i64,
    /// What its pods request.
    pub requested: Amounts,
    /// What its pods count for in scores: CPU and memory.
    pub score_requested: (i64, i64),
    /// Its pods, assumed ones included.
    pub pods: i64,
    /// Ports that its pods occupy.
    pub ports: Vec<HostPort>,
    /// The pods themselves.
    pub placed: Vec<Arc<PodInfo>>,
    /// Images that it has, with their sizes.
    pub images: HashMap<String, i64>,
    /// Whether the API has the node. Without it, only the pods are known.
    present: bool,
}

impl NodeInfo {
    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            allocatable: Amounts::default(),
            allowed_pods: 0,
            requested: Amounts::default(),
            score_requested: (0, 0),
            pods: 0,
            ports: Vec::new(),
            placed: Vec::new(),
            images: HashMap::new(),
            present: false,
        }
    }

    /// A node without pods.
    pub fn of(node: &Node) -> Self {
        let mut info = Self::empty(node.metadata.name.as_deref().unwrap_or(""));
        info.set(node);
        info
    }

    fn set(&mut self, node: &Node) {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        self.unschedulable = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        let quantities =
            allocatable.into_iter().flatten().map(|(name, q)| (name.as_str(), Quantity::from_api(q)));
        self.allocatable = Amounts::new(quantities);
        self.allowed_pods =
            allocatable.and_then(|a| a.get("pods")).map_or(0, |q| Quantity::from_api(q).value());
        self.images.clear();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                self.images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        self.present = true;
    }

    /// Counts a pod in (`sign` 1) or out (`sign` -1).
    pub fn change(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.change(&pod.requests, sign);
        self.score_requested.0 += sign * pod.score_requests.0;
        self.score_requested.1 += sign * pod.score_requests.1;
        self.pods += sign;
        for port in &pod.ports {
            if sign > 0 {
                self.ports.push(port.clone());
            } else if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

/// Where a pod is counted.
#[derive(Clone, Debug)]
struct Placed {
    node: String,
    info: Arc<PodInfo>,
    /// The decision is ours and the API has not confirmed it.
    assumed: bool,
}

/// Nodes in slots that stay, so that evaluations can refer to them by number.
#[derive(Debug, Default)]
pub struct Cache {
    slots: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    free: Vec<usize>,
    pods: HashMap<String, Placed>,
    present: usize,
    /// Slots in the order of their changes; the first has number `oldest`.
    log: VecDeque<usize>,
    oldest: u64,
    /// How many pods have wishes about others.
    affine: usize,
    namespaces: HashMap<String, Labels>,
    /// Claims, volumes and classes.
    pub volumes: Volumes,
    /// Resource claims, device classes and resource slices.
    pub devices: Arc<Devices>,
    /// By uid: pods for which room is being made, and the node.
    nominated: BTreeMap<String, (Arc<PodInfo>, String)>,
}

static NO_LABELS: Labels = Labels::new();

impl Cache {
    fn changed(&mut self, slot: usize) {
        self.log.push_back(slot);
        while self.log.len() > 1024.max(4 * self.slots.len()) {
            self.log.pop_front();
            self.oldest += 1;
        }
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let info = NodeInfo::empty(name);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = info;
                slot
            }
            None => {
                self.slots.push(info);
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    fn release_if_unused(&mut self, slot: usize) {
        if !self.slots[slot].present && self.slots[slot].pods == 0 {
            self.by_name.remove(&self.slots[slot].name);
            self.slots[slot] = NodeInfo::empty("");
            self.free.push(slot);
        }
    }

    /// How many nodes the API has.
    pub fn node_count(&self) -> usize {
        self.present
    }

    /// How many slots there are; some may be empty.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The node in a slot, if the API has it.
    pub fn node(&self, slot: usize) -> Option<&NodeInfo> {
        self.slots.get(slot).filter(|n| n.present)
    }

    /// What is known of devices, to be changed.
    pub fn devices_mut(&mut self) -> &mut Devices {
        Arc::make_mut(&mut self.devices)
    }

    /// The slot of a node that the API has.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|slot| self.slots[*slot].present)
    }

    /// Takes a node in, new or changed.
    pub fn set_node(&mut self, node: &Node) {
        let slot = self.slot(node.metadata.name.as_deref().unwrap_or(""));
        self.present += usize::from(!self.slots[slot].present);
        self.slots[slot].set(node);
        self.changed(slot);
    }

    /// Forgets a node. Its pods stay counted until they go.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.find(name) else { return };
        self.present -= 1;
        self.slots[slot].present = false;
        self.changed(slot);
        self.release_if_unused(slot);
    }

    /// All nodes that the API has.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.slots.iter().filter(|node| node.present)
    }

    /// Whether any pod on a node has wishes about others.
    pub fn has_affine_pods(&self) -> bool {
        self.affine > 0
    }

    /// A namespace's labels.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        self.namespaces.get(name).unwrap_or(&NO_LABELS)
    }

    /// Takes a namespace's labels in; none when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
    }

    /// Keeps room on a node for a pod, against pods of lower priority.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.nominated.insert(pod.uid.clone(), (pod, node.to_owned()));
    }

    /// Keeps no room for the pod any more.
    pub fn forget_nomination(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// The node where room is kept for a pod.
    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|(_, node)| node.as_str())
    }

    /// By slot: the other pods of at least this priority for which room is kept.
    pub fn nominated_against(&self, pod: &PodInfo) -> BTreeMap<usize, Vec<Arc<PodInfo>>> {
        let mut by_slot: BTreeMap<usize, Vec<Arc<PodInfo>>> = BTreeMap::new();
        for (other, node) in self.nominated.values() {
            if other.uid != pod.uid
                && other.priority >= pod.priority
                && let Some(slot) = self.find(node)
            {
                by_slot.entry(slot).or_default().push(other.clone());
            }
        }
        by_slot
    }

    fn place(&mut self, info: Arc<PodInfo>, node: &str, assumed: bool) {
        self.forget_nomination(&info.uid);
        self.affine += usize::from(info.is_affine());
        let slot = self.slot(node);
        self.slots[slot].change(&info, 1);
        self.slots[slot].placed.push(info.clone());
        self.changed(slot);
        self.pods.insert(info.uid.clone(), Placed { node: node.to_owned(), info, assumed });
    }

    /// Counts a decision on its node before the API knows of it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.place(pod, node, true);
    }

    /// Takes a decision back, unless the API confirmed it meanwhile. Whether it did.
    pub fn forget(&mut self, uid: &str) -> bool {
        let assumed = self.pods.get(uid).is_some_and(|p| p.assumed);
        if assumed {
            self.remove_pod(uid);
        }
        assumed
    }

    /// Whether the pod is counted on a node.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Takes in a bound pod from the API; confirms an assumed one. Whether it needs less than before.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) -> bool {
        if let Some(placed) = self.pods.get_mut(&pod.uid) {
            let same = placed.node == node
                && placed.info.requests == pod.requests
                && placed.info.score_requests == pod.score_requests
                && placed.info.ports == pod.ports
                && placed.info.labels == pod.labels
                && placed.info.leaving == pod.leaving;
            if same {
                placed.assumed = false;
                placed.info.refresh(pod.pod());
                return false;
            }
            let before = placed.info.requests.clone();
            let less = pod.requests.cpu < before.cpu || pod.requests.memory < before.memory;
            self.remove_pod(&pod.uid.clone());
            self.place(pod, node, false);
            return less;
        }
        self.place(pod, node, false);
        false
    }

    /// Takes in a change of a pod that does not count for scheduling. Whether the pod is known.
    pub fn refresh(&self, uid: &str, pod: &Arc<Pod>) -> bool {
        let placed = self.pods.get(uid);
        placed.inspect(|placed| placed.info.refresh(pod.clone())).is_some()
    }

    /// Forgets a pod. Whether it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.pods.remove(uid) else { return false };
        self.affine -= usize::from(placed.info.is_affine());
        if let Some(slot) = self.by_name.get(&placed.node).copied() {
            self.slots[slot].change(&placed.info, -1);
            self.slots[slot].placed.retain(|pod| pod.uid != uid);
            self.changed(slot);
            self.release_if_unused(slot);
        }
        true
    }

    /// The number of the newest change.
    pub fn version(&self) -> u64 {
        self.oldest + self.log.len() as u64
    }

    /// The slots changed since a version, possibly with repetitions; `None` when that is too long ago.
    pub fn changes_since(&self, version: u64) -> Option<impl Iterator<Item = usize> + '_> {
        let skip = usize::try_from(version.checked_sub(self.oldest)?).ok()?;
        Some(self.log.iter().skip(skip).copied())
    }
}
