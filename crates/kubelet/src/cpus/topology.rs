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
}

/// All processors of the machine.
#[derive(Clone, Debug, Default)]
pub struct Topology(pub Vec<Cpu>);

/// How processors are grouped at a level.
type Level = fn(&Cpu) -> u32;

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
            Cpu {
                id: *id,
                core: siblings.0.first().copied().unwrap_or(*id),
                socket: text(&dir.join("physical_package_id")).trim().parse().unwrap_or(0),
                node: nodes.iter().find(|(_, cpus)| cpus.0.contains(id)).map_or(0, |(number, _)| *number),
            }
        };
        Self(online.0.iter().map(one).collect())
    }
    /// A machine of `nodes` memory nodes with so many CPUs each, cores of one thread.
    #[cfg(test)]
    pub fn made_up(nodes: u32, each: u32) -> Self {
        let one = |id| Cpu { id, core: id, socket: id / each, node: id / each };
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
    /// in any case.
    #[must_use]
    pub fn hints(&self, free: &CpuSet, again: &CpuSet, count: usize) -> Vec<Hint> {
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
        found.into_iter().map(|n| Hint { nodes: Some(n), preferred: n.len() == least }).collect()
    }

    /// Processors of one core.
    #[must_use]
    pub fn threads_per_core(&self) -> usize {
        let cores: BTreeSet<u32> = self.0.iter().map(|c| c.core).collect();
        self.0.len().checked_div(cores.len()).unwrap_or(1).max(1)
    }

    /// Chooses `count` of the processors that are free, as close together as can be: whole memory nodes and sockets,
    /// then whole cores, then what fills up groups that are in use already.
    ///
    /// # Errors
    /// There are not so many; upstream's text.
    pub fn take(&self, free: &CpuSet, count: usize) -> Result<CpuSet, String> {
        if free.len() < count {
            return Err(format!(
                "not enough cpus available to satisfy request: requested={count}, available={}",
                free.len()
            ));
        }
        let distinct = |level: Level| self.0.iter().map(level).collect::<BTreeSet<_>>().len();
        let (node, socket, core): (Level, Level, Level) = (|c| c.node, |c| c.socket, |c| c.core);
        // The larger groups first.
        let levels =
            if distinct(socket) >= distinct(node) { [node, socket, core] } else { [socket, node, core] };
        let mut taken = CpuSet::default();
        for level in levels {
            let left = free.without(&taken);
            for group in self.groups(&left, levels, level) {
                let whole: CpuSet = self.0.iter().filter(|c| level(c) == group).map(|c| c.id).collect();
                if whole.len() <= count - taken.len() && whole.is_within(&free.without(&taken)) {
                    taken = taken.union(&whole);
                }
            }
        }
        let left = free.without(&taken);
        let more = count - taken.len();
        Ok(taken.union(&self.ordered(&left, levels).into_iter().map(|c| c.id).take(more).collect()))
    }

    /// Groups of a level that have free processors, in the order of [`Self::ordered`].
    fn groups(&self, free: &CpuSet, levels: [Level; 3], level: Level) -> Vec<u32> {
        let mut known = BTreeSet::new();
        let groups = self.ordered(free, levels).into_iter().map(|c| level(&c));
        groups.filter(|group| known.insert(*group)).collect()
    }

    /// Free processors, those of groups with the fewest free ones first, level by level.
    fn ordered(&self, free: &CpuSet, levels: [Level; 3]) -> Vec<Cpu> {
        let mut list: Vec<Cpu> = self.0.iter().filter(|c| free.0.contains(&c.id)).copied().collect();
        let all = list.clone();
        let place = |cpu: &Cpu| {
            let at = |level: Level| {
                let group = level(cpu);
                (all.iter().filter(|c| level(c) == group).count(), group)
            };
            (levels.map(at), cpu.id)
        };
        list.sort_by_cached_key(place);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sockets` with as many cores each, of two threads: cores are numbered through, second threads after them.
    fn machine(sockets: u32, cores: u32) -> Topology {
        let all = sockets * cores;
        let one = |id: u32| {
            let core = id % all;
            Cpu { id, core, socket: core % sockets, node: core % sockets }
        };
        Topology((0..all * 2).map(one).collect())
    }

    #[track_caller]
    fn check(topology: &Topology, free: &str, count: usize, want: &str) {
        let free = CpuSet::parse(free).expect("a set");
        let got = topology.take(&free, count);
        let want = CpuSet::parse(want).expect("a set");
        assert_eq!(got, Ok(want), "{count} of {free}");
    }

    #[test]
    fn sets_are_read_and_written_as_ranges() {
        let text = |t: &str| CpuSet::parse(t).map(|s| s.to_string());
        assert_eq!(text("0-2,7\n"), Ok("0-2,7".into()));
        assert_eq!(text("3,1,2"), Ok("1-3".into()));
        assert_eq!(text(""), Ok(String::new()));
        assert!(text("a").is_err() && text("5-2").is_err());
    }

    #[test]
    fn one_socket_gives_whole_cores_before_single_threads() {
        let one = machine(1, 4);
        check(&one, "0-7", 1, "0");
        check(&one, "0-7", 2, "0,4");
        check(&one, "0-7", 8, "0-7");
        check(&one, "1-3,5-7", 2, "1,5");
        check(&one, "0,2,6", 1, "0");
        check(&one, "0-1,4-5,6", 3, "0,4,6");
    }

    #[test]
    fn two_sockets_are_filled_one_after_the_other() {
        let two = machine(2, 6);
        check(&two, "0-23", 12, "0,2,4,6,8,10,12,14,16,18,20,22");
        check(&two, "0,2-11,14-23", 4, "3,5,15,17");
        check(&two, "1-23", 1, "12");
        check(&two, "0-23", 14, "0-2,4,6,8,10,12-14,16,18,20,22");
    }

    #[test]
    fn too_few_are_told_in_upstreams_words() {
        let why = machine(1, 4).take(&CpuSet::parse("0-1").expect("a set"), 3).unwrap_err();
        assert_eq!(why, "not enough cpus available to satisfy request: requested=3, available=2");
    }
}
