//! `__pause`: process 1 of a process namespace that the containers of a pod share. Reaps what is orphaned
//! there and sees nothing of the host.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Runs until killed. `args`: an empty directory that becomes its root.
pub(crate) fn run(args: &[String]) -> i32 {
    let Some(dir) = args.first() else { return 2 };
    if let Err(error) = hide(Path::new(dir)) {
        eprintln!("pause: {error}");
        return 1;
    }
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        return 1;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            Ok(_) => return 0,
            Err(_) => return 1,
        }
    }
}

/// Containers see this process under `/proc/1`: an empty file system, no privileges, no tracing.
fn hide(dir: &Path) -> std::io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", dir, "tmpfs", MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NODEV, None)?;
    rustix::process::chdir(dir)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
        caps::clear(None, set).map_err(std::io::Error::other)?;
    }
    // SAFETY: prctl with plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    Ok(())
}
