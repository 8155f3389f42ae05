//! In-place resize: which running containers have other limits than they should, and the changing of them.

use coracle_cri::v1::{ContainerState, ContainerStatus, LinuxResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use crate::container::resources::{of_container, of_pod, requests};
use crate::context::Context;
use crate::cpus::CpuPolicy;
use crate::memory_manager::MemoryPolicy;
use crate::names;
use crate::pod::{Role, containers};
use crate::state::Observed;

/// Stands for the machine's memory, on which only the OOM score depends, which is not resized.
const ANY: i64 = 1;

/// How a running container relates to its allocated resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It has them.
    None,
    /// Its limits are to be changed while it runs.
    InPlace,
    /// Its resize policy wants a restart.
    Restart,
}

/// The limits that count for a resize.
fn limits(r: &LinuxResources) -> (i64, i64, i64) {
    (r.cpu_shares, r.cpu_quota, r.memory_limit_in_bytes)
}

/// Compares a running container with what it should have.
pub fn difference(pod: &Pod, c: &Container, status: &ContainerStatus) -> Difference {
    if status.resources == LinuxResources::default() {
        // The runtime does not say.
        return Difference::None;
    }
    let wanted = of_container(pod, c, ANY);
    let (shares, quota, memory) = limits(&wanted);
    let (now_shares, now_quota, now_memory) = limits(&status.resources);
    let request = memory_request(c);
    let noted = status.annotations.get(names::MEMORY_REQUEST).cloned();
    let request_changed = noted.is_some_and(|n| n != request);
    let restarts = |resource: &str| {
        let mut policies = c.resize_policy.iter().flatten();
        policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
    };
    let cpu = shares != now_shares || quota != now_quota;
    if cpu && restarts("cpu") || (memory != now_memory || request_changed) && restarts("memory") {
        return Difference::Restart;
    }
    if cpu || memory != now_memory { Difference::InPlace } else { Difference::None }
}

/// The memory that a container asks for, as text, to be noted with it.
pub fn memory_request(c: &Container) -> String {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("memory")).map(|q| q.0.clone()).unwrap_or_default()
}

/// Running containers of a pod that can be resized.
fn running<'a>(
    pod: &'a Pod,
    seen: &'a Observed,
) -> impl Iterator<Item = (&'a Container, &'a ContainerStatus)> {
    containers(pod).filter(|(_, role)| matches!(role, Role::App | Role::Sidecar)).filter_map(|(c, _)| {
        let newest = seen.newest(&c.name)?;
        (newest.state == ContainerState::Running).then_some((c, newest))
    })
}

/// Whether some running container does not have what it should.
pub fn in_progress(pod: &Pod, seen: &Observed) -> bool {
    running(pod, seen).any(|(c, s)| difference(pod, c, s) != Difference::None)
}

/// Changes the limits: the pod's first where they grow, then the containers', then the pod's where they shrink.
///
/// # Errors
/// What the runtime refused; a later try finds what is left to do.
pub async fn carry_out(cx: &Context, pod: &Pod, seen: &Observed) -> Result<(), String> {
    let Some(sandbox) = seen.sandboxes.first() else { return Ok(()) };
    let whole = of_pod(pod);
    let mut shrinking = Vec::new();
    // What the pod has now is not known here; a limit that is first raised to the sum of old and new, and set to
    // the new one at the end, is never in the way of its containers.
    let before: i64 = running(pod, seen).map(|(_, s)| s.resources.memory_limit_in_bytes).sum();
    let mut first = whole.clone();
    if first.memory_limit_in_bytes > 0 {
        first.memory_limit_in_bytes = first.memory_limit_in_bytes.saturating_add(before);
    }
    first.cpu_quota = if whole.cpu_quota > 0 { -1 } else { 0 };
    let refused = |e: coracle_cri::CriError| e.to_string();
    cx.runtime.update_pod_sandbox_resources(&sandbox.id, first).await.map_err(refused)?;
    for (c, status) in running(pod, seen) {
        if difference(pod, c, status) != Difference::InPlace {
            continue;
        }
        let mut wanted = of_container(pod, c, ANY);
        cx.machine.swap.limit(pod, c, &mut wanted);
        if wanted.memory_limit_in_bytes < status.resources.memory_limit_in_bytes {
            shrinking.push((c, status, wanted));
            continue;
        }
        cx.runtime.update_container_resources(&status.id, wanted).await.map_err(refused)?;
    }
    let mut failures = Vec::new();
    for (c, status, wanted) in shrinking {
        let limit = wanted.memory_limit_in_bytes;
        if let Err(e) = cx.runtime.update_container_resources(&status.id, wanted).await {
            let usage =
                cx.runtime.container_stats(&status.id).await.map(|s| s.usage.memory_usage_bytes).unwrap_or(0);
            failures.push(if usage >= limit.unsigned_abs() {
                format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({usage})",
                    c.name
                )
            } else {
                e.to_string()
            });
        }
    }
    if !failures.is_empty() {
        return Err(format!("cannot decrease memory limits: {}", failures.join(", ")));
    }
    cx.runtime.update_pod_sandbox_resources(&sandbox.id, whole).await.map_err(refused)
}

