//! NodeAffinity: `nodeSelector` and required node affinity turn nodes away; preferred affinity ranks them.

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, Normalize, PluginDef, Score, Verdict, events};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef = PluginDef {
    weight: 2,
    wakes_on: events(&[ClusterEvent::NodeAdd, ClusterEvent::NodeLabel, ClusterEvent::PodUpdate]),
    filter: Some(&NodeAffinity),
    score: Some(&NodeAffinity),
    ..PluginDef::named("NodeAffinity")
};

struct NodeAffinity;

impl Filter for NodeAffinity {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.wishes.labels.is_empty() || pod.wishes.required.is_some()
    }
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        let wishes = &pod.wishes;
        let selected = wishes.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        let required = wishes
            .required
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)));
        if selected && required {
            return Verdict::Success;
        }
        Verdict::unresolvable("node(s) didn't match Pod's node affinity/selector")
    }
}

impl Score for NodeAffinity {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.wishes.preferred.is_empty()
    }
    fn score(&self, pod: &CycleState, node: &NodeInfo) -> i64 {
        let preferred = pod.wishes.preferred.iter();
        preferred.filter(|(_, term)| term.matches(&node.name, &node.labels)).map(|(weight, _)| weight).sum()
    }
    fn normalize(&self) -> Normalize {
        Normalize::Highest
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{node, pod, verdict};

    fn zone(value: &str) -> NodeInfo {
        node("a", json!({"metadata": {"labels": {"zone": value, "size": "5"}}}))
    }

    fn required(terms: Value) -> PodInfo {
        let wishes = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        pod(json!({"affinity": {"nodeAffinity": wishes}}))
    }

    #[test]
    fn selector_and_one_required_term_must_match() {
        let no = "! node(s) didn't match Pod's node affinity/selector";
        let selecting = pod(json!({"nodeSelector": {"zone": "x"}}));
        assert_eq!(verdict(&DEF, &selecting, &zone("x")), "ok");
        assert_eq!(verdict(&DEF, &selecting, &zone("y")), no);
        let expression = |op: &str, key: &str, values: Value| {
            let expression = json!({"key": key, "operator": op, "values": values});
            json!([{"matchExpressions": [expression]}])
        };
        for (op, key, values, answer) in [
            ("In", "zone", json!(["x", "z"]), "ok"),
            ("NotIn", "zone", json!(["x"]), no),
            ("Exists", "zone", json!([]), "ok"),
            ("DoesNotExist", "zone", json!([]), no),
            ("Gt", "size", json!(["4"]), "ok"),
            ("Lt", "size", json!(["5"]), no),
        ] {
            assert_eq!(verdict(&DEF, &required(expression(op, key, values)), &zone("x")), answer, "{op}");
        }
        let named =
            json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]);
        assert_eq!(verdict(&DEF, &required(named), &zone("x")), "ok", "terms are alternatives");
        assert_eq!(verdict(&DEF, &required(json!([{}])), &zone("x")), no, "an empty term matches nothing");
    }

    #[test]
    fn score_sums_the_weights_of_matching_preferences() {
        let term = |weight: i32, value: &str| {
            json!({"weight": weight, "preference":
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": [value]}]}})
        };
        let terms = [term(3, "x"), term(5, "y"), term(7, "x")];
        let wishes = json!({"preferredDuringSchedulingIgnoredDuringExecution": terms});
        let preferring = pod(json!({"affinity": {"nodeAffinity": wishes}}));
        assert_eq!(NodeAffinity.score(&preferring, &zone("x")), 10);
        assert_eq!(NodeAffinity.score(&preferring, &zone("z")), 0);
    }
}
