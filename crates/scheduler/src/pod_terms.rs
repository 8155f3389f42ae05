//! What a pod wants of other pods: affinity terms and spread constraints, compiled.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::selector::LabelSelector;
use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector as ApiSelector, LabelSelectorRequirement,
};

/// Labels of a pod, node or namespace.
pub type Labels = BTreeMap<String, String>;

/// A term about pods in a topology.
#[derive(Clone, Debug)]
pub struct PodTerm {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    selector: LabelSelector,
    /// The node label that makes a topology.
    pub key: String,
}

/// The selector, narrowed to pods with the same (or other) values of some of the pod's own labels.
fn narrowed(
    selector: Option<&ApiSelector>,
    labels: &Labels,
    same: Option<&Vec<String>>,
    other: Option<&Vec<String>>,
) -> LabelSelector {
    let Some(selector) = selector else { return LabelSelector::nothing() };
    let mut selector = selector.clone();
    let keys = |keys: Option<&Vec<String>>, operator: &str| -> Vec<LabelSelectorRequirement> {
        let one = |key: &String| {
            let value = labels.get(key)?.clone();
            let (key, operator) = (key.clone(), operator.to_owned());
            Some(LabelSelectorRequirement { key, operator, values: Some(vec![value]) })
        };
        keys.into_iter().flatten().filter_map(one).collect()
    };
    let mut more = keys(same, "In");
    more.extend(keys(other, "NotIn"));
    if !more.is_empty() {
        selector.match_expressions.get_or_insert_default().extend(more);
    }
    LabelSelector::from_api(&selector).unwrap_or_else(|_| LabelSelector::nothing())
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let namespace_selector = term.namespace_selector.as_ref();
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let (same, other) = (term.match_label_keys.as_ref(), term.mismatch_label_keys.as_ref());
        Self {
            namespaces,
            namespace_selector: namespace_selector.and_then(|s| LabelSelector::from_api(s).ok()),
            selector: narrowed(term.label_selector.as_ref(), labels, same, other),
            key: term.topology_key.clone(),
        }
    }

    /// Whether the term is about a pod of a namespace with these labels.
    pub fn matches(&self, namespace: &str, labels: &Labels, namespace_labels: &Labels) -> bool {
        let inside = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches(namespace_labels));
        inside && self.selector.matches(labels)
    }
}

/// All terms of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodWishes {
    /// Pods that must be near.
    pub near: Vec<PodTerm>,
    /// Pods that must not be near.
    pub apart: Vec<PodTerm>,
    /// Pods that should (positive weight) or should not (negative weight) be near.
    pub preferred: Vec<(i64, PodTerm)>,
    /// How pods like this one are to be spread.
    pub spread: Vec<Spread>,
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Largest difference between topologies.
    pub max_skew: i64,
    /// The node label that makes a topology.
    pub key: String,
    /// Whether nodes that would break the constraint are turned away.
    pub hard: bool,
    /// The pods to be spread.
    pub selector: LabelSelector,
    /// With fewer topologies than this, the emptiest counts as empty.
    pub min_domains: usize,
    /// Whether only nodes that the pod's node affinity allows count.
    pub honors_affinity: bool,
    /// Whether only nodes whose taints the pod tolerates count.
    pub honors_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let same = constraint.match_label_keys.as_ref();
        Self {
            max_skew: i64::from(constraint.max_skew),
            key: constraint.topology_key.clone(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector: narrowed(constraint.label_selector.as_ref(), labels, same, None),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl PodWishes {
    /// The wishes of a pod.
    pub fn new(pod: &Pod, spec: &PodSpec) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let affinity = spec.affinity.as_ref();
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let apart = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let compile = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<PodTerm> {
            terms.into_iter().flatten().map(|term| PodTerm::new(term, namespace, &labels)).collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, PodTerm)> {
            let one = |term: &WeightedPodAffinityTerm| {
                (sign * i64::from(term.weight), PodTerm::new(&term.pod_affinity_term, namespace, &labels))
            };
            terms.into_iter().flatten().map(one).collect()
        };
        let soft = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let mut preferred = weighted(soft, 1);
        let soft = apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        preferred.extend(weighted(soft, -1));
        let constraints = spec.topology_spread_constraints.iter().flatten();
        Self {
            near: compile(near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            apart: compile(
                apart.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred,
            spread: constraints.map(|constraint| Spread::new(constraint, &labels)).collect(),
        }
    }
}
