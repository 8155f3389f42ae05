//! The CPU manager: under its static policy the containers of guaranteed pods that ask for whole CPUs have these to
//! themselves; all others share the rest.

mod distribute;
mod options;
mod state;
mod take;
mod topology;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::v1::{ContainerFilter, ContainerState, LinuxResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

pub use options::{CpuOptionGates, CpuOptions};
pub use topology::{CpuSet, Topology};

use crate::checkpoint;
use crate::context::Context;
use crate::names;
use crate::pod::{Role, containers};
use crate::state::Failure;
use crate::topology_manager::{Counts, Hint, HintProvider, Hints, NodeSet, TopologyPolicy};
use state::State;

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
    Static(CpuOptions),
}

impl CpuPolicy {
    /// As upstream's configuration and files name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Static(_) => "static",
        }
    }

    /// What it is told beside that.
    fn options(self) -> CpuOptions {
        match self {
            Self::None => CpuOptions::default(),
            Self::Static(options) => options,
        }
    }
}

/// CPUs by pod and container.
type Given = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// The CPUs of this machine, and who has them.
#[derive(Debug)]
pub struct Cpus {
    policy: CpuPolicy,
    topology: Topology,
    reserved: CpuSet,
    path: PathBuf,
    given: Mutex<Given>,
    changed: watch::Sender<u64>,
    /// Containers that asked for CPUs of their own, and those that were refused.
    pub counts: Counts,
}

