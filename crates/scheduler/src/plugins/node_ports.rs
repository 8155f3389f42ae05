//! NodePorts: two pods cannot have the same host port on one node.

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, PluginDef, Verdict, events};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[ClusterEvent::NodeAdd, ClusterEvent::AssignedPodDelete]),
    filter: Some(&NodePorts),
    ..PluginDef::named("NodePorts")
};

struct NodePorts;

impl Filter for NodePorts {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.ports.is_empty()
    }
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        if pod.ports.iter().any(|wanted| node.ports.iter().any(|used| used.conflicts(wanted))) {
            return Verdict::unschedulable("node(s) didn't have free ports for the requested pod ports");
        }
        Verdict::Success
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{node, pod, verdict};

    fn with(port: Value) -> PodInfo {
        pod(json!({"containers": [{"name": "c", "ports": [port]}]}))
    }

    #[test]
    fn a_used_port_conflicts_by_protocol_and_address() {
        let mut used = node("a", json!({}));
        used.change(&with(json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"})), 1);
        let no = "? node(s) didn't have free ports for the requested pod ports";
        let check = |port: Value| verdict(&DEF, &with(port), &used);
        assert_eq!(check(json!({"containerPort": 1, "hostPort": 80})), no);
        assert_eq!(check(json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"})), no);
        assert_eq!(check(json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.2"})), "ok");
        assert_eq!(check(json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"})), "ok");
        assert_eq!(check(json!({"containerPort": 80})), "ok");
        used.change(&with(json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"})), -1);
        assert!(used.ports.is_empty());
    }
}
