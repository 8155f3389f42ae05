//! What many parts ask of a Pod: readiness, effective resources, quality of service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

/// Sysctls of a pod that harm nobody else, in the order in which versions of the pod security standards allowed them.
pub const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// The status condition of a type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Whether the condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// `status.phase`, or the empty string.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// Whether the pod has finished for good: `Succeeded` or `Failed`.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod is neither finished nor being deleted (`IsPodActive`).
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// `spec.nodeName`, if the pod is bound.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether an init container is a sidecar: it restarts always and runs beside the main containers.
pub fn is_restartable_init(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The effective requests of the whole pod: containers and sidecars summed, or the peak while initializing if
/// higher, or the pod-level request where one is given; plus overhead.
pub fn requests(pod: &Pod) -> Resources {
    effective(pod, Side::Requests)
}

/// The effective limits of the whole pod, by the same rules; overhead is added to limits that exist.
pub fn limits(pod: &Pod) -> Resources {
    effective(pod, Side::Limits)
}

type Amounts = BTreeMap<String, ApiQuantity>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Requests,
    Limits,
}

fn add(into: &mut Resources, amounts: Option<&Amounts>) {
    for (name, amount) in amounts.into_iter().flatten() {
        *into.entry(name.clone()).or_default() += Quantity::from_api(amount);
    }
}

fn raise(into: &mut Resources, other: &Resources) {
    for (name, amount) in other {
        let slot = into.entry(name.clone()).or_default();
        *slot = (*slot).max(*amount);
    }
}

fn effective(pod: &Pod, side: Side) -> Resources {
    let pick = |r: &ResourceRequirements| match side {
        Side::Requests => r.requests.clone(),
        Side::Limits => r.limits.clone(),
    };
    let Some(spec) = &pod.spec else { return Resources::new() };
    let of = |c: &Container| c.resources.as_ref().and_then(pick);
    let mut total = Resources::new();
    for container in &spec.containers {
        add(&mut total, of(container).as_ref());
    }
    // While init containers run, the sidecars started before them run too.
    let (mut sidecars, mut peak) = (Resources::new(), Resources::new());
    for container in spec.init_containers.iter().flatten() {
        let amounts = of(container);
        if is_restartable_init(container) {
            add(&mut total, amounts.as_ref());
            add(&mut sidecars, amounts.as_ref());
            raise(&mut peak, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, amounts.as_ref());
            raise(&mut peak, &moment);
        }
    }
    raise(&mut total, &peak);
    for (name, amount) in spec.resources.as_ref().and_then(pick).into_iter().flatten() {
        total.insert(name, Quantity::from_api(&amount));
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        if side == Side::Requests || total.contains_key(name) {
            *total.entry(name.clone()).or_default() += Quantity::from_api(amount);
        }
    }
    total
}

/// `Guaranteed`, `Burstable` or `BestEffort`, computed from the spec.
pub fn qos(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let resources: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(pod_level) => vec![Some(pod_level)],
        None => containers(spec).map(|c| c.resources.as_ref()).collect(),
    };
    let (mut requests, mut limits) = (Resources::new(), Resources::new());
    let mut all_limited = true;
    for r in &resources {
        compute(&mut requests, r.and_then(|r| r.requests.as_ref()));
        let limited = compute(&mut limits, r.and_then(|r| r.limits.as_ref()));
        all_limited &= limited == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let covered = requests.iter().all(|(name, amount)| limits.get(name) == Some(amount));
    if all_limited && covered && requests.len() == limits.len() { "Guaranteed" } else { "Burstable" }
}

/// Adds positive cpu and memory amounts; returns how many of the two were given.
fn compute(into: &mut Resources, amounts: Option<&Amounts>) -> usize {
    let mut found = 0;
    for (name, amount) in amounts.into_iter().flatten() {
        let amount = Quantity::from_api(amount);
        if matches!(name.as_str(), "cpu" | "memory") && amount.sign() > 0 {
            found += 1;
            *into.entry(name.clone()).or_default() += amount;
        }
    }
    found
}

/// Main containers, then init containers.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": {}, "spec": spec })).expect("pod")
    }

    #[test]
    fn requests_take_the_peak_of_initialization() {
        let pod = pod(json!({
            "overhead": { "cpu": "10m" },
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": "100m" } } },
                { "name": "i", "resources": { "requests": { "cpu": "1", "memory": "1Gi" } } },
            ],
            "containers": [{ "name": "c", "resources": { "requests": { "cpu": "200m" } } }],
        }));
        let requests = requests(&pod);
        assert_eq!(requests["cpu"].to_string(), "1110m");
        assert_eq!(requests["memory"].to_string(), "1Gi");
        assert!(limits(&pod).is_empty());
    }

    #[track_caller]
    fn check_qos(resources: Value, expected: &str) {
        let pod = pod(json!({ "containers": [{ "name": "c", "resources": resources }] }));
        assert_eq!(qos(&pod), expected);
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        check_qos(json!({}), "BestEffort");
        check_qos(json!({ "requests": { "cpu": "1" } }), "Burstable");
        let full = json!({ "cpu": "1", "memory": "1Gi" });
        check_qos(json!({ "requests": full, "limits": full }), "Guaranteed");
        check_qos(json!({ "limits": { "cpu": "1" }, "requests": { "cpu": "1" } }), "Burstable");
    }
}
