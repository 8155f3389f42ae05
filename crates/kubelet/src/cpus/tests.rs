//! Who gets which CPUs.

use serde_json::json;

use super::topology::Cpu;
use super::*;

const OPTIONS: CpuOptions = CpuOptions::NONE;
const STATIC: CpuPolicy = CpuPolicy::Static(OPTIONS);
/// What the topology manager does.
const NEAR: TopologyPolicy = TopologyPolicy::None;

fn four() -> Topology {
    Topology((0..4).map(|id| Cpu { id, core: id / 2 * 2, socket: 0, node: 0, cache: 0 }).collect())
}

/// Gives a pod's containers their CPUs, all or none.
fn give(cpus: &Cpus, pod: &Pod) -> Result<(), Failure> {
    let given = containers(pod).try_for_each(|(c, _)| cpus.give(pod, c, Hint::default()));
    if given.is_err() {
        cpus.forget(names::uid(pod));
    }
    given
}

fn pod(uid: &str, cpus: &[&str]) -> Pod {
    let containers: Vec<_> = cpus
        .iter()
        .enumerate()
        .map(|(n, cpu)| {
            let amounts = json!({"cpu": cpu, "memory": "1Mi"});
            json!({"name": format!("c{n}"), "resources": {"requests": amounts, "limits": amounts}})
        })
        .collect();
    let mut pod = crate::pod::tests::pod(json!({ "containers": containers }));
    pod.metadata.uid = Some(uid.into());
    pod
}

#[test]
fn whole_cpus_of_guaranteed_pods_are_theirs_alone_and_given_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Cpus::open(STATIC, four(), None, 1, NEAR, dir.path()).expect("opened");
    let cpus = open();
    let of = |cpus: &Cpus, uid: &str| {
        cpus.of(uid, "c0").map(|(set, own)| (set.to_string(), own)).expect("limited")
    };
    assert_eq!(of(&cpus, "x"), ("0-3".into(), false));
    assert_eq!(give(&cpus, &pod("a", &["2"])), Ok(()));
    assert_eq!(of(&cpus, "a"), ("2-3".into(), true));
    assert_eq!(of(&cpus, "x"), ("0-1".into(), false));
    assert_eq!(give(&cpus, &pod("b", &["500m"])), Ok(()));
    assert_eq!(of(&cpus, "b"), ("0-1".into(), false));
    let full = give(&cpus, &pod("c", &["1", "1"])).unwrap_err();
    assert_eq!(full.reason, "UnexpectedAdmissionError");
    assert_eq!(
        full.message,
        "Allocate failed due to not enough cpus available to satisfy request: requested=1, available=0, \
         which is unexpected"
    );
    assert_eq!(of(&open(), "a"), ("2-3".into(), true), "an earlier kubelet's word holds");
    cpus.forget("a");
    assert_eq!(of(&cpus, "x"), ("0-3".into(), false));
    assert_eq!(of(&open(), "a"), ("0-3".into(), false));
}

#[test]
fn a_policy_that_cannot_be_followed_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = Cpus::open(STATIC, four(), None, 0, NEAR, dir.path()).unwrap_err();
    assert!(none.contains("greater than zero"), "{none}");
    let far = CpuSet::parse("7").expect("a set");
    assert!(Cpus::open(STATIC, four(), Some(far), 0, NEAR, dir.path()).is_err());
    let cores = CpuPolicy::Static(CpuOptions { whole_cores: true, strict_reservation: true, ..OPTIONS });
    let cpus = Cpus::open(cores, four(), None, 2, NEAR, dir.path()).expect("opened");
    let odd = give(&cpus, &pod("a", &["1"])).unwrap_err();
    assert_eq!(odd.reason, "SMTAlignmentError");
    assert_eq!(odd.message, "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2");
    assert_eq!(cpus.of("x", "c0").map(|(set, _)| set.to_string()).as_deref(), Some("2-3"));
    let many = give(&cpus, &pod("a", &["4"])).unwrap_err();
    assert_eq!(
        many.message,
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, CPUs \
         per core = 2"
    );
}

