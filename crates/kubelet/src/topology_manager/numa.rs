//! Memory (NUMA) nodes: those of the machine, and sets of them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::machine::{self, meminfo};

/// A set of memory nodes by number; numbers of 64 and more are in no set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeSet(u64);

impl NodeSet {
    /// Whether the node is one of them.
    pub const fn has(self, node: u32) -> bool {
        node < 64 && self.0 >> node & 1 == 1
    }
    /// With this node, too.
    #[must_use]
    pub const fn with(self, node: u32) -> Self {
        if node < 64 { Self(self.0 | 1 << node) } else { self }
    }
    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Whether `other` has all of them.
    pub const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
    /// Fewer nodes are narrower; of as many, the lower numbers are.
    pub fn is_narrower_than(self, other: Self) -> bool {
        (self.len(), self) < (other.len(), other)
    }
    /// Their numbers, in order.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |node| self.has(*node))
    }
    /// All sets of one or more of these nodes: the small ones first, of one size the lower numbers first.
    pub fn combinations(self) -> Vec<Self> {
        let nodes: Vec<u32> = self.nodes().collect();
        let mut all = Vec::new();
        for size in 1..=nodes.len() {
            choose(&nodes, Self::default(), size, &mut all);
        }
        all
    }
}

fn choose(from: &[u32], chosen: NodeSet, size: usize, all: &mut Vec<NodeSet>) {
    if chosen.len() == size {
        all.push(chosen);
        return;
    }
    for (i, node) in from.iter().enumerate() {
        choose(&from[i + 1..], chosen.with(*node), size, all);
    }
}

impl FromIterator<u32> for NodeSet {
    fn from_iter<I: IntoIterator<Item = u32>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::default(), Self::with)
    }
}

/// A memory node of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Bytes, those of huge pages included.
    pub memory: u64,
    /// Bytes of huge pages, by the resource's name.
    pub huge_pages: BTreeMap<String, u64>,
    /// How far the machine's nodes are from it, in their order.
    pub distances: Vec<u64>,
}

/// Reads the nodes below `/sys/devices/system`; a kernel that knows of none has one with all of `memory`.
pub fn read(system: &Path, memory: u64, huge_pages: &BTreeMap<i64, i64>) -> Vec<NumaNode> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else { continue };
        let text = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let prefix = format!("Node {id} ");
        let lines: Vec<String> = text("meminfo").lines().map(|l| l.replacen(&prefix, "", 1)).collect();
        nodes.push(NumaNode {
            id,
            memory: bytes(meminfo(&lines.join("\n"), "MemTotal").unwrap_or(0)),
            huge_pages: named(&machine::huge_pages(&entry.path().join("hugepages"))),
            distances: text("distance").split_whitespace().filter_map(|d| d.parse().ok()).collect(),
        });
    }
    nodes.sort_by_key(|n| n.id);
    if nodes.is_empty() {
        nodes.push(NumaNode { memory, huge_pages: named(huge_pages), ..NumaNode::default() });
    }
    nodes
}

fn bytes(count: i64) -> u64 {
    count.max(0).unsigned_abs()
}

fn named(sizes: &BTreeMap<i64, i64>) -> BTreeMap<String, u64> {
    sizes.iter().map(|(size, total)| (machine::huge_pages_name(*size), bytes(*total))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[u32]) -> NodeSet {
        nodes.iter().copied().collect()
    }

    #[test]
    fn combinations_come_small_and_low_first() {
        let all: Vec<Vec<u32>> =
            set(&[0, 2, 5]).combinations().into_iter().map(|s| s.nodes().collect()).collect();
        let want: [&[u32]; 7] = [&[0], &[2], &[5], &[0, 2], &[0, 5], &[2, 5], &[0, 2, 5]];
        assert_eq!(all, want);
        assert!(set(&[5]).is_narrower_than(set(&[0, 1])) && set(&[0, 3]).is_narrower_than(set(&[1, 3])));
        assert!(!set(&[1]).is_narrower_than(set(&[1])));
    }

    #[test]
    fn nodes_are_read_as_the_kernel_tells_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = read(dir.path(), 7, &BTreeMap::from([(2 << 20, 4 << 20)]));
        assert_eq!((none.len(), none[0].id, none[0].memory), (1, 0, 7));
        assert_eq!(none[0].huge_pages["hugepages-2Mi"], 4 << 20);
        for (node, distance) in [(1, "20 10\n"), (0, "10 20\n")] {
            let at = dir.path().join(format!("node/node{node}"));
            std::fs::create_dir_all(at.join("hugepages/hugepages-1048576kB")).expect("directories");
            let write = |file: &str, text: &str| std::fs::write(at.join(file), text).expect("written");
            write("hugepages/hugepages-1048576kB/nr_hugepages", "2\n");
            write("distance", distance);
            write("meminfo", &format!("Node {node} MemTotal:        4096 kB\nNode {node} MemFree: 1 kB\n"));
        }
        let nodes = read(dir.path(), 7, &BTreeMap::new());
        assert_eq!(nodes.iter().map(|n| n.id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((nodes[1].memory, nodes[1].distances.as_slice()), (4 << 20, [20, 10].as_slice()));
        assert_eq!(nodes[0].huge_pages["hugepages-1Gi"], 2 << 30);
    }
}
