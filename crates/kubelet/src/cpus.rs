//! The CPU manager: under its static policy the containers of guaranteed pods that ask for whole CPUs have these to
//! themselves; all others share the rest.

mod topology;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerFilter, ContainerState, LinuxResources};
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

pub use topology::{CpuSet, Topology};

use crate::context::Context;
use crate::names;
use crate::pod::Role;
use crate::state::Failure;

/// Name of upstream's state file, in whose form it is kept.
const STATE: &str = "cpu_manager_state";
/// How often it is made sure that running containers have the right CPUs, as upstream.
const RECONCILE: Duration = Duration::from_secs(10);

/// Who has which CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuPolicy {
    /// Everybody has all.
    #[default]
    None,
    /// Whole CPUs are given away.
    Static {
        /// `full-pcpus-only`: only whole cores are.
        whole_cores: bool,
        /// `strict-cpu-reservation`: nobody else runs on the reserved ones.
        strict_reservation: bool,
    },
}

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    policy_name: String,
    default_cpu_set: String,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

/// The CPUs of this machine, and who has them.
#[derive(Debug)]
pub struct Cpus {
    policy: CpuPolicy,
    topology: Topology,
    reserved: CpuSet,
    path: PathBuf,
    given: Mutex<BTreeMap<String, BTreeMap<String, CpuSet>>>,
    changed: watch::Sender<u64>,
}

/// How many CPUs a container gets to itself.
fn exclusive(pod: &Pod, container: &Container) -> usize {
    // Pods with resources of their own share, until upstream gives those CPUs by default.
    if coracle_meta::pod::qos(pod) != "Guaranteed" || crate::pod::spec(pod).resources.is_some() {
        return 0;
    }
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref().or(r.limits.as_ref()));
    let milli = requests.and_then(|r| r.get("cpu")).map_or(0, |q| Quantity::from_api(q).milli());
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

impl Cpus {
    /// With what pods of earlier runs have. `reserved` are CPUs by number; without them `reserved_count` are taken.
    ///
    /// # Errors
    /// The policy cannot be followed so; upstream's text where it has one.
    pub fn open(
        policy: CpuPolicy,
        topology: Topology,
        reserved: Option<CpuSet>,
        reserved_count: usize,
        root: &Path,
    ) -> Result<Self, String> {
        let all = topology.all();
        let reserved = match (policy, reserved) {
            (CpuPolicy::None, given) => given.unwrap_or_default(),
            (CpuPolicy::Static { .. }, Some(given)) if !given.is_within(&all) => {
                return Err(format!("reserved CPUs {given} are not all online, which are {all}"));
            }
            (CpuPolicy::Static { .. }, Some(given)) if !given.is_empty() => given,
            (CpuPolicy::Static { .. }, _) if reserved_count == 0 => {
                return Err(
                    "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater \
                            than zero"
                        .into(),
                );
            }
            (CpuPolicy::Static { .. }, _) => topology.take(&all, reserved_count)?,
        };
        let path = root.join(STATE);
        let cpus = Self {
            given: read(&path, policy, &all)?.into(),
            policy,
            topology,
            reserved,
            path,
            changed: watch::Sender::new(0),
        };
        cpus.save(&cpus.given.lock()).map_err(|e| format!("cannot write {}: {e}", cpus.path.display()))?;
        Ok(cpus)
    }

    /// CPUs that nobody has to himself.
    fn shared(&self, given: &BTreeMap<String, BTreeMap<String, CpuSet>>) -> CpuSet {
        let taken = given.values().flat_map(BTreeMap::values);
        taken.fold(self.topology.all(), |left, set| left.without(set))
    }