#[test]
fn a_file_that_does_not_fit_the_machine_or_the_policy_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let kept = || CpuSet::parse("0").ok();
    let open = |policy, topology| Cpus::open(policy, topology, kept(), 1, NEAR, dir.path()).map(|_| ());
    let cpus = Cpus::open(STATIC, four(), kept(), 1, NEAR, dir.path()).expect("opened");
    give(&cpus, &pod("a", &["2"])).expect("given");
    let smaller = open(STATIC, Topology(four().0[..3].to_vec())).unwrap_err();
    assert_eq!(smaller, "current set of available CPUs \"0-2\" doesn't match with CPUs in state \"0-3\"");
    let other = open(CpuPolicy::None, four()).unwrap_err();
    assert!(
        other.contains("configured policy \"none\" differs from state checkpoint policy \"static\""),
        "{other}"
    );
    let path = dir.path().join(STATE);
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replace("\"2-3\"", "\"1-3\"")).expect("written");
    assert!(open(STATIC, four()).unwrap_err().contains("checkpoint is corrupted"));
}

#[test]
fn what_init_containers_had_is_used_again_and_given_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let cpus = Cpus::open(STATIC, four(), None, 1, NEAR, dir.path()).expect("opened");
    let one = |name: &str, cpu: &str| {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
    };
    let pod =
        crate::pod::tests::pod(json!({"initContainers": [one("i", "3")], "containers": [one("c", "2")]}));
    assert_eq!(cpus.pod_hints(&pod)["cpu"].as_ref().map(Vec::len), Some(1), "three are enough for both");
    give(&cpus, &pod).expect("given");
    let of = |name: &str| cpus.own("u1", name).to_string();
    assert_eq!((of("i"), of("c")), ("1-3".into(), "2-3".into()));
    cpus.starts(&pod, &crate::pod::spec(&pod).containers[0]);
    assert_eq!((of("i"), of("c")), (String::new(), "2-3".into()));
    assert_eq!(cpus.of("x", "y").map(|(set, _)| set.to_string()).as_deref(), Some("0-1"));
}

#[test]
fn without_a_policy_nothing_is_limited() {
    let dir = tempfile::tempdir().expect("a directory");
    let cpus = Cpus::open(CpuPolicy::None, four(), None, 0, NEAR, dir.path()).expect("opened");
    assert_eq!(give(&cpus, &pod("a", &["2"])), Ok(()));
    assert_eq!(cpus.of("a", "c0"), None);
}

#[test]
fn what_is_on_the_socket_comes_first_where_sockets_count() {
    let dir = tempfile::tempdir().expect("a directory");
    // Two sockets of two nodes with two CPUs each.
    let one = |id: u32| Cpu { id, core: id, socket: id / 4, node: id / 2, cache: id / 4 };
    let machine = || Topology((0..8).map(one).collect());
    let by_socket = CpuPolicy::Static(CpuOptions { by_socket: true, ..OPTIONS });
    let kept = || CpuSet::parse("0").ok();
    let near = Hint { nodes: Some(NodeSet::default().with(3)), preferred: true };
    for (policy, want) in [(STATIC, "4,6-7"), (by_socket, "4-5,6")] {
        let dir = dir.path().join(want);
        std::fs::create_dir(&dir).expect("made");
        let cpus = Cpus::open(policy, machine(), kept(), 1, NEAR, &dir).expect("opened");
        let pod = pod("a", &["3"]);
        let container = &crate::pod::spec(&pod).containers[0];
        cpus.give(&pod, container, near).expect("given");
        let want = CpuSet::parse(want).expect("a set");
        assert_eq!(cpus.own("a", "c0"), want);
    }
    let single = TopologyPolicy::SingleNumaNode;
    assert!(Cpus::open(by_socket, machine(), kept(), 1, single, dir.path()).is_err());
}
