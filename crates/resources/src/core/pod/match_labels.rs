//! `matchLabelKeys`: label values of the new pod join the selectors of its own constraints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

type Labels = BTreeMap<String, String>;

fn require(selector: &mut LabelSelector, keys: Option<&Vec<String>>, operator: &str, labels: &Labels) {
    for key in keys.into_iter().flatten() {
        let Some(value) = labels.get(key) else { continue };
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
    }
}

fn term(term: &mut PodAffinityTerm, labels: &Labels) {
    let (same, other) = (term.match_label_keys.clone(), term.mismatch_label_keys.clone());
    if let Some(selector) = &mut term.label_selector {
        require(selector, same.as_ref(), "In", labels);
        require(selector, other.as_ref(), "NotIn", labels);
    }
}

/// Extends the selectors of affinity terms and spread constraints of a pod being created.
pub(super) fn apply(pod: &mut Pod) {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let Some(spec) = &mut pod.spec else { return };
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        let keys = constraint.match_label_keys.clone();
        if let Some(selector) = &mut constraint.label_selector {
            require(selector, keys.as_ref(), "In", &labels);
        }
    }
    let Some(affinity) = &mut spec.affinity else { return };
    let each = |required: Option<&mut Vec<PodAffinityTerm>>,
                preferred: Option<&mut Vec<WeightedPodAffinityTerm>>| {
        required.into_iter().flatten().for_each(|t| term(t, &labels));
        preferred.into_iter().flatten().for_each(|w| term(&mut w.pod_affinity_term, &labels));
    };
    if let Some(pods) = &mut affinity.pod_affinity {
        each(
            pods.required_during_scheduling_ignored_during_execution.as_mut(),
            pods.preferred_during_scheduling_ignored_during_execution.as_mut(),
        );
    }
    if let Some(pods) = &mut affinity.pod_anti_affinity {
        each(
            pods.required_during_scheduling_ignored_during_execution.as_mut(),
            pods.preferred_during_scheduling_ignored_during_execution.as_mut(),
        );
    }
}
