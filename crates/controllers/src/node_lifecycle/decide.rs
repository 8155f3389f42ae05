//! Whether a node is alive, and which taints it bears: pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What the kubelet alone reports: unknown once it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that taint while true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// Labels, and what they were called before.
const LABELS_BEFORE: [(&str, &str); 2] =
    [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// When a kubelet was last heard of, by our own clock: the node's may be wrong.
#[derive(Debug)]
pub(super) struct Heartbeat {
    pub at: Timestamp,
    /// Whether the node was ready when it was last looked at.
    pub was_ready: bool,
    renewed: Option<MicroTime>,
    reported: Option<Time>,
}

impl Heartbeat {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { at: now, was_ready: false, renewed: None, reported: None }
    }

    /// Takes a renewed lease or a newer report for a sign of life.
    pub(super) fn observe(&mut self, node: &Node, renewed: Option<MicroTime>, now: Timestamp) {
        let reported = condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        if renewed > self.renewed || reported > self.reported {
            self.at = now;
        }
        self.renewed = renewed.max(self.renewed.take());
        self.reported = reported.max(self.reported.take());
    }
}

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// `True`, `False` or `Unknown`; `Unknown` without the condition.
pub(crate) fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// Whether no kubelet ever reported.
pub(super) fn never_reported(node: &Node) -> bool {
    condition(node, "Ready").is_none()
}

/// Whether a node is alive.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Until this long from now at least.
    Alive(Duration),
    /// Its kubelet fell silent; with the node to write, unless that is said already.
    Silent(Option<Box<Node>>),
}

/// Judges a node last heard of at `heard`.
pub(super) fn judge(node: &Arc<Node>, heard: Timestamp, grace: Duration, now: Timestamp) -> Verdict {
    let left = heard.checked_add(grace).ok().map(|end| end.duration_since(now));
    if let Some(left) = left.filter(|left| left.is_positive()) {
        let left = Duration::try_from(left).unwrap_or(grace);
        return Verdict::Alive(left + Duration::from_millis(10));
    }
    let mut changed = (**node).clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in REPORTED {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    Verdict::Silent((changed != **node).then(|| Box::new(changed)))
}

fn is_ours(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        "NoExecute" => key == NOT_READY || key == UNREACHABLE,
        "NoSchedule" => {
            let pressure = PRESSURES.iter().any(|(_, taint)| *taint == key);
            pressure || key == NOT_READY || key == UNREACHABLE || key == UNSCHEDULABLE
        }
        _ => false,
    }
}

/// Whether nodes that are not ready lose their pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evictions {
    /// They do.
    Allowed,
    /// Those that lose them already; no others yet.
    Held,
    /// None does.
    Stopped,
}

/// The taint of a node by its readiness.
fn readiness(node: &Node) -> Option<&'static str> {
    match ready_status(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        // A node that never reported is not ready rather than unreachable.
        _ if never_reported(node) => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    }
}

fn current_taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or(&[])
}

