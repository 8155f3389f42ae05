//! The table row of a pod: what `kubectl get pods` shows.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::common::{column, or_else, text, wide_column};
use crate::def::{AGE, Column, NAME, age, human_duration};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "", "The aggregate readiness state of this pod for accepting traffic."),
    column("Status", "string", "", "The aggregate status of the containers in this pod."),
    column(
        "Restarts",
        "string",
        "",
        "The number of times the containers in this pod have been restarted and when the last container \
         in this pod has restarted.",
    ),
    AGE,
    wide_column(
        "IP",
        "string",
        "",
        "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet \
         allocated.",
    ),
    wide_column(
        "Node",
        "string",
        "",
        "NodeName indicates in which node this pod is scheduled. If empty, this pod is a candidate for \
         scheduling by the scheduler defined in schedulerName. Once this field is set, the kubelet for \
         this node becomes responsible for the lifecycle of this pod. This field should not be used to \
         express a desire for the pod to be scheduled on a specific node. \
         https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename",
    ),
    wide_column(
        "Nominated Node",
        "string",
        "",
        "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be \
         scheduled right away as preemption victims receive their graceful termination periods. This \
         field does not guarantee that the pod will be scheduled on this node. Scheduler may decide to \
         place the pod elsewhere if other nodes become available sooner. Scheduler may also decide to \
         give the resources on this node to a higher priority pod that is created after preemption. As \
         a result, this field may be different than PodSpec.nodeName when the pod is scheduled.",
    ),
    wide_column(
        "Readiness Gates",
        "string",
        "",
        "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all \
         its containers are ready AND all conditions specified in the readiness gates have status equal \
         to \"True\" More info: https://git.k8s.io/enhancements/keps/sig-network/580-pod-readiness-gates",
    ),
];

/// The cells, one per column.
pub(super) fn row(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            let ago = now.as_second().saturating_sub(last.0.as_second());
            format!("{} ({} ago)", summary.restarts, human_duration(ago))
        }
        _ => summary.restarts.to_string(),
    };
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let ip = status.and_then(|s| s.pod_ips.iter().flatten().next()).map_or("", |ip| &ip.ip);
    vec![
        pod.metadata.name.clone().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod.metadata.creation_timestamp.as_ref(), now),
        or_else(ip, "<none>"),
        or_else(text(spec.and_then(|s| s.node_name.as_ref())), "<none>"),
        or_else(text(status.and_then(|s| s.nominated_node_name.as_ref())), "<none>"),
        readiness_gates(pod),
    ]
}

/// What the row says of the containers.
struct Summary<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i32,
    last_restart: Option<&'a Time>,
}

/// Restarts of some containers and the time of the last one.
#[derive(Clone, Copy, Default)]
struct Restarts<'a> {
    count: i32,
    last: Option<&'a Time>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a ContainerStatus) {
        self.count += status.restart_count;
        let ended = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        if let Some(finished) = ended.and_then(|t| t.finished_at.as_ref()) {
            self.last = self.last.max(Some(finished));
        }
    }
}

fn is_sidecar(container: Option<&Container>) -> bool {
    container.is_some_and(|c| c.restart_policy.as_deref() == Some("Always"))
}

fn condition<'a>(status: Option<&'a PodStatus>, kind: &str) -> Option<&'a PodCondition> {
    status.and_then(|s| s.conditions.as_ref()).and_then(|all| all.iter().find(|c| c.type_ == kind))
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Pod) -> Self {
        let status = pod.status.as_ref();
        let inits = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let sidecars = inits.iter().filter(|c| is_sidecar(Some(c))).count();
        let phase = text(status.and_then(|s| s.phase.as_ref()));
        let why = text(status.and_then(|s| s.reason.as_ref()));
        let mut summary = Self {
            ready: 0,
            total: pod.spec.as_ref().map_or(0, |s| s.containers.len()) + sidecars,
            reason: (if why.is_empty() { phase } else { why }).to_owned(),
            restarts: 0,
            last_restart: None,
        };
        let gated = condition(status, "PodScheduled");
        if gated.is_some_and(|c| c.reason.as_deref() == Some("SchedulingGated")) {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let sidecar_restarts = summary.read_init_containers(pod, inits);
        if let Some(restarts) = sidecar_restarts {
            summary.read_containers(status, restarts);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if why == "NodeLost" {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    /// Reads init container statuses. Yields the restarts of sidecars when initialization is over, so that
    /// the ordinary containers are looked at.
    fn read_init_containers(&mut self, pod: &'a Pod, inits: &[Container]) -> Option<Restarts<'a>> {
        let status = pod.status.as_ref();
        let mut all = Restarts::default();
        let mut sidecars = Restarts::default();
        let mut initializing = false;
        for (i, one) in status.iter().flat_map(|s| s.init_container_statuses.iter().flatten()).enumerate() {
            let sidecar = is_sidecar(inits.iter().find(|c| c.name == one.name));
            all.add(one);
            if sidecar {
                sidecars.add(one);
            }
            let terminated = one.state.as_ref().and_then(|s| s.terminated.as_ref());
            let waiting = one.state.as_ref().and_then(|s| s.waiting.as_ref());
            let waiting = text(waiting.and_then(|w| w.reason.as_ref()));
            if terminated.is_some_and(|t| t.exit_code == 0) {
                continue;
            }
            if sidecar && one.started == Some(true) {
                self.ready += usize::from(one.ready);
                continue;
            }
            self.reason = match terminated {
                Some(_) => format!("Init:{}", ended(one)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{i}/{}", inits.len()),
            };
            initializing = true;
            break;
        }
        (self.restarts, self.last_restart) = (all.count, all.last);
        let initialized = condition(status, "Initialized").is_some_and(|c| c.status == "True");
        (!initializing || initialized).then_some(sidecars)
    }

    fn read_containers(&mut self, status: Option<&'a PodStatus>, mut restarts: Restarts<'a>) {
        let mut running = false;
        let statuses = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        for one in statuses.iter().rev() {
            restarts.add(one);
            let state = one.state.as_ref();
            let waiting = state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_ref());
            if !text(waiting).is_empty() {
                text(waiting).clone_into(&mut self.reason);
            } else if state.is_some_and(|s| s.terminated.is_some()) {
                self.reason = ended(one);
            } else if one.ready && state.is_some_and(|s| s.running.is_some()) {
                running = true;
                self.ready += 1;
            }
        }
        (self.restarts, self.last_restart) = (restarts.count, restarts.last);
        if self.reason == "Completed" && running {
            let ready = condition(status, "Ready").is_some_and(|c| c.status == "True");
            (if ready { "Running" } else { "NotReady" }).clone_into(&mut self.reason);
        }
    }
}

/// Why a terminated container ended: its reason, `Signal:9` or `ExitCode:1`.
fn ended(status: &ContainerStatus) -> String {
    let Some(terminated) = status.state.as_ref().and_then(|s| s.terminated.as_ref()) else {
        return String::new();
    };
    match (text(terminated.reason.as_ref()), terminated.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn readiness_gates(pod: &Pod) -> Value {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = |kind: &str| condition(pod.status.as_ref(), kind).is_some_and(|c| c.status == "True");
    let count = gates.iter().filter(|g| met(&g.condition_type)).count();
    format!("{count}/{}", gates.len()).into()
}
