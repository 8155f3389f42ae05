//! Checks of what the scheduler reads: affinity, tolerations, spreading, gates, claims.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodResourceClaim,
    PodSchedulingGate, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use crate::check::{NOT_POSITIVE, label_selector, named, one_of};
use crate::common::text;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks affinity of all three kinds.
pub(crate) fn affinity(affinity: &Affinity, path: &Path, errs: &mut ErrorList) {
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            node_selector(selector, &path.child(REQUIRED), errs);
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (i, term) in preferred.enumerate() {
            let at = path.child(PREFERRED).index(i);
            weight(term.weight, &at, errs);
            node_selector_term(&term.preference, false, &at.child("preference"), errs);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
        pod_terms(required, preferred, &path.child("podAffinity"), errs);
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
        pod_terms(required, preferred, &path.child("podAntiAffinity"), errs);
    }
}

fn weight(weight: i32, path: &Path, errs: &mut ErrorList) {
    if !(1..=100).contains(&weight) {
        errs.invalid(path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// Checks a selector of nodes.
pub(crate) fn node_selector(selector: &NodeSelector, path: &Path, errs: &mut ErrorList) {
    let at = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errs.required(&at, "must have at least one node selector term");
    }
    for (i, term) in selector.node_selector_terms.iter().enumerate() {
        node_selector_term(term, true, &at.index(i), errs);
    }
}

/// Checks one term of a node selector.
pub(crate) fn node_selector_term(term: &NodeSelectorTerm, values: bool, path: &Path, errs: &mut ErrorList) {
    for (i, wanted) in term.match_expressions.iter().flatten().enumerate() {
        node_requirement(wanted, values, &path.child("matchExpressions").index(i), errs);
    }
    for (i, wanted) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(i);
        let values = wanted.values.as_deref().unwrap_or_default();
        match wanted.operator.as_str() {
            "In" | "NotIn" if values.len() == 1 => {}
            "In" | "NotIn" => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errs.required(path.child("values"), why);
            }
            other => errs.invalid_typed(path.child("operator"), other, "not a valid selector operator"),
        }
        if wanted.key == "metadata.name" {
            for (j, value) in values.iter().enumerate() {
                named(errs, &path.child("values").index(j), value, names::dns1123_subdomain);
            }
        } else {
            errs.invalid(path.child("key"), wanted.key.as_str(), "not a valid field selector key");
        }
    }
}

fn node_requirement(wanted: &NodeSelectorRequirement, check_values: bool, path: &Path, errs: &mut ErrorList) {
    let values = wanted.values.as_deref().unwrap_or_default();
    let at = path.child("values");
    match wanted.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errs.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errs.forbidden(&at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errs.required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errs.invalid_typed(path.child("operator"), other, "not a valid selector operator"),
    }
    named(errs, &path.child("key"), &wanted.key, names::qualified_name);
    if check_values {
        for (i, value) in values.iter().enumerate() {
            named(errs, &at.index(i), value, names::label_value);
        }
    }
}

fn pod_terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    path: &Path,
    errs: &mut ErrorList,
) {
    for (i, term) in required.unwrap_or_default().iter().enumerate() {
        pod_term(term, &path.child(REQUIRED).index(i), errs);
    }
    for (i, weighted) in preferred.unwrap_or_default().iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        weight(weighted.weight, &at, errs);
        pod_term(&weighted.pod_affinity_term, &at.child("podAffinityTerm"), errs);
    }
}

fn pod_term(term: &PodAffinityTerm, path: &Path, errs: &mut ErrorList) {
    label_selector(term.label_selector.as_ref(), &path.child("labelSelector"), errs);
    label_selector(term.namespace_selector.as_ref(), &path.child("namespaceSelector"), errs);
    for name in term.namespaces.iter().flatten() {
        named(errs, &path.child("namespace"), name, names::dns1123_label);
    }
    let same = term.match_label_keys.as_deref().unwrap_or_default();
    let other = term.mismatch_label_keys.as_deref().unwrap_or_default();
    for (name, keys) in [("matchLabelKeys", same), ("mismatchLabelKeys", other)] {
        if keys.is_empty() {
            continue;
        }
        if term.label_selector.is_none() {
            errs.forbidden(path.child(name), "must not be specified when labelSelector is not set");
        }
        for (i, key) in keys.iter().enumerate() {
            named(errs, &path.child(name).index(i), key, names::qualified_name);
        }
    }
    for (i, key) in same.iter().enumerate() {
        if other.contains(key) {
            let at = path.child("matchLabelKeys").index(i);
            errs.invalid(at, key.as_str(), "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    if term.topology_key.is_empty() {
        errs.required(path.child("topologyKey"), "can not be empty");
    }
    named(errs, &path.child("topologyKey"), &term.topology_key, names::qualified_name);
}

/// Checks tolerations.
pub(crate) fn tolerations(list: &[Toleration], path: &Path, errs: &mut ErrorList) {
    for (i, one) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, operator) = (text(one.key.as_ref()), text(one.operator.as_ref()));
        let (value, effect) = (text(one.value.as_ref()), text(one.effect.as_ref()));
        if !key.is_empty() {
            named(errs, &path.child("key"), key, names::qualified_name);
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.invalid(path.child("operator"), operator, why);
        }
        if one.toleration_seconds.is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.invalid(path.child("effect"), effect, why);
        }
        match operator {
            "Equal" | "" => named(errs, &path.child("operator"), value, names::label_value),
            "Exists" if value.is_empty() => {}
            "Exists" => {
                errs.invalid(
                    path.child("operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Lt" | "Gt" => {
                errs.not_supported(path.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]);
            }
            _ => errs.not_supported(path.child("operator"), operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            one_of(errs, &path.child("effect"), effect, TAINT_EFFECTS);
        }
    }
}

/// Effects of taints, as upstream lists them.
pub(crate) const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn selector_keys(selector: &LabelSelector) -> BTreeSet<&str> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.as_str());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.as_str())).collect()
}

