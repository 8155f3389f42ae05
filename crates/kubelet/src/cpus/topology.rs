//! Processors: sets of them as the kernel writes them, how they hang together, and which to take for a container.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::topology_manager::{Hint, NodeSet};

/// Processors by number, written as `0-2,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// Reads the kernel's form.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeSet::new();
        for part in text.trim().split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |n: &str| n.parse::<u32>().map_err(|e| format!("invalid cpuset {text:?}: {e}"));
            let (first, last) = (number(first)?, number(last)?);
            if last < first || last > 1 << 16 {
                return Err(format!("invalid cpuset {text:?}: {part} is no range"));
            }
            all.extend(first..=last);
        }
        Ok(Self(all))
    }
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }
    /// Those that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }
    /// Their numbers, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
    /// Those that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
    /// Whether `other` has all of them.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
                _ => ranges.push((*cpu, *cpu)),
            }
        }
        let text = |(first, last): &(u32, u32)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

/// How processors are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// By memory node.
    Node,
    /// By socket.
    Socket,
    /// By last-level cache.
    Cache,
    /// By core.
    Core,
}

/// One processor and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// The first processor of its core.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its memory node.
    pub node: u32,
    /// The last-level cache that it shares with others of its node; its socket where all of the node share one.
    pub cache: u32,
}

impl Level {
    /// The number of the group that has a processor.
    pub fn of(self, cpu: &Cpu) -> u32 {
        match self {
            Self::Node => cpu.node,
            Self::Socket => cpu.socket,
            Self::Cache => cpu.cache,
            Self::Core => cpu.core,
        }
    }
}

/// The number of the cache behind a processor's second one, if not all `beside` it on its node share it.
fn last_cache(dir: &Path, beside: usize) -> Option<u32> {
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
        let path = entry.path();
        let level: u32 = text(&path.join("level")).trim().parse().ok()?;
        let shared = CpuSet::parse(&text(&path.join("shared_cpu_list"))).ok()?;
        let is_own = level > 2 && shared.len() != beside;
        is_own.then(|| text(&path.join("id")).trim().parse().ok())?
    });
    found.next()
}

/// All processors of the machine.
#[derive(Clone, Debug, Default)]
pub struct Topology(pub Vec<Cpu>);

