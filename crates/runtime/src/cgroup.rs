//! cgroups of pods, containers and shims in every hierarchy of the machine: pure v2, v1, and v1 beside a v2
//! hierarchy without controllers (hybrid), where the latter serves to kill a container at once.

mod counters;
mod notify;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri::v1::LinuxResources;

const MOUNT: &str = "/sys/fs/cgroup";

/// The hierarchies found on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchies {
    /// Mount point of cgroup v2: the only hierarchy, or the one beside v1.
    v2: Option<PathBuf>,
    /// v1 mount points with their controllers (`memory`, `cpu,cpuacct`, `name=systemd`).
    v1: Vec<(String, PathBuf)>,
}

/// Usage of a cgroup.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_usage: u64,
    pub memory_working_set: u64,
    pub memory_rss: u64,
    /// What `memory_working_set` may be; `None`: no limit.
    pub memory_limit: Option<u64>,
    pub swap: u64,
    /// What cAdvisor calls the limit of swap: on cgroup v1 that of memory and swap together. `None`: no limit.
    pub swap_limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub processes: u64,
}

impl Hierarchies {
    /// Reads the mount table.
    pub fn detect() -> Self {
        let mut found = Self { v2: None, v1: Vec::new() };
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let Some(mount) = left.split(' ').nth(4).filter(|m| m.starts_with(MOUNT)) else { continue };
            match kind {
                "cgroup2" => found.v2 = Some(mount.into()),
                "cgroup" => {
                    let skip = ["rw", "ro", "xattr", "clone_children"];
                    let names = options.split(',').filter(|o| {
                        !skip.contains(o)
                            && !o.starts_with("release_agent=")
                            && !o.starts_with("cpuset_v2_mode")
                    });
                    found.v1.push((names.collect::<Vec<_>>().join(","), mount.into()));
                }
                _ => {}
            }
        }
        found
    }
    /// Whether containers are limited through v2.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }
    /// Whether there is anything to work with.
    pub fn present(&self) -> bool {
        self.v2.is_some() || !self.v1.is_empty()
    }
    /// Controllers available to containers.
    pub fn controllers(&self) -> Vec<String> {
        match (&self.v2, self.is_v2()) {
            (Some(mount), true) => fs::read_to_string(mount.join("cgroup.controllers"))
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            _ => self.v1.iter().flat_map(|(names, _)| names.split(',')).map(str::to_owned).collect(),
        }
    }
    /// v1 hierarchies as directory name below `/sys/fs/cgroup` and the host path of `path` in it.
    pub fn v1_dirs(&self, path: &str) -> Vec<(String, PathBuf)> {
        self.v1
            .iter()
            .filter_map(|(_, mount)| {
                let name = mount.strip_prefix(MOUNT).ok()?.to_str()?.to_owned();
                Some((name, mount.join(path.trim_matches('/'))))
            })
            .collect()
    }
    fn dirs(&self, path: &str) -> impl Iterator<Item = PathBuf> + use<'_> {
        let path = path.trim_matches('/').to_owned();
        self.v1.iter().map(|(_, m)| m).chain(self.v2.iter()).map(move |m| m.join(&path))
    }
    fn v1_dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let (_, mount) = self.v1.iter().find(|(names, _)| names.split(',').any(|n| n == controller))?;
        Some(mount.join(path.trim_matches('/')))
    }

    /// Makes the cgroup everywhere, ready for processes.
    pub fn create(&self, path: &str) -> io::Result<()> {
        for (names, mount) in &self.v1 {
            let cpuset = names.split(',').any(|n| n == "cpuset");
            let mut dir = mount.clone();
            for part in path.trim_matches('/').split('/') {
                let parent = dir.clone();
                dir.push(part);
                make_dir(&dir)?;
                if cpuset {
                    inherit(&parent, &dir, "cpuset.cpus")?;
                    inherit(&parent, &dir, "cpuset.mems")?;
                }
            }
        }
        let Some(mount) = &self.v2 else { return Ok(()) };
        let enable: Vec<String> = if self.is_v2() {
            self.controllers().iter().map(|c| format!("+{c}")).collect()
        } else {
            Vec::new()
        };
        let mut dir = mount.clone();
        for part in path.trim_matches('/').split('/') {
            // One by one: a controller that cannot be delegated must not keep the others away.
            for controller in &enable {
                let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
            }
            dir.push(part);
            make_dir(&dir)?;
        }
        Ok(())
    }
    /// Moves this process, which must have one thread only, into the cgroup, in every hierarchy where that
    /// is possible. For v1 by thread: that spares the kernel's lock on all process starts and exits, which
    /// costs a grace period.
    pub fn join(&self, path: &str) {
        let path = path.trim_matches('/');
        for (_, mount) in &self.v1 {
            let _ = fs::write(mount.join(path).join("tasks"), "0");
        }
        if let Some(mount) = &self.v2 {
            let _ = fs::write(mount.join(path).join("cgroup.procs"), "0");
        }
    }
    /// Moves this process into the v2 cgroup that stands beside the v1 ones.
    pub fn join_unified(&self, path: &str) -> io::Result<()> {
        match &self.v2 {
            Some(mount) if !self.is_v2() => {
                fs::write(mount.join(path.trim_matches('/')).join("cgroup.procs"), "0")
            }
            _ => Ok(()),
        }
    }
    /// Changes the limits of a cgroup in use; zero fields are left alone. Memory is never limited to less than
    /// what is in use: the kernel would kill.
    ///
    /// # Errors
    /// The kernel's; some limits may have been changed then.
    pub fn change(&self, path: &str, r: &LinuxResources) -> io::Result<()> {
        let v2 = self.is_v2();
        let set = |controller: &str, file: &str, value: String| {
            let dir = if v2 { self.dirs(path).next() } else { self.v1_dir(controller, path) };
            let Some(dir) = dir else { return Ok(()) };
            fs::write(dir.join(file), &value)
                .map_err(|e| io::Error::new(e.kind(), format!("cannot write {value} to {file}: {e}")))
        };
        if r.memory_limit_in_bytes > 0 {
            let usage = self.usage(path).memory_working_set;
            if usage > r.memory_limit_in_bytes.unsigned_abs() {
                return Err(io::Error::other(format!(
                    "attempting to set memory limit ({}) below current usage ({usage})",
                    r.memory_limit_in_bytes
                )));
            }
            let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            // The limit of memory and swap is at no time below that of memory.
            let with_swap = || match r.memory_swap_limit_in_bytes {
                limit if limit > 0 && !v2 => set("memory", "memory.memsw.limit_in_bytes", limit.to_string()),
                _ => Ok(()),
            };
            let now = self.memory_limit(path);
            let grows = now > 0 && now < r.memory_limit_in_bytes.unsigned_abs();
            if grows {
                with_swap()?;
            }
            set("memory", file, r.memory_limit_in_bytes.to_string())?;
            if !grows {
                with_swap()?;
            }
        }
        for (file, list) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
            if !list.is_empty() {
                set("cpuset", file, list.clone())?;
            }
        }
        if r.cpu_shares > 0 {
            match v2 {
                true => set("cpu", "cpu.weight", weight(r.cpu_shares).to_string())?,
                false => set("cpu", "cpu.shares", r.cpu_shares.to_string())?,
            }
        }
        if r.cpu_quota != 0 {
            let period = if r.cpu_period > 0 { r.cpu_period } else { 100_000 };
            if v2 {
                let quota = if r.cpu_quota < 0 { "max".to_owned() } else { r.cpu_quota.to_string() };
                set("cpu", "cpu.max", format!("{quota} {period}"))?;
            } else {
                set("cpu", "cpu.cfs_period_us", period.to_string())?;
                set("cpu", "cpu.cfs_quota_us", r.cpu_quota.max(-1).to_string())?;
            }
        }
        Ok(())
    }
    /// Limits a pod's cgroup; zero fields are left alone. Limits that the kernel refuses are skipped: the
    /// containers' own limits still hold.
    pub fn limit(&self, path: &str, r: &LinuxResources) {
        let set = |dir: Option<PathBuf>, file: &str, value: String| {
            if let Some(dir) = dir
                && let Err(error) = fs::write(dir.join(file), &value)
            {
                tracing::debug!(path, file, value, %error, "cgroup limit refused");
            }
        };
        let v2 = || self.v2.as_ref().map(|m| m.join(path.trim_matches('/')));
        let period = if r.cpu_period > 0 { r.cpu_period } else { 100_000 };
        if self.is_v2() {
            if r.memory_limit_in_bytes > 0 {
                set(v2(), "memory.max", r.memory_limit_in_bytes.to_string());
            }
            if r.cpu_shares > 0 {
                set(v2(), "cpu.weight", pod_weight(r.cpu_shares).to_string());
            }
            if r.cpu_quota > 0 {
                set(v2(), "cpu.max", format!("{} {period}", r.cpu_quota));
            }
            if r.pids_limit > 0 {
                set(v2(), "pids.max", r.pids_limit.to_string());
            }
            return;
        }
        if r.memory_limit_in_bytes > 0 {
            set(self.v1_dir("memory", path), "memory.limit_in_bytes", r.memory_limit_in_bytes.to_string());
        }
        if r.cpu_shares > 0 {
            set(self.v1_dir("cpu", path), "cpu.shares", r.cpu_shares.to_string());
        }
        if r.cpu_quota > 0 {
            set(self.v1_dir("cpu", path), "cpu.cfs_period_us", period.to_string());
            set(self.v1_dir("cpu", path), "cpu.cfs_quota_us", r.cpu_quota.to_string());
        }
        if r.pids_limit > 0 {
            set(self.v1_dir("pids", path), "pids.max", r.pids_limit.to_string());
        }
    }
    /// Processes in the cgroup and below it, in any hierarchy.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for dir in self.dirs(path) {
            collect(&dir, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
    /// Sends SIGKILL to all processes of the cgroup and below: atomically where v2 is there.
    pub fn kill(&self, path: &str) {
        if let Some(mount) = &self.v2 {
            let _ = fs::write(mount.join(path.trim_matches('/')).join("cgroup.kill"), "1");
        }
        // v1 alone, processes that are only in some hierarchy, and kernels without cgroup.kill (before 5.14).
        for _ in 0..10 {
            let pids = self.processes(path);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
    /// How many processes the out-of-memory killer took from the cgroup.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.is_v2() {
            self.dirs(path).next().map(|d| d.join("memory.events"))
        } else {
            self.v1_dir("memory", path).map(|d| d.join("memory.oom_control"))
        };
        file.and_then(|f| fs::read_to_string(f).ok()).and_then(|t| field(&t, "oom_kill")).unwrap_or(0)
    }
    /// Bytes of memory that the cgroup may have; 0: no limit.
    pub fn memory_limit(&self, path: &str) -> u64 {
        self.memory_limits(path)[0].unwrap_or(0)
    }
    /// Bytes of memory and of swap that the cgroup may have, as [`Usage`] tells them.
    fn memory_limits(&self, path: &str) -> [Option<u64>; 2] {
        let v2 = self.is_v2();
        let files = if v2 {
            ["memory.max", "memory.swap.max"]
        } else {
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        };
        let dir = if v2 { self.dirs(path).next() } else { self.v1_dir("memory", path) };
        files.map(|file| {
            let text = dir.as_ref().and_then(|dir| fs::read_to_string(dir.join(file)).ok());
            limit(&text.unwrap_or_default())
        })
    }
    /// Counters of a container.
    pub fn usage(&self, path: &str) -> Usage {
        let read = |dir: Option<PathBuf>, file: &str| {
            dir.and_then(|d| fs::read_to_string(d.join(file)).ok()).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let v2 = self.is_v2();
        let dir = |controller: &str| {
            if v2 { self.dirs(path).next() } else { self.v1_dir(controller, path) }
        };
        let stat = read(dir("memory"), "memory.stat");
        let counter =
            |v2_name: &str, v1_name: &str| field(&stat, if v2 { v2_name } else { v1_name }).unwrap_or(0);
        let (cpu, usage, swap) = if v2 {
            let cpu = field(&read(dir("cpu"), "cpu.stat"), "usage_usec").unwrap_or(0) * 1000;
            let memory = |file| number(read(dir("memory"), file));
            (cpu, memory("memory.current"), memory("memory.swap.current"))
        } else {
            let cpu = number(read(dir("cpuacct"), "cpuacct.usage"));
            let usage = number(read(dir("memory"), "memory.usage_in_bytes"));
            (cpu, usage, field(&stat, "total_swap").unwrap_or(0))
        };
        let [memory_limit, swap_limit] = self.memory_limits(path);
        let inactive = counter("inactive_file", "total_inactive_file");
        Usage {
            cpu_nanoseconds: cpu,
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(inactive),
            memory_rss: counter("anon", "total_rss"),
            memory_limit,
            swap,
            swap_limit,
            page_faults: counter("pgfault", "total_pgfault"),
            major_page_faults: counter("pgmajfault", "total_pgmajfault"),
            processes: number(read(dir("pids"), "pids.current")),
        }
    }
    /// Removes the cgroup and all below it, waiting a little for dying processes.
    pub fn remove(&self, path: &str) {
        for dir in self.dirs(path) {
            for attempt in 0..60u64 {
                match remove_dir(&dir) {
                    Ok(()) => break,
                    Err(_) => std::thread::sleep(Duration::from_millis(1 + attempt)),
                }
            }
        }
    }
    /// Removes the cgroup everywhere if it has no children and no processes.
    pub fn remove_if_empty(&self, path: &str) {
        for dir in self.dirs(path) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// cgroup v1 shares as a pod's v2 weight, in upstream's kubelet's proportion.
fn pod_weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// cgroup v1 shares as a container's v2 weight: runc's curve through the least, the default (1,024 is 100) and the
/// most, which libcontainer has for new containers; those that are resized are measured alike.
fn weight(shares: i64) -> i64 {
    if shares <= 2 {
        return 1;
    }
    let log = (shares.min(262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as i64).min(10_000)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io::Error::new(e.kind(), format!("cannot make cgroup {}: {e}", dir.display()))),
        Ok(()) => Ok(()),
    }
}

/// A new v1 cpuset is empty and takes no processes until it has its parent's values.
fn inherit(parent: &Path, dir: &Path, file: &str) -> io::Result<()> {
    if fs::read_to_string(dir.join(file))?.trim().is_empty() {
        fs::write(dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
    }
    Ok(())
}

fn collect(dir: &Path, pids: &mut Vec<i32>) {
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { return };
    pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_dir(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// The limit that a file holds: `None` for none, which v1 says by a number larger than any machine; 0 without a file.
fn limit(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" { None } else { Some(text.parse().unwrap_or(0)).filter(|limit| *limit <= 1 << 62) }
}

/// The number after `name` in a `name value` table.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.split_once(' ').filter(|(n, _)| *n == name)?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_maps_the_ends_and_the_default_of_shares() {
        assert_eq!((pod_weight(2), pod_weight(1024), pod_weight(262_144)), (1, 39, 10_000));
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
        // What runc gives for 100m, 250m and four CPUs.
        assert_eq!((weight(102), weight(256), weight(4096)), (17, 35, 303));
    }

    /// Needs cgroup v1 with limits of swap, and does nothing elsewhere.
    #[test]
    fn limits_of_memory_and_of_swap_are_raised_and_lowered_together() {
        let all = Hierarchies::detect();
        let path = format!("coracle-test-{}", std::process::id());
        let Some(dir) = all.v1_dir("memory", &path) else { return };
        if fs::create_dir(&dir).is_err() || !dir.join("memory.memsw.limit_in_bytes").exists() {
            let _ = fs::remove_dir(&dir);
            return;
        }
        let limits = [64i64 << 20, 256 << 20, 32 << 20].map(|limit| {
            let wanted = LinuxResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: limit,
                ..LinuxResources::default()
            };
            let changed = all.change(&path, &wanted).map_err(|e| e.to_string());
            let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
            (changed, read("memory.limit_in_bytes"), read("memory.memsw.limit_in_bytes"), limit.to_string())
        });
        fs::remove_dir(&dir).expect("removed");
        for (changed, memory, both, wanted) in limits {
            assert_eq!((changed, &memory, &both), (Ok(()), &wanted, &wanted));
        }
    }

    #[test]
    fn usage_tells_swap_as_either_version_of_cgroups_counts_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("v1/c/memory.stat", "total_swap 4096\n");
        write("v1/c/memory.limit_in_bytes", "8192\n");
        write("v1/c/memory.memsw.limit_in_bytes", "9223372036854771712\n");
        write("v2/c/memory.max", "max\n");
        write("v2/c/memory.swap.max", "16384\n");
        write("v2/c/memory.swap.current", "12288\n");
        let v1 = Hierarchies { v2: None, v1: vec![("memory".into(), dir.path().join("v1"))] };
        let v2 = Hierarchies { v2: Some(dir.path().join("v2")), v1: Vec::new() };
        let swap = |all: Hierarchies, path: &str| {
            let usage = all.usage(path);
            (usage.memory_limit, usage.swap, usage.swap_limit)
        };
        assert_eq!(swap(v1, "c"), (Some(8192), 4096, None));
        assert_eq!(swap(v2.clone(), "c"), (None, 12288, Some(16384)));
        assert_eq!(swap(v2, "gone"), (Some(0), 0, Some(0)));
    }

    #[test]
    fn field_reads_the_named_counter_only() {
        let text = "oom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(field(text, "oom_kill"), Some(2));
        assert_eq!(field(text, "absent"), None);
    }
}
