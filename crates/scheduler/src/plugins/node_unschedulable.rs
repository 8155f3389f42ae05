//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, PluginDef, Verdict, events};
use coracle_meta::placement::tolerates;

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[ClusterEvent::NodeAdd, ClusterEvent::NodeTaint, ClusterEvent::PodUpdate]),
    filter: Some(&NodeUnschedulable),
    ..PluginDef::named("NodeUnschedulable")
};

struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        if !node.unschedulable {
            return Verdict::Success;
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if pod.tolerations.iter().any(|t| tolerates(t, &taint)) {
            return Verdict::Success;
        }
        Verdict::unresolvable("node(s) were unschedulable")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{node, pod, verdict};

    #[test]
    fn a_cordoned_node_takes_only_pods_that_tolerate_it() {
        let cordoned = node("a", json!({"spec": {"unschedulable": true}}));
        assert_eq!(verdict(&DEF, &pod(json!({})), &cordoned), "! node(s) were unschedulable");
        let daemon = pod(json!({"tolerations": [
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}));
        assert_eq!(verdict(&DEF, &daemon, &cordoned), "ok");
    }
}
