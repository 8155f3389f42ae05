//! A pod's status from the runtime's state and the worker's memory. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::container_status::Sources;
use crate::phase::Facts;
use crate::pod::{self, Role};

/// Conditions that the kubelet owns, in the order in which it writes them.
const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The status of a pod now. `base` is the newest status known: conditions of others, the start time and the
/// transition times come from it.
pub fn generate(s: Sources<'_>, base: &PodStatus, node_ip: IpAddr, now: Timestamp) -> PodStatus {
    let now = pod::whole_seconds(now);
    if s.memory.rejected {
        return rejected(s, base, now);
    }
    let init: Vec<_> = pod::init_containers(s.pod).map(|(c, role)| s.container(c, role)).collect();
    let mut apps: Vec<_> = pod::spec(s.pod).containers.iter().map(|c| s.container(c, Role::App)).collect();
    let phase = phase(s, &init, &apps, base);
    let failed = failure(s);
    let mut status = PodStatus {
        observed_generation: s.pod.metadata.generation,
        phase: Some(phase.to_owned()),
        reason: failed.map(|f| f.reason.clone()).or_else(|| base.reason.clone()),
        message: failed.map(|f| f.message.clone()).or_else(|| base.message.clone()),
        host_ip: Some(node_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: node_ip.to_string() }]),
        start_time: base.start_time.clone().or(Some(Time(now))),
        qos_class: Some(coracle_meta::pod::qos(s.pod).to_owned()),
        nominated_node_name: base.nominated_node_name.clone(),
        resource_claim_statuses: base.resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    let ips = addresses(s, node_ip);
    if ips.is_empty() {
        status.pod_ip.clone_from(&base.pod_ip);
        status.pod_ips.clone_from(&base.pod_ips);
    } else {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
    status.conditions = Some(conditions(s, base, phase, &init, &apps, now));
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    status.container_statuses = Some(apps);
    let ephemeral = pod::ephemeral_containers(s.pod).map(pod::as_container);
    let mut ephemeral: Vec<_> = ephemeral.map(|c| s.container(&c, Role::Ephemeral)).collect();
    ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    pod_level_resources(s.pod, &mut status);
    status
}

/// The status of a pod that the node refused: nothing of it was ever made.
fn rejected(s: Sources<'_>, base: &PodStatus, now: Timestamp) -> PodStatus {
    let failed = s.memory.failed.as_ref();
    let old = base.conditions.as_deref().unwrap_or_default();
    let (reason, nothing) = ("PodFailed", String::new());
    let mut conditions: Vec<PodCondition> =
        old.iter().filter(|c| !OWN.contains(&c.type_.as_str())).cloned().collect();
    for kind in ["Ready", "ContainersReady"] {
        let verdict = (false, reason, nothing.clone());
        conditions.push(condition(s, old, kind, verdict, now));
    }
    PodStatus {
        observed_generation: s.pod.metadata.generation,
        phase: Some("Failed".to_owned()),
        reason: failed.map(|f| f.reason.clone()),
        message: failed.map(|f| f.message.clone()),
        start_time: base.start_time.clone().or(Some(Time(now))),
        qos_class: Some(coracle_meta::pod::qos(s.pod).to_owned()),
        conditions: Some(conditions),
        resource_claim_statuses: base.resource_claim_statuses.clone(),
        ..PodStatus::default()
    }
}

/// What the pod as a whole was given.
fn pod_level_resources(pod: &k8s_openapi::api::core::v1::Pod, status: &mut PodStatus) {
    let amounts = |map: coracle_meta::pod::Resources| -> Option<BTreeMap<String, ApiQuantity>> {
        let map: BTreeMap<_, _> = map.into_iter().map(|(name, amount)| (name, amount.to_api())).collect();
        (!map.is_empty()).then_some(map)
    };
    let requests = amounts(coracle_meta::pod::requests(pod));
    let mut whole = pod::spec(pod).resources.clone().unwrap_or_default();
    whole.requests.clone_from(&requests);
    whole.limits = amounts(coracle_meta::pod::limits(pod));
    status.allocated_resources = requests;
    status.resources = Some(whole);
}

fn addresses(s: Sources<'_>, node_ip: IpAddr) -> Vec<String> {
    let Some(sandbox) = s.seen.sandboxes.first().filter(|x| x.ready) else { return Vec::new() };
    if pod::host_network(s.pod) { vec![node_ip.to_string()] } else { sandbox.ips.clone() }
}

/// Why the pod failed as a whole; told only once nothing of it runs, since others then make a new one.
fn failure<'a>(s: Sources<'a>) -> Option<&'a crate::state::Failure> {
    s.memory.failed.as_ref().filter(|_| s.seen.running().next().is_none())
}

