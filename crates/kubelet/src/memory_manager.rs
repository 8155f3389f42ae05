//! The memory manager: under its static policy guaranteed pods have their memory from as few memory nodes as can be,
//! and nobody else is promised it.

mod book;
mod state;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use coracle_cri::v1::LinuxResources;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tracing::warn;

use crate::checkpoint;
use crate::pod::{Role, containers};
use crate::state::Failure;
use crate::topology_manager::{Counts, Hint, HintProvider, Hints, NumaNode};
use book::{Amounts, Book, Reserved};
pub use state::Block;
use state::State;

/// Name of upstream's state file, in whose form it is kept.
const STATE: &str = "memory_manager_state";

/// Where memory comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// From anywhere.
    #[default]
    None,
    /// From nodes chosen for each container of guaranteed pods.
    Static,
}

impl MemoryPolicy {
    /// As upstream's configuration and files name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Static => "Static",
        }
    }
}

/// Memory of one node that is not for pods.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryReservation {
    /// The node.
    pub node: u32,
    /// How much of which kind.
    pub limits: BTreeMap<String, Quantity>,
}

/// The memory manager.
#[derive(Debug)]
pub struct MemoryManager {
    policy: MemoryPolicy,
    path: PathBuf,
    book: Mutex<Book>,
    /// Containers that asked, and those that were refused.
    pub counts: Counts,
}

fn is_memory(name: &str) -> bool {
    name == "memory" || name.starts_with("hugepages-")
}

fn size(amount: &Quantity) -> u64 {
    amount.value().max(0).unsigned_abs()
}

/// What a container asks for.
fn asks(container: &Container) -> Amounts {
    let requests = crate::container::resources::requests(container);
    requests.iter().filter(|(name, _)| is_memory(name)).map(|(name, q)| (name.clone(), size(q))).collect()
}

/// What a pod asks for at the most at one time.
fn asks_of_pod(pod: &Pod) -> Amounts {
    let (mut running, mut starting, mut sidecars) = (Amounts::new(), Amounts::new(), Amounts::new());
    for (container, role) in containers(pod) {
        for (kind, size) in asks(container) {
            match role {
                Role::Init => {
                    let beside = sidecars.get(&kind).copied().unwrap_or(0);
                    let peak = starting.entry(kind).or_default();
                    *peak = (*peak).max(beside + size);
                }
                Role::Sidecar => *sidecars.entry(kind).or_default() += size,
                Role::App | Role::Ephemeral => *running.entry(kind).or_default() += size,
            }
        }
    }
    let of = |amounts: &Amounts, kind: &str| amounts.get(kind).copied().unwrap_or(0);
    let peak = |kind: &String| (of(&running, kind) + of(&sidecars, kind)).max(of(&starting, kind));
    running.keys().map(|kind| (kind.clone(), peak(kind))).collect()
}

/// Checks that what is kept back on the nodes is what is kept back in all.
fn reserved(
    nodes: &[NumaNode],
    in_all: &BTreeMap<String, Quantity>,
    by_node: &[MemoryReservation],
) -> Result<Reserved, String> {
    let mut totals = Amounts::new();
    let mut found = Reserved::new();
    for MemoryReservation { node, limits } in by_node {
        if !nodes.iter().any(|n| n.id == *node) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
            ));
        }
        for (kind, amount) in limits {
            *totals.entry(kind.clone()).or_default() += size(amount);
            found.entry(*node).or_default().insert(kind.clone(), size(amount));
        }
    }
    for kind in in_all.keys().filter(|kind| is_memory(kind)) {
        totals.entry(kind.clone()).or_default();
    }
    for (kind, total) in &totals {
        let wanted = in_all.get(kind).map_or(0, size);
        if *total != wanted {
            let text = |n: u64| Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX)).to_api().0;
            return Err(format!(
                "the total amount {:?} of type {kind:?} is not equal to the value {:?} determined by Node Allocatable \
                 feature",
                text(*total),
                text(wanted)
            ));
        }
    }
    if totals.get("memory").is_none_or(|n| *n == 0) {
        return Err("[memorymanager] you should specify the system reserved memory".into());
    }
    Ok(found)
}

