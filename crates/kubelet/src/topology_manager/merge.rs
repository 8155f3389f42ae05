//! How hints of several providers become one. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::numa::{NodeSet, NumaNode};

/// Memory nodes from which a request could be met; any will do where none are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The nodes.
    pub nodes: Option<NodeSet>,
    /// Whether they are as few as the request can do with.
    pub preferred: bool,
}

/// A provider's hints by resource. No list: the resource does not care; an empty one: it cannot be had.
pub type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// Which pods a node takes, by where their resources are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyPolicy {
    /// Nobody looks.
    #[default]
    None,
    /// All; the nearest resources are chosen.
    BestEffort,
    /// Those whose resources come from as few nodes as can be.
    Restricted,
    /// Those whose resources all come from one node.
    SingleNumaNode,
}

/// A hint that names nodes.
#[derive(Clone, Copy)]
struct Merged {
    nodes: NodeSet,
    preferred: bool,
}

/// Hints of the providers, one list per resource.
fn lists(policy: TopologyPolicy, providers: &[Hints]) -> Vec<Vec<Hint>> {
    let anywhere = |preferred| vec![Hint { nodes: None, preferred }];
    let mut lists = Vec::new();
    for hints in providers {
        if hints.is_empty() {
            lists.push(anywhere(true));
        }
        lists.extend(hints.values().map(|list| match list {
            None => anywhere(true),
            Some(list) if list.is_empty() => anywhere(false),
            Some(list) => list.clone(),
        }));
    }
    if policy == TopologyPolicy::SingleNumaNode {
        let single = |hint: &Hint| hint.preferred && hint.nodes.is_none_or(|nodes| nodes.len() == 1);
        lists.iter_mut().for_each(|list| list.retain(single));
    }
    lists
}

/// What hints are merged by.
pub(super) struct Merger<'a> {
    pub policy: TopologyPolicy,
    pub prefer_closest: bool,
    pub machine: &'a [NumaNode],
}

