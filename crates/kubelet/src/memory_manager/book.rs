//! The static policy: which memory nodes a container's memory comes from. Pure.
//!
//! What the nodes have left follows from the blocks that containers have; nothing is counted twice.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::state::{Block, Entries, Machine, NodeState, Table};
use super::{asks, asks_of_pod};
use crate::names;
use crate::pod::{Role, containers};
use crate::topology_manager::{Hint, Hints, NodeSet, NumaNode};

/// Amounts in bytes by resource.
pub type Amounts = BTreeMap<String, u64>;
/// What is kept back per node.
pub type Reserved = BTreeMap<u32, Amounts>;

/// Name of the resource whose hints stand for all kinds of memory.
const MEMORY: &str = "memory";

/// Who has which memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Book {
    empty: Machine,
    machine: Machine,
    entries: Entries,
}

/// The machine with nothing given to anybody.
fn empty_machine(nodes: &[NumaNode], reserved: &Reserved) -> Machine {
    let one = |node: &NumaNode| {
        let kept = |kind: &str| reserved.get(&node.id).and_then(|r| r.get(kind)).copied().unwrap_or(0);
        let table = |kind: &str, total: u64, others: u64| {
            let system_reserved = kept(kind);
            let allocatable = total.saturating_sub(system_reserved).saturating_sub(others);
            let table = Table { total, system_reserved, allocatable, reserved: 0, free: allocatable };
            (kind.to_owned(), table)
        };
        let mut memory_map: BTreeMap<String, Table> =
            node.huge_pages.iter().map(|(kind, total)| table(kind, *total, 0)).collect();
        memory_map.extend([table(MEMORY, node.memory, node.huge_pages.values().sum())]);
        (node.id, NodeState { number_of_assignments: 0, memory_map, cells: vec![node.id] })
    };
    nodes.iter().map(one).collect()
}

/// Puts a block onto its nodes, filling one after the other.
fn put(machine: &mut Machine, block: &Block) -> Result<(), String> {
    let mut left = block.size;
    for id in &block.nodes {
        let node = machine.get_mut(id).ok_or("the memory assignment uses the NUMA that does not exist")?;
        node.number_of_assignments += 1;
        node.cells.clone_from(&block.nodes);
        let table = node.memory_map.get_mut(&block.kind);
        let table = table.ok_or("the memory assignment uses memory resource that does not exist")?;
        let part = left.min(table.free);
        table.reserved += part;
        table.free -= part;
        left -= part;
    }
    Ok(())
}

/// Whether two machines are one: on nodes that share blocks only the sums count.
fn same(a: &Machine, b: &Machine) -> bool {
    let sums = |machine: &Machine, cells: &[u32], kind: &str| -> (u64, u64) {
        let tables = cells.iter().filter_map(|id| machine.get(id)?.memory_map.get(kind));
        tables.fold((0, 0), |(free, reserved), t| (free + t.free, reserved + t.reserved))
    };
    a.len() == b.len()
        && a.iter().zip(b).all(|((id, x), (other, y))| {
            let sorted = |cells: &[u32]| cells.iter().copied().collect::<NodeSet>();
            id == other
                && x.number_of_assignments == y.number_of_assignments
                && sorted(&x.cells) == sorted(&y.cells)
                && x.memory_map.len() == y.memory_map.len()
                && x.memory_map.iter().zip(&y.memory_map).all(|((kind, t), (other, u))| {
                    let fixed = |t: &Table| (t.total, t.system_reserved, t.allocatable);
                    kind == other
                        && fixed(t) == fixed(u)
                        && sums(a, &x.cells, kind) == sums(b, &x.cells, kind)
                })
        })
}

impl Book {
    /// The book of a machine on which nobody has anything.
    pub fn new(nodes: &[NumaNode], reserved: &Reserved) -> Self {
        let empty = empty_machine(nodes, reserved);
        Self { machine: empty.clone(), empty, entries: Entries::new() }
    }

    /// Takes over what an earlier kubelet gave.
    ///
    /// # Errors
    /// The machine is another than then; upstream's text.
    pub fn restore(&mut self, machine: &Machine, entries: Entries) -> Result<(), String> {
        if machine.is_empty() {
            return match entries.is_empty() {
                true => Ok(()),
                false => {
                    Err("[memorymanager] machine state can not be empty when it has memory assignments"
                        .into())
                }
            };
        }
        self.entries = entries;
        self.machine = self.replay()?;
        if same(machine, &self.machine) {
            return Ok(());
        }
        Err("[memorymanager] the expected machine state is different from the real one".into())
    }

