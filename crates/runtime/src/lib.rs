//! Built-in container runtime: images, snapshots, sandboxes, and the shim: one small process per pod that
//! is the parent of its containers and outlives the daemon.
//!
//! The daemon side ([`Runtime`]) implements the CRI traits. What must be single-threaded or must outlive the
//! daemon runs in re-executions of this very program, which [`reexec`] recognises by hidden subcommands.

mod allocator;
mod capabilities;
mod cgroup;
mod daemon;
mod files;
mod images;
mod memory;
mod namespaces;
mod preflight;
mod protocol;
mod purge;
mod rootfs;
mod seccomp;
mod seccomp_profile;
mod seccomp_table;
mod shim;
mod snapshot;
mod spec;
mod user_namespace;

use std::path::PathBuf;

use coracle_stdx::Clock;

pub use allocator::Allocator;
pub use daemon::Runtime;
pub use memory::give_back_when_quiet;
pub use preflight::preflight;
pub use purge::purge;

/// Where a runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Images, layers and the writable parts of containers; survives a reboot.
    pub root: PathBuf,
    /// Sockets, namespaces and records of running things; on a memory file system, gone after a reboot.
    pub state: PathBuf,
    /// File that says how registries are reached, in k3s' form; need not exist.
    pub registries: PathBuf,
    /// Identity of the cluster, 8 hex digits; marks what is made on the machine.
    pub cluster_id: String,
    /// cgroup below which everything runs, in every hierarchy, e.g. `/coracle/1a2b3c4d`.
    pub cgroup_root: String,
    /// The time.
    pub clock: Clock,
}

impl RuntimeConfig {
    /// The cgroup of all pods, relative to a hierarchy's mount point.
    fn pods_cgroup(&self) -> String {
        format!("{}/pods", self.cgroup_root.trim_matches('/'))
    }
    /// The cgroup of all shims.
    fn shims_cgroup(&self) -> String {
        format!("{}/shims", self.cgroup_root.trim_matches('/'))
    }
    fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }
    fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }
    /// Where libcontainer keeps its state.
    fn library(&self) -> PathBuf {
        self.state.join("library")
    }
    /// What sandboxes and containers with a user namespace see of the host's files, one directory each.
    fn shifted(&self) -> PathBuf {
        self.state.join("shifted")
    }
}

/// Runs a hidden subcommand if this process was started for one; its exit code. Must be the first call of
/// `main`, before any thread exists: the subcommands fork.
pub fn reexec() -> Option<i32> {
    let mut args = std::env::args_os();
    args.next();
    let command = args.next()?;
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    match command.to_str()? {
        "__shim" => Some(shim::run(&args)),
        "__create" => Some(shim::launch::create(&args)),
        "__exec" => Some(shim::launch::exec(&args)),
        "__pause" => Some(shim::pause::run(&args)),
        "__userns" => Some(user_namespace::hold(&args)),
        _ => None,
    }
}
