//! The decision where a pod runs. Pure: from cache and pod to a node or the reasons why none.
//!
//! Verdicts and scores depend on the pod's shape and the node alone, so the cycle keeps them per shape: one
//! row per node, of which the next pod of that shape looks again only at those that changed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{MAX_NODE_SCORE, Normalize, PluginDef, Score, Verdict};
use crate::pod_info::PodInfo;

/// Shapes remembered.
const SHAPES: usize = 128;

/// Chooses among `n` equally good nodes (in slot order) by index.
pub type TieBreak = Box<dyn FnMut(usize) -> usize + Send>;

/// No node takes the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Nodes on which removing pods could help, and on which not.
    pub resolvable: (usize, usize),
    /// Whether the pod never preempts.
    pub never_preempts: bool,
    /// Events that may help: see [`crate::framework::events`].
    pub wakes_on: u8,
}

fn listed(reasons: impl Iterator<Item = (String, usize)>) -> String {
    let mut texts: Vec<String> = reasons.map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let reasons = listed(self.reasons.iter().map(|(r, n)| (r.clone(), *n)));
        write!(f, "0/{} nodes are available: {reasons}.", self.nodes)?;
        if self.never_preempts {
            return f.write_str(" preemption: not eligible due to preemptionPolicy=Never.");
        }
        let (could, could_not) = self.resolvable;
        let outcomes = [
            ("No preemption victims found for incoming pod".to_owned(), could),
            ("Preemption is not helpful for scheduling".to_owned(), could_not),
        ];
        let outcomes = listed(outcomes.into_iter().filter(|(_, n)| *n > 0));
        write!(f, " preemption: 0/{} nodes are available: {outcomes}.", self.nodes)
    }
}

enum Row {
    /// No node in this slot.
    Absent,
    Feasible,
    Rejected(&'static PluginDef, Verdict),
}

/// The rows of one shape.
struct Evaluation {
    version: u64,
    used: u64,
    rows: Vec<Row>,
    scorers: Vec<(&'static PluginDef, &'static dyn Score)>,
    /// Raw scores, a column per scorer.
    scores: Vec<Vec<i64>>,
    filters: Vec<&'static PluginDef>,
}

impl Evaluation {
    fn new(plugins: &'static [PluginDef], pod: &PodInfo) -> Self {
        let scorers: Vec<_> = plugins
            .iter()
            .filter_map(|p| p.score.map(|s| (p, s)))
            .filter(|(_, score)| score.applies(pod))
            .collect();
        let filters = plugins.iter().filter(|p| p.filter.is_some_and(|f| f.applies(pod))).collect();
        let scores = scorers.iter().map(|_| Vec::new()).collect();
        Self { version: 0, used: 0, rows: Vec::new(), scorers, scores, filters }
    }

    fn judge(&self, pod: &PodInfo, node: &NodeInfo) -> Row {
        for plugin in &self.filters {
            let Some(filter) = plugin.filter else { continue };
            match filter.filter(pod, node) {
                Verdict::Success => {}
                rejected => return Row::Rejected(plugin, rejected),
            }
        }
        Row::Feasible
    }

    fn evaluate(&mut self, slot: usize, pod: &PodInfo, cache: &Cache) {
        let Some(node) = cache.node(slot) else {
            self.rows[slot] = Row::Absent;
            return;
        };
        let row = self.judge(pod, node);
        if matches!(row, Row::Feasible) {
            for (column, (_, score)) in self.scores.iter_mut().zip(&self.scorers) {
                column[slot] = score.score(pod, node);
            }
        }
        self.rows[slot] = row;
    }

    /// Looks again at what changed.
    fn refresh(&mut self, pod: &PodInfo, cache: &Cache) {
        let slots = cache.slot_count();
        let known = self.rows.len();
        self.rows.resize_with(slots, || Row::Absent);
        self.scores.iter_mut().for_each(|column| column.resize(slots, 0));
        match cache.changes_since(self.version).filter(|_| known > 0) {
            Some(changes) => {
                let mut changed: Vec<usize> = changes.collect();
                changed.sort_unstable();
                changed.dedup();
                changed.into_iter().for_each(|slot| self.evaluate(slot, pod, cache));
            }
            None => (0..slots).for_each(|slot| self.evaluate(slot, pod, cache)),
        }
        self.version = cache.version();
    }