/// Checks topology spread constraints.
pub(crate) fn spread(list: &[TopologySpreadConstraint], path: &Path, errs: &mut ErrorList) {
    for (i, one) in list.iter().enumerate() {
        let path = path.index(i);
        if one.max_skew <= 0 {
            errs.invalid(path.child("maxSkew"), one.max_skew, NOT_POSITIVE);
        }
        if one.topology_key.is_empty() {
            errs.required(path.child("topologyKey"), "can not be empty");
        }
        let when = one.when_unsatisfiable.as_str();
        one_of(errs, &path.child("whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]);
        let mut later = list.iter().skip(i + 1);
        if later.any(|l| l.topology_key == one.topology_key && l.when_unsatisfiable == when) {
            let shown = format!("{{{}, {when}}}", one.topology_key);
            errs.duplicate(path.child("{topologyKey, whenUnsatisfiable}"), shown);
        }
        if let Some(domains) = one.min_domains {
            let at = path.child("minDomains");
            if domains <= 0 {
                errs.invalid(&at, domains, NOT_POSITIVE);
            }
            if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errs.invalid(&at, domains, why);
            }
        }
        for (name, policy) in
            [("nodeAffinityPolicy", &one.node_affinity_policy), ("nodeTaintsPolicy", &one.node_taints_policy)]
        {
            if let Some(policy) = policy {
                one_of(errs, &path.child(name), policy, &["Honor", "Ignore"]);
            }
        }
        spread_keys(one, &path.child("matchLabelKeys"), errs);
        label_selector(one.label_selector.as_ref(), &path.child("labelSelector"), errs);
    }
}

fn spread_keys(one: &TopologySpreadConstraint, path: &Path, errs: &mut ErrorList) {
    let keys = one.match_label_keys.as_deref().unwrap_or_default();
    if keys.is_empty() {
        return;
    }
    let Some(selector) = &one.label_selector else {
        return errs.forbidden(path, "must not be specified when labelSelector is not set");
    };
    let taken = selector_keys(selector);
    for (i, key) in keys.iter().enumerate() {
        named(errs, &path.index(i), key, names::qualified_name);
        if taken.contains(key.as_str()) {
            errs.invalid(path.index(i), key.as_str(), "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Checks scheduling gates.
pub(crate) fn gates(list: &[PodSchedulingGate], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, gate) in list.iter().enumerate() {
        named(errs, &path.index(i), &gate.name, names::qualified_name);
        if !seen.insert(gate.name.as_str()) {
            errs.duplicate(path.index(i), gate.name.as_str());
        }
    }
}

/// Checks resource claims of the pod.
pub(crate) fn claims(list: &[PodResourceClaim], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, claim) in list.iter().enumerate() {
        let path = path.index(i);
        let name = claim.name.as_str();
        if name.is_empty() {
            errs.required(path.child("name"), "");
        } else if !seen.insert(name) {
            errs.duplicate(path.child("name"), name);
        } else {
            named(errs, &path.child("name"), name, names::dns1123_label);
        }
        let (direct, template) = (&claim.resource_claim_name, &claim.resource_claim_template_name);
        let shown = json!({
            "Name": name, "ResourceClaimName": direct, "ResourceClaimTemplateName": template,
        });
        match (direct, template) {
            (Some(_), Some(_)) => errs.invalid(
                &path,
                shown,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (None, None) => errs.invalid(
                &path,
                shown,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
        for (field, value) in [("resourceClaimName", direct), ("resourceClaimTemplateName", template)] {
            if let Some(value) = value {
                named(errs, &path.child(field), value, names::dns1123_subdomain);
            }
        }
    }
}
