//! Which of the free processors a container gets, as upstream chooses them. Pure.

use std::collections::BTreeSet;

use super::distribute;
use super::options::CpuOptions;
use super::topology::{Cpu, CpuSet, Level, Topology};

/// Chooses `count` of the processors that are free, as the options say.
///
/// # Errors
/// There are not so many; upstream's text.
pub(super) fn take(
    machine: &Topology,
    free: &CpuSet,
    count: usize,
    options: CpuOptions,
) -> Result<CpuSet, String> {
    if options.across_nodes {
        return distribute::take(machine, free, count, options);
    }
    packed(machine, free, count, options)
}

/// Chooses `count` of the processors that are free, as close together as can be: whole memory nodes and sockets,
/// then what shares a cache if that is asked for, then whole cores, then what fills up groups that are in use already.
pub(super) fn packed(
    machine: &Topology,
    free: &CpuSet,
    count: usize,
    options: CpuOptions,
) -> Result<CpuSet, String> {
    if free.len() < count {
        return Err(format!(
            "not enough cpus available to satisfy request: requested={count}, available={}",
            free.len()
        ));
    }
    let mut taking = Taking { machine, free: free.clone(), taken: CpuSet::default(), missing: count };
    let levels = machine.levels();
    taking.whole_groups(levels[0]);
    taking.whole_groups(levels[1]);
    if options.by_cache {
        taking.caches();
    }
    if !options.across_cores {
        taking.whole_groups(Level::Core);
    }
    taking.single(options.across_cores);
    Ok(taking.taken)
}

/// What is still to be found, and where.
struct Taking<'a> {
    machine: &'a Topology,
    free: CpuSet,
    taken: CpuSet,
    missing: usize,
}

impl Taking<'_> {
    fn take(&mut self, set: &CpuSet) {
        self.taken = self.taken.union(set);
        self.free = self.free.without(set);
        self.missing -= set.len();
    }

    /// Groups that are free as a whole and not larger than what is missing.
    fn whole_groups(&mut self, level: Level) {
        for group in self.groups(level) {
            let whole = self.machine.group(level, group);
            if whole.len() <= self.missing && whole.is_within(&self.free) {
                self.take(&whole);
            }
        }
    }

    /// Groups that have free processors, in the order of [`ordered`].
    fn groups(&self, level: Level) -> Vec<u32> {
        let mut known = BTreeSet::new();
        let order = ordered(self.machine, &self.free, &self.machine.levels());
        order.iter().map(|cpu| level.of(cpu)).filter(|group| known.insert(*group)).collect()
    }

    /// Caches with free processors: those of the memory node with the fewest free ones first, and of these the ones
    /// with the fewest.
    fn cache_groups(&self) -> Vec<u32> {
        let size = |cache: u32| self.machine.group(Level::Cache, cache).and(&self.free).len();
        let mut found = Vec::new();
        for node in self.groups(Level::Node) {
            let here = self.machine.group(Level::Node, node).and(&self.free);
            let caches: BTreeSet<u32> = self.machine.some(&here).map(|c| c.cache).collect();
            let mut caches: Vec<u32> = caches.into_iter().collect();
            caches.sort_by_key(|cache| (size(*cache), *cache));
            found.extend(caches);
        }
        found
    }

    /// Whole caches as long as these are not too large, then a part of one that has all that is missing.
    fn caches(&mut self) {
        let all = self.machine.0.len();
        let usual = all / self.machine.count(Level::Cache).max(1);
        for cache in self.cache_groups() {
            if self.missing >= usual {
                for other in self.cache_groups() {
                    let whole = self.machine.group(Level::Cache, other);
                    if whole.len() <= self.missing && whole.is_within(&self.free) {
                        self.take(&whole);
                    }
                }
            }
            if self.missing == 0 {
                return;
            }
            self.part_of_cache(cache);
            if self.missing == 0 {
                return;
            }
        }
    }

    /// All that is missing, core by core, if the cache's free cores have it.
    fn part_of_cache(&mut self, cache: u32) {
        let threads = self.machine.threads_per_core();
        let here = self.machine.group(Level::Cache, cache).and(&self.free);
        let cores: BTreeSet<u32> = self.machine.some(&here).map(|c| c.core).collect();
        let cores: BTreeSet<u32> = cores.into_iter().take(self.missing.div_ceil(threads)).collect();
        let mut part: Vec<u32> =
            self.machine.some(&self.free).filter(|c| cores.contains(&c.core)).map(|c| c.id).collect();
        part.sort_unstable();
        if !self.missing.is_multiple_of(2) && threads > 1 && part.len() > self.missing {
            // Of the last core only one thread is wanted.
            part.pop();
        }
        if part.len() == self.missing {
            self.take(&part.into_iter().collect());
        }
    }

    /// Processors one by one: of cores that are in use already first, or each of another core.
    fn single(&mut self, across_cores: bool) {
        let levels = self.machine.levels();
        let sockets = levels.iter().position(|level| *level == Level::Socket).map_or(0, |at| at + 1);
        let levels = if across_cores { &levels[..sockets] } else { &levels[..] };
        let order = ordered(self.machine, &self.free, levels);
        self.take(&order.into_iter().map(|c| c.id).take(self.missing).collect());
    }
}

