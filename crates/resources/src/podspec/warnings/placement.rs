//! Warnings about where and how a pod is to run: affinity, topology, addresses, the time it has to end.

use coracle_meta::field::Path;
use coracle_meta::names;
use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodAffinityTerm, PodSpec, WeightedPodAffinityTerm};

use super::deprecated_label;
use crate::address::ip_warnings;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// All of them.
pub(super) fn of(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    spread(spec, path, out);
    affinity(spec, &path.child("affinity"), out);
    for (resource, amount) in spec.overhead.iter().flatten() {
        if matches!(resource.as_str(), "memory" | "ephemeral-storage")
            && !Number::from_api(amount).is_whole_bytes()
        {
            let at = path.child("overhead").key(resource);
            out.push(format!("{at}: fractional byte value {:?} is invalid, must be an integer", amount.0));
        }
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let at = path.child("terminationGracePeriodSeconds");
        out.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    let servers = spec.dns_config.iter().flat_map(|config| config.nameservers.iter().flatten());
    for (i, server) in servers.enumerate() {
        out.extend(ip_warnings(&path.child("dnsConfig").child("nameservers").index(i), server));
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        out.extend(ip_warnings(&path.child("hostAliases").index(i).child("ip"), &alias.ip));
    }
}

fn spread(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    for (i, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let at = path.child("topologySpreadConstraints").index(i);
        if let Some(why) = deprecated_label(&constraint.topology_key) {
            out.push(format!("{}: {} is {why}", at.child("topologyKey"), constraint.topology_key));
        }
        if constraint.label_selector.is_none() {
            let at = at.child("labelSelector");
            out.push(format!("{at}: a null labelSelector results in matching no pod"));
        }
    }
}

fn affinity(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let Some(affinity) = &spec.affinity else { return };
    if let Some(nodes) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        let required = nodes.required_during_scheduling_ignored_during_execution.as_ref();
        let terms = required.map(|selector| selector.node_selector_terms.as_slice()).unwrap_or_default();
        let list = path.child(REQUIRED).child("nodeSelectorTerms");
        terms.iter().enumerate().for_each(|(i, one)| term(one, false, &list.index(i), out));
        let preferred = nodes.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (i, one) in preferred.enumerate() {
            term(&one.preference, true, &path.child(PREFERRED).index(i).child("preference"), out);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
        pod_terms(required, preferred, &path.child("podAffinity"), out);
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
        pod_terms(required, preferred, &path.child("podAntiAffinity"), out);
    }
}

/// A term that selects nodes. The values of one that is only preferred are not validated, but warned of.
fn term(term: &NodeSelectorTerm, check_values: bool, path: &Path, out: &mut Vec<String>) {
    for (i, wanted) in term.match_expressions.iter().flatten().enumerate() {
        let at = path.child("matchExpressions").index(i);
        if let Some(why) = deprecated_label(&wanted.key) {
            out.push(format!("{}: {} is {why}", at.child("key"), wanted.key));
        }
        for (j, value) in wanted.values.iter().flatten().enumerate().filter(|_| check_values) {
            for message in names::label_value(value) {
                out.push(format!("{}: {value} is invalid, {message}", at.child("values").index(j)));
            }
        }
    }
}

fn pod_terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    path: &Path,
    out: &mut Vec<String>,
) {
    let mut check = |term: &PodAffinityTerm, at: Path| {
        if term.label_selector.is_none() {
            let at = at.child("labelSelector");
            out.push(format!("{at}: a null labelSelector results in matching no pod"));
        }
    };
    for (i, term) in required.unwrap_or_default().iter().enumerate() {
        check(term, path.child(REQUIRED).index(i));
    }
    for (i, term) in preferred.unwrap_or_default().iter().enumerate() {
        check(&term.pod_affinity_term, path.child(PREFERRED).index(i).child("podAffinityTerm"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_labels_and_times_that_cannot_be_meant_are_told() {
        let term = json!({ "topologyKey": "x" });
        let spec = serde_json::from_value(json!({
            "containers": [],
            "terminationGracePeriodSeconds": -1,
            "topologySpreadConstraints": [{ "maxSkew": 1, "whenUnsatisfiable": "x", "labelSelector": {},
                "topologyKey": "failure-domain.beta.kubernetes.io/zone" }],
            "affinity": {
                "podAffinity": { PREFERRED: [{ "weight": 1, "podAffinityTerm": term }] },
                "nodeAffinity": { PREFERRED: [{ "weight": 1, "preference": { "matchExpressions": [
                    { "key": "a", "operator": "In", "values": ["-"] }] } }] },
            },
        }));
        let mut out = Vec::new();
        of(&spec.expect("a spec"), &Path::new("spec"), &mut out);
        let affinity = "spec.affinity";
        let expected = [
            "spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated \
             since v1.17; use \"topology.kubernetes.io/zone\" instead"
                .to_owned(),
            format!("{affinity}.nodeAffinity.{PREFERRED}[0].preference.matchExpressions[0].values[0]: - is invalid, {}",
                names::label_value("-")[0]),
            format!("{affinity}.podAffinity.{PREFERRED}[0].podAffinityTerm.labelSelector: a null labelSelector results \
                     in matching no pod"),
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
                .to_owned(),
        ];
        assert_eq!(out, expected);
    }
}
