//! NodeName: a pod that names its node runs there only.

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, PluginDef, Verdict, events};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[ClusterEvent::NodeAdd]),
    filter: Some(&NodeName),
    ..PluginDef::named("NodeName")
};

struct NodeName;

impl Filter for NodeName {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.node_name.is_empty()
    }
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        if pod.node_name.is_empty() || pod.node_name == node.name {
            return Verdict::Success;
        }
        Verdict::unresolvable("node(s) didn't match the requested node name")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{node, pod, verdict};

    #[test]
    fn filter_rejects_other_node_when_pod_names_one() {
        let pod = pod(json!({"nodeName": "a"}));
        assert_eq!(verdict(&DEF, &pod, &node("a", json!({}))), "ok");
        let other = verdict(&DEF, &pod, &node("b", json!({})));
        assert_eq!(other, "! node(s) didn't match the requested node name");
    }
}