    /// The slot of the best node; ties by `pick`.
    fn best(&self, pick: &mut TieBreak) -> Option<usize> {
        let feasible =
            || self.rows.iter().enumerate().filter(|(_, r)| matches!(r, Row::Feasible)).map(|(i, _)| i);
        let highest: Vec<i64> = self
            .scores
            .iter()
            .zip(&self.scorers)
            .map(|(column, (_, score))| match score.normalize() {
                Normalize::None => 0,
                _ => feasible().map(|slot| column[slot]).max().unwrap_or(0),
            })
            .collect();
        let total = |slot: usize| -> i64 {
            let parts = self.scores.iter().zip(&self.scorers).zip(&highest);
            parts
                .map(|((column, (plugin, score)), top)| {
                    plugin.weight * scaled(column[slot], *top, score.normalize())
                })
                .sum()
        };
        let mut best: Vec<usize> = Vec::new();
        let mut top = i64::MIN;
        for slot in feasible() {
            let score = total(slot);
            if score > top {
                top = score;
                best.clear();
            }
            if score == top {
                best.push(slot);
            }
        }
        match best.len() {
            0 => None,
            1 => Some(best[0]),
            n => best.get(pick(n)).or(best.first()).copied(),
        }
    }

    fn failure(&self, pod: &PodInfo, cache: &Cache) -> FitError {
        let mut reasons = BTreeMap::new();
        let (mut could, mut could_not, mut wakes_on) = (0, 0, 0);
        for row in &self.rows {
            let Row::Rejected(plugin, verdict) = row else { continue };
            wakes_on |= plugin.wakes_on;
            let texts = match verdict {
                Verdict::Success => continue,
                Verdict::Unschedulable(texts) => {
                    could += 1;
                    texts
                }
                Verdict::Unresolvable(texts) => {
                    could_not += 1;
                    texts
                }
            };
            for text in texts {
                *reasons.entry(text.to_string()).or_insert(0) += 1;
            }
        }
        let nodes = cache.node_count();
        let policy = pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref());
        FitError {
            nodes,
            reasons,
            resolvable: (could, could_not),
            never_preempts: policy == Some("Never"),
            wakes_on: if nodes == 0 { u8::MAX } else { wakes_on },
        }
    }
}

fn scaled(raw: i64, highest: i64, how: Normalize) -> i64 {
    match how {
        Normalize::None => raw,
        Normalize::Highest if highest == 0 => 0,
        Normalize::Lowest if highest == 0 => MAX_NODE_SCORE,
        Normalize::Highest => MAX_NODE_SCORE * raw / highest,
        Normalize::Lowest => MAX_NODE_SCORE - MAX_NODE_SCORE * raw / highest,
    }
}

/// Decides for one pod after the other.
pub struct Cycle {
    plugins: &'static [PluginDef],
    pick: TieBreak,
    evaluations: HashMap<Arc<str>, Evaluation>,
    turn: u64,
}

impl fmt::Debug for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cycle({} shapes)", self.evaluations.len())
    }
}

impl Cycle {
    /// A cycle that asks these plugins.
    pub fn new(plugins: &'static [PluginDef], pick: TieBreak) -> Self {
        Self { plugins, pick, evaluations: HashMap::new(), turn: 0 }
    }

