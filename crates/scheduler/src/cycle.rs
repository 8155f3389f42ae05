//! The decision where a pod runs. Pure: from cache and pod to a node or the reasons why none.
//!
//! Verdicts and scores of most plugins depend on the pod's shape and the node alone, so the cycle keeps them per
//! shape: one row per node, of which the next pod of that shape looks again only at those that changed. Plugins
//! that look at the whole cluster are asked in every cycle, about the nodes that are left, if they have anything
//! to say.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{MAX_NODE_SCORE, Normalize, PluginDef, Prepared, Score, Verdict};
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
    /// Why no node was looked at.
    pub before: Option<String>,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Nodes on which removing pods could help, and on which not.
    pub resolvable: (usize, usize),
    /// What came of the attempt to make room.
    pub attempt: Attempt,
    /// Events that may help: see [`crate::framework::events`].
    pub wakes_on: u16,
}

/// What came of the attempt to make room for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attempt {
    /// None was made.
    #[default]
    None,
    /// Pods give way.
    Succeeded,
    /// The pod may not preempt, for this reason.
    NotEligible(&'static str),
    /// How many nodes gave each reason.
    Failed(BTreeMap<String, usize>),
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
        let reasons = match &self.before {
            Some(why) => why.clone(),
            None => listed(self.reasons.iter().map(|(r, n)| (r.clone(), *n))),
        };
        write!(f, "0/{} nodes are available: {reasons}.", self.nodes)?;
        let outcomes = match &self.attempt {
            Attempt::Succeeded => return Ok(()),
            Attempt::NotEligible(why) => return write!(f, " preemption: {why}."),
            Attempt::Failed(reasons) => listed(reasons.iter().map(|(r, n)| (r.clone(), *n))),
            Attempt::None => {
                let (could, could_not) = self.resolvable;
                let outcomes = [(NO_VICTIMS.to_owned(), could), (NOT_HELPFUL.to_owned(), could_not)];
                listed(outcomes.into_iter().filter(|(_, n)| *n > 0))
            }
        };
        write!(f, " preemption: 0/{} nodes are available: {outcomes}.", self.nodes)
    }
}