/// Why what a pod asks for now will never be granted here; upstream's text. CPUs and memory that were given to one
/// pod alone stay as they are.
pub fn infeasible(
    desired: &Pod,
    allocated: &Pod,
    (cpu, memory): (CpuPolicy, MemoryPolicy),
) -> Option<String> {
    let policies = [
        ("CPU", cpu.name(), cpu != CpuPolicy::None, "cpu"),
        ("Memory", memory.name(), memory == MemoryPolicy::Static, "memory"),
    ];
    let request = |c: &Container, name: &str| requests(c).get(name).copied().unwrap_or_default();
    let changes = |name: &str| {
        let pairs = containers(desired).filter(|(_, role)| *role != Role::Init);
        let old = |c: &Container| {
            containers(allocated).find(|(o, _)| o.name == c.name).map(|(o, _)| request(o, name))
        };
        pairs.into_iter().any(|(c, _)| old(c) != Some(request(c, name)))
    };
    let fixed = policies.into_iter().filter(|(.., is_fixed, _)| *is_fixed);
    let (manager, policy, ..) =
        fixed.filter(|_| coracle_meta::pod::qos(desired) == "Guaranteed").find(|(.., name)| changes(name))?;
    Some(format!("Resize is infeasible for Guaranteed Pods alongside {manager} Manager policy \"{policy}\""))
}

/// Text of a resize event: what happened, and the resources as the specification has them.
pub fn event_text(what: &str, pod: &Pod, generation: i64, error: &str) -> String {
    let one = |c: &Container| {
        let resources = serde_json::to_value(c.resources.clone().unwrap_or_default()).unwrap_or_default();
        json!({"name": c.name, "resources": resources})
    };
    let list = |init: bool| -> Vec<Value> {
        containers(pod).filter(|(_, role)| (*role != Role::App) == init).map(|(c, _)| one(c)).collect()
    };
    let mut parts = Vec::new();
    for (key, init) in [("initContainers", true), ("containers", false)] {
        let list = list(init);
        if !list.is_empty() {
            parts.push(format!("\"{key}\":{}", Value::Array(list)));
        }
    }
    parts.push(format!("\"generation\":{generation}"));
    if !error.is_empty() {
        parts.push(format!("\"error\":{}", Value::String(error.to_owned())));
    }
    format!("{what}: {{{}}}", parts.join(","))
}

/// A resize that was granted and is being carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InProgress {
    /// Generation of the pod that asked for it.
    pub generation: i64,
    /// Why it does not get on.
    pub error: String,
}

/// A resize that was not granted (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Generation of the pod that asked for it.
    pub generation: i64,
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    /// What is missing.
    pub message: String,
}

/// Where a pod's resize stands.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Not granted.
    pub pending: Option<Pending>,
    /// Granted.
    pub in_progress: Option<InProgress>,
    /// Limits are being changed now.
    pub busy: bool,
    /// After a failure: not before.
    pub retry_at: Option<jiff::Timestamp>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pod::tests::pod;

    fn check(spec: Value, status: LinuxResources, noted: &str, expected: Difference) {
        let p = pod(json!({"containers": [spec]}));
        let annotations = BTreeMap::from([(names::MEMORY_REQUEST.to_owned(), noted.to_owned())]);
        let status = ContainerStatus { resources: status, annotations, ..ContainerStatus::default() };
        let c = &crate::pod::spec(&p).containers[0];
        assert_eq!(difference(&p, c, &status), expected);
    }

    #[test]
    fn limits_are_compared_and_the_policy_decides_how_they_change() {
        let now = LinuxResources { cpu_shares: 256, memory_limit_in_bytes: 64 << 20, ..Default::default() };
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"memory": "64Mi"}});
        check(json!({"name": "a", "resources": resources("250m")}), now.clone(), "", Difference::None);
        check(json!({"name": "a", "resources": resources("500m")}), now.clone(), "", Difference::InPlace);
        let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        let spec = json!({"name": "a", "resources": resources("500m"), "resizePolicy": policy});
        check(spec, now, "", Difference::Restart);
    }

    #[test]
    fn what_is_a_pods_alone_is_not_resized() {
        let of = |cpu: &str, memory: &str| {
            let amounts = json!({"cpu": cpu, "memory": memory});
            pod(json!({"containers": [{"name": "a", "resources": {"requests": amounts, "limits": amounts}}]}))
        };
        let fixed = CpuPolicy::Static(Default::default());
        let both = (fixed, MemoryPolicy::Static);
        let text =
            |manager: &str| Some(format!("Resize is infeasible for Guaranteed Pods alongside {manager}"));
        let now = of("1", "1Gi");
        assert_eq!(infeasible(&of("2", "2Gi"), &now, both), text("CPU Manager policy \"static\""));
        assert_eq!(infeasible(&of("1", "2Gi"), &now, both), text("Memory Manager policy \"Static\""));
        assert_eq!(infeasible(&of("1000m", "1024Mi"), &now, both), None);
        assert_eq!(infeasible(&of("1", "2Gi"), &now, (fixed, MemoryPolicy::None)), None);
        assert_eq!(infeasible(&of("2", "2Gi"), &now, (CpuPolicy::None, MemoryPolicy::None)), None);
        let burstable =
            |cpu: &str| pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}));
        assert_eq!(infeasible(&burstable("2"), &burstable("1"), both), None);
    }

    #[test]
    fn event_texts_have_upstreams_form() {
        let p = pod(json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}));
        assert_eq!(
            event_text("Pod resize started", &p, 2, ""),
            "Pod resize started: {\"containers\":[{\"name\":\"a\",\"resources\":{\"limits\":{\"cpu\":\"1\"}}}],\
             \"generation\":2}"
        );
    }
}
