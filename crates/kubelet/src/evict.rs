//! Which pods must go: those that hold more of the disk than they may, and when the node runs short, those that use
//! more than they asked for, the least important first. Pure; the texts are upstream's.

mod pressure;
mod thresholds;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use coracle_meta::pod::{limits, qos, requests};
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
pub use pressure::{Left, Observations, Pressures, Shortage, is_over, memory_to_use};
pub use thresholds::{EvictionConfig, EvictionTexts, Signal};

use crate::pod::spec;

/// Pods of this priority and above are critical.
const CRITICAL: i32 = 2_000_000_000;
/// Seconds that a pod has to end that must go at once.
pub const AT_ONCE: i64 = 1;

/// A container's use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    pub name: String,
    pub memory: u64,
    /// Bytes of the writable layer.
    pub layer: u64,
    /// Bytes of logs.
    pub logs: u64,
}

impl ContainerUse {
    /// Writable layer and logs.
    pub fn disk(&self) -> u64 {
        self.layer + self.logs
    }
}

/// A pod's use.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUse {
    pub pod: std::sync::Arc<Pod>,
    pub memory: u64,
    /// Bytes and inodes of volumes on the node's disk.
    pub local: (u64, u64),
    /// Inodes of writable layers.
    pub layer_inodes: u64,
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
        && p.disk() > limit.value().max(0).unsigned_abs()
    {
        let limit = limit.to_api().0;
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    for c in &spec(&p.pod).containers {
        let limit = c.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("ephemeral-storage"));
        let Some(limit) = limit.map(Quantity::from_api).filter(|l| !l.is_zero()) else { continue };
        let used = p.containers.iter().find(|u| u.name == c.name).map_or(0, ContainerUse::disk);
        if used > limit.value().max(0).unsigned_abs() {
            let (name, limit) = (&c.name, limit.to_api().0);
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "));
        }
    }
    None
}

impl PodUse {
    /// Bytes of containers, logs and volumes on the node's disks.
    pub fn disk(&self) -> u64 {
        self.local.0 + self.containers.iter().map(ContainerUse::disk).sum::<u64>()
    }
}

/// How much of what is short a pod has. If `split`, writable layers are on another disk than volumes and logs.
fn used(p: &PodUse, what: Signal, split: bool) -> u64 {
    let layers: u64 = p.containers.iter().map(|c| c.layer).sum();
    match what {
        Signal::Memory | Signal::PodsMemory => p.memory,
        Signal::NodeDisk if split => p.disk() - layers,
        Signal::ImageDisk | Signal::ContainerDisk if split => layers,
        Signal::NodeDisk | Signal::ImageDisk | Signal::ContainerDisk => p.disk(),
        Signal::NodeInodes if split => p.local.1,
        Signal::ImageInodes | Signal::ContainerInodes if split => p.layer_inodes,
        Signal::NodeInodes | Signal::ImageInodes | Signal::ContainerInodes => p.local.1 + p.layer_inodes,
        Signal::Pids => p.processes,
    }
}

fn requested(p: &PodUse, what: Signal) -> u64 {
    requests(&p.pod).get(what.resource()).map_or(0, |q| q.value().max(0).unsigned_abs())
}

/// The pods in the order in which they go: those beyond their requests, then by priority, then by how much they use
/// beyond what they asked for. If `split`, writable layers are on another disk than volumes and logs.
pub fn rank(pods: &mut [PodUse], what: Signal, split: bool) {
    pods.sort_by_key(|p| {
        let (used, requested) = (used(p, what, split), requested(p, what));
        let beyond = i128::from(used) - i128::from(requested);
        let first = what == Signal::Pids || used > requested;
        (Reverse(first), spec(&p.pod).priority.unwrap_or(0), Reverse(beyond))
    });
}

/// Seconds that a pod has to end: one, unless the threshold is soft.
pub fn grace(pod: &Pod, short: &Shortage, config: &EvictionConfig) -> i64 {
    match short.soft {
        true => spec(pod)
            .termination_grace_period_seconds
            .map_or(config.most_grace, |own| own.min(config.most_grace)),
        false => AT_ONCE,
    }
}

/// What an evicted pod's status says, and the event's annotations for programs: who used more than asked for, and how
/// much, and of what the node had too little.
pub fn explain(p: &PodUse, short: &Shortage) -> (String, BTreeMap<String, String>) {
    let what = short.signal;
    let resource = what.resource();
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        short.least.to_api().0,
        short.available.to_api().0
    );
    let mut annotations = BTreeMap::from([("starved_resource".to_owned(), resource.to_owned())]);
    let pod_request = spec(&p.pod).resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
    if let Some(request) = pod_request.filter(|_| resource == "memory") {
        let name = p.pod.metadata.name.as_deref().unwrap_or("");
        message.push_str(&larger("Pod", name, p.memory, Quantity::from_api(request), resource));
        annotations.insert("offending_pod".to_owned(), name.to_owned());
        annotations.insert("offending_pod_usage".to_owned(), text(p.memory));
    }
    let (mut names, mut usage) = (Vec::new(), Vec::new());
    for c in coracle_meta::pod::containers(spec(&p.pod)).filter(|_| what.in_bytes()) {
        let Some(u) = p.containers.iter().find(|u| u.name == c.name) else { continue };
        let used = if what.is_disk() { u.disk() } else { u.memory };
        let request = c.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
        let request = request.map(Quantity::from_api).unwrap_or_default();
        if used > request.value().max(0).unsigned_abs() {
            message.push_str(&larger("Container", &c.name, used, request, resource));
            names.push(c.name.as_str());
            usage.push(text(used));
        }
    }
    annotations.insert("offending_containers".to_owned(), names.join(","));
    annotations.insert("offending_containers_usage".to_owned(), usage.join(","));
    (message, annotations)
}