    fn replay(&self) -> Result<Machine, String> {
        let mut machine = self.empty.clone();
        for (uid, of) in &self.entries {
            for (name, blocks) in of {
                for block in blocks {
                    put(&mut machine, block)
                        .map_err(|why| format!("[memorymanager] (pod: {uid}, container: {name}) {why}"))?;
                }
            }
        }
        Ok(machine)
    }

    /// What the nodes have.
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Who has what.
    pub const fn entries(&self) -> &Entries {
        &self.entries
    }

    /// What a container has.
    pub fn blocks(&self, uid: &str, container: &str) -> Option<&Vec<Block>> {
        self.entries.get(uid)?.get(container)
    }

    fn table(&self, node: u32, kind: &str) -> Table {
        self.machine.get(&node).and_then(|n| n.memory_map.get(kind)).copied().unwrap_or_default()
    }

    fn sum(&self, nodes: NodeSet, kind: &str, of: impl Fn(Table) -> u64) -> u64 {
        nodes.nodes().map(|node| of(self.table(node, kind))).sum()
    }

    /// What init containers before `container` had on just these nodes, and nobody of the pod has taken since.
    fn reusable(&self, pod: &Pod, container: &Container, nodes: NodeSet, kind: &str) -> u64 {
        let before = containers(pod).take_while(|(c, _)| c.name != container.name);
        let init = before.filter(|(_, role)| *role == Role::Init);
        let blocks = init.filter_map(|(c, _)| self.blocks(names::uid(pod), &c.name)).flatten();
        let fits = |b: &&Block| b.kind == kind && b.nodes.iter().copied().collect::<NodeSet>() == nodes;
        blocks.filter(fits).map(|b| b.size).sum()
    }

    /// Hints for these amounts; none at all where they cannot be had.
    fn seek(&self, asked: &Amounts, reusable: impl Fn(NodeSet, &str) -> u64) -> Hints {
        let all: NodeSet = self.machine.keys().copied().collect();
        let mut least = all.len();
        let mut found = Vec::new();
        for nodes in all.combinations() {
            let has = |of: fn(Table) -> u64, more: &dyn Fn(&str) -> u64| {
                asked.iter().all(|(kind, size)| self.sum(nodes, kind, of) + more(kind) >= *size)
            };
            if !has(|t| t.allocatable, &|_| 0) {
                continue;
            }
            least = least.min(nodes.len());
            if self.may_spread(nodes) && has(|t| t.free, &|kind| reusable(nodes, kind)) {
                found.push(nodes);
            }
        }
        if found.is_empty() {
            return Hints::new();
        }
        let hint = |nodes: &NodeSet| Hint { nodes: Some(*nodes), preferred: nodes.len() == least };
        let list: Vec<Hint> = found.iter().map(hint).collect();
        asked.keys().map(|kind| (kind.clone(), Some(list.clone()))).collect()
    }

    /// A node from which somebody has memory together with other nodes is used with just these by others, too.
    fn may_spread(&self, nodes: NodeSet) -> bool {
        let single = nodes.len() == 1;
        let fits = |node: &NodeState| match single {
            true => node.cells.len() == 1,
            false => self.is_grouped_so(node, nodes),
        };
        nodes.nodes().filter_map(|id| self.machine.get(&id)).all(fits)
    }

    fn is_grouped_so(&self, node: &NodeState, nodes: NodeSet) -> bool {
        let cells: NodeSet = node.cells.iter().copied().collect();
        node.number_of_assignments == 0 || (cells.len() > 1 && cells == nodes)
    }

    /// Hints for a container, or for all that a pod asks for: those that lead to what was given already, if so.
    fn hints_of(&self, given: Option<&Vec<Block>>, asked: &Amounts, seek: impl Fn() -> Hints) -> Hints {
        let Some(blocks) = given else { return seek() };
        let as_asked = |b: &Block| asked.get(&b.kind) == Some(&b.size);
        if blocks.len() != asked.len() || !blocks.iter().all(as_asked) {
            return Hints::new();
        }
        let hint = |b: &Block| Hint { nodes: Some(b.nodes.iter().copied().collect()), preferred: true };
        blocks.iter().map(|b| (b.kind.clone(), Some(vec![hint(b)]))).collect()
    }

