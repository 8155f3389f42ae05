//! Which pods must go: those that hold more of the disk than they may, and when the node runs short, those that use
//! more than they asked for, the least important first. Pure; the texts are upstream's.

use std::cmp::Reverse;

use coracle_meta::pod::{limits, qos, requests};
use coracle_meta::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::{after, spec};

/// How long a pressure is shown after it was last seen, in seconds.
const TRANSITION: i64 = 300;
/// Pods of this priority and above are critical.
const CRITICAL: i32 = 2_000_000_000;

/// Least that must be left of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Bytes of memory.
    pub memory: u64,
    /// Per cent of the bytes of the node's file system.
    pub disk_percent: u64,
    /// But no more than so many bytes: a share of a large disk is more than anybody needs.
    pub disk_most: u64,
    /// Per cent of its inodes.
    pub inodes_percent: u64,
    /// Per cent of process ids; 0 for none.
    pub pid_percent: u64,
}

/// What is left of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub memory: u64,
    pub disk: u64,
    pub disk_capacity: u64,
    pub inodes: u64,
    pub inodes_capacity: u64,
    pub pids: u64,
    pub pids_capacity: u64,
}

/// What the node is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// Memory.
    Memory,
    /// Bytes of the disk.
    Disk,
    /// Inodes of the disk.
    Inodes,
    /// Process ids.
    Pids,
}

impl Short {
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// What is short, with the threshold and what is left, memory first.
pub fn shortages(left: &Left, t: &Thresholds) -> Vec<(Short, u64, u64)> {
    let of = |capacity: u64, percent: u64| capacity / 100 * percent;
    let all = [
        (Short::Memory, t.memory, left.memory),
        (Short::Disk, of(left.disk_capacity, t.disk_percent).min(t.disk_most), left.disk),
        (Short::Inodes, of(left.inodes_capacity, t.inodes_percent), left.inodes),
        (Short::Pids, of(left.pids_capacity, t.pid_percent), left.pids),
    ];
    all.into_iter().filter(|(_, threshold, left)| left < threshold).collect()
}

/// When each pressure was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pid: Option<Timestamp>,
}

impl Pressures {
    /// Notes what is short at `now`.
    pub fn note(&mut self, short: &[(Short, u64, u64)], now: Timestamp) {
        for (what, ..) in short {
            let slot = match what {
                Short::Memory => &mut self.memory,
                Short::Disk | Short::Inodes => &mut self.disk,
                Short::Pids => &mut self.pid,
            };
            *slot = Some(now);
        }
    }
    /// The node conditions that hold at `now`, by type.
    pub fn conditions(&self, now: Timestamp) -> Vec<&'static str> {
        let all = [("DiskPressure", self.disk), ("MemoryPressure", self.memory), ("PIDPressure", self.pid)];
        let holds = |seen: Option<Timestamp>| seen.is_some_and(|at| after(at, TRANSITION) > now);
        all.into_iter().filter(|(_, seen)| holds(*seen)).map(|(name, _)| name).collect()
    }
}

/// A container's use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    pub name: String,
    pub memory: u64,
    /// Writable layer and logs.
    pub disk: u64,
}

/// A pod's use.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUse {
    pub pod: std::sync::Arc<Pod>,
    pub memory: u64,
    /// Containers, logs and volumes on the node's disk.
    pub disk: u64,
    pub inodes: u64,
    pub processes: u64,
    pub containers: Vec<ContainerUse>,
    /// Name, use and limit of its scratch volumes.
    pub volumes: Vec<(String, u64, Option<u64>)>,
}

/// Whether the pod must not be evicted.
pub fn is_critical(pod: &Pod) -> bool {
    let mirror = crate::names::is_static(pod) || crate::names::is_mirror(pod);
    mirror || spec(pod).priority.is_some_and(|p| p >= CRITICAL)
}

fn text(bytes: u64) -> String {
    Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).to_api().0
}

/// Why a pod that holds too much of the disk must go.
pub fn over_own_limit(p: &PodUse) -> Option<String> {
    for (name, used, limit) in &p.volumes {
        if let Some(limit) = limit.filter(|l| *l > 0 && used > l) {
            let limit = text(limit);
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
        }
    }
    if let Some(limit) = limits(&p.pod).get("ephemeral-storage")
        && p.disk > limit.value().max(0).unsigned_abs()
    {
        let limit = limit.to_api().0;
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    for c in &spec(&p.pod).containers {
        let limit = c.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("ephemeral-storage"));
        let Some(limit) = limit.map(Quantity::from_api).filter(|l| !l.is_zero()) else { continue };
        let used = p.containers.iter().find(|u| u.name == c.name).map_or(0, |u| u.disk);
        if used > limit.value().max(0).unsigned_abs() {
            let (name, limit) = (&c.name, limit.to_api().0);
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "));
        }
    }
    None
}

fn used(p: &PodUse, what: Short) -> u64 {
    match what {
        Short::Memory => p.memory,
        Short::Disk => p.disk,
        Short::Inodes => p.inodes,
        Short::Pids => p.processes,
    }
}

fn requested(p: &PodUse, what: Short) -> u64 {
    requests(&p.pod).get(what.resource()).map_or(0, |q| q.value().max(0).unsigned_abs())
}