/// Memory nodes with free processors, those with the fewest first.
pub(super) fn nodes(machine: &Topology, free: &CpuSet) -> Vec<u32> {
    Taking { machine, free: free.clone(), taken: CpuSet::default(), missing: 0 }.groups(Level::Node)
}

/// Free processors, those of groups with the fewest free ones first, level by level, then by number.
fn ordered(machine: &Topology, free: &CpuSet, levels: &[Level]) -> Vec<Cpu> {
    let mut list: Vec<Cpu> = machine.some(free).copied().collect();
    let all = list.clone();
    let place = |cpu: &Cpu| {
        let at = |level: &Level| {
            let group = level.of(cpu);
            (all.iter().filter(|c| level.of(c) == group).count(), group)
        };
        (levels.iter().map(at).collect::<Vec<_>>(), cpu.id)
    };
    list.sort_by_cached_key(place);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: CpuOptions = CpuOptions::NONE;

    /// `sockets` with as many cores each, of two threads: cores are numbered through, second threads after them.
    fn machine(sockets: u32, cores: u32) -> Topology {
        let all = sockets * cores;
        let one = |id: u32| {
            let core = id % all;
            Cpu { id, core, socket: core % sockets, node: core % sockets, cache: core % sockets }
        };
        Topology((0..all * 2).map(one).collect())
    }

    /// One socket and node, cores of two threads that are neighbours, four of them at each cache.
    fn of_caches(cores: u32) -> Topology {
        let one = |id: u32| Cpu { id, core: id / 2 * 2, socket: 0, node: 0, cache: id / 8 };
        Topology((0..cores * 2).map(one).collect())
    }

    #[track_caller]
    fn check(topology: &Topology, options: CpuOptions, free: &str, count: usize, want: &str) {
        let free = CpuSet::parse(free).expect("a set");
        let got = take(topology, &free, count, options);
        let want = CpuSet::parse(want).expect("a set");
        assert_eq!(got, Ok(want), "{count} of {free}");
    }

    #[test]
    fn one_socket_gives_whole_cores_before_single_threads() {
        let one = machine(1, 4);
        check(&one, PACKED, "0-7", 1, "0");
        check(&one, PACKED, "0-7", 2, "0,4");
        check(&one, PACKED, "0-7", 8, "0-7");
        check(&one, PACKED, "1-3,5-7", 2, "1,5");
        check(&one, PACKED, "0,2,6", 1, "0");
        check(&one, PACKED, "0-1,4-5,6", 3, "0,4,6");
    }

    #[test]
    fn two_sockets_are_filled_one_after_the_other() {
        let two = machine(2, 6);
        check(&two, PACKED, "0-23", 12, "0,2,4,6,8,10,12,14,16,18,20,22");
        check(&two, PACKED, "0,2-11,14-23", 4, "3,5,15,17");
        check(&two, PACKED, "1-23", 1, "12");
        check(&two, PACKED, "0-23", 14, "0-2,4,6,8,10,12-14,16,18,20,22");
    }

    #[test]
    fn too_few_are_told_in_upstreams_words() {
        let free = CpuSet::parse("0-1").expect("a set");
        for options in [PACKED, CpuOptions { across_nodes: true, ..PACKED }] {
            let why = take(&machine(1, 4), &free, 3, options).unwrap_err();
            assert_eq!(why, "not enough cpus available to satisfy request: requested=3, available=2");
        }
    }

    #[test]
    fn threads_of_different_cores_are_given_where_cores_are_to_be_spread() {
        let spread = CpuOptions { across_cores: true, ..PACKED };
        let one = machine(1, 4);
        check(&one, spread, "0-7", 1, "0");
        check(&one, spread, "0-7", 4, "0-3");
        check(&one, spread, "0-7", 5, "0-4");
        check(&one, spread, "0,4,5,6", 2, "0,4");
        let two = machine(2, 6);
        check(&two, spread, "0-23", 4, "0,2,4,6");
        // The second socket is the emptier one.
        check(&two, spread, "0-22", 3, "1,3,5");
        check(&two, spread, "0-23", 12, "0,2,4,6,8,10,12,14,16,18,20,22");
    }

    #[test]
    fn caches_are_filled_one_after_the_other() {
        let aligned = CpuOptions { by_cache: true, ..PACKED };
        let all = of_caches(16);
        check(&all, aligned, "0-31", 8, "0-7");
        check(&all, aligned, "0-31", 16, "0-15");
        check(&all, aligned, "0-31", 12, "0-11");
        check(&all, aligned, "0-31", 3, "0-2");
        // What fits is taken from the cache with the fewest free ones, which alone has it all.
        check(&all, aligned, "2-31", 4, "2-5");
        check(&all, aligned, "6-31", 4, "8-11");
        check(&all, aligned, "6-31", 8, "8-15");
        check(&all, aligned, "6-31", 10, "6-15");
        // Nothing fits anywhere: cores as they come.
        check(&all, aligned, "0-5,8-13", 8, "0-5,8-9");
        // Without the option the emptiest cores are taken, whatever their cache.
        check(&all, PACKED, "6-31", 4, "6-9");
    }

    /// A machine as the recorded choices name it.
    fn named(name: &str) -> Topology {
        let parts: Vec<&str> = name.split(':').collect();
        let number = |at: usize| parts[at].parse::<u32>().expect("a number");
        // Two nodes on each of two sockets, with four cores of two neighbouring threads each.
        let of_nodes = |id: u32| Cpu { id, core: id / 2 * 2, socket: id / 16, node: id / 8, cache: id / 8 };
        match parts[0] {
            "ht" => machine(number(1), number(2)),
            "caches" => of_caches(number(1)),
            _ => Topology((0..32).map(of_nodes).collect()),
        }
    }

    #[test]
    fn choices_are_those_of_upstreams_own_code() {
        for line in include_str!("upstream.txt").lines().filter(|line| !line.starts_with('#')) {
            let parts: Vec<&str> = line.split(' ').collect();
            let options = match parts[1] {
                "spread" => CpuOptions { across_cores: true, ..PACKED },
                "cache" => CpuOptions { by_cache: true, ..PACKED },
                "across" => CpuOptions { across_nodes: true, ..PACKED },
                "cores" => CpuOptions { across_nodes: true, whole_cores: true, ..PACKED },
                _ => PACKED,
            };
            let count = parts[3].parse().expect("a number");
            let free = CpuSet::parse(parts[2]).expect("a set");
            let got = take(&named(parts[0]), &free, count, options).expect("there are enough");
            assert_eq!(got.to_string(), parts[4], "{line}");
        }
    }
}
