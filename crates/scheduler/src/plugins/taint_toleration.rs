//! TaintToleration: tainted nodes take only pods that tolerate every taint; those with fewer taints that
//! merely prefer not to be used rank higher.

use coracle_meta::placement::tolerates;
use k8s_openapi::api::core::v1::Toleration;

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, Normalize, PluginDef, Score, Verdict, events};

pub(super) const DEF: PluginDef = PluginDef {
    weight: 3,
    wakes_on: events(&[ClusterEvent::NodeAdd, ClusterEvent::NodeTaint, ClusterEvent::PodUpdate]),
    filter: Some(&TaintToleration),
    score: Some(&TaintToleration),
    ..PluginDef::named("TaintToleration")
};

struct TaintToleration;

impl Filter for TaintToleration {
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        let mut keeps_out = node.taints.iter().filter(|t| t.effect != "PreferNoSchedule");
        if keeps_out.any(|taint| !pod.tolerations.iter().any(|t| tolerates(t, taint))) {
            return Verdict::unresolvable("node(s) had untolerated taint(s)");
        }
        Verdict::Success
    }
}

impl Score for TaintToleration {
    fn score(&self, pod: &CycleState, node: &NodeInfo) -> i64 {
        let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        let relevant = |t: &&Toleration| matches!(t.effect.as_deref().unwrap_or(""), "" | "PreferNoSchedule");
        let untolerated =
            soft.filter(|taint| !pod.tolerations.iter().filter(relevant).any(|t| tolerates(t, taint)));
        i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
    }
    fn normalize(&self) -> Normalize {
        Normalize::Lowest
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{node, pod, verdict};

    fn tainted(effect: &str) -> NodeInfo {
        node("a", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}}))
    }

    #[test]
    fn a_taint_is_tolerated_by_key_value_and_effect() {
        let check = |toleration: Value| {
            verdict(&DEF, &pod(json!({"tolerations": [toleration]})), &tainted("NoSchedule"))
        };
        let no = "! node(s) had untolerated taint(s)";
        assert_eq!(verdict(&DEF, &pod(json!({})), &tainted("NoExecute")), no);
        assert_eq!(verdict(&DEF, &pod(json!({})), &tainted("PreferNoSchedule")), "ok");
        assert_eq!(check(json!({"operator": "Exists"})), "ok");
        assert_eq!(check(json!({"key": "k", "operator": "Exists"})), "ok");
        assert_eq!(check(json!({"key": "k", "value": "v", "effect": "NoSchedule"})), "ok");
        assert_eq!(check(json!({"key": "k", "value": "w"})), no);
        assert_eq!(check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})), no);
        assert_eq!(check(json!({"key": "j", "operator": "Exists"})), no);
    }

    #[test]
    fn score_counts_soft_taints_that_are_not_tolerated() {
        assert_eq!(TaintToleration.score(&pod(json!({})), &tainted("PreferNoSchedule")), 1);
        let tolerant = pod(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
        assert_eq!(TaintToleration.score(&tolerant, &tainted("PreferNoSchedule")), 0);
    }
}