impl MemoryManager {
    /// With what pods of earlier runs have. `in_all` is what of the machine is not for pods, `by_node` where that is.
    ///
    /// # Errors
    /// The policy cannot be followed so; upstream's text.
    pub fn open(
        policy: MemoryPolicy,
        nodes: &[NumaNode],
        in_all: &BTreeMap<String, Quantity>,
        by_node: &[MemoryReservation],
        root: &Path,
    ) -> Result<Self, String> {
        let mut book = match policy {
            MemoryPolicy::None => Book::default(),
            MemoryPolicy::Static => Book::new(nodes, &reserved(nodes, in_all, by_node)?),
        };
        let path = root.join(STATE);
        let old: Option<State> = checkpoint::load(&path, policy.name())?;
        if let (Some(old), MemoryPolicy::Static) = (old, policy) {
            book.restore(&old.machine_state, old.entries)?;
        }
        let manager = Self { policy, path, book: book.into(), counts: Counts::default() };
        manager.save(&manager.book.lock()).map_err(|e| format!("cannot write {:?}: {e}", manager.path))?;
        Ok(manager)
    }

    fn save(&self, book: &Book) -> std::io::Result<()> {
        let state = State {
            policy_name: self.policy.name().to_owned(),
            machine_state: book.machine().clone(),
            entries: book.entries().clone(),
            checksum: 0,
        };
        checkpoint::save(&self.path, state)
    }

    fn changed(&self, book: &Book) {
        if let Err(error) = self.save(book) {
            warn!(%error, "who has which memory is not written down");
        }
    }

    /// Whether a container's place is chosen at all.
    fn cares(&self, pod: &Pod) -> bool {
        self.policy == MemoryPolicy::Static
            && coracle_meta::pod::qos(pod) == "Guaranteed"
            && crate::pod::spec(pod).resources.is_none()
    }

    /// The policy.
    pub const fn policy(&self) -> MemoryPolicy {
        self.policy
    }

    /// What a container has.
    pub fn blocks(&self, uid: &str, container: &str) -> Vec<Block> {
        self.book.lock().blocks(uid, container).cloned().unwrap_or_default()
    }

    /// What there is for pods, per node and kind.
    pub fn allocatable(&self) -> Vec<Block> {
        let book = self.book.lock();
        let of = |(id, node): (&u32, &state::NodeState)| -> Vec<Block> {
            let some = node.memory_map.iter().filter(|(_, table)| table.allocatable > 0);
            let block = |(kind, table): (&String, &state::Table)| Block {
                nodes: vec![*id],
                kind: kind.clone(),
                size: table.allocatable,
            };
            some.map(block).collect()
        };
        book.machine().iter().flat_map(of).collect()
    }

    /// Binds a container to the nodes of its memory.
    pub fn apply(&self, uid: &str, container: &str, resources: &mut LinuxResources) {
        let mut nodes: Vec<u32> = self.blocks(uid, container).into_iter().flat_map(|b| b.nodes).collect();
        nodes.sort_unstable();
        nodes.dedup();
        if !nodes.is_empty() {
            resources.cpuset_mems = nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        }
    }

    /// No other pods than these are left of those that an earlier kubelet ran.
    pub fn retain(&self, known: &HashSet<String>) {
        let mut book = self.book.lock();
        if book.keep(|uid| known.contains(uid)) {
            self.changed(&book);
        }
    }
}

