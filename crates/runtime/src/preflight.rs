//! What the machine must have before anything is started, with advice where it lacks it.

use std::fs;
use std::path::Path;

use crate::cgroup::Hierarchies;

/// What stands in the way of running containers on this machine, one message each; empty if nothing.
pub fn preflight() -> Vec<String> {
    let mut problems = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        problems.push("not root: containers need root privileges; run it with sudo".to_owned());
        return problems;
    }
    let sys_admin = caps::Capability::CAP_SYS_ADMIN;
    if !caps::has_cap(None, caps::CapSet::Effective, sys_admin).unwrap_or(false) {
        problems.push(
            "root without CAP_SYS_ADMIN: this looks like an unprivileged container; \
             run on the machine itself or in a privileged container"
                .to_owned(),
        );
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = |name: &str| filesystems.lines().any(|l| l.split_whitespace().last() == Some(name));
    if !known("overlay") && !Path::new("/sys/module/overlay").exists() {
        // Loading happens on first mount where modules exist.
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        if !Path::new("/lib/modules").join(&release).exists() {
            problems.push(
                "the kernel has no overlayfs (CONFIG_OVERLAY_FS), which container file systems need"
                    .to_owned(),
            );
        }
    }
    for (kind, option) in
        [("pid", "PID_NS"), ("net", "NET_NS"), ("ipc", "IPC_NS"), ("uts", "UTS_NS"), ("mnt", "NAMESPACES")]
    {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            problems.push(format!("the kernel has no {kind} namespaces (CONFIG_{option})"));
        }
    }
    let hierarchies = Hierarchies::detect();
    if !hierarchies.present() {
        problems.push(
            "no cgroup hierarchy is mounted below /sys/fs/cgroup; \
             mount one: mount -t cgroup2 none /sys/fs/cgroup"
                .to_owned(),
        );
    } else {
        let controllers = hierarchies.controllers();
        for needed in ["cpu", "memory", "pids"] {
            if !controllers.iter().any(|c| c == needed) {
                problems.push(format!("the cgroup controller {needed:?} is not available"));
            }
        }
    }
    // SAFETY: asks for the kernel's support with a null pointer; EFAULT means the call exists.
    let filters = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::null::<u8>()) == -1
            && *libc::__errno_location() == libc::EFAULT
    };
    if !filters {
        problems.push("the kernel has no system call filters (CONFIG_SECCOMP_FILTER)".to_owned());
    }
    problems
}
