//! `distribute-cpus-across-numa`: a container that needs several memory nodes gets as much of each, so that none of its
//! parts is short of memory's bandwidth. Pure. Source:
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/2902-cpumanager-distribute-cpus-policy-option>

use std::collections::BTreeMap;

use super::options::CpuOptions;
use super::take::{nodes, packed};
use super::topology::{CpuSet, Level, Topology};

/// How much of which nodes is taken.
#[derive(Debug)]
struct Plan {
    /// Nodes that give the same.
    nodes: Vec<u32>,
    /// How much each of them gives.
    each: usize,
    /// Those of them that give one more group, in turns, until there is enough.
    more: Vec<u32>,
    /// How unequal the nodes of the machine are afterwards.
    balance: f64,
}

/// `count` of the free processors, in groups of one core if only whole cores are given away: of as few nodes as have
/// them, and of such nodes that all are left with much the same. Packed where no nodes give the same.
pub(super) fn take(
    machine: &Topology,
    free: &CpuSet,
    count: usize,
    options: CpuOptions,
) -> Result<CpuSet, String> {
    let group = if options.whole_cores { machine.threads_per_core() } else { 1 };
    if count == 0 || !count.is_multiple_of(group) || free.len() < count {
        return packed(machine, free, count, options);
    }
    let order = nodes(machine, free);
    let left: BTreeMap<u32, usize> =
        order.iter().map(|node| (*node, machine.group(Level::Node, *node).and(free).len())).collect();
    let all_groups = machine.0.len().div_ceil(group);
    let groups_per_node = all_groups.div_ceil(machine.count(Level::Node).max(1)).max(1);
    let wanted = count / group;
    for size in wanted.div_ceil(groups_per_node)..=wanted.min(order.len()) {
        let plans =
            combinations(&order, size).into_iter().filter_map(|nodes| plan(nodes, &left, count, group));
        if let Some(plan) = most_balanced(plans) {
            return follow(&plan, machine, free, count, group, options);
        }
    }
    packed(machine, free, count, options)
}

/// The first of those with the best balance.
fn most_balanced(plans: impl Iterator<Item = Plan>) -> Option<Plan> {
    plans.reduce(|best, other| if other.balance < best.balance { other } else { best })
}

/// How these nodes could give `count`, given what is left of each node of the machine.
fn plan(nodes: Vec<u32>, left: &BTreeMap<u32, usize>, count: usize, group: usize) -> Option<Plan> {
    let has = |node: &u32| left.get(node).copied().unwrap_or(0);
    let each = count / nodes.len() / group * group;
    let whole: usize = nodes.iter().map(|node| has(node) / group * group).sum();
    if whole < count || nodes.iter().any(|node| has(node) < each) {
        return None;
    }
    let mut left = left.clone();
    left.iter_mut().filter(|(node, _)| nodes.contains(node)).for_each(|(_, has)| *has -= each);
    let rest = count - each * nodes.len();
    if rest == 0 {
        return Some(Plan { balance: deviation(&left), more: Vec::new(), nodes, each });
    }
    let able: Vec<u32> = nodes.iter().copied().filter(|node| left[node] >= group).collect();
    let mut best: Option<(f64, Vec<u32>)> = None;
    for size in (1..=able.len()).rev() {
        for more in combinations(&able, size) {
            let Some(left) = hand_out(&more, left.clone(), rest, group) else { continue };
            let balance = deviation(&left);
            if best.as_ref().is_none_or(|(known, _)| balance < *known) {
                best = Some((balance, more));
            }
        }
    }
    best.map(|(balance, more)| Plan { nodes, each, more, balance })
}

/// What is left once these nodes have given `rest` in turns; `None` if they have not so much.
fn hand_out(
    nodes: &[u32],
    mut left: BTreeMap<u32, usize>,
    mut rest: usize,
    group: usize,
) -> Option<BTreeMap<u32, usize>> {
    while rest > 0 {
        let before = rest;
        for node in nodes {
            let Some(has) = left.get_mut(node).filter(|has| rest > 0 && **has >= group) else { continue };
            *has -= group;
            rest -= group;
        }
        if rest == before {
            return None;
        }
    }
    Some(left)
}

