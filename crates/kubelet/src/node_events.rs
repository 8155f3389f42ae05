//! What a node's events tell, in upstream's words: that its kubelet began, that the machine was rebooted, that a
//! condition changed, and whether pods are held to what is theirs.

use coracle_client::EventType;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};

use crate::context::Context;

/// Condition, its status, and the reason of the event when it becomes that.
const REASONS: [(&str, &str, &str); 8] = [
    ("MemoryPressure", "True", "NodeHasInsufficientMemory"),
    ("MemoryPressure", "False", "NodeHasSufficientMemory"),
    ("DiskPressure", "True", "NodeHasDiskPressure"),
    ("DiskPressure", "False", "NodeHasNoDiskPressure"),
    ("PIDPressure", "True", "NodeHasInsufficientPID"),
    ("PIDPressure", "False", "NodeHasSufficientPID"),
    ("Ready", "True", "NodeReady"),
    ("Ready", "False", "NodeNotReady"),
];

/// Reasons of the conditions that changed.
fn changes(old: &[NodeCondition], new: &[NodeCondition]) -> Vec<&'static str> {
    let before = |kind: &str| old.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str());
    let reason = |c: &NodeCondition| {
        let row = REASONS.iter().find(|(kind, status, _)| c.type_ == *kind && c.status == *status);
        row.map(|row| row.2).filter(|_| before(&c.type_) != Some(&c.status))
    };
    new.iter().filter_map(reason).collect()
}

/// Tells of what changed from one status to the next.
pub fn tell(cx: &Context, old: &NodeStatus, new: &NodeStatus) {
    let boot = |status: &NodeStatus| status.node_info.as_ref().map(|i| i.boot_id.clone()).unwrap_or_default();
    let (name, before, now) = (&cx.config.node_name, boot(old), boot(new));
    if !before.is_empty() && before != now {
        let text = format!("Node {name} has been rebooted, boot id: {now}");
        cx.node_event(EventType::Warning, "Rebooted", text);
    }
    let conditions = |status: &NodeStatus| status.conditions.clone().unwrap_or_default();
    for reason in changes(&conditions(old), &conditions(new)) {
        cx.node_event(EventType::Normal, reason, format!("Node {name} status is now: {reason}"));
    }
}

/// Tells that the kubelet began, and holds all pods together to what the machine has for them.
pub fn start(cx: &Context) {
    cx.node_event(EventType::Normal, "Starting", "Starting kubelet.");
    let Some(cgroup) = cx.pods_cgroup.as_ref().filter(|_| cx.config.enforce_allocatable) else { return };
    match cgroup.limit(cx.machine.pods_limits()) {
        Ok(()) => {
            let text = "Updated Node Allocatable limit across pods";
            cx.node_event(EventType::Normal, "NodeAllocatableEnforced", text);
        }
        Err(error) => {
            tracing::warn!(%error, "pods are not held to the node's allocatable resources");
            let text = format!("Failed to update Node Allocatable Limits {error}");
            cx.node_event(EventType::Warning, "FailedNodeAllocatableEnforcement", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str) -> NodeCondition {
        NodeCondition { type_: kind.into(), status: status.into(), ..NodeCondition::default() }
    }

    #[test]
    fn a_condition_is_told_once_when_it_changes() {
        let calm =
            [condition("MemoryPressure", "False"), condition("Ready", "True"), condition("Own", "True")];
        let short = [condition("MemoryPressure", "True"), condition("Ready", "True")];
        assert_eq!(changes(&[], &calm), ["NodeHasSufficientMemory", "NodeReady"]);
        assert_eq!(changes(&calm, &short), ["NodeHasInsufficientMemory"]);
        assert!(changes(&short, &short).is_empty());
        assert_eq!(changes(&[condition("Ready", "Unknown")], &short[1..]), ["NodeReady"]);
    }
}