/// The pods in the order in which they go: those beyond their requests, then by priority, then by how much they use
/// beyond what they asked for.
pub fn rank(pods: &mut [PodUse], what: Short) {
    pods.sort_by_key(|p| {
        let (used, requested) = (used(p, what), requested(p, what));
        let beyond = i128::from(used) - i128::from(requested);
        let first = if what == Short::Pids { true } else { used > requested };
        (Reverse(first), spec(&p.pod).priority.unwrap_or(0), Reverse(beyond))
    });
}

/// What an evicted pod's status says.
pub fn message(p: &PodUse, what: Short, threshold: u64, left: u64) -> String {
    let resource = what.resource();
    let show = |n: u64| if matches!(what, Short::Memory | Short::Disk) { text(n) } else { n.to_string() };
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        show(threshold),
        show(left)
    );
    for c in coracle_meta::pod::containers(spec(&p.pod)) {
        let Some(u) = p.containers.iter().find(|u| u.name == c.name) else { continue };
        let used = match what {
            Short::Memory => u.memory,
            Short::Disk => u.disk,
            Short::Inodes | Short::Pids => continue,
        };
        let request = c.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
        let request = request.map(Quantity::from_api).unwrap_or_default();
        if used > request.value().max(0).unsigned_abs() {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                c.name,
                text(used),
                request.to_api().0
            ));
        }
    }
    message
}

/// Why a node under these pressures takes no new pod like this.
pub fn keeps_out(pod: &Pod, conditions: &[&str]) -> Option<String> {
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    if conditions == ["MemoryPressure"] {
        let tolerates = spec(pod).tolerations.iter().flatten().any(|t| {
            let key = t.key.as_deref().unwrap_or("");
            let effect = t.effect.as_deref().unwrap_or("");
            t.operator.as_deref() == Some("Exists")
                && matches!(key, "" | "node.kubernetes.io/memory-pressure")
                && matches!(effect, "" | "NoSchedule")
        });
        if qos(pod) != "BestEffort" || tolerates {
            return None;
        }
    }
    Some(format!("The node had condition: [{}]. ", conditions.join(" ")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MI: u64 = 1 << 20;

    fn using(spec: Value, memory: u64, disk: u64) -> PodUse {
        let containers = vec![ContainerUse { name: "a".into(), memory, disk }];
        PodUse {
            pod: std::sync::Arc::new(crate::pod::tests::pod(spec)),
            memory,
            disk,
            inodes: 0,
            processes: 0,
            containers,
            volumes: Vec::new(),
        }
    }

    fn plain(request: &str, priority: i32) -> Value {
        json!({"priority": priority, "containers": [
            {"name": "a", "resources": {"requests": {"memory": request}}}]})
    }

    #[test]
    fn who_uses_more_than_asked_for_goes_first_then_the_unimportant() {
        let mut pods = vec![
            using(plain("100Mi", 0), 50 * MI, 0),
            using(plain("10Mi", 9), 900 * MI, 0),
            using(plain("10Mi", 0), 20 * MI, 0),
            using(plain("10Mi", 0), 30 * MI, 0),
        ];
        rank(&mut pods, Short::Memory);
        let order: Vec<u64> = pods.iter().map(|p| p.memory / MI).collect();
        assert_eq!(order, [30, 20, 900, 50]);
        assert_eq!(
            message(&pods[0], Short::Memory, 100 * MI, 50 * MI),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 30Mi, request is 10Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn disks_are_limited_by_volume_by_pod_and_by_container() {
        let mut p = using(json!({"containers": [{"name": "a"}]}), 0, 10 * MI);
        assert_eq!(over_own_limit(&p), None);
        p.volumes = vec![("v".into(), 6 * MI, Some(5 * MI))];
        assert_eq!(
            over_own_limit(&p).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ")
        );
        let limited = json!({"containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "5Mi"}}}]});
        assert_eq!(
            over_own_limit(&using(limited, 0, 10 * MI)).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ")
        );
    }

    #[test]
    fn pressure_is_shown_for_five_minutes_and_keeps_best_effort_pods_out() {
        let t = Thresholds {
            memory: 100 * MI,
            disk_percent: 10,
            disk_most: u64::MAX,
            inodes_percent: 5,
            pid_percent: 0,
        };
        let left = Left { memory: 50 * MI, disk: 50, disk_capacity: 100, ..Left::default() };
        let short = shortages(&left, &t);
        assert_eq!(short, [(Short::Memory, 100 * MI, 50 * MI)]);
        let mut p = Pressures::default();
        let now = Timestamp::UNIX_EPOCH;
        p.note(&short, now);
        assert_eq!(p.conditions(after(now, 299)), ["MemoryPressure"]);
        assert!(p.conditions(after(now, 300)).is_empty());
        let pod = |s| crate::pod::tests::pod(s);
        let conditions = ["MemoryPressure"];
        assert_eq!(
            keeps_out(&pod(json!({"containers": [{"name": "a"}]})), &conditions).as_deref(),
            Some("The node had condition: [MemoryPressure]. ")
        );
        assert_eq!(keeps_out(&pod(plain("1Mi", 0)), &conditions), None);
        assert!(keeps_out(&pod(plain("1Mi", 0)), &["DiskPressure"]).is_some());
    }
}