fn larger(what: &str, name: &str, used: u64, request: Quantity, resource: &str) -> String {
    let (used, request) = (text(used), request.to_api().0);
    format!("{what} {name} was using {used}, request is {request}, has larger consumption of {resource}. ")
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

    fn using(spec: Value, memory: u64, layer: u64) -> PodUse {
        let containers = vec![ContainerUse { name: "a".into(), memory, layer, logs: 0 }];
        PodUse {
            pod: std::sync::Arc::new(crate::pod::tests::pod(spec)),
            memory,
            local: (0, 0),
            layer_inodes: 0,
            processes: 0,
            containers,
            volumes: Vec::new(),
        }
    }

    fn short(signal: Signal, least: u64, available: u64) -> Shortage {
        let bytes = |n| Quantity::from_bytes(i64::try_from(n).unwrap_or(0));
        Shortage { signal, least: bytes(least), available: bytes(available), soft: false }
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
        rank(&mut pods, Signal::Memory, false);
        let order: Vec<u64> = pods.iter().map(|p| p.memory / MI).collect();
        assert_eq!(order, [30, 20, 900, 50]);
        let (message, annotations) = explain(&pods[0], &short(Signal::Memory, 100 * MI, 50 * MI));
        assert_eq!(
            message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 30Mi, request is 10Mi, has larger consumption of memory. "
        );
        let want = [
            ("offending_containers", "a"),
            ("offending_containers_usage", "30Mi"),
            ("starved_resource", "memory"),
        ];
        assert_eq!(annotations, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn pods_with_requests_of_their_own_and_innocent_containers_are_told_apart() {
        let spec = json!({"resources": {"requests": {"memory": "5Mi"}}, "containers": [
            {"name": "a", "resources": {"requests": {"memory": "50Mi"}}}, {"name": "b"}, {"name": "c"}]});
        let mut p = using(spec, 40 * MI, 0);
        let more = |name: &str, memory| ContainerUse { name: name.into(), memory, ..ContainerUse::default() };
        p.containers.extend([more("b", 2 * MI), more("c", 3 * MI)]);
        let (_, annotations) = explain(&p, &short(Signal::Memory, 100 * MI, 50 * MI));
        let want = [
            ("offending_containers", "b,c"),
            ("offending_containers_usage", "2Mi,3Mi"),
            ("offending_pod", "web"),
            ("offending_pod_usage", "40Mi"),
            ("starved_resource", "memory"),
        ];
        assert_eq!(annotations, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let (_, of_inodes) = explain(&p, &short(Signal::NodeInodes, 1, 0));
        assert_eq!(of_inodes["starved_resource"], "inodes");
        assert_eq!(of_inodes["offending_containers"], "");
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
    fn layers_on_a_disk_of_their_own_count_only_there() {
        let asked = json!({"containers": [{"name": "a"}]});
        let mut pods = vec![using(asked.clone(), 0, 9 * MI), using(asked, 0, MI)];
        pods[1].local = (5 * MI, 100);
        let first = |pods: &mut [PodUse], what, split| {
            rank(pods, what, split);
            pods[0].local.0 / MI
        };
        assert_eq!(first(&mut pods, Signal::NodeDisk, false), 0, "nine in its layer");
        assert_eq!(first(&mut pods, Signal::NodeDisk, true), 5, "five in its volumes");
        assert_eq!(first(&mut pods, Signal::ImageDisk, true), 0);
        assert_eq!(first(&mut pods, Signal::NodeInodes, true), 5);
    }

    #[test]
    fn a_soft_threshold_leaves_pods_time_to_end() {
        let pod = |seconds: Value| {
            crate::pod::tests::pod(json!({"terminationGracePeriodSeconds": seconds, "containers": []}))
        };
        let config = EvictionConfig { most_grace: 20, ..EvictionConfig::standard() };
        let hard = short(Signal::Memory, 0, 0);
        let soft = Shortage { soft: true, ..hard };
        assert_eq!(grace(&pod(json!(30)), &hard, &config), 1);
        assert_eq!(grace(&pod(json!(30)), &soft, &config), 20);
        assert_eq!(grace(&pod(json!(5)), &soft, &config), 5);
    }

    #[test]
    fn pressure_keeps_best_effort_pods_out() {
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