#[async_trait]
impl HintProvider for MemoryManager {
    fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        if self.cares(pod) { self.book.lock().hints(pod, container) } else { Hints::new() }
    }

    fn pod_hints(&self, pod: &Pod) -> Hints {
        if self.cares(pod) { self.book.lock().pod_hints(pod) } else { Hints::new() }
    }

    async fn allocate(&self, pod: &Pod, container: &Container, near: Hint) -> Result<(), Failure> {
        if !self.cares(pod) {
            return Ok(());
        }
        let mut book = self.book.lock();
        let given = book.allocate(pod, container, near);
        self.counts.note(&given);
        if given.map_err(Failure::unexpected)? {
            self.changed(&book);
        }
        Ok(())
    }

    fn starts(&self, pod: &Pod, container: &Container) {
        let mut book = self.book.lock();
        if book.starts(pod, container) {
            self.changed(&book);
        }
    }

    fn forget(&self, uid: &str) {
        let mut book = self.book.lock();
        if book.keep(|other| other != uid) {
            self.changed(&book);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn machine() -> Vec<NumaNode> {
        let node = |id| NumaNode { id, memory: 4 << 30, ..NumaNode::default() };
        vec![node(0), node(1)]
    }

    fn quantities(text: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        text.iter().map(|(k, v)| ((*k).to_owned(), Quantity::parse(v).expect("a quantity"))).collect()
    }

    fn open(in_all: &str, by_node: &[(u32, &str)], dir: &Path) -> Result<MemoryManager, String> {
        let reservation = |(node, amount): &(u32, &str)| MemoryReservation {
            node: *node,
            limits: quantities(&[("memory", amount)]),
        };
        let by_node: Vec<_> = by_node.iter().map(reservation).collect();
        MemoryManager::open(
            MemoryPolicy::Static,
            &machine(),
            &quantities(&[("memory", in_all)]),
            &by_node,
            dir,
        )
    }

    #[test]
    fn what_nodes_keep_back_must_be_what_is_kept_back_in_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let refused = |in_all, by_node: &[(u32, &str)]| open(in_all, by_node, dir.path()).unwrap_err();
        assert_eq!(
            refused("1124Mi", &[(0, "1Gi")]),
            "the total amount \"1Gi\" of type \"memory\" is not equal to the value \"1124Mi\" determined by Node \
             Allocatable feature"
        );
        let unknown =
            "the reserved memory configuration references a NUMA node 7 that does not exist on this machine";
        assert_eq!(refused("1Gi", &[(7, "1Gi")]), unknown);
        let nothing = "[memorymanager] you should specify the system reserved memory";
        assert_eq!(refused("0", &[]), nothing);
        assert!(open("1Gi", &[(0, "512Mi"), (1, "512Mi")], dir.path()).is_ok());
    }

    #[tokio::test]
    async fn containers_are_bound_to_their_nodes_and_a_later_kubelet_knows_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || open("1Gi", &[(0, "1Gi")], dir.path()).expect("opened");
        let manager = open();
        let amounts = json!({"cpu": "1", "memory": "3500Mi"});
        let mut pod = crate::pod::tests::pod(json!({"containers": [
            {"name": "a", "resources": {"requests": amounts, "limits": amounts}}]}));
        pod.metadata.uid = Some("p".into());
        let container = &crate::pod::spec(&pod).containers[0];
        assert_eq!(manager.allocate(&pod, container, Hint::default()).await, Ok(()));
        let mut resources = LinuxResources::default();
        open().apply("p", "a", &mut resources);
        assert_eq!(resources.cpuset_mems, "1", "node 0 has only 3 Gi for pods");
        manager.forget("p");
        assert!(open().blocks("p", "a").is_empty());
        let none = MemoryManager::open(MemoryPolicy::None, &machine(), &BTreeMap::new(), &[], dir.path());
        assert!(none.unwrap_err().contains("differs from state checkpoint policy \"Static\""));
    }

    #[test]
    fn without_a_policy_the_file_says_so_as_upstreams_does() {
        let dir = tempfile::tempdir().expect("a directory");
        MemoryManager::open(MemoryPolicy::None, &machine(), &BTreeMap::new(), &[], dir.path())
            .expect("opened");
        let text = std::fs::read_to_string(dir.path().join(STATE)).expect("read");
        assert_eq!(text, r#"{"policyName":"None","machineState":{},"checksum":4236770233}"#);
    }
}