/// What the phase depends on besides the containers.
fn facts(s: Sources<'_>, apps: &[ContainerStatus]) -> Facts {
    Facts {
        terminal: s.memory.ended && s.seen.running().next().is_none(),
        initialized: apps.iter().any(|c| c.container_id.is_some()),
    }
}

fn phase(
    s: Sources<'_>,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    base: &PodStatus,
) -> &'static str {
    match base.phase.as_deref() {
        Some("Failed") => "Failed",
        Some("Succeeded") => "Succeeded",
        _ if failure(s).is_some() => "Failed",
        _ => crate::phase::phase(s.pod, init, apps, facts(s, apps)),
    }
}

/// Status, reason and message of a condition.
type Verdict = (bool, &'static str, String);

fn conditions(
    s: Sources<'_>,
    base: &PodStatus,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let old = base.conditions.as_deref().unwrap_or_default();
    let sandbox = s.seen.sandbox(pod::host_network(s.pod)).is_some();
    let containers = containers_ready(s, phase, init, apps);
    let verdicts: [Verdict; 5] = [
        (sandbox, "", String::new()),
        initialized(s, phase, init, apps),
        ready(s, old, &containers),
        containers,
        (true, "", String::new()),
    ];
    let mut result: Vec<PodCondition> =
        OWN.iter().zip(verdicts).map(|(kind, verdict)| condition(s, old, kind, verdict, now)).collect();
    result.extend(old.iter().filter(|c| !is_own(&c.type_)).cloned());
    result.extend(resizing(s, old, now));
    if pod::may_restart_all(s.pod) {
        result.retain(|c| c.type_ != "AllContainersRestarting");
        let verdict = match phase {
            "Succeeded" => (false, "PodCompleted", String::new()),
            "Failed" => (false, "PodFailed", String::new()),
            _ if s.memory.resetting => {
                (true, "RestartAllContainersStarted", "container exited with restart policy rule".to_owned())
            }
            _ => (false, "", String::new()),
        };
        result.push(condition(s, old, "AllContainersRestarting", verdict, now));
    }
    if let Some(failure) = failure(s).filter(|_| s.memory.disrupted) {
        result.retain(|c| c.type_ != "DisruptionTarget");
        let verdict = (true, "TerminationByKubelet", failure.message.clone());
        result.push(condition(s, old, "DisruptionTarget", verdict, now));
    }
    result
}

/// Whether the kubelet alone writes conditions of this type.
fn is_own(kind: &str) -> bool {
    OWN.contains(&kind) || matches!(kind, "PodResizePending" | "PodResizeInProgress")
}

fn condition(
    s: Sources<'_>,
    old: &[PodCondition],
    kind: &str,
    (status, reason, message): Verdict,
    now: Timestamp,
) -> PodCondition {
    let status = if status { "True" } else { "False" };
    let same = old.iter().find(|c| c.type_ == kind && c.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        observed_generation: s.pod.metadata.generation,
        last_probe_time: None,
    }
}

/// Where a resize stands: asked for and not granted, granted and not done.
fn resizing(s: Sources<'_>, old: &[PodCondition], now: Timestamp) -> Vec<PodCondition> {
    if s.memory.ended {
        return Vec::new();
    }
    let state = &s.memory.resize;
    let mut list = Vec::new();
    if let Some(p) = &state.pending {
        let verdict = (true, p.reason, p.message.clone());
        let c = condition(s, old, "PodResizePending", verdict, now);
        list.push(PodCondition { observed_generation: Some(p.generation), ..c });
    }
    if let Some(p) = &state.in_progress {
        let reason = if p.error.is_empty() { "" } else { "Error" };
        let c = condition(s, old, "PodResizeInProgress", (true, reason, p.error.clone()), now);
        list.push(PodCondition { observed_generation: Some(p.generation), ..c });
    }
    list
}

fn named<'a>(list: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", list.collect::<Vec<_>>().join(" "))
}

fn initialized(s: Sources<'_>, phase: &str, init: &[ContainerStatus], apps: &[ContainerStatus]) -> Verdict {
    let begun = apps.iter().any(|c| c.container_id.is_some());
    let open: Vec<&str> = pod::init_containers(s.pod)
        .zip(init)
        .filter(|((_, role), c)| match role {
            Role::Sidecar => c.started != Some(true),
            _ => !c.ready,
        })
        .map(|(_, c)| c.name.as_str())
        .collect();
    if phase == "Succeeded" {
        return (true, "PodCompleted", String::new());
    }
    if open.is_empty() || begun {
        return (true, "", String::new());
    }
    let message = format!("containers with incomplete status: {}", named(open.into_iter()));
    (false, "ContainersNotInitialized", message)
}