impl Topology {
    /// Reads what the kernel tells below `/sys/devices/system`.
    pub fn read(system: &Path) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let online = CpuSet::parse(&text(&system.join("cpu/online"))).unwrap_or_default();
        let mut nodes = Vec::new();
        for entry in std::fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("node").and_then(|n| n.parse::<u32>().ok());
            let cpus = CpuSet::parse(&text(&entry.path().join("cpulist")));
            nodes.extend(number.zip(cpus.ok()));
        }
        let one = |id: &u32| {
            let dir = system.join(format!("cpu/cpu{id}/topology"));
            let siblings = CpuSet::parse(&text(&dir.join("thread_siblings_list"))).unwrap_or_default();
            let socket = text(&dir.join("physical_package_id")).trim().parse().unwrap_or(0);
            let node = nodes.iter().find(|(_, cpus)| cpus.0.contains(id));
            let beside = node.map_or(online.len(), |(_, cpus)| cpus.len());
            Cpu {
                id: *id,
                core: siblings.0.first().copied().unwrap_or(*id),
                socket,
                node: node.map_or(0, |(number, _)| *number),
                cache: last_cache(&system.join(format!("cpu/cpu{id}/cache")), beside).unwrap_or(socket),
            }
        };
        Self(online.0.iter().map(one).collect())
    }
    /// A machine of `nodes` memory nodes with so many CPUs each, cores of one thread.
    #[cfg(test)]
    pub fn made_up(nodes: u32, each: u32) -> Self {
        let one = |id| Cpu { id, core: id, socket: id / each, node: id / each, cache: id / each };
        Self((0..nodes * each).map(one).collect())
    }
    /// All of them.
    #[must_use]
    pub fn all(&self) -> CpuSet {
        self.0.iter().map(|c| c.id).collect()
    }
    /// Those of these memory nodes.
    #[must_use]
    pub fn of_nodes(&self, nodes: NodeSet) -> CpuSet {
        self.0.iter().filter(|c| nodes.has(c.node)).map(|c| c.id).collect()
    }
    /// All processors of the cores that have one of these.
    #[must_use]
    pub fn cores_of(&self, set: &CpuSet) -> CpuSet {
        let cores: BTreeSet<u32> = self.0.iter().filter(|c| set.0.contains(&c.id)).map(|c| c.core).collect();
        self.0.iter().filter(|c| cores.contains(&c.core)).map(|c| c.id).collect()
    }

    /// From which memory nodes `count` processors could come of which these are free; those to be used again are used
    /// in any case. As few nodes as can be are preferred, or also all that lie on as few sockets.
    #[must_use]
    pub fn hints(&self, free: &CpuSet, again: &CpuSet, count: usize, by_socket: bool) -> Vec<Hint> {
        let nodes: NodeSet = self.0.iter().map(|c| c.node).collect();
        let mut least = nodes.len();
        let mut found = Vec::new();
        for nodes in nodes.combinations() {
            let near = self.of_nodes(nodes);
            if near.len() >= count {
                least = least.min(nodes.len());
            }
            if again.is_within(&near) && again.len() + free.and(&near).len() >= count {
                found.push(nodes);
            }
        }
        let preferred =
            |nodes: NodeSet| nodes.len() == least || by_socket && self.is_on_few_sockets(nodes, least);
        found.into_iter().map(|n| Hint { nodes: Some(n), preferred: preferred(n) }).collect()
    }

    /// Processors of one core.
    #[must_use]
    pub fn threads_per_core(&self) -> usize {
        let cores: BTreeSet<u32> = self.0.iter().map(|c| c.core).collect();
        self.0.len().checked_div(cores.len()).unwrap_or(1).max(1)
    }

    /// Levels from the largest groups to the smallest.
    pub fn levels(&self) -> [Level; 3] {
        if self.count(Level::Socket) >= self.count(Level::Node) {
            [Level::Node, Level::Socket, Level::Core]
        } else {
            [Level::Socket, Level::Node, Level::Core]
        }
    }

    /// How many groups there are.
    pub fn count(&self, level: Level) -> usize {
        self.0.iter().map(|cpu| level.of(cpu)).collect::<BTreeSet<_>>().len()
    }

    /// All processors of a group.
    pub fn group(&self, level: Level, group: u32) -> CpuSet {
        self.0.iter().filter(|cpu| level.of(cpu) == group).map(|cpu| cpu.id).collect()
    }

    /// Those of a set.
    pub fn some<'a>(&'a self, set: &'a CpuSet) -> impl Iterator<Item = &'a Cpu> {
        self.0.iter().filter(|cpu| set.0.contains(&cpu.id))
    }

    /// All processors of the sockets to which these memory nodes belong.
    pub fn of_sockets(&self, nodes: NodeSet) -> CpuSet {
        let sockets: BTreeSet<u32> = self.0.iter().filter(|c| nodes.has(c.node)).map(|c| c.socket).collect();
        self.0.iter().filter(|c| sockets.contains(&c.socket)).map(|c| c.id).collect()
    }

    /// Whether memory nodes lie on no more sockets than `least` of them need.
    fn is_on_few_sockets(&self, nodes: NodeSet, least: usize) -> bool {
        let per_socket = self.count(Level::Node) / self.count(Level::Socket).max(1);
        let sockets: BTreeSet<u32> = self.0.iter().filter(|c| nodes.has(c.node)).map(|c| c.socket).collect();
        per_socket > 0 && sockets.len() == least.div_ceil(per_socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_ranges() {
        let text = |t: &str| CpuSet::parse(t).map(|s| s.to_string());
        assert_eq!(text("0-2,7\n"), Ok("0-2,7".into()));
        assert_eq!(text("3,1,2"), Ok("1-3".into()));
        assert_eq!(text(""), Ok(String::new()));
        assert!(text("a").is_err() && text("5-2").is_err());
    }

    #[test]
    fn the_kernel_tells_cores_sockets_nodes_and_caches() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: String, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("cpu/online".into(), "0-7\n");
        write("node/node0/cpulist".into(), "0-3\n");
        write("node/node1/cpulist".into(), "4-7\n");
        for id in 0..8 {
            let (core, socket) = (id / 2 * 2, id / 4);
            write(format!("cpu/cpu{id}/topology/thread_siblings_list"), &format!("{core}-{}\n", core + 1));
            write(format!("cpu/cpu{id}/topology/physical_package_id"), &format!("{socket}\n"));
            // The first node's processors share one cache, of the second's each core has its own.
            let (number, shared) =
                if id < 4 { (9, "0-3\n".to_owned()) } else { (core, format!("{core}-{}", core + 1)) };
            let index = format!("cpu/cpu{id}/cache/index3");
            write(format!("{index}/level"), "3\n");
            write(format!("{index}/id"), &format!("{number}\n"));
            write(format!("{index}/shared_cpu_list"), &shared);
            write(format!("cpu/cpu{id}/cache/index2/level"), "2\n");
        }
        let got = Topology::read(dir.path());
        let cpu = |id: u32, cache: u32| Cpu { id, core: id / 2 * 2, socket: id / 4, node: id / 4, cache };
        let want: Vec<Cpu> = (0..8).map(|id| cpu(id, if id < 4 { 0 } else { id / 2 * 2 })).collect();
        assert_eq!(got.0, want);
    }

    #[test]
    fn memory_nodes_of_one_socket_are_as_good_as_one_where_sockets_count() {
        // Two sockets of two nodes each.
        let one = |id: u32| Cpu { id, core: id, socket: id / 4, node: id / 2, cache: id / 4 };
        let machine = Topology((0..8).map(one).collect());
        let none = CpuSet::default();
        let preferred = |by_socket: bool| -> Vec<Vec<u32>> {
            let hints = machine.hints(&machine.all(), &none, 2, by_socket);
            hints.iter().filter(|h| h.preferred).filter_map(|h| Some(h.nodes?.nodes().collect())).collect()
        };
        assert_eq!(preferred(false), [[0], [1], [2], [3]]);
        assert_eq!(preferred(true), [vec![0], vec![1], vec![2], vec![3], vec![0, 1], vec![2, 3]]);
        let near = machine.of_sockets(NodeSet::default().with(3));
        assert_eq!(near.to_string(), "4-7");
    }
}
