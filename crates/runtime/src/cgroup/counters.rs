//! What a cgroup counts besides CPU time and memory in use.

use std::fs;
use std::path::PathBuf;

use coracle_cri::{Counters, DeviceIo};

use super::{Hierarchies, field};

/// Length of a tick in which cgroup v1 counts CPU time, in nanoseconds.
const TICK: u64 = 10_000_000;

impl Hierarchies {
    /// Counters of a container's cgroup and of what runs in it.
    pub fn counters(&self, path: &str) -> Counters {
        let mut counters = if self.is_v2() { self.counters_v2(path) } else { self.counters_v1(path) };
        counters.oom_kills = self.oom_kills(path);
        counters.memory_swap_limit = self.memory_limits(path)[1].unwrap_or(0);
        for pid in self.processes(path) {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for file in files {
                counters.open_files += 1;
                let target = fs::read_link(file.path()).unwrap_or_default();
                counters.open_sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        counters
    }

    fn counters_v1(&self, path: &str) -> Counters {
        let read = |controller: &str, file: &str| read(self.v1_dir(controller, path), file);
        let (cpu, time) = (read("cpu", "cpu.stat"), read("cpuacct", "cpuacct.stat"));
        let stat = read("memory", "memory.stat");
        let of = |text: &str, name: &str| field(text, name).unwrap_or(0);
        Counters {
            cpu_user: of(&time, "user") * TICK,
            cpu_system: of(&time, "system") * TICK,
            cpu_periods: of(&cpu, "nr_periods"),
            cpu_throttled_periods: of(&cpu, "nr_throttled"),
            cpu_throttled: of(&cpu, "throttled_time"),
            memory_cache: of(&stat, "total_cache"),
            memory_mapped_file: of(&stat, "total_mapped_file"),
            memory_swap: of(&stat, "total_swap"),
            memory_kernel: number(&read("memory", "memory.kmem.usage_in_bytes")),
            memory_most: number(&read("memory", "memory.max_usage_in_bytes")),
            memory_limit_hits: number(&read("memory", "memory.failcnt")),
            threads: number(&read("pids", "pids.current")),
            most_threads: number(&read("pids", "pids.max")),
            devices: devices_v1(
                &read("blkio", "blkio.throttle.io_service_bytes_recursive"),
                &read("blkio", "blkio.throttle.io_serviced_recursive"),
            ),
            ..Counters::default()
        }
    }

    fn counters_v2(&self, path: &str) -> Counters {
        let read = |file: &str| read(self.dirs(path).next(), file);
        let (cpu, stat) = (read("cpu.stat"), read("memory.stat"));
        let of = |text: &str, name: &str| field(text, name).unwrap_or(0);
        Counters {
            cpu_user: of(&cpu, "user_usec") * 1000,
            cpu_system: of(&cpu, "system_usec") * 1000,
            cpu_periods: of(&cpu, "nr_periods"),
            cpu_throttled_periods: of(&cpu, "nr_throttled"),
            cpu_throttled: of(&cpu, "throttled_usec") * 1000,
            memory_cache: of(&stat, "file"),
            memory_mapped_file: of(&stat, "file_mapped"),
            memory_kernel: of(&stat, "kernel"),
            memory_swap: number(&read("memory.swap.current")),
            memory_most: number(&read("memory.peak")),
            memory_limit_hits: of(&read("memory.events"), "max"),
            threads: number(&read("pids.current")),
            most_threads: number(&read("pids.max")),
            devices: devices_v2(&read("io.stat")),
            ..Counters::default()
        }
    }
}

fn read(dir: Option<PathBuf>, file: &str) -> String {
    dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok()).unwrap_or_default()
}

/// The number that a file holds; 0 for `max` and where there is none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn device(text: &str) -> Option<DeviceIo> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceIo { major: major.parse().ok()?, minor: minor.parse().ok()?, ..DeviceIo::default() })
}

/// `8:0 Read 4096` of bytes and of operations.
fn devices_v1(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut all: Vec<DeviceIo> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let parts: Vec<&str> = line.split_whitespace().collect();
            let [name, operation, figure] = parts[..] else { continue };
            let Some(new) = device(name) else { continue };
            let known = all.iter().position(|d| (d.major, d.minor) == (new.major, new.minor));
            let at = known.unwrap_or_else(|| {
                all.push(new);
                all.len() - 1
            });
            match (operation, is_bytes) {
                ("Read", true) => all[at].read_bytes = number(figure),
                ("Write", true) => all[at].written_bytes = number(figure),
                ("Read", false) => all[at].reads = number(figure),
                ("Write", false) => all[at].writes = number(figure),
                _ => {}
            }
        }
    }
    all
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`.
fn devices_v2(text: &str) -> Vec<DeviceIo> {
    let one = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let of = |key: &str| {
            let found = rest.split(' ').find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key));
            found.map_or(0, |(_, value)| number(value))
        };
        Some(DeviceIo {
            read_bytes: of("rbytes"),
            written_bytes: of("wbytes"),
            reads: of("rios"),
            writes: of("wios"),
            ..device(name)?
        })
    };
    text.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_alike_on_both_versions() {
        let want =
            DeviceIo { major: 8, minor: 16, read_bytes: 4096, written_bytes: 512, reads: 1, writes: 2 };
        let bytes = "8:16 Read 4096\n8:16 Write 512\n8:16 Sync 0\nTotal 4608\n";
        assert_eq!(devices_v1(bytes, "8:16 Read 1\n8:16 Write 2\nTotal 3\n"), [want]);
        assert_eq!(devices_v2("8:16 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0\n"), [want]);
        assert!(devices_v1("", "").is_empty() && devices_v2("").is_empty());
    }
}