/// How many CPUs a container gets to itself.
fn exclusive(pod: &Pod, container: &Container) -> usize {
    // Pods with resources of their own share, until upstream gives those CPUs by default.
    if coracle_meta::pod::qos(pod) != "Guaranteed" || crate::pod::spec(pod).resources.is_some() {
        return 0;
    }
    let requests = crate::container::resources::requests(container);
    let milli = requests.get("cpu").map_or(0, |q| q.milli());
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// How many CPUs a pod's containers have to themselves at the most at one time.
fn exclusive_of_pod(pod: &Pod) -> usize {
    let (mut running, mut starting, mut sidecars) = (0, 0, 0);
    for (container, role) in containers(pod) {
        let count = exclusive(pod, container);
        match role {
            Role::Init => starting = starting.max(sidecars + count),
            Role::Sidecar => sidecars += count,
            Role::App | Role::Ephemeral => running += count,
        }
    }
    starting.max(running + sidecars)
}

/// What init containers before `container` have, and no other container of the pod.
fn reusable(pod: &Pod, container: &Container, given: &Given) -> CpuSet {
    let Some(of) = given.get(names::uid(pod)) else { return CpuSet::default() };
    let before = containers(pod).take_while(|(c, _)| c.name != container.name);
    before.filter_map(|(c, role)| Some((of.get(&c.name)?, role))).fold(
        CpuSet::default(),
        |again, (set, role)| {
            if role == Role::Init { again.union(set) } else { again.without(set) }
        },
    )
}

impl Cpus {
    /// With what pods of earlier runs have. `reserved` are CPUs by number; without them `reserved_count` are taken.
    /// `nearness` is what the topology manager sees to.
    ///
    /// # Errors
    /// The policy cannot be followed so; upstream's text where it has one.
    pub fn open(
        policy: CpuPolicy,
        topology: Topology,
        reserved: Option<CpuSet>,
        reserved_count: usize,
        nearness: TopologyPolicy,
        root: &Path,
    ) -> Result<Self, String> {
        let all = topology.all();
        let options = policy.options();
        options.check(&topology, nearness)?;
        let reserved = match (policy, reserved) {
            (CpuPolicy::None, given) => given.unwrap_or_default(),
            (CpuPolicy::Static(_), Some(given)) if !given.is_within(&all) => {
                return Err(format!("reserved CPUs {given} are not all online, which are {all}"));
            }
            (CpuPolicy::Static(_), Some(given)) if !given.is_empty() => given,
            (CpuPolicy::Static(_), _) if reserved_count == 0 => {
                return Err(
                    "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater \
                            than zero"
                        .into(),
                );
            }
            (CpuPolicy::Static(_), _) => take::take(&topology, &all, reserved_count, options)?,
        };
        let path = root.join(STATE);
        let cpus = Self {
            given: Mutex::default(),
            policy,
            topology,
            reserved,
            path,
            changed: watch::Sender::new(0),
            counts: Counts::default(),
        };
        let old: Option<State> = checkpoint::load(&cpus.path, policy.name())?;
        if let (Some(old), CpuPolicy::Static(_)) = (old, policy) {
            *cpus.given.lock() = cpus.restored(&old)?;
        }
        cpus.save(&cpus.given.lock()).map_err(|e| format!("cannot write {}: {e}", cpus.path.display()))?;
        Ok(cpus)
    }

    /// CPUs that nobody has to himself.
    fn shared(&self, given: &Given) -> CpuSet {
        let taken = given.values().flat_map(BTreeMap::values);
        taken.fold(self.topology.all(), |left, set| left.without(set))
    }

    /// What an earlier kubelet gave.
    fn restored(&self, old: &State) -> Result<Given, String> {
        let mut given = Given::new();
        for (uid, entries) in &old.entries {
            for (name, set) in entries {
                given.entry(uid.clone()).or_default().insert(name.clone(), CpuSet::parse(set)?);
            }
        }
        let shared = CpuSet::parse(&old.default_cpu_set)?;
        if shared.is_empty() {
            return if given.is_empty() { Ok(given) } else { Err("default cpuset cannot be empty".into()) };
        }
        let strict = self.policy.options().strict_reservation;
        let kept = self.reserved.and(&shared);
        if strict && !kept.is_empty() {
            return Err(format!(
                "some of strictly reserved cpus: \"{kept}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        if !strict && kept != self.reserved {
            let reserved = &self.reserved;
            return Err(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        let mut known = shared.clone();
        for (uid, of) in &given {
            for (name, set) in of {
                if !set.and(&shared).is_empty() {
                    return Err(format!(
                        "pod: {uid}, container: {name} cpuset: \"{set}\" overlaps with default cpuset \"{shared}\""
                    ));
                }
                known = known.union(set);
            }
        }
        let all = self.topology.all();
        let all = if strict { all.without(&self.reserved) } else { all };
        if known != all {
            return Err(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(given)
    }

    fn save(&self, given: &Given) -> std::io::Result<()> {
        let text = |of: &BTreeMap<String, CpuSet>| {
            of.iter().map(|(name, set)| (name.clone(), set.to_string())).collect()
        };
        let default_cpu_set = match self.policy {
            CpuPolicy::None => CpuSet::default(),
            CpuPolicy::Static(options) if options.strict_reservation => {
                self.shared(given).without(&self.reserved)
            }
            CpuPolicy::Static(_) => self.shared(given),
        };
        let state = State {
            policy_name: self.policy.name().to_owned(),
            default_cpu_set: default_cpu_set.to_string(),
            entries: given.iter().map(|(uid, of)| (uid.clone(), text(of))).collect(),
            checksum: 0,
        };
        checkpoint::save(&self.path, state)
    }

    fn changed(&self, given: &Given) {
        if let Err(error) = self.save(given) {
            warn!(%error, "who has which CPUs is not written down");
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Gives a container its CPUs, once.
    fn give(&self, pod: &Pod, container: &Container, near: Hint) -> Result<(), Failure> {
        let CpuPolicy::Static(options) = self.policy else { return Ok(()) };
        let count = exclusive(pod, container);
        if count == 0 {
            return Ok(());
        }
        let mut given = self.given.lock();
        let shared = self.shared(&given);
        if options.whole_cores {
            self.check_cores(count, &shared)?;
        }
        if given.get(names::uid(pod)).is_some_and(|of| of.contains_key(&container.name)) {
            return Ok(());
        }
        let free = shared.without(&self.reserved).union(&reusable(pod, container, &given));
        let set = self.choose(&free, count, near.nodes).map_err(Failure::unexpected)?;
        given.entry(names::uid(pod).to_owned()).or_default().insert(container.name.clone(), set);
        self.changed(&given);
        Ok(())
    }

    /// `full-pcpus-only`: whole cores are asked for, and there are so many.
    fn check_cores(&self, count: usize, shared: &CpuSet) -> Result<(), Failure> {
        let threads = self.topology.threads_per_core();
        let free = shared.without(&self.topology.cores_of(&self.reserved)).len();
        let why = if !count.is_multiple_of(threads) {
            format!("requested {count} cpus not multiple cpus per core = {threads}")
        } else if count > free {
            format!(
                "not enough free physical CPUs: available physical CPUs = {free}, requested CPUs = {count}, CPUs per \
                 core = {threads}"
            )
        } else {
            return Ok(());
        };
        let message = format!("SMT Alignment Error: {why}");
        Err(Failure { reason: "SMTAlignmentError".to_owned(), message })
    }

    /// `count` of the free CPUs: those of the nodes first.
    fn choose(&self, free: &CpuSet, count: usize, nodes: Option<NodeSet>) -> Result<CpuSet, String> {
        let options = self.policy.options();
        let of = |nodes| match options.by_socket {
            true => self.topology.of_sockets(nodes),
            false => self.topology.of_nodes(nodes),
        };
        let near = nodes.map(|nodes| of(nodes).and(free)).unwrap_or_default();
        let first = take::take(&self.topology, &near, count.min(near.len()), options)?;
        let rest = take::take(&self.topology, &free.without(&first), count - first.len(), options)?;
        Ok(first.union(&rest))
    }

    /// The CPUs on which a container runs, and whether it has them to itself; `None` if it may run on all.
    pub fn of(&self, uid: &str, container: &str) -> Option<(CpuSet, bool)> {
        let CpuPolicy::Static(options) = self.policy else { return None };
        let given = self.given.lock();
        if let Some(set) = given.get(uid).and_then(|of| of.get(container)) {
            return Some((set.clone(), true));
        }
        let shared = self.shared(&given);
        let shared = if options.strict_reservation { shared.without(&self.reserved) } else { shared };
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

    /// The CPUs that a container has to itself.
    pub fn own(&self, uid: &str, container: &str) -> CpuSet {
        self.given.lock().get(uid).and_then(|of| of.get(container)).cloned().unwrap_or_default()
    }

    /// CPUs that can be had.
    pub fn allocatable(&self) -> CpuSet {
        match self.policy {
            CpuPolicy::None => CpuSet::default(),
            CpuPolicy::Static(_) => self.topology.all().without(&self.reserved),
        }
    }

    /// CPUs that are free to be had, and those that somebody has to himself.
    pub fn sizes(&self) -> (usize, usize) {
        let given = self.given.lock();
        let shared = self.shared(&given);
        (shared.without(&self.reserved).len(), self.topology.all().without(&shared).len())
    }

    /// The policy.
    pub const fn policy(&self) -> CpuPolicy {
        self.policy
    }

    /// No other pods than these are left of those that an earlier kubelet ran.
    pub fn retain(&self, known: &HashSet<String>) {
        self.keep(|uid| known.contains(uid));
    }

    fn keep(&self, stays: impl Fn(&str) -> bool) {
        let mut given = self.given.lock();
        let before = given.len();
        given.retain(|uid, _| stays(uid));
        if given.len() != before {
            self.changed(&given);
        }
    }
}

#[async_trait]
impl HintProvider for Cpus {
    fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        let count = exclusive(pod, container);
        if self.policy == CpuPolicy::None || count == 0 {
            return Hints::new();
        }
        let by_socket = self.policy.options().by_socket;
        let given = self.given.lock();
        let own = given.get(names::uid(pod)).and_then(|of| of.get(&container.name));
        let list = match own {
            Some(set) if set.len() != count => Vec::new(),
            Some(set) => self.topology.hints(set, &CpuSet::default(), count, by_socket),
            None => {
                let free = self.shared(&given).without(&self.reserved);
                self.topology.hints(&free, &reusable(pod, container, &given), count, by_socket)
            }
        };
        [("cpu".to_owned(), Some(list))].into()
    }

    fn pod_hints(&self, pod: &Pod) -> Hints {
        let count = exclusive_of_pod(pod);
        if self.policy == CpuPolicy::None || count == 0 {
            return Hints::new();
        }
        let by_socket = self.policy.options().by_socket;
        let given = self.given.lock();
        let of = given.get(names::uid(pod)).into_iter().flatten();
        let own = of.fold(CpuSet::default(), |all, (_, set)| all.union(set));
        let list = if own.len() == count {
            self.topology.hints(&own, &CpuSet::default(), count, by_socket)
        } else {
            self.topology.hints(&self.shared(&given).without(&self.reserved), &own, count, by_socket)
        };
        [("cpu".to_owned(), Some(list))].into()
    }

    async fn allocate(&self, pod: &Pod, container: &Container, near: Hint) -> Result<(), Failure> {
        if self.policy == CpuPolicy::None || exclusive(pod, container) == 0 {
            return Ok(());
        }
        let given = self.give(pod, container, near);
        self.counts.note(&given);
        given
    }

    fn starts(&self, pod: &Pod, container: &Container) {
        let mut given = self.given.lock();
        let Some(of) = given.get_mut(names::uid(pod)) else { return };
        let before = of.len();
        let earlier = containers(pod).take_while(|(c, _)| c.name != container.name);
        for (init, _) in earlier.filter(|(_, role)| *role == Role::Init) {
            of.remove(&init.name);
        }
        if of.len() != before {
            self.changed(&given);
        }
    }

    fn forget(&self, uid: &str) {
        self.keep(|other| other != uid);
    }
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
mod tests;