fn follow(
    plan: &Plan,
    machine: &Topology,
    free: &CpuSet,
    count: usize,
    group: usize,
    options: CpuOptions,
) -> Result<CpuSet, String> {
    let mut taken = CpuSet::default();
    let give = |node: u32, some: usize, taken: &mut CpuSet| {
        let here = machine.group(Level::Node, node).and(free).without(taken);
        *taken = taken.union(&packed(machine, &here, some.min(here.len()), options)?);
        Ok::<(), String>(())
    };
    for node in &plan.nodes {
        give(*node, plan.each, &mut taken)?;
    }
    while taken.len() < count {
        let before = taken.len();
        for node in &plan.more {
            let here = machine.group(Level::Node, *node).and(free).without(&taken);
            if taken.len() < count && here.len() >= group {
                give(*node, group, &mut taken)?;
            }
        }
        if taken.len() == before {
            let missing = count - before;
            return Err(format!("accounting error, not enough CPUs allocated, remaining: {missing}"));
        }
    }
    Ok(taken)
}

/// The standard deviation, rounded as upstream rounds it.
fn deviation(left: &BTreeMap<u32, usize>) -> f64 {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let count = left.len() as f64;
    let mean = rounded(left.values().map(|has| *has as f64).sum::<f64>() / count);
    rounded((left.values().map(|has| (*has as f64 - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// All choices of `size` of these, in their order.
fn combinations(from: &[u32], size: usize) -> Vec<Vec<u32>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let with = |(at, first): (usize, &u32)| {
        let rest = combinations(&from[at + 1..], size - 1);
        rest.into_iter().map(|rest| [vec![*first], rest].concat()).collect::<Vec<_>>()
    };
    from.iter().enumerate().flat_map(with).collect()
}

#[cfg(test)]
mod tests {
    use super::super::topology::Cpu;
    use super::*;

    const ACROSS: CpuOptions = CpuOptions { across_nodes: true, ..CpuOptions::NONE };

    /// Two nodes on each of two sockets, with eight processors each: four cores of two threads that are neighbours.
    fn machine() -> Topology {
        let one = |id: u32| Cpu { id, core: id / 2 * 2, socket: id / 16, node: id / 8, cache: id / 8 };
        Topology((0..32).map(one).collect())
    }

    #[track_caller]
    fn check(options: CpuOptions, free: &str, count: usize, want: &str) {
        let free = CpuSet::parse(free).expect("a set");
        let want = CpuSet::parse(want).expect("a set");
        assert_eq!(take(&machine(), &free, count, options), Ok(want), "{count} of {free}");
    }

    #[test]
    fn what_one_node_has_comes_from_one_node() {
        check(ACROSS, "0-31", 1, "0");
        check(ACROSS, "0-31", 8, "0-7");
        // That the machine's nodes are left alike counts more than which node is emptier.
        check(ACROSS, "2-31", 4, "8-11");
    }

    #[test]
    fn who_needs_more_gets_as_much_of_each() {
        check(ACROSS, "0-31", 10, "0-4,8-12");
        check(ACROSS, "0-31", 16, "0-15");
        check(ACROSS, "0-31", 24, "0-23");
        // Of three nodes that give the same, these are left most alike.
        check(ACROSS, "0-31", 12, "0-5,8-13");
        // One of them gives the odd one.
        check(ACROSS, "0-31", 11, "0-5,8-12");
    }

    #[test]
    fn whole_cores_are_distributed_as_such() {
        let cores = CpuOptions { whole_cores: true, ..ACROSS };
        check(cores, "0-31", 10, "0-5,8-11");
        check(cores, "0-31", 12, "0-5,8-13");
        // No whole number of cores: packed.
        check(cores, "0-31", 9, "0-8");
    }

    #[test]
    fn nodes_that_cannot_give_the_same_are_packed() {
        check(ACROSS, "0-7,8", 9, "0-8");
    }
}
