//! Figures of the node and its pods, read when asked for; CPU rates from the last two looks.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use coracle_cri::v1::{ContainerState, ContainerStats, ContainerStatus, PodSandboxStats};
use parking_lot::Mutex;

use crate::context::Context;
use crate::manager::Pods;
use crate::worker::Handle;

/// Two looks closer together than this give no good rate.
const LEAST: Duration = Duration::from_millis(900);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu: u64,
    rate: Option<u64>,
}

/// CPU counters when last looked at, by what they count.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Sample>>);

impl Rates {
    /// Nanoseconds of CPU per second since the look before; `None` at the first look.
    fn look(&self, key: &str, cpu: u64, now: Instant) -> Option<u64> {
        let mut samples = self.0.lock();
        let Some(old) = samples.get(key).copied().filter(|o| o.cpu <= cpu) else {
            samples.insert(key.to_owned(), Sample { at: now, cpu, rate: None });
            return None;
        };
        let passed = now.saturating_duration_since(old.at);
        if passed < LEAST {
            return old.rate;
        }
        let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX).max(1);
        let rate = u128::from(cpu - old.cpu) * 1_000_000_000 / u128::from(nanos);
        let rate = u64::try_from(rate).ok();
        samples.insert(key.to_owned(), Sample { at: now, cpu, rate });
        rate
    }

    fn keep(&self, alive: &HashSet<String>) {
        self.0.lock().retain(|key, _| alive.contains(key));
    }
}

/// A running container.
pub struct ContainerFigures {
    /// What the runtime says of it.
    pub status: ContainerStatus,
    /// Its counters.
    pub stats: ContainerStats,
    /// Nanoseconds of CPU per second.
    pub rate: Option<u64>,
}

/// A pod with a sandbox.
pub struct PodFigures {
    /// The pod.
    pub handle: Handle,
    /// Counters of the whole pod.
    pub stats: PodSandboxStats,
    /// Nanoseconds of CPU per second.
    pub rate: Option<u64>,
    /// Those that run.
    pub containers: Vec<ContainerFigures>,
}

/// The whole machine.
#[derive(Clone, Debug, Default)]
pub struct NodeFigures {
    /// Nanoseconds of CPU since boot.
    pub cpu: u64,
    /// Nanoseconds of CPU per second.
    pub rate: Option<u64>,
    /// Bytes that nobody can have without somebody giving them up.
    pub memory_working_set: u64,
    /// Bytes in use, caches included.
    pub memory_usage: u64,
    /// Bytes that can be had.
    pub memory_available: u64,
    /// Bytes of processes.
    pub memory_rss: u64,
    /// Bytes of swap in use, and left.
    pub swap: (u64, u64),
    /// Capacity, free and used bytes of the data directory's file system; inodes likewise.
    pub disk: Disk,
    /// Processes and threads there are, and there may be.
    pub processes: (u64, u64),
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Disk {
    /// Reads a file system.
    pub fn of(path: &std::path::Path) -> Self {
        let Ok(v) = rustix::fs::statvfs(path) else { return Self::default() };
        Self {
            capacity: v.f_blocks.saturating_mul(v.f_frsize),
            available: v.f_bavail.saturating_mul(v.f_frsize),
            used: v.f_blocks.saturating_sub(v.f_bfree).saturating_mul(v.f_frsize),
            inodes: v.f_files,
            inodes_free: v.f_ffree,
        }
    }
}

/// Nanoseconds of CPU in the first line of `/proc/stat`, waiting left out.
fn cpu_nanoseconds(text: &str) -> u64 {
    let line = text.lines().next().unwrap_or("");
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum::<u64>();
    busy * 10_000_000
}

/// Bytes of a line of `/proc/meminfo`.
fn memory(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Reads the machine.
pub fn node(cx: &Context, rates: &Rates) -> NodeFigures {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = cpu_nanoseconds(&read("/proc/stat"));
    let info = read("/proc/meminfo");
    let total = memory(&info, "MemTotal");
    let usage = total.saturating_sub(memory(&info, "MemFree"));
    let working = usage.saturating_sub(memory(&info, "Inactive(file)"));
    let swap_free = memory(&info, "SwapFree");
    let load = read("/proc/loadavg");
    let there = load.split_whitespace().nth(3).and_then(|f| f.split_once('/')?.1.parse().ok());
    NodeFigures {
        cpu,
        rate: rates.look("node", cpu, Instant::now()),
        memory_working_set: working,
        memory_usage: usage,
        memory_available: total.saturating_sub(working),
        memory_rss: memory(&info, "AnonPages"),
        swap: (memory(&info, "SwapTotal").saturating_sub(swap_free), swap_free),
        disk: Disk::of(&cx.config.root),
        processes: (there.unwrap_or(0), read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0)),
    }
}

/// Reads all pods that have a sandbox.
pub async fn pods(cx: &Context, pods: &Pods, rates: &Rates) -> Vec<PodFigures> {
    let mut list = Vec::new();
    let mut alive = HashSet::from(["node".to_owned()]);
    for handle in pods.all() {
        let seen = handle.observed.borrow().clone();
        let Some(sandbox) = seen.sandboxes.first().filter(|s| s.ready) else { continue };
        let Ok(stats) = cx.runtime.pod_sandbox_stats(&sandbox.id).await else { continue };
        let mut containers = Vec::new();
        for status in seen.containers.iter().filter(|c| c.state == ContainerState::Running) {
            let Ok(stats) = cx.runtime.container_stats(&status.id).await else { continue };
            let rate = rates.look(&status.id, stats.usage.cpu_core_nano_seconds, Instant::now());
            alive.insert(status.id.clone());
            containers.push(ContainerFigures { status: status.clone(), stats, rate });
        }
        let rate = rates.look(&sandbox.id, stats.usage.cpu_core_nano_seconds, Instant::now());
        alive.insert(sandbox.id.clone());
        list.push(PodFigures { handle, stats, rate, containers });
    }
    rates.keep(&alive);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_looks_that_are_apart() {
        let rates = Rates::default();
        let t = Instant::now();
        assert_eq!(rates.look("a", 1_000, t), None);
        assert_eq!(rates.look("a", 2_000, t + Duration::from_millis(1)), None);
        assert_eq!(rates.look("a", 500_001_000, t + Duration::from_secs(1)), Some(500_000_000));
        assert_eq!(rates.look("a", 1, t + Duration::from_secs(3)), None);
    }

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert_eq!(cpu_nanoseconds("cpu  1 2 3 400 5 6 7 8 9 10\ncpu0 1\n"), 270_000_000);
        assert_eq!(memory("MemTotal: 10 kB\nInactive(file):  3 kB\n", "Inactive(file)"), 3072);
    }
}
