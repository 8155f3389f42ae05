//! What of Coracle is on the machine: processes, mounts, namespaces, links, rules, cgroups and files.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::machine::Machine;
use crate::program::run;

/// A snapshot to compare: `after.since(&before)` is what was left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census(BTreeSet<String>);

impl Census {
    /// Takes the census of the whole machine and of the test's own network namespace.
    pub fn take(machine: &Machine) -> Self {
        let mut seen = BTreeSet::new();
        processes(&mut seen);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        seen.extend(mounts.lines().filter_map(|l| l.split(' ').nth(1)).map(|p| format!("mount {p}")));
        for path in walk(Path::new("/sys/fs/cgroup"), 6) {
            if path.contains("coracle") {
                seen.insert(format!("cgroup {path}"));
            }
        }
        for path in walk(Path::new("/run/coracle"), 8).into_iter().chain(walk(Path::new("/run/netns"), 1)) {
            seen.insert(format!("file {path}"));
        }
        network(machine, &mut seen);
        let host = run(Command::new("ip").args(["-o", "link"])).stdout;
        seen.extend(host.lines().filter_map(|l| l.split(": ").nth(1)).map(|l| format!("host link {l}")));
        Self(seen)
    }

    /// Takes the census of one test machine only, so that others may be busy meanwhile: processes in its
    /// network namespace, mounts below its directory, registered clusters of it, and what is in the namespace.
    pub fn own(machine: &Machine) -> Self {
        let mut seen = BTreeSet::new();
        let dir = machine.dir().display().to_string();
        let netns = std::fs::metadata(Path::new("/run/netns").join(machine.netns()));
        let netns = netns.map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap_or_default();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let there = std::fs::read_link(entry.path().join("ns/net"))
                .is_ok_and(|to| to.to_string_lossy() == format!("net:[{netns}]"));
            let line = read("cmdline").replace('\0', " ");
            if (there || line.contains(&dir)) && entry.file_name().to_string_lossy() != own_pid() {
                seen.insert(format!("process {} {line}", entry.file_name().to_string_lossy()));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|l| l.split(' ').nth(1));
        seen.extend(points.filter(|p| p.starts_with(&dir)).map(|p| format!("mount {p}")));
        for entry in std::fs::read_dir("/run/coracle/clusters").into_iter().flatten().flatten() {
            let owner = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if owner.starts_with(&dir) {
                seen.insert(format!("cluster at {owner}"));
            }
        }
        network(machine, &mut seen);
        Self(seen)
    }

    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn own_pid() -> String {
    std::process::id().to_string()
}

/// What is in the machine's network namespace.
fn network(machine: &Machine, seen: &mut BTreeSet<String>) {
    let list = |program: &str, args: &[&str]| run(machine.command(Path::new(program)).args(args)).stdout;
    let links = list("ip", &["-o", "link"]);
    seen.extend(links.lines().filter_map(|l| l.split(": ").nth(1)).map(|l| format!("link {l}")));
    seen.extend(
        list("ip", &["-o", "-4", "addr"]).lines().map(|l| {
            format!("address {}", l.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" "))
        }),
    );
    seen.extend(list("ip", &["route"]).lines().map(|l| format!("route {l}")));
    seen.extend(list("nft", &["list", "tables"]).lines().map(|l| format!("nftables {l}")));
    let forward = list("cat", &["/proc/sys/net/ipv4/ip_forward"]);
    seen.insert(format!("ip_forward {}", forward.trim()));
}

/// Processes whose program is a coracle, by command line; zombies are dead and do not count.
fn processes(seen: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')) {
            continue;
        }
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let exe = exe.to_string_lossy().into_owned();
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if exe.contains("coracle") && !exe.contains("/deps/") || cgroup.contains("/coracle/") {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            seen.insert(format!("process {pid} {}", line.replace('\0', " ")));
        }
    }
}

fn walk(dir: &Path, depth: usize) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        out.push(path.display().to_string());
        if depth > 1 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            out.extend(walk(&path, depth - 1));
        }
    }
    out
}
