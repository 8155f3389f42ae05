//! PodTopologySpread: keeps the numbers of like pods in topologies of nodes close to one another.

use std::collections::HashMap;

use coracle_meta::placement::untolerated;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, ClusterWide, MAX_NODE_SCORE, PluginDef, Prepared, Verdict, events};
use crate::pod_info::PodInfo;
use crate::pod_terms::{Labels, Spread};

pub(super) const DEF: PluginDef = PluginDef {
    weight: 2,
    wakes_on: events(&[
        ClusterEvent::NodeAdd,
        ClusterEvent::NodeLabel,
        ClusterEvent::NodeTaint,
        ClusterEvent::AssignedPodAdd,
        ClusterEvent::AssignedPodDelete,
        ClusterEvent::PodUpdate,
    ]),
    cluster_wide: Some(&PodTopologySpread),
    ..PluginDef::named("PodTopologySpread")
};

struct PodTopologySpread;

const HOST: &str = "kubernetes.io/hostname";

/// Per constraint: like pods by topology.
#[derive(Clone)]
struct Counted {
    hard: Vec<(Spread, HashMap<String, i64>)>,
    soft: Vec<(Spread, HashMap<String, i64>)>,
}

/// Whether a node's pods count for a constraint.
fn counts(pod: &PodInfo, spread: &Spread, node: &NodeInfo) -> bool {
    let wanted = || {
        let selected = pod.wishes.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        let required = pod.wishes.required.as_ref();
        selected && required.is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
    };
    let tolerated =
        || untolerated(&node.taints, &pod.tolerations, |t| t.effect != "PreferNoSchedule").is_none();
    (!spread.honors_affinity || wanted()) && (!spread.honors_taints || tolerated())
}

fn like(spread: &Spread, pod: &PodInfo, other: &PodInfo) -> bool {
    !other.leaving && other.namespace == pod.namespace && spread.selector.matches(&other.labels)
}

impl ClusterWide for PodTopologySpread {
    fn prepare(&self, pod: &PodInfo, cache: &Cache) -> Option<Box<dyn Prepared>> {
        if pod.peers.spread.is_empty() {
            return None;
        }
        let pick = |hard: bool| -> Vec<(Spread, HashMap<String, i64>)> {
            let some = pod.peers.spread.iter().filter(|spread| spread.hard == hard);
            some.map(|spread| (spread.clone(), HashMap::new())).collect()
        };
        let mut counted = Counted { hard: pick(true), soft: pick(false) };
        for node in cache.nodes() {
            for group in [&mut counted.hard, &mut counted.soft] {
                // Only nodes with all topologies of the constraints are part of the picture.
                if !group.iter().all(|(spread, _)| node.labels.contains_key(&spread.key)) {
                    continue;
                }
                for (spread, topologies) in group.iter_mut() {
                    if counts(pod, spread, node) {
                        let value = node.labels.get(&spread.key).cloned().unwrap_or_default();
                        let number = node.placed.iter().filter(|other| like(spread, pod, other)).count();
                        *topologies.entry(value).or_default() += i64::try_from(number).unwrap_or(0);
                    }
                }
            }
        }
        Some(Box::new(counted))
    }
}

impl Prepared for Counted {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        for (spread, topologies) in &self.hard {
            let Some(value) = node.labels.get(&spread.key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Verdict::unresolvable(reason);
            };
            let fewest = if topologies.len() < spread.min_domains {
                0
            } else {
                topologies.values().min().copied().unwrap_or(0)
            };
            let own = i64::from(spread.selector.matches(&pod.labels));
            let here = topologies.get(value).copied().unwrap_or(0);
            if here + own - fewest > spread.max_skew {
                return Verdict::unschedulable("node(s) didn't match pod topology spread constraints");
            }
        }
        Verdict::Success
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let complete = |node: &NodeInfo| self.soft.iter().all(|(s, _)| node.labels.contains_key(&s.key));
        let raw = |node: &&NodeInfo| -> Option<i64> {
            complete(node).then(|| {
                let part = |(spread, topologies): &(Spread, HashMap<String, i64>)| -> f64 {
                    let value = node.labels.get(&spread.key).map(String::as_str).unwrap_or("");
                    let (number, size) = if spread.key == HOST {
                        let here = node.placed.iter().filter(|other| like(spread, pod, other)).count();
                        (i64::try_from(here).unwrap_or(0), nodes.len())
                    } else {
                        (topologies.get(value).copied().unwrap_or(0), topologies.len())
                    };
                    float(number) * float(i64::try_from(size + 2).unwrap_or(2)).ln()
                        + float(spread.max_skew - 1)
                };
                round(self.soft.iter().map(part).sum())
            })
        };
        let raw: Vec<Option<i64>> = nodes.iter().map(raw).collect();
        let known = || raw.iter().flatten().copied();
        let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        let scale = |score: &Option<i64>| match score {
            None => 0,
            Some(_) if most == 0 => MAX_NODE_SCORE,
            Some(score) => MAX_NODE_SCORE * (most + least - score) / most,
        };
        Some(raw.iter().map(scale).collect())
    }

    fn change(&mut self, pod: &PodInfo, other: &PodInfo, _: &Labels, node: &NodeInfo, sign: i64) {
        if !self.hard.iter().all(|(spread, _)| node.labels.contains_key(&spread.key)) {
            return;
        }
        for (spread, topologies) in &mut self.hard {
            if like(spread, pod, other) && counts(pod, spread, node) {
                let value = node.labels.get(&spread.key).cloned().unwrap_or_default();
                *topologies.entry(value).or_default() += sign;
            }
        }
    }

    fn duplicate(&self) -> Box<dyn Prepared> {
        Box::new(self.clone())
    }
}

/// Numbers of pods are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "numbers of pods and nodes")]
fn float(number: i64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, reason = "numbers of pods and nodes")]
fn round(number: f64) -> i64 {
    number.round() as i64
}
