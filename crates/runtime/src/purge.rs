//! Removes every trace of a cluster's runtime from the machine, whatever state it is in: also after the
//! daemon was killed, with its containers and shims still running.

use std::io;
use std::time::{Duration, Instant};

use crate::RuntimeConfig;
use crate::cgroup::Hierarchies;
use crate::files::{mounts_below, remove_tree, unmount};
use crate::shim::{PID_FILE, start_time};

/// Kills all containers and shims of this cluster and removes its mounts, namespaces, cgroups, its state
/// directory, and what is below `root` of containers. Images (`root/blobs`, `root/layers`) stay; they are
/// plain files below the data directory. Idempotent.
///
/// # Errors
/// Something could not be removed; the text names it. The rest has been removed.
pub fn purge(config: &RuntimeConfig) -> io::Result<()> {
    let mut config = config.clone();
    for path in [&mut config.root, &mut config.state] {
        // Mounts are known by their real names.
        if let Ok(real) = path.canonicalize() {
            *path = real;
        }
    }
    let config = &config;
    let hierarchies = Hierarchies::detect();
    let (pods, shims) = (config.pods_cgroup(), config.shims_cgroup());
    // Shims first: they would report and record what happens to the containers.
    let shim_pids = shim_processes(config);
    hierarchies.kill(&shims);
    for (pid, _) in &shim_pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
    }
    hierarchies.kill(&pods);
    wait_dead(&hierarchies, &[&shims, &pods], Duration::from_secs(10));
    for root in [config.root.join("containers"), config.state.clone()] {
        for mount in mounts_below(&root) {
            unmount(&mount);
        }
    }
    // Volumes are mounted there: it must be empty before anything is removed.
    for entry in std::fs::read_dir(config.shifted()).into_iter().flatten().flatten() {
        crate::files::remove_mount_points(&entry.path())?;
    }
    hierarchies.remove(&pods);
    hierarchies.remove(&shims);
    let own = config.cgroup_root.trim_matches('/');
    hierarchies.remove_if_empty(own);
    if let Some((parent, _)) = own.rsplit_once('/') {
        // The directory all clusters of the machine share: goes with the last of them.
        hierarchies.remove_if_empty(parent);
    }
    remove_tree(&config.root.join("containers"))?;
    remove_tree(&config.state)
}

/// Shims by their pid files; only those that are still the same process.
fn shim_processes(config: &RuntimeConfig) -> Vec<(i32, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(config.sandboxes()).into_iter().flatten().flatten() {
        if let Some(process) = live_shim(&entry.path()) {
            found.push(process);
        }
    }
    found
}

/// The shim of a sandbox directory, if it still runs.
pub(crate) fn live_shim(dir: &std::path::Path) -> Option<(i32, u64)> {
    let text = std::fs::read_to_string(dir.join(PID_FILE)).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let (pid, started): (i32, u64) = (pid.parse().ok()?, started.parse().ok()?);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let zombie = stat.rsplit_once(')')?.1.trim_start().starts_with('Z');
    (start_time(&stat) == Some(started) && !zombie).then_some((pid, started))
}

/// Waits until the cgroups have no processes but dead ones; killing is not instant.
fn wait_dead(hierarchies: &Hierarchies, cgroups: &[&str], most: Duration) {
    let end = Instant::now() + most;
    while Instant::now() < end {
        if cgroups.iter().all(|c| hierarchies.processes(c).iter().all(|pid| is_dead(*pid))) {
            return;
        }
        for cgroup in cgroups {
            hierarchies.kill(cgroup);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Gone, or a zombie that its parent has not collected yet.
fn is_dead(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}