impl Merger<'_> {
    /// The best hint, and whether the policy takes a pod with it.
    pub fn merge(&self, providers: &[Hints]) -> (Hint, bool) {
        let all: NodeSet = self.machine.iter().map(|n| n.id).collect();
        let lists = lists(self.policy, providers);
        let narrowest = |list: &Vec<Hint>| list.iter().filter_map(|h| h.nodes).map(NodeSet::len).min();
        let goal = lists.iter().filter_map(narrowest).max().unwrap_or(0);
        let mut best: Option<Merged> = None;
        let start = Merged { nodes: all, preferred: true };
        self.each(&lists, start, None, &mut |merged| best = self.better(best, merged, goal));
        let best = best.unwrap_or(Merged { nodes: all, preferred: false });
        let anywhere = self.policy == TopologyPolicy::SingleNumaNode && best.nodes == all;
        let hint = Hint { nodes: Some(best.nodes).filter(|_| !anywhere), preferred: best.preferred };
        (hint, self.policy == TopologyPolicy::BestEffort || hint.preferred)
    }

    /// Merges every choice of one hint per list.
    fn each(
        &self,
        lists: &[Vec<Hint>],
        merged: Merged,
        first: Option<NodeSet>,
        visit: &mut impl FnMut(Merged),
    ) {
        let Some((list, rest)) = lists.split_first() else { return visit(merged) };
        for hint in list {
            let first = first.or(hint.nodes);
            let same = hint.nodes.is_none() || hint.nodes == first;
            let next = Merged {
                nodes: hint.nodes.map_or(merged.nodes, |nodes| merged.nodes.and(nodes)),
                preferred: merged.preferred && hint.preferred && same,
            };
            self.each(rest, next, first, visit);
        }
    }

    /// The better one; of two that are not preferred that whose size comes nearest to `goal` from below.
    fn better(&self, best: Option<Merged>, new: Merged, goal: usize) -> Option<Merged> {
        if new.nodes.is_empty() {
            return best;
        }
        let Some(old) = best else { return Some(new) };
        let fitter = || if self.is_fitter(new.nodes, old.nodes) { new } else { old };
        Some(match (old.preferred, new.preferred) {
            (false, true) => new,
            (true, false) => old,
            (true, true) => fitter(),
            (false, false) => match (old.nodes.len().cmp(&goal), new.nodes.len().cmp(&goal)) {
                (Ordering::Greater, _) | (Ordering::Equal, Ordering::Equal) => fitter(),
                (Ordering::Equal, _) | (Ordering::Less, Ordering::Greater) => old,
                (Ordering::Less, Ordering::Equal) => new,
                (Ordering::Less, Ordering::Less) => match new.nodes.len().cmp(&old.nodes.len()) {
                    Ordering::Greater => new,
                    Ordering::Less => old,
                    Ordering::Equal => fitter(),
                },
            },
        })
    }

    fn is_fitter(&self, new: NodeSet, old: NodeSet) -> bool {
        let by_distance = self.prefer_closest && self.policy != TopologyPolicy::SingleNumaNode;
        if !by_distance || new.len() != old.len() {
            return new.is_narrower_than(old);
        }
        match self.distance(new).total_cmp(&self.distance(old)) {
            Ordering::Less => true,
            Ordering::Equal => new < old,
            Ordering::Greater => false,
        }
    }

    /// How far nodes are from each other on average.
    fn distance(&self, nodes: NodeSet) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for from in self.machine.iter().filter(|n| nodes.has(n.id)) {
            for (to, far) in self.machine.iter().zip(&from.distances) {
                if nodes.has(to.id) {
                    sum += *far as f64;
                    count += 1.0;
                }
            }
        }
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(nodes: u32) -> Vec<NumaNode> {
        // Neighbours by pairs: 0-1, 2-3, …; all else is far.
        let far = |a: u32, b: u32| {
            if a == b {
                10
            } else if a / 2 == b / 2 {
                11
            } else {
                30
            }
        };
        let one = |id: u32| NumaNode {
            id,
            distances: (0..nodes).map(|to| far(id, to)).collect(),
            ..NumaNode::default()
        };
        (0..nodes).map(one).collect()
    }

    fn hint(nodes: &[u32], preferred: bool) -> Hint {
        Hint { nodes: Some(nodes.iter().copied().collect()), preferred }
    }

    fn provider(list: &[(&[u32], bool)]) -> Hints {
        let list = list.iter().map(|(nodes, preferred)| hint(nodes, *preferred)).collect();
        [("resource".to_owned(), Some(list))].into()
    }

    #[track_caller]
    fn check(policy: TopologyPolicy, providers: &[Hints], want: Hint, admitted: bool) {
        let merger = Merger { policy, prefer_closest: false, machine: &machine(2) };
        assert_eq!(merger.merge(providers), (want, admitted), "{policy:?}");
    }

    use TopologyPolicy::{BestEffort, Restricted, SingleNumaNode};

    #[test]
    fn providers_that_agree_on_a_node_get_it() {
        let providers = [
            provider(&[(&[0], true), (&[1], true), (&[0, 1], false)]),
            provider(&[(&[1], true), (&[0, 1], false)]),
        ];
        for policy in [BestEffort, Restricted, SingleNumaNode] {
            check(policy, &providers, hint(&[1], true), true);
        }
    }

    #[test]
    fn providers_that_do_not_agree_are_refused_unless_the_best_is_good_enough() {
        let providers =
            [provider(&[(&[0], true), (&[0, 1], false)]), provider(&[(&[1], true), (&[0, 1], false)])];
        check(BestEffort, &providers, hint(&[0], false), true);
        check(Restricted, &providers, hint(&[0], false), false);
        check(SingleNumaNode, &providers, Hint { nodes: None, preferred: false }, false);
    }

    #[test]
    fn what_needs_two_nodes_at_least_is_restricted_but_not_single() {
        let both = [provider(&[(&[0, 1], true)])];
        check(Restricted, &both, hint(&[0, 1], true), true);
        check(SingleNumaNode, &both, Hint { nodes: None, preferred: false }, false);
    }

    #[test]
    fn no_preference_is_no_obstacle_and_no_possibility_is_one() {
        let indifferent = [Hints::new(), [("r".to_owned(), None)].into()];
        check(BestEffort, &indifferent, hint(&[0, 1], true), true);
        check(Restricted, &indifferent, hint(&[0, 1], true), true);
        check(SingleNumaNode, &indifferent, Hint { nodes: None, preferred: true }, true);
        let impossible = [provider(&[]), provider(&[(&[0], true)])];
        check(BestEffort, &impossible, hint(&[0], false), true);
        check(Restricted, &impossible, hint(&[0], false), false);
        check(SingleNumaNode, &impossible, Hint { nodes: None, preferred: false }, false);
    }

    #[test]
    fn of_what_is_not_preferred_that_is_taken_which_is_wide_enough_for_the_widest() {
        let providers = [provider(&[(&[0], false), (&[0, 1], false)]), provider(&[(&[0, 1], true)])];
        check(BestEffort, &providers, hint(&[0, 1], false), true);
    }

    #[test]
    fn near_nodes_are_preferred_on_demand() {
        let merge = |prefer_closest| {
            let pairs = provider(&[(&[0, 2], true), (&[2, 3], true), (&[1, 2], true)]);
            Merger { policy: BestEffort, prefer_closest, machine: &machine(4) }.merge(&[pairs]).0
        };
        assert_eq!(merge(true), hint(&[2, 3], true));
        assert_eq!(merge(false), hint(&[0, 2], true));
    }
}
