//! InterPodAffinity: keeps pods near to, or apart from, other pods, by topologies of nodes.

use std::collections::HashMap;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, ClusterWide, MAX_NODE_SCORE, PluginDef, Prepared, Verdict, events};
use crate::pod_info::PodInfo;
use crate::pod_terms::{Labels, PodTerm};

pub(super) const DEF: PluginDef = PluginDef {
    weight: 2,
    wakes_on: events(&[
        ClusterEvent::NodeAdd,
        ClusterEvent::NodeLabel,
        ClusterEvent::AssignedPodAdd,
        ClusterEvent::AssignedPodDelete,
        ClusterEvent::PodUpdate,
    ]),
    cluster_wide: Some(&InterPodAffinity),
    ..PluginDef::named("InterPodAffinity")
};

struct InterPodAffinity;

/// What a required term of a pod that runs counts for in scores.
const HARD_WEIGHT: i64 = 1;

/// Pods, or weights, by topology: node label and value.
type Counts = HashMap<(String, String), i64>;

#[derive(Clone, Default)]
struct Counted {
    /// Topologies from which pods that run keep this one away.
    unwelcome: Counts,
    /// Pods that all of this pod's terms of affinity are about.
    near: Counts,
    /// Pods that terms of anti-affinity are about.
    apart: Counts,
    weights: Counts,
    namespace: Labels,
    /// Whether pods that run can be near to this one at all: else it may be the first of its kind.
    is_own_kind: bool,
}

fn add(counts: &mut Counts, node: &NodeInfo, key: &str, number: i64) {
    if let Some(value) = node.labels.get(key) {
        *counts.entry((key.to_owned(), value.clone())).or_default() += number;
    }
}

fn is_about(term: &PodTerm, pod: &PodInfo, namespace: &Labels) -> bool {
    term.matches(&pod.namespace, &pod.labels, namespace)
}

impl Counted {
    fn count(
        &mut self,
        pod: &PodInfo,
        other: &PodInfo,
        other_namespace: &Labels,
        node: &NodeInfo,
        sign: i64,
    ) {
        for term in other.peers.apart.iter().filter(|term| is_about(term, pod, &self.namespace)) {
            add(&mut self.unwelcome, node, &term.key, sign);
        }
        let all = |terms: &[PodTerm]| {
            !terms.is_empty() && terms.iter().all(|term| is_about(term, other, other_namespace))
        };
        if all(&pod.peers.near) {
            pod.peers.near.iter().for_each(|term| add(&mut self.near, node, &term.key, sign));
        }
        for term in pod.peers.apart.iter().filter(|term| is_about(term, other, other_namespace)) {
            add(&mut self.apart, node, &term.key, sign);
        }
    }

    fn weigh(&mut self, pod: &PodInfo, other: &PodInfo, other_namespace: &Labels, node: &NodeInfo) {
        for (weight, term) in pod.peers.preferred.iter().filter(|(_, t)| is_about(t, other, other_namespace))
        {
            add(&mut self.weights, node, &term.key, *weight);
        }
        for term in other.peers.near.iter().filter(|term| is_about(term, pod, &self.namespace)) {
            add(&mut self.weights, node, &term.key, HARD_WEIGHT);
        }
        for (weight, term) in other.peers.preferred.iter().filter(|(_, t)| is_about(t, pod, &self.namespace))
        {
            add(&mut self.weights, node, &term.key, *weight);
        }
    }
}

impl ClusterWide for InterPodAffinity {
    fn prepare(&self, pod: &PodInfo, cache: &Cache) -> Option<Box<dyn Prepared>> {
        let wishes =
            !pod.peers.near.is_empty() || !pod.peers.apart.is_empty() || !pod.peers.preferred.is_empty();
        if !wishes && !cache.has_affine_pods() {
            return None;
        }
        let mut counted =
            Counted { namespace: cache.namespace_labels(&pod.namespace).clone(), ..Counted::default() };
        let own = &pod.peers.near;
        counted.is_own_kind = own.iter().all(|term| is_about(term, pod, &counted.namespace));
        for node in cache.nodes() {
            for other in node.placed.iter().filter(|other| wishes || other.is_affine()) {
                let namespace = cache.namespace_labels(&other.namespace);
                counted.count(pod, other, namespace, node, 1);
                counted.weigh(pod, other, namespace, node);
            }
        }
        let idle = !wishes && counted.unwelcome.is_empty() && counted.weights.is_empty();
        (!idle).then(|| Box::new(counted) as Box<dyn Prepared>)
    }
}

impl Prepared for Counted {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let has = |counts: &Counts, key: &str| -> Option<i64> {
            let value = node.labels.get(key)?;
            Some(counts.get(&(key.to_owned(), value.clone())).copied().unwrap_or(0))
        };
        let wanted: Option<Vec<i64>> = pod.peers.near.iter().map(|term| has(&self.near, &term.key)).collect();
        let near = wanted.is_some_and(|counts| {
            let first = self.near.values().all(|n| *n <= 0) && self.is_own_kind;
            counts.iter().all(|n| *n > 0) || first
        });
        if !near {
            return Verdict::unresolvable("node(s) didn't match pod affinity rules");
        }
        if pod.peers.apart.iter().any(|term| has(&self.apart, &term.key).is_some_and(|n| n > 0)) {
            return Verdict::unschedulable("node(s) didn't match pod anti-affinity rules");
        }
        let unwelcome =
            |((key, value), n): (&(String, String), &i64)| *n > 0 && node.labels.get(key) == Some(value);
        if self.unwelcome.iter().any(unwelcome) {
            return Verdict::unschedulable("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Verdict::Success
    }

    fn score(&self, _: &PodInfo, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.weights.is_empty() {
            return None;
        }
        let raw = |node: &&NodeInfo| -> i64 {
            let of = |((key, value), weight): (&(String, String), &i64)| {
                if node.labels.get(key) == Some(value) { *weight } else { 0 }
            };
            self.weights.iter().map(of).sum()
        };
        let raw: Vec<i64> = nodes.iter().map(raw).collect();
        let (least, most) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
        let scale =
            |score: &i64| if most == least { 0 } else { MAX_NODE_SCORE * (score - least) / (most - least) };
        Some(raw.iter().map(scale).collect())
    }

    fn change(&mut self, pod: &PodInfo, other: &PodInfo, namespace: &Labels, node: &NodeInfo, sign: i64) {
        self.count(pod, other, namespace, node, sign);
    }

    fn duplicate(&self) -> Box<dyn Prepared> {
        Box::new(self.clone())
    }
}
