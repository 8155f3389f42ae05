//! Pods on made-up machines: CPUs, memory and devices that are near each other, or not.

use coracle_meta::quantity::Quantity;
use serde_json::{Value, json};

use super::*;
use crate::cpus::{CpuPolicy, Cpus, Topology};
use crate::memory_manager::{MemoryManager, MemoryPolicy, MemoryReservation};

/// A machine of two nodes with four CPUs and 4 Gi each; CPU 0 and 1 Gi of the first are not for pods.
struct Machine {
    cpus: Cpus,
    memory: MemoryManager,
    manager: TopologyManager,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new(policy: TopologyPolicy, scope: TopologyScope) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let nodes: Vec<NumaNode> =
            (0..2).map(|id| NumaNode { id, memory: 4 << 30, ..NumaNode::default() }).collect();
        let policy_of_cpus = CpuPolicy::Static(Default::default());
        let cpus =
            Cpus::open(policy_of_cpus, Topology::made_up(2, 4), None, 1, Default::default(), dir.path());
        let gi = || BTreeMap::from([("memory".to_owned(), Quantity::from_bytes(1 << 30))]);
        let kept = [MemoryReservation { node: 0, limits: gi() }];
        let memory = MemoryManager::open(MemoryPolicy::Static, &nodes, &gi(), &kept, dir.path());
        let config = TopologyConfig { policy, scope, ..TopologyConfig::NONE };
        Self {
            cpus: cpus.expect("CPUs"),
            memory: memory.expect("memory"),
            manager: TopologyManager::new(config, nodes).expect("a manager"),
            _dir: dir,
        }
    }

    async fn admit(&self, pod: &Pod) -> Result<(), Failure> {
        self.manager.admit(&[&self.cpus, &self.memory], pod).await
    }

    /// CPUs and memory nodes of a container.
    fn of(&self, uid: &str, container: &str) -> (String, Vec<u32>) {
        let nodes = self.memory.blocks(uid, container).into_iter().flat_map(|b| b.nodes).collect();
        (self.cpus.own(uid, container).to_string(), nodes)
    }
}

fn container(name: &str, cpu: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(uid: &str, containers: &[Value]) -> Pod {
    let mut pod = crate::pod::tests::pod(json!({"containers": containers}));
    pod.metadata.uid = Some(uid.into());
    pod
}

#[tokio::test]
async fn cpus_come_from_the_node_that_has_the_memory() {
    let machine = Machine::new(TopologyPolicy::SingleNumaNode, TopologyScope::Container);
    let big = pod("big", &[container("c", "2", "3500Mi")]);
    assert_eq!(machine.admit(&big).await, Ok(()));
    assert_eq!(machine.of("big", "c"), ("4-5".into(), vec![1]), "only node 1 has so much memory");
    let four = machine.admit(&pod("four", &[container("c", "4", "100Mi")])).await.unwrap_err();
    assert_eq!(four.reason, "TopologyAffinityError");
    assert_eq!(four.message, "Resources cannot be allocated with Topology locality");
    assert_eq!(machine.manager.counts.read(), (2, 1));
    assert_eq!(machine.admit(&pod("three", &[container("c", "3", "1Gi")])).await, Ok(()));
    assert_eq!(machine.of("three", "c"), ("1-3".into(), vec![0]));
}

#[tokio::test]
async fn a_pod_whose_second_container_is_refused_keeps_nothing() {
    let machine = Machine::new(TopologyPolicy::Restricted, TopologyScope::Container);
    let both = pod("both", &[container("a", "3", "1Gi"), container("b", "5", "1Gi")]);
    assert!(machine.admit(&both).await.is_err());
    assert_eq!(machine.of("both", "a"), (String::new(), Vec::new()));
    let rest = pod("rest", &[container("a", "3", "1Gi"), container("b", "4", "1Gi")]);
    assert_eq!(machine.admit(&rest).await, Ok(()));
    assert_eq!((machine.of("rest", "a").0, machine.of("rest", "b").0), ("1-3".into(), "4-7".into()));
}

#[tokio::test]
async fn the_containers_of_a_pod_are_together_if_the_scope_is_the_pod() {
    let two = pod("two", &[container("a", "2", "1Gi"), container("b", "2", "1Gi")]);
    let apart = Machine::new(TopologyPolicy::SingleNumaNode, TopologyScope::Container);
    assert_eq!(apart.admit(&two).await, Ok(()));
    assert_eq!((apart.of("two", "a").1, apart.of("two", "b").1), (vec![0], vec![1]));
    let together = Machine::new(TopologyPolicy::SingleNumaNode, TopologyScope::Pod);
    assert_eq!(together.admit(&two).await, Ok(()));
    assert_eq!(together.of("two", "a"), ("4-5".into(), vec![1]));
    assert_eq!(together.of("two", "b"), ("6-7".into(), vec![1]));
    let wide = pod("wide", &[container("a", "2", "100Mi"), container("b", "2", "100Mi")]);
    assert_eq!(together.admit(&wide).await.unwrap_err().reason, "TopologyAffinityError");
}

#[tokio::test]
async fn best_effort_takes_what_is_left() {
    let machine = Machine::new(TopologyPolicy::BestEffort, TopologyScope::Container);
    assert_eq!(machine.admit(&pod("p", &[container("c", "7", "1Gi")])).await, Ok(()));
    assert_eq!(machine.of("p", "c").0, "1-7");
    let full = machine.admit(&pod("q", &[container("c", "1", "1Gi")])).await.unwrap_err();
    assert_eq!(full.reason, "UnexpectedAdmissionError");
    let why = "Allocate failed due to not enough cpus available to satisfy request: requested=1, available=0, which \
               is unexpected";
    assert_eq!(full.message, why);
}

#[tokio::test]
async fn pods_that_are_not_guaranteed_have_no_place() {
    let machine = Machine::new(TopologyPolicy::SingleNumaNode, TopologyScope::Container);
    let burstable = json!({"name": "c", "resources": {"requests": {"cpu": "7", "memory": "7Gi"}}});
    assert_eq!(machine.admit(&pod("p", &[burstable])).await, Ok(()));
    assert_eq!(machine.of("p", "c"), (String::new(), Vec::new()));
}

#[test]
fn a_machine_with_too_many_nodes_is_refused() {
    let nodes: Vec<NumaNode> = (0..9).map(|id| NumaNode { id, ..NumaNode::default() }).collect();
    let config = TopologyConfig { policy: TopologyPolicy::Restricted, ..TopologyConfig::NONE };
    let why = TopologyManager::new(config, nodes.clone()).unwrap_err();
    assert_eq!(why, "unsupported on machines with more than 8 NUMA Nodes");
    assert!(TopologyManager::new(TopologyConfig { most_nodes: 16, ..config }, nodes.clone()).is_ok());
    assert!(TopologyManager::new(TopologyConfig::NONE, nodes).is_ok());
}