    /// From where a container's memory could come.
    pub fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        let asked = asks(container);
        self.hints_of(self.blocks(names::uid(pod), &container.name), &asked, || {
            self.seek(&asked, |nodes, kind| self.reusable(pod, container, nodes, kind))
        })
    }

    /// From where a pod's memory could come.
    pub fn pod_hints(&self, pod: &Pod) -> Hints {
        let asked = asks_of_pod(pod);
        let given = containers(pod).find_map(|(c, _)| self.blocks(names::uid(pod), &c.name));
        self.hints_of(given, &asked, || self.seek(&asked, |_, _| 0))
    }

    /// Gives a container its memory; whether anything changed.
    ///
    /// # Errors
    /// Why it cannot be; upstream's text.
    pub fn allocate(&mut self, pod: &Pod, container: &Container, near: Hint) -> Result<bool, String> {
        let uid = names::uid(pod);
        if self.blocks(uid, &container.name).is_some() {
            return Ok(false);
        }
        let asked = asks(container);
        let nodes = self.choose(pod, container, &asked, near)?;
        let block = |(kind, size): (&String, &u64)| Block {
            nodes: nodes.nodes().collect(),
            kind: kind.clone(),
            size: *size,
        };
        let blocks: Vec<Block> = asked.iter().map(block).collect();
        self.take_from_init_containers(pod, container, &blocks);
        self.entries.entry(uid.to_owned()).or_default().insert(container.name.clone(), blocks);
        self.machine = self.replay()?;
        Ok(true)
    }

    fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        asked: &Amounts,
        near: Hint,
    ) -> Result<NodeSet, String> {
        let hints = self.seek(asked, |nodes, kind| self.reusable(pod, container, nodes, kind));
        let all = hints.get(MEMORY).cloned().flatten().unwrap_or_default();
        let mut nodes = match near.nodes {
            Some(nodes) => nodes,
            None => {
                let text = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough \
                            memory is available";
                let (nodes, preferred) = narrowest(&all, NodeSet::default()).ok_or(text)?;
                if near.preferred && !preferred {
                    return Err("[memorymanager] failed to find the default preferred hint".into());
                }
                nodes
            }
        };
        if !asked.iter().all(|(kind, size)| self.sum(nodes, kind, |t| t.free) >= *size) {
            let text = "[memorymanager] failed to find NUMA nodes to extend the current topology hint";
            let (wider, preferred) = narrowest(&all, nodes).ok_or(text)?;
            if near.preferred && !preferred {
                return Err("[memorymanager] failed to find the extended preferred hint".into());
            }
            nodes = wider;
        }
        let members = nodes.nodes().filter_map(|id| self.machine.get(&id));
        if nodes.len() > 1 && !members.into_iter().all(|node| self.is_grouped_so(node, nodes)) {
            return Err("[memorymanager] preferred hint violates NUMA node allocation".into());
        }
        Ok(nodes)
    }

    /// What a container has is no more its init containers': the sum is what the pod takes of the machine.
    fn take_from_init_containers(&mut self, pod: &Pod, container: &Container, blocks: &[Block]) {
        let Some(of) = self.entries.get_mut(names::uid(pod)) else { return };
        for new in blocks {
            let mut left = new.size;
            for (init, role) in containers(pod).take_while(|(c, _)| c.name != container.name) {
                if role != Role::Init {
                    continue;
                }
                let same = |b: &&mut Block| b.kind == new.kind && b.nodes == new.nodes;
                for old in of.get_mut(&init.name).into_iter().flatten().filter(same) {
                    let part = left.min(old.size);
                    old.size -= part;
                    left -= part;
                }
            }
        }
    }

    /// Init containers before `container` have ended; whether they had anything.
    pub fn starts(&mut self, pod: &Pod, container: &Container) -> bool {
        let Some(of) = self.entries.get_mut(names::uid(pod)) else { return false };
        let before = of.len();
        for (init, role) in containers(pod).take_while(|(c, _)| c.name != container.name) {
            if role == Role::Init {
                of.remove(&init.name);
            }
        }
        before != of.len() && self.settle()
    }

    /// Only these pods keep what they have; whether any lost something.
    pub fn keep(&mut self, stays: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|uid, _| stays(uid));
        before != self.entries.len() && self.settle()
    }

    fn settle(&mut self) -> bool {
        // What is left of blocks that went onto the machine goes onto it, too.
        self.machine = self.replay().unwrap_or_else(|_| self.empty.clone());
        true
    }
}

/// The best of the hints that have all of `least`: preferred ones first, of these the narrowest.
fn narrowest(hints: &[Hint], least: NodeSet) -> Option<(NodeSet, bool)> {
    let fit = hints.iter().filter_map(|h| Some((h.nodes?, h.preferred)));
    fit.filter(|(nodes, _)| least.is_within(*nodes))
        .min_by_key(|(nodes, preferred)| (!preferred, nodes.len(), *nodes))
}

#[cfg(test)]
mod tests;
