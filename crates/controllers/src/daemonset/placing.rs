//! On which nodes a DaemonSet's pods belong, and what such a pod looks like: pure.

use std::sync::Arc;

use coracle_meta::owner::controller_ref;
use coracle_meta::placement::{NodeTerm, untolerated, wants_node};
use coracle_meta::pod as podutil;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::pods::of_template;
use crate::revisions::REVISION_HASH;
use crate::runtime::name_of;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// What a DaemonSet wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A pod.
    Run,
    /// No new pod; one that runs may stay.
    Keep,
    /// No pod.
    Leave,
}

/// Problems of nodes that daemons live with; the last one only those in the node's own network.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

/// The tolerations of a daemon pod: the template's, and those of all daemons.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let count = if spec.host_network == Some(true) { TOLERATED.len() } else { TOLERATED.len() - 1 };
    for (key, effect) in &TOLERATED[..count] {
        let same = |t: &&mut Toleration| {
            t.key.as_deref() == Some(*key)
                && t.effect.as_deref() == Some(*effect)
                && t.operator.as_deref() == Some("Exists")
                && t.value.as_deref().unwrap_or("").is_empty()
        };
        let new = Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some((*effect).to_owned()),
            ..Toleration::default()
        };
        match all.iter_mut().find(same) {
            Some(known) => *known = new,
            None => all.push(new),
        }
    }
    all
}

fn template_spec(set: &DaemonSet) -> Option<&PodSpec> {
    set.spec.as_ref()?.template.spec.as_ref()
}

/// What the DaemonSet wants of the node.
pub(super) fn wish(set: &DaemonSet, node: &Node) -> Wish {
    let Some(spec) = template_spec(set) else { return Wish::Leave };
    let name = name_of(node);
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let named = spec.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name);
    if !named || !wants_node(spec, name, &labels) {
        return Wish::Leave;
    }
    let tolerations = tolerations(spec);
    let taints = || node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if untolerated(taints(), &tolerations, |t| t.effect != "PreferNoSchedule").is_none() {
        return Wish::Run;
    }
    match untolerated(taints(), &tolerations, |t| t.effect == "NoExecute") {
        None => Wish::Keep,
        Some(_) => Wish::Leave,
    }
}

/// The node that a daemon pod is on, or is meant for.
pub(super) fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = podutil::node_name(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut names =
        required.node_selector_terms.iter().filter_map(|term| match NodeTerm::new(term).names() {
            Some([name]) => Some(name.clone()),
            _ => None,
        });
    names.next()
}

/// The set's number of its template, for labels of an older age.
fn generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(TEMPLATE_GENERATION)?.parse().ok()
}

/// A pod for the node.
pub(super) fn new_pod(set: &Arc<DaemonSet>, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| &spec.template);
    let mut pod = of_template(template, set.metadata.namespace.as_ref(), controller_ref(&**set));
    pod.metadata.generate_name = Some(format!("{}-", name_of(&**set)));
    let labels = pod.metadata.labels.get_or_insert_default();
    if let Some(generation) = generation(set) {
        labels.insert("pod-template-generation".to_owned(), generation.to_string());
    }
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let pin = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![pin]),
            match_expressions: None,
        }],
    });
    pod
}

/// Whether the pod is of the present template.
pub(super) fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let label = |key: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let by_generation = generation(set)
        .is_some_and(|number| label("pod-template-generation").is_some_and(|l| *l == number.to_string()));
    by_generation || label(REVISION_HASH).is_some_and(|known| known == hash)
}