/// Whether a taint lets a node's pods go because it is not ready.
fn evicts(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

/// Whether a node's pods would have to go, and it is not their turn yet.
pub(super) fn awaits_eviction(node: &Node) -> bool {
    readiness(node).is_some() && !never_reported(node) && !current_taints(node).iter().any(evicts)
}

/// The taints the node must bear, unless it bears them.
pub(super) fn taints(node: &Node, evictions: Evictions, now: Timestamp) -> Option<Vec<Taint>> {
    let current = current_taints(node);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if let Some(key) = readiness(node) {
        wanted.push((key, "NoSchedule"));
        let lose_pods = match evictions {
            Evictions::Allowed => true,
            Evictions::Held => current.iter().any(evicts),
            Evictions::Stopped => false,
        };
        if lose_pods && !never_reported(node) {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let keeps = |taint: &Taint| !is_ours(taint) || wanted.iter().any(|w| is(taint, *w));
    let mut taints: Vec<Taint> = current.iter().filter(|taint| keeps(taint)).cloned().collect();
    for want in wanted {
        if !taints.iter().any(|taint| is(taint, want)) {
            taints.push(Taint {
                key: want.0.to_owned(),
                effect: want.1.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (taints != current).then_some(taints)
}

/// The labels of a node with those of before, which say the same as today's, unless it has them.
pub(super) fn labels(node: &Node) -> Option<BTreeMap<String, String>> {
    let mut labels = node.metadata.labels.clone()?;
    for (key, before) in LABELS_BEFORE {
        if let Some(value) = labels.get(key).cloned() {
            labels.insert(before.to_owned(), value);
        }
    }
    (node.metadata.labels.as_ref() != Some(&labels)).then_some(labels)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &Value, taints: &Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": "n" }, "spec": { "taints": taints },
                "status": { "conditions": ready },
            }))
            .expect("a node"),
        )
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|taints| taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect())
    }

    #[test]
    fn a_silent_kubelet_makes_all_its_conditions_unknown_after_the_grace_period() {
        let node = node(&json!([{ "type": "Ready", "status": "True" }]), &json!(null));
        let grace = Duration::from_secs(40);
        let Verdict::Alive(wait) = judge(&node, at(100), grace, at(130)) else { panic!("not alive") };
        assert_eq!(wait.as_secs(), 10);
        let Verdict::Silent(Some(changed)) = judge(&node, at(100), grace, at(140)) else { panic!("alive") };
        assert_eq!(condition(&changed, "Ready").and_then(|c| c.reason.as_deref()), Some("NodeStatusUnknown"));
        let never = condition(&changed, "PIDPressure").and_then(|c| c.reason.as_deref());
        assert_eq!(never, Some("NodeStatusNeverUpdated"));
        assert!(matches!(judge(&Arc::new(*changed), at(100), grace, at(150)), Verdict::Silent(None)));
    }

    #[test]
    fn taints_follow_readiness_and_strangers_stay() {
        let mine = json!({ "key": "example.com/mine", "effect": "NoSchedule" });
        let not_ready = json!({ "key": NOT_READY, "effect": "NoSchedule" });
        let ready = node(&json!([{ "type": "Ready", "status": "True" }]), &json!([mine, not_ready]));
        assert_eq!(
            keys(taints(&ready, Evictions::Allowed, at(0))),
            Some(vec!["example.com/mine:NoSchedule".to_owned()])
        );
        let unknown = node(&json!([{ "type": "Ready", "status": "Unknown" }]), &json!([not_ready]));
        let wanted = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        assert_eq!(keys(taints(&unknown, Evictions::Allowed, at(0))), Some(wanted.to_vec()));
        let new = node(&json!([]), &json!([not_ready]));
        assert_eq!(keys(taints(&new, Evictions::Allowed, at(0))), None);
    }

    #[test]
    fn pods_stay_where_evictions_are_held_or_stopped() {
        let gone = node(&json!([{ "type": "Ready", "status": "Unknown" }]), &json!([]));
        assert!(awaits_eviction(&gone));
        let only_scheduling = Some(vec![format!("{UNREACHABLE}:NoSchedule")]);
        assert_eq!(keys(taints(&gone, Evictions::Held, at(0))), only_scheduling);
        let tainted = json!([{ "key": NOT_READY, "effect": "NoExecute" }]);
        let swapped = node(&json!([{ "type": "Ready", "status": "Unknown" }]), &tainted);
        assert!(!awaits_eviction(&swapped));
        let both = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        assert_eq!(keys(taints(&swapped, Evictions::Held, at(0))), Some(both.to_vec()));
        assert_eq!(keys(taints(&swapped, Evictions::Stopped, at(0))), only_scheduling);
    }

    #[test]
    fn labels_of_before_follow_those_of_today() {
        let with = |labels: Value| -> Node {
            serde_json::from_value(json!({ "metadata": { "labels": labels } })).expect("a node")
        };
        let new = labels(&with(json!({ "kubernetes.io/os": "linux", "beta.kubernetes.io/os": "x" })));
        assert_eq!(new.expect("changed")["beta.kubernetes.io/os"], "linux");
        assert_eq!(labels(&with(json!({ "beta.kubernetes.io/arch": "arm64" }))), None);
    }
}