/// Nothing on the node has a lower priority.
pub(crate) const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
/// Removing pods would not make the node fit.
pub(crate) const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

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

    fn feasible(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().enumerate().filter(|(_, r)| matches!(r, Row::Feasible)).map(|(i, _)| i)
    }

    /// The best of these slots; `more` are scores of plugins that look at the whole cluster, by position. Ties
    /// by `pick`.
    fn best(&self, feasible: &[usize], more: &[i64], pick: &mut TieBreak) -> Option<usize> {
        let highest: Vec<i64> = self
            .scores
            .iter()
            .zip(&self.scorers)
            .map(|(column, (_, score))| match score.normalize() {
                Normalize::None => 0,
                _ => feasible.iter().map(|slot| column[*slot]).max().unwrap_or(0),
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
        for (position, slot) in feasible.iter().enumerate() {
            let score = total(*slot) + more.get(position).copied().unwrap_or(0);
            if score > top {
                top = score;
                best.clear();
            }
            if score == top {
                best.push(*slot);
            }
        }
        match best.len() {
            0 => None,
            1 => Some(best[0]),
            n => best.get(pick(n)).or(best.first()).copied(),
        }
    }

    /// Why the node in a slot is no good, by local plugins or by those that look at the whole cluster.
    fn rejection<'e>(&'e self, slot: usize, wide: &'e Wide) -> Option<(&'static PluginDef, &'e Verdict)> {
        match self.rows.get(slot)? {
            Row::Rejected(plugin, verdict) => Some((plugin, verdict)),
            Row::Feasible => wide.rejected.get(&slot).map(|(plugin, verdict)| (*plugin, verdict)),
            Row::Absent => None,
        }
    }

    fn failure(&self, wide: &Wide, cache: &Cache) -> FitError {
        let mut reasons = BTreeMap::new();
        let (mut could, mut could_not, mut wakes_on) = (0, 0, 0);
        for slot in 0..self.rows.len() {
            let Some((plugin, verdict)) = self.rejection(slot, wide) else { continue };
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
        let wakes_on = if nodes == 0 { u16::MAX } else { wakes_on };
        FitError {
            nodes,
            before: None,
            reasons,
            resolvable: (could, could_not),
            attempt: Attempt::None,
            wakes_on,
        }
    }
}

/// What plugins that look at the whole cluster say in one cycle.
#[derive(Default)]
struct Wide {
    prepared: Vec<(&'static PluginDef, Box<dyn Prepared>)>,
    rejected: BTreeMap<usize, (&'static PluginDef, Verdict)>,
}

impl Wide {
    fn prepare(plugins: &'static [PluginDef], pod: &PodInfo, cache: &Cache) -> Self {
        let ask = |plugin: &'static PluginDef| {
            let prepared = plugin.cluster_wide?.prepare(pod, cache)?;
            Some((plugin, prepared))
        };
        Self { prepared: plugins.iter().filter_map(ask).collect(), rejected: BTreeMap::new() }
    }

    fn judge(&self, pod: &PodInfo, node: &NodeInfo) -> Option<(&'static PluginDef, Verdict)> {
        let verdicts = self.prepared.iter().map(|(plugin, counted)| (*plugin, counted.filter(pod, node)));
        verdicts.into_iter().find(|(_, verdict)| *verdict != Verdict::Success)
    }

    fn duplicate(&self) -> Self {
        let copy =
            |(plugin, counted): &(&'static PluginDef, Box<dyn Prepared>)| (*plugin, counted.duplicate());
        Self { prepared: self.prepared.iter().map(copy).collect(), rejected: BTreeMap::new() }
    }

    fn change(&mut self, pod: &PodInfo, other: &PodInfo, cache: &Cache, node: &NodeInfo, sign: i64) {
        let labels = cache.namespace_labels(&other.namespace);
        for (_, counted) in &mut self.prepared {
            counted.change(pod, other, labels, node, sign);
        }
    }
}

/// A node on which changes are tried out.
pub(crate) struct Trial<'a> {
    evaluation: &'a Evaluation,
    cache: &'a Cache,
    pod: &'a PodInfo,
    /// The node as it would be.
    pub node: NodeInfo,
    wide: Wide,
}

impl Trial<'_> {
    /// Counts another pod in (`sign` 1) or out (`sign` -1).
    pub fn change(&mut self, other: &PodInfo, sign: i64) {
        self.node.change(other, sign);
        self.wide.change(self.pod, other, self.cache, &self.node, sign);
    }

    /// What the plugins say about the node as it would be.
    pub fn judge(&self) -> Verdict {
        match self.evaluation.judge(self.pod, &self.node) {
            Row::Rejected(_, verdict) => verdict,
            _ => self.wide.judge(self.pod, &self.node).map_or(Verdict::Success, |(_, verdict)| verdict),
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
        let ask = |plugin: &'static PluginDef| Some((plugin, plugin.pre_filter?.pre_filter(pod, cache)?));
        if let Some((plugin, why)) = self.plugins.iter().find_map(ask) {
            self.evaluations.remove(&pod.shape);
            let nodes = cache.node_count();
            return Err(FitError {
                nodes,
                before: Some(why),
                reasons: BTreeMap::new(),
                resolvable: (0, nodes),
                attempt: Attempt::None,
                wakes_on: plugin.wakes_on,
            });
        }
        if !self.evaluations.contains_key(&pod.shape) && self.evaluations.len() >= SHAPES {
            let oldest = self.evaluations.iter().min_by_key(|(_, e)| e.used).map(|(shape, _)| shape.clone());
            oldest.and_then(|shape| self.evaluations.remove(&shape));
        }
        let plugins = self.plugins;
        let evaluation =
            self.evaluations.entry(pod.shape.clone()).or_insert_with(|| Evaluation::new(plugins, pod));
        evaluation.used = self.turn;
        evaluation.refresh(pod, cache);
        let mut wide = Wide::prepare(plugins, pod, cache);
        let nominated = cache.nominated_against(pod);
        let mut feasible: Vec<usize> = evaluation.feasible().collect();
        if !wide.prepared.is_empty() || !nominated.is_empty() {
            let mut rejected = BTreeMap::new();
            for slot in &feasible {
                let others = nominated.get(slot).map(Vec::as_slice).unwrap_or_default();
                rejected.extend(reject(evaluation, &wide, pod, cache, *slot, others).map(|r| (*slot, r)));
            }
            feasible.retain(|slot| !rejected.contains_key(slot));
            wide.rejected = rejected;
        }
        // Room was made for it there.
        let kept = cache.nomination(&pod.uid).and_then(|node| cache.find(node));
        if let Some(slot) = kept.filter(|slot| feasible.contains(slot)) {
            return Ok(slot);
        }
        let more = wide_scores(&wide, pod, cache, &feasible);
        let best = evaluation.best(&feasible, &more, &mut self.pick);
        best.ok_or_else(|| evaluation.failure(&wide, cache))
    }

    /// Goes through the nodes where removing pods could help a pod that [`Cycle::schedule`] just refused, with
    /// the reason where it could not.
    pub(crate) fn trials(
        &self,
        pod: &PodInfo,
        cache: &Cache,
        mut visit: impl FnMut(usize, Option<Trial<'_>>),
    ) {
        let Some(evaluation) = self.evaluations.get(&pod.shape) else { return };
        let mut wide = Wide::prepare(self.plugins, pod, cache);
        for slot in 0..evaluation.rows.len() {
            let Some(node) = cache.node(slot) else { continue };
            if matches!(evaluation.rows[slot], Row::Feasible)
                && let Some(rejected) = wide.judge(pod, node)
            {
                wide.rejected.insert(slot, rejected);
            }
            let hopeless = matches!(evaluation.rejection(slot, &wide), Some((_, Verdict::Unresolvable(_))));
            let trial = (!hopeless).then(|| {
                let (node, wide) = (node.clone(), wide.duplicate());
                Trial { evaluation, cache, pod, node, wide }
            });
            visit(slot, trial);
        }
    }
}

/// Why a node that is feasible by itself is not in view of the whole cluster, or of pods that are to come there.
fn reject(
    evaluation: &Evaluation,
    wide: &Wide,
    pod: &PodInfo,
    cache: &Cache,
    slot: usize,
    nominated: &[Arc<PodInfo>],
) -> Option<(&'static PluginDef, Verdict)> {
    let node = cache.node(slot)?;
    if let Some(rejected) = wide.judge(pod, node) {
        return Some(rejected);
    }
    if nominated.is_empty() {
        return None;
    }
    let (mut node, mut wide) = (node.clone(), wide.duplicate());
    for other in nominated {
        node.change(other, 1);
        wide.change(pod, other, cache, &node, 1);
    }
    match evaluation.judge(pod, &node) {
        Row::Rejected(plugin, verdict) => Some((plugin, verdict)),
        _ => wide.judge(pod, &node),
    }
}

/// Weighted scores of the plugins that look at the whole cluster, by position in `feasible`.
fn wide_scores(wide: &Wide, pod: &PodInfo, cache: &Cache, feasible: &[usize]) -> Vec<i64> {
    let mut more = vec![0; feasible.len()];
    if wide.prepared.is_empty() {
        return more;
    }
    let nodes: Vec<&NodeInfo> = feasible.iter().filter_map(|slot| cache.node(*slot)).collect();
    for (plugin, counted) in &wide.prepared {
        for (sum, score) in more.iter_mut().zip(counted.score(pod, &nodes).into_iter().flatten()) {
            *sum += plugin.weight * score;
        }
    }
    more
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
        assert_eq!(failed.wakes_on, u16::MAX);
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
