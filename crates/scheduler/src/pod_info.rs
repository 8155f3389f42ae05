//! A pod as the scheduler sees it: what plugins need, worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::placement::NodeTerm as Term;
use coracle_meta::pod;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, NodeSelector, Pod, PodSpec, Toleration};
use parking_lot::Mutex;
use serde_json::json;

use crate::pod_terms::{Labels, PodWishes};

/// What a container without requests counts for in scores: CPU in thousandths.
const DEFAULT_CPU: i64 = 100;
/// What a container without requests counts for in scores: bytes of memory.
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts of resources. Extended resources and huge pages are in `others`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU in thousandths.
    pub cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local storage.
    pub storage: i64,
    /// The others by name, in whole units.
    pub others: BTreeMap<String, i64>,
}

impl Amounts {
    /// From quantities by resource name; `pods` is left out.
    pub fn new<'a>(all: impl IntoIterator<Item = (&'a str, Quantity)>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in all {
            match name {
                "cpu" => amounts.cpu = i64::try_from(quantity.milli()).unwrap_or(i64::MAX),
                "memory" => amounts.memory = quantity.value(),
                "ephemeral-storage" => amounts.storage = quantity.value(),
                "pods" => {}
                _ => drop(amounts.others.insert(name.to_owned(), quantity.value())),
            }
        }
        amounts
    }

    /// Adds (`sign` 1) or takes away (`sign` -1).
    pub fn change(&mut self, by: &Self, sign: i64) {
        self.cpu += sign * by.cpu;
        self.memory += sign * by.memory;
        self.storage += sign * by.storage;
        for (name, amount) in &by.others {
            *self.others.entry(name.clone()).or_default() += sign * amount;
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.storage == 0 && self.others.values().all(|n| *n == 0)
    }
}

/// A port on the node that a pod occupies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Address; `0.0.0.0` is all.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let everywhere = |p: &Self| p.address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || everywhere(self) || everywhere(other))
    }
}

/// Where a pod may and would like to run.
#[derive(Clone, Debug, Default)]
pub struct NodeWishes {
    /// `spec.nodeSelector`.
    pub labels: BTreeMap<String, String>,
    /// Required terms, one of which must match; `None` without requirement.
    pub required: Option<Vec<Term>>,
    /// Preferred terms with their weights.
    pub preferred: Vec<(i64, Term)>,
}

impl NodeWishes {
    fn new(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let compile = |s: &NodeSelector| s.node_selector_terms.iter().map(Term::new).collect();
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred =
            affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        Self {
            labels: spec.node_selector.clone().unwrap_or_default(),
            required: required.map(compile),
            preferred: preferred
                .into_iter()
                .flatten()
                .filter(|p| p.weight != 0)
                .map(|p| (i64::from(p.weight), Term::new(&p.preference)))
                .collect(),
        }
    }
}

/// The newest state of a pod: an older one would be kept in memory for this scheduler alone.
#[derive(Debug)]
struct Latest(Mutex<Arc<Pod>>);

impl Clone for Latest {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }
}

/// Everything plugins ask of a pod.
#[derive(Clone, Debug)]
pub struct PodInfo {
    latest: Latest,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid: the pod's identity in queue and cache.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i64,
    /// Effective requests.
    pub requests: Amounts,
    /// CPU and memory with defaults for containers that request none: for scores.
    pub score_requests: (i64, i64),
    /// Ports on the node.
    pub ports: Vec<HostPort>,
    /// `spec.nodeName` as a wish of a pod that is not yet bound.
    pub node_name: String,
    /// Selector and affinity.
    pub wishes: NodeWishes,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Labels.
    pub labels: Labels,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// What it wants of other pods.
    pub peers: PodWishes,
    /// Names of `spec.schedulingGates`.
    pub gates: Vec<String>,
    /// Pods with equal shapes get equal verdicts and scores on every node.
    pub shape: Arc<str>,
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let mut found = Vec::new();
    let sidecars = spec.init_containers.iter().flatten().filter(|c| pod::is_restartable_init(c));
    for port in spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()) {
        let Some(number) = port.host_port.filter(|p| *p > 0) else { continue };
        let address = port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "::");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let address = address.unwrap_or_else(|| "0.0.0.0".into());
        found.push(HostPort { address, protocol, port: number });
    }
    found
}

/// Requests for scores: the sum over containers, or the largest init container if that is more.
fn score_requests(spec: &PodSpec) -> (i64, i64) {
    let of = |c: &Container| {
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let amount = |name: &str| requests.and_then(|r| r.get(name)).map(Quantity::from_api);
        let cpu = amount("cpu").map_or(DEFAULT_CPU, |q| i64::try_from(q.milli()).unwrap_or(i64::MAX));
        (cpu, amount("memory").map_or(DEFAULT_MEMORY, Quantity::value))
    };
    let (mut cpu, mut memory) = (0, 0);
    let inits = || spec.init_containers.iter().flatten();
    for (c, m) in spec.containers.iter().chain(inits().filter(|c| pod::is_restartable_init(c))).map(of) {
        (cpu, memory) = (cpu + c, memory + m);
    }
    for (c, m) in inits().filter(|c| !pod::is_restartable_init(c)).map(of) {
        (cpu, memory) = (cpu.max(c), memory.max(m));
    }
    let overhead = |name: &str| spec.overhead.as_ref().and_then(|o| o.get(name)).map(Quantity::from_api);
    cpu += overhead("cpu").map_or(0, |q| i64::try_from(q.milli()).unwrap_or(0));
    memory += overhead("memory").map_or(0, Quantity::value);
    (cpu, memory)
}

impl PodInfo {
    /// The object: what does not count for scheduling may be newer than the rest of this.
    pub fn pod(&self) -> Arc<Pod> {
        self.latest.0.lock().clone()
    }

    /// Takes a newer state in that is the same for scheduling.
    pub fn refresh(&self, pod: Arc<Pod>) {
        *self.latest.0.lock() = pod;
    }

    /// Whether it has wishes about other pods that matter to those that come after it.
    pub fn is_affine(&self) -> bool {
        !self.peers.near.is_empty() || !self.peers.apart.is_empty() || !self.peers.preferred.is_empty()
    }

    /// Works out what plugins ask.
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let quantities = pod::requests(&pod);
        let requests = Amounts::new(quantities.iter().map(|(name, q)| (name.as_str(), *q)));
        let meta = &pod.metadata;
        let ports = host_ports(spec);
        let images: Vec<&Option<String>> = spec.containers.iter().map(|c| &c.image).collect();
        let affinity = spec.affinity.as_ref().map(|a| &a.node_affinity);
        let numbers = (requests.cpu, requests.memory, requests.storage, &requests.others);
        let shape = json!([
            numbers,
            score_requests(spec),
            spec.node_name,
            spec.node_selector,
            affinity,
            spec.tolerations,
            images,
            ports.iter().map(|p| (&p.address, &p.protocol, p.port)).collect::<Vec<_>>(),
        ]);
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            priority: i64::from(spec.priority.unwrap_or(0)),
            score_requests: score_requests(spec),
            node_name: spec.node_name.clone().unwrap_or_default(),
            wishes: NodeWishes::new(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            leaving: meta.deletion_timestamp.is_some(),
            peers: PodWishes::new(&pod, spec),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.clone()).collect(),
            shape: shape.to_string().into(),
            requests,
            ports,
            latest: Latest(Mutex::new(pod)),
        }
    }
}