    fn save(&self, given: &BTreeMap<String, BTreeMap<String, CpuSet>>) -> std::io::Result<()> {
        let text = |of: &BTreeMap<String, CpuSet>| {
            of.iter().map(|(name, set)| (name.clone(), set.to_string())).collect()
        };
        let state = State {
            policy_name: if self.policy == CpuPolicy::None { "none" } else { "static" }.to_owned(),
            default_cpu_set: self.shared(given).to_string(),
            entries: given.iter().map(|(uid, of)| (uid.clone(), text(of))).collect(),
        };
        let temporary = self.path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec(&state).map_err(std::io::Error::other)?)?;
        std::fs::rename(temporary, &self.path)
    }

    /// Gives a pod's containers their CPUs, once.
    ///
    /// # Errors
    /// Upstream's refusal.
    pub fn allocate(&self, pod: &Pod) -> Result<(), Failure> {
        let CpuPolicy::Static { whole_cores, .. } = self.policy else { return Ok(()) };
        let mut given = self.given.lock();
        if given.contains_key(names::uid(pod)) {
            return Ok(());
        }
        let shared = self.shared(&given);
        let chosen = self.choose(pod, &shared.without(&self.reserved), whole_cores)?;
        if chosen.is_empty() {
            return Ok(());
        }
        given.insert(names::uid(pod).to_owned(), chosen);
        if let Err(error) = self.save(&given) {
            warn!(%error, "who has which CPUs is not written down");
        }
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn choose(&self, pod: &Pod, free: &CpuSet, cores: bool) -> Result<BTreeMap<String, CpuSet>, Failure> {
        let mut chosen: BTreeMap<String, CpuSet> = BTreeMap::new();
        // What init containers had is free again for the containers after them, who take it first.
        let (mut free, mut again) = (free.clone(), CpuSet::default());
        for (container, role) in crate::pod::containers(pod).filter(|(_, role)| *role != Role::Ephemeral) {
            let count = exclusive(pod, container);
            let threads = self.topology.threads_per_core();
            if cores && !count.is_multiple_of(threads) {
                return Err(Failure {
                    reason: "SMTAlignmentError".to_owned(),
                    message: format!(
                        "SMT Alignment Error: requested {count} cpus not multiple cpus per core = {threads}"
                    ),
                });
            }
            if count == 0 {
                continue;
            }
            let first = self.topology.take(&again, count.min(again.len())).unwrap_or_default();
            let rest = self.topology.take(&free.union(&again).without(&first), count - first.len());
            let set = rest.map(|rest| rest.union(&first)).map_err(|why| Failure {
                reason: "UnexpectedAdmissionError".to_owned(),
                message: format!("Allocate failed due to {why}, which is unexpected"),
            })?;
            free = free.without(&set);
            again = if role == Role::Init { again.union(&set) } else { again.without(&set) };
            chosen.insert(container.name.clone(), set);
        }
        Ok(chosen)
    }

    /// The CPUs on which a container runs, and whether it has them to itself; `None` if it may run on all.
    pub fn of(&self, uid: &str, container: &str) -> Option<(CpuSet, bool)> {
        let CpuPolicy::Static { strict_reservation, .. } = self.policy else { return None };
        let given = self.given.lock();
        if let Some(set) = given.get(uid).and_then(|of| of.get(container)) {
            return Some((set.clone(), true));
        }
        let shared = self.shared(&given);
        let shared = if strict_reservation { shared.without(&self.reserved) } else { shared };
        (!shared.is_empty()).then_some((shared, false))
    }

    /// Sets a container's CPUs. Who has CPUs to himself is not held to a quota.
    pub fn apply(&self, uid: &str, container: &str, resources: &mut LinuxResources) {
        let Some((set, own)) = self.of(uid, container) else { return };
        resources.cpuset_cpus = set.to_string();
        if own {
            resources.cpu_quota = -1;
        }
    }

    /// Whether anything of a pod has CPUs to itself.
    pub fn has_own(&self, uid: &str) -> bool {
        self.given.lock().contains_key(uid)
    }

    /// A pod needs its CPUs no more.
    pub fn forget(&self, uid: &str) {
        self.keep(|other| other != uid);
    }

    /// No other pods than these are left of those that an earlier kubelet ran.
    pub fn retain(&self, known: &HashSet<String>) {
        self.keep(|uid| known.contains(uid));
    }

    fn keep(&self, stays: impl Fn(&str) -> bool) {
        let mut given = self.given.lock();
        let before = given.len();
        given.retain(|uid, _| stays(uid));
        if given.len() == before {
            return;
        }
        if let Err(error) = self.save(&given) {
            warn!(%error, "who has which CPUs is not written down");
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

/// What an earlier kubelet wrote down.
fn read(
    path: &Path,
    policy: CpuPolicy,
    all: &CpuSet,
) -> Result<BTreeMap<String, BTreeMap<String, CpuSet>>, String> {
    let CpuPolicy::Static { .. } = policy else { return Ok(BTreeMap::new()) };
    let Ok(text) = std::fs::read(path) else { return Ok(BTreeMap::new()) };
    let state: State =
        serde_json::from_slice(&text).map_err(|e| format!("{} is damaged: {e}", path.display()))?;
    let mut given: BTreeMap<String, BTreeMap<String, CpuSet>> = BTreeMap::new();
    for (uid, entries) in state.entries {
        for (name, set) in entries {
            let set = CpuSet::parse(&set)?;
            if !set.is_within(all) {
                return Err(format!("{}: CPUs {set} are not all online: remove the file", path.display()));
            }
            given.entry(uid.clone()).or_default().insert(name, set);
        }
    }
    Ok(given)
}

/// Moves running containers off CPUs that others have to themselves now; runs until dropped.
pub async fn run(cx: Arc<Context>) {
    if cx.cpus.policy == CpuPolicy::None {
        return std::future::pending().await;
    }
    let mut changes = cx.cpus.changed.subscribe();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    loop {
        reconcile(&cx, &mut known).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(RECONCILE) => {}
        }
    }
}

async fn reconcile(cx: &Context, known: &mut BTreeMap<String, String>) {
    let filter = ContainerFilter { state: Some(ContainerState::Running), ..ContainerFilter::default() };
    let running = cx.runtime.list_containers(filter).await.unwrap_or_default();
    known.retain(|id, _| running.iter().any(|c| c.id == *id));
    for container in running {
        let Some(uid) = container.labels.get(names::POD_UID) else { continue };
        let Some((set, _)) = cx.cpus.of(uid, &container.metadata.name) else { continue };
        let set = set.to_string();
        if known.get(&container.id) == Some(&set) {
            continue;
        }
        let wanted = LinuxResources { cpuset_cpus: set.clone(), ..LinuxResources::default() };
        match cx.runtime.update_container_resources(&container.id, wanted).await {
            Ok(()) => drop(known.insert(container.id, set)),
            Err(error) => warn!(container = container.id, %error, "CPUs not set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::topology::Cpu;
    use super::*;

    const STATIC: CpuPolicy = CpuPolicy::Static { whole_cores: false, strict_reservation: false };

    fn four() -> Topology {
        Topology((0..4).map(|id| Cpu { id, core: id / 2 * 2, socket: 0, node: 0 }).collect())
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
        let open = || Cpus::open(STATIC, four(), None, 1, dir.path()).expect("opened");
        let cpus = open();
        let of = |cpus: &Cpus, uid: &str| {
            cpus.of(uid, "c0").map(|(set, own)| (set.to_string(), own)).expect("limited")
        };
        assert_eq!(of(&cpus, "x"), ("0-3".into(), false));
        assert_eq!(cpus.allocate(&pod("a", &["2"])), Ok(()));
        assert_eq!(of(&cpus, "a"), ("2-3".into(), true));
        assert_eq!(of(&cpus, "x"), ("0-1".into(), false));
        assert_eq!(cpus.allocate(&pod("b", &["500m"])), Ok(()));
        assert_eq!(of(&cpus, "b"), ("0-1".into(), false));
        let full = cpus.allocate(&pod("c", &["1", "1"])).unwrap_err();
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
        let none = Cpus::open(STATIC, four(), None, 0, dir.path()).unwrap_err();
        assert!(none.contains("greater than zero"), "{none}");
        let far = CpuSet::parse("7").expect("a set");
        assert!(Cpus::open(STATIC, four(), Some(far), 0, dir.path()).is_err());
        let cores = CpuPolicy::Static { whole_cores: true, strict_reservation: true };
        let cpus = Cpus::open(cores, four(), None, 2, dir.path()).expect("opened");
        let odd = cpus.allocate(&pod("a", &["1"])).unwrap_err();
        assert_eq!(odd.reason, "SMTAlignmentError");
        assert_eq!(odd.message, "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2");
        assert_eq!(cpus.of("x", "c0").map(|(set, _)| set.to_string()).as_deref(), Some("2-3"));
    }

    #[test]
    fn without_a_policy_nothing_is_limited() {
        let dir = tempfile::tempdir().expect("a directory");
        let cpus = Cpus::open(CpuPolicy::None, four(), None, 0, dir.path()).expect("opened");
        assert_eq!(cpus.allocate(&pod("a", &["2"])), Ok(()));
        assert_eq!(cpus.of("a", "c0"), None);
    }
}