    /// The slot of the node where the pod should run.
    ///
    /// # Errors
    /// Why no node takes it.
    pub fn schedule(&mut self, pod: &PodInfo, cache: &Cache) -> Result<usize, FitError> {
        self.turn += 1;
        if !self.evaluations.contains_key(&pod.shape) && self.evaluations.len() >= SHAPES {
            let oldest = self.evaluations.iter().min_by_key(|(_, e)| e.used).map(|(shape, _)| shape.clone());
            oldest.and_then(|shape| self.evaluations.remove(&shape));
        }
        let plugins = self.plugins;
        let evaluation =
            self.evaluations.entry(pod.shape.clone()).or_insert_with(|| Evaluation::new(plugins, pod));
        evaluation.used = self.turn;
        evaluation.refresh(pod, cache);
        evaluation.best(&mut self.pick).ok_or_else(|| evaluation.failure(pod, cache))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::{self, testing};

    fn node(name: &str, cpu: &str, spec: Value) -> k8s_openapi::api::core::v1::Node {
        let object = json!({"metadata": {"name": name}, "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        serde_json::from_value(object).expect("node")
    }

    fn cycle() -> Cycle {
        Cycle::new(plugins::ALL, Box::new(|_| 0))
    }

    fn place(cycle: &mut Cycle, cache: &mut Cache, uid: &str, spec: Value) -> Result<String, String> {
        let mut pod = testing::pod(spec);
        pod.uid = uid.into();
        let slot = cycle.schedule(&pod, cache).map_err(|e| e.to_string())?;
        let name = cache.node(slot).expect("node").name.clone();
        cache.assume(Arc::new(pod), &name);
        Ok(name)
    }

    #[test]
    fn pods_spread_over_nodes_and_the_failure_names_all_reasons() {
        let (mut cycle, mut cache) = (cycle(), Cache::default());
        for name in ["a", "b"] {
            cache.set_node(&node(name, "2", json!({})));
        }
        cache.set_node(&node("c", "8", json!({"taints": [{"key": "k", "effect": "NoSchedule"}]})));
        let mut places: Vec<String> = (0..4)
            .map(|n| {
                place(&mut cycle, &mut cache, &n.to_string(), testing::requests("1", "1Gi")).expect("fits")
            })
            .collect();
        assert_ne!(places[0], places[1]);
        places.sort();
        assert_eq!(places, ["a", "a", "b", "b"]);
        let failed = place(&mut cycle, &mut cache, "5", testing::requests("1", "1Gi")).expect_err("full");
        assert_eq!(
            failed,
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. \
             preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, \
             2 No preemption victims found for incoming pod."
        );
        cache.remove_pod("0");
        assert!(place(&mut cycle, &mut cache, "5", testing::requests("1", "1Gi")).is_ok());
    }

    #[test]
    fn without_nodes_the_message_says_so_and_any_event_wakes() {
        let failed = cycle().schedule(&testing::pod(json!({})), &Cache::default()).expect_err("no nodes");
        assert_eq!(failed.to_string(), "no nodes available to schedule pods");
        assert_eq!(failed.wakes_on, u8::MAX);
    }

    #[test]
    fn a_kept_evaluation_sees_nodes_that_come_go_and_change() {
        let (mut cycle, mut cache) = (cycle(), Cache::default());
        cache.set_node(&node("a", "2", json!({})));
        let small = || testing::requests("100m", "1Mi");
        assert_eq!(place(&mut cycle, &mut cache, "1", small()).as_deref(), Ok("a"));
        cache.set_node(&node("b", "2", json!({})));
        assert_eq!(place(&mut cycle, &mut cache, "2", small()).as_deref(), Ok("b"));
        cache.set_node(&node("b", "2", json!({"unschedulable": true})));
        cache.remove_node("a");
        let failed = place(&mut cycle, &mut cache, "3", small()).expect_err("none");
        assert!(failed.starts_with("0/1 nodes are available: 1 node(s) were unschedulable."), "{failed}");
        // The log of changes is long gone: everything is looked at anew.
        for n in 0..3000 {
            cache.set_node(&node("b", "2", json!({"unschedulable": n < 2999})));
        }
        assert_eq!(place(&mut cycle, &mut cache, "3", small()).as_deref(), Ok("b"));
    }

    #[test]
    fn preferred_affinity_and_soft_taints_decide_among_equals() {
        let (mut cycle, mut cache) = (cycle(), Cache::default());
        cache.set_node(&node("a", "2", json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]})));
        cache.set_node(&node("b", "2", json!({})));
        assert_eq!(place(&mut cycle, &mut cache, "1", json!({})).as_deref(), Ok("b"));
        cache.remove_pod("1");
        let preferring = json!({"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["a"]}]}}]}},
            "tolerations": [{"operator": "Exists"}]});
        assert_eq!(place(&mut cycle, &mut cache, "2", preferring).as_deref(), Ok("a"));
    }

    #[test]
    fn ties_are_broken_by_the_given_choice() {
        let mut cache = Cache::default();
        for name in ["a", "b", "c"] {
            cache.set_node(&node(name, "2", json!({})));
        }
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|n| n - 1));
        let slot = cycle.schedule(&testing::pod(json!({})), &cache).expect("fits");
        assert_eq!(cache.node(slot).expect("node").name, "c");
    }
}
