//! Where pods may run: node selectors, required node affinity, taints and tolerations.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration};

use crate::selector::{Operator, Requirement};

/// Whether a toleration covers a taint: effect, key and value (`Gt` and `Lt` compare whole numbers).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let numbers = || {
        let taint: i64 = taint.value.as_deref().unwrap_or("").parse().ok()?;
        Some((taint, toleration.value.as_deref().unwrap_or("").parse::<i64>().ok()?))
    };
    match toleration.operator.as_deref().unwrap_or("") {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && given(&toleration.value) == given(&taint.value),
        "Gt" => numbers().is_some_and(|(taint, bound)| taint > bound),
        "Lt" => numbers().is_some_and(|(taint, bound)| taint < bound),
        _ => false,
    }
}

/// Whether a toleration of a device request matches a device's taint.
pub fn tolerates_device(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |of: &Option<String>| of.clone().unwrap_or_default();
    let matches =
        |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w.is_empty() || w == is);
    matches(&toleration.effect, &taint.effect)
        && matches(&toleration.key, &taint.key)
        && match toleration.operator.as_deref().unwrap_or("") {
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            "Exists" => true,
            _ => false,
        }
}

/// The first taint among those that `counts` that nothing tolerates.
pub fn untolerated<'a>(
    taints: impl IntoIterator<Item = &'a Taint>,
    tolerations: &[Toleration],
    counts: impl Fn(&Taint) -> bool,
) -> Option<&'a Taint> {
    let open = |taint: &&'a Taint| counts(taint) && !tolerations.iter().any(|t| tolerates(t, taint));
    taints.into_iter().find(open)
}

/// A node selector term, compiled.
#[derive(Clone, Debug, Default)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// `metadata.name` requirements.
    names: Vec<Requirement>,
}

impl NodeTerm {
    /// Compiles a term.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let one = |r: &NodeSelectorRequirement| Requirement {
            key: r.key.clone(),
            operator: match r.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                _ => Operator::LessThan,
            },
            values: r.values.clone().unwrap_or_default(),
        };
        let compile = |list: &Option<Vec<NodeSelectorRequirement>>| list.iter().flatten().map(one).collect();
        Self { labels: compile(&term.match_expressions), names: compile(&term.match_fields) }
    }

    /// An empty term matches nothing.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        (!self.labels.is_empty() || !self.names.is_empty())
            && self.labels.iter().all(|r| r.matches(labels))
            && self.names.iter().all(|r| r.key == "metadata.name" && r.matches_value(Some(name)))
    }

    /// The names that the term allows, if it restricts them by `metadata.name In`.
    pub fn names(&self) -> Option<&[String]> {
        let pins = |r: &&Requirement| r.key == "metadata.name" && r.operator == Operator::In;
        self.names.iter().find(pins).map(|r| r.values.as_slice())
    }
}

/// Whether one term of a node selector matches a node.
pub fn selects_node(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| NodeTerm::new(term).matches(name, labels))
}

/// Whether `nodeSelector` and the required node affinity of a pod allow a node.
pub fn wants_node(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| selects_node(selector, name, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_taint_is_tolerated_by_key_value_effect_and_bounds() {
        let taint: Taint =
            serde_json::from_value(json!({"key": "k", "value": "5", "effect": "NoSchedule"})).expect("taint");
        let check = |toleration: Value| {
            let toleration: Toleration = serde_json::from_value(toleration).expect("toleration");
            untolerated([&taint], &[toleration], |_| true).is_none()
        };
        assert!(check(json!({"operator": "Exists"})));
        assert!(check(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})));
        assert!(check(json!({"key": "k", "value": "5"})));
        assert!(!check(json!({"key": "k", "value": "6"})));
        assert!(!check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})));
        assert!(check(json!({"key": "k", "operator": "Gt", "value": "4"})));
        assert!(!check(json!({"key": "k", "operator": "Lt", "value": "4"})));
    }

    #[test]
    fn a_pod_wants_a_node_that_its_selector_and_one_term_match() {
        let labels = BTreeMap::from([("zone".to_owned(), "x".to_owned())]);
        let wants = |spec: Value| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            wants_node(&serde_json::from_value(spec).expect("spec"), "a", &labels)
        };
        let term = |terms: Value| {
            let required = json!({"nodeSelectorTerms": terms});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
        };
        let named = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
        assert!(wants(json!({})));
        assert!(wants(json!({"nodeSelector": {"zone": "x"}})));
        assert!(!wants(json!({"nodeSelector": {"zone": "y"}})));
        assert!(wants(term(json!([{"matchFields": [named("b")]}, {"matchFields": [named("a")]}]))));
        assert!(!wants(term(json!([{"matchFields": [named("b")]}, {}]))), "an empty term matches nothing");
    }
}