fn containers_ready(
    s: Sources<'_>,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return (false, "PodCompleted", String::new()),
        "Failed" => return (false, "PodFailed", String::new()),
        _ => {}
    }
    let sidecars = pod::init_containers(s.pod).zip(init).filter(|((_, r), _)| *r == Role::Sidecar);
    let unready: Vec<&str> =
        sidecars.map(|(_, c)| c).chain(apps).filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    if unready.is_empty() {
        return (true, "", String::new());
    }
    let message = format!("containers with unready status: {}", named(unready.into_iter()));
    (false, "ContainersNotReady", message)
}

fn ready(s: Sources<'_>, old: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.0 {
        return containers.clone();
    }
    let mut missing = Vec::new();
    for gate in pod::spec(s.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match old.iter().find(|c| c.type_ == *kind) {
            None => missing
                .push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => missing
                .push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status)),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return (true, "", String::new());
    }
    (false, "ReadinessGatesNotReady", missing.join(", "))
}

#[cfg(test)]
mod tests {
    use coracle_cri::v1::{self as cri, ContainerState};
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod as make;
    use crate::state::{Memory, Observed, Waiting};

    fn seen(state: ContainerState, code: i32) -> Observed {
        let sandbox = cri::PodSandboxStatus {
            id: "s".into(),
            ready: true,
            ips: vec!["10.244.0.9".into()],
            ..cri::PodSandboxStatus::default()
        };
        let mut c = cri::ContainerStatus { id: "c1".into(), state, exit_code: code, ..Default::default() };
        c.metadata.name = "a".into();
        c.pod_sandbox_id = "s".into();
        Observed { sandboxes: vec![sandbox], containers: vec![c] }
    }

    fn status(policy: &str, seen: &Observed, memory: &Memory) -> PodStatus {
        let pod = make(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}));
        let messages = crate::container_status::Messages::new();
        let s = Sources { pod: &pod, seen, memory, messages: &messages };
        generate(s, &PodStatus::default(), IpAddr::from([10, 0, 0, 1]), Timestamp::UNIX_EPOCH)
    }

    fn condition<'a>(s: &'a PodStatus, kind: &str) -> &'a PodCondition {
        s.conditions.iter().flatten().find(|c| c.type_ == kind).expect("condition")
    }

    #[test]
    fn a_running_ready_container_makes_the_pod_running_and_ready() {
        let mut m = Memory::default();
        m.started.insert("c1".into());
        m.ready.insert("c1".into());
        let s = status("Always", &seen(ContainerState::Running, 0), &m);
        assert_eq!(s.phase.as_deref(), Some("Running"));
        assert_eq!(s.pod_ip.as_deref(), Some("10.244.0.9"));
        assert_eq!(condition(&s, "Ready").status, "True");
        let c = &s.container_statuses.expect("statuses")[0];
        assert_eq!((c.ready, c.started, c.container_id.as_deref()), (true, Some(true), Some("coracle://c1")));
    }

    #[test]
    fn phases_follow_exit_codes_and_restart_policy() {
        let check = |policy: &str, code: i32, expected: &str| {
            let s = status(policy, &seen(ContainerState::Exited, code), &Memory::default());
            assert_eq!(s.phase.as_deref(), Some(expected), "{policy} {code}");
        };
        check("Always", 1, "Running");
        check("OnFailure", 0, "Succeeded");
        check("OnFailure", 2, "Running");
        check("Never", 0, "Succeeded");
        check("Never", 3, "Failed");
    }

    #[test]
    fn a_crash_loop_shows_waiting_with_the_last_termination() {
        let mut m = Memory::default();
        m.slot("a").waiting = Some(Waiting { reason: "CrashLoopBackOff".into(), message: "m".into() });
        let s = status("Always", &seen(ContainerState::Exited, 7), &m);
        let c = &s.container_statuses.as_ref().expect("statuses")[0];
        let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(c.last_state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code), Some(7));
        assert_eq!(s.phase.as_deref(), Some("Running"));
        assert_eq!(
            condition(&s, "ContainersReady").message.as_deref(),
            Some("containers with unready status: [a]")
        );
    }

    #[test]
    fn a_pod_without_containers_yet_is_pending_and_creating() {
        let s = status("Always", &Observed::default(), &Memory::default());
        assert_eq!(s.phase.as_deref(), Some("Pending"));
        let c = &s.container_statuses.as_ref().expect("statuses")[0];
        let w = c.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
        assert_eq!(w.reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(condition(&s, "PodReadyToStartContainers").status, "False");
    }
}
