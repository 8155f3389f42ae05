//! Whether a node is alive, and which taints it bears: pure.

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
pub(super) fn ready_status(node: &Node) -> &str {
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

/// The taints the node must bear, unless it bears them.
pub(super) fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let readiness = match ready_status(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        // A node that never reported is not ready rather than unreachable.
        _ if never_reported(node) => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = readiness {
        wanted.push((key, "NoSchedule"));
        if !never_reported(node) {
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
    let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
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
        assert_eq!(keys(taints(&ready, at(0))), Some(vec!["example.com/mine:NoSchedule".to_owned()]));
        let unknown = node(&json!([{ "type": "Ready", "status": "Unknown" }]), &json!([not_ready]));
        let wanted = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        assert_eq!(keys(taints(&unknown, at(0))), Some(wanted.to_vec()));
        let new = node(&json!([]), &json!([not_ready]));
        assert_eq!(keys(taints(&new, at(0))), None);
    }
}
