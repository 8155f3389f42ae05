//! User namespaces of pods: a range of the host's users and groups stands for those from 0 on. Files keep on disk the
//! owners that the pod sees: mounts show them shifted (idmapped mounts), so that no file changes hands.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_cri::v1::IdMapping;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// `__userns FLAGS`: makes a user namespace, and those of `FLAGS` owned by it, says so by a byte on its output, and
/// holds them until its input ends. A process with threads cannot do that.
pub(crate) fn hold(args: &[String]) -> i32 {
    let Some(flags) = args.first().and_then(|f| f.parse().ok()).map(CloneFlags::from_bits_truncate) else {
        return 2;
    };
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWUSER | flags) {
        eprintln!("{}", errno.desc());
        return 1;
    }
    let told = io::stdout().write_all(b".").and_then(|()| io::stdout().flush());
    let _ = told.and_then(|()| io::stdin().read(&mut [0]));
    0
}

/// A process that holds a new user namespace and others that it owns.
pub(crate) struct Holder(Child);

impl Holder {
    /// Makes the namespaces and maps users and groups.
    ///
    /// # Errors
    /// The kernel has no user namespaces, or not as many.
    pub fn start(others: CloneFlags, mapping: &IdMapping) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["__userns", &others.bits().to_string()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut byte = Vec::new();
        if let Some(out) = &mut child.stdout {
            out.take(1).read_to_end(&mut byte)?;
        }
        if byte.is_empty() {
            let mut why = String::new();
            if let Some(err) = &mut child.stderr {
                err.read_to_string(&mut why)?;
            }
            child.wait()?;
            return Err(io::Error::other(format!("cannot make a user namespace: {}", why.trim())));
        }
        let holder = Self(child);
        for file in ["uid_map", "gid_map"] {
            let line = format!("0 {} {}\n", mapping.host_id, mapping.length);
            fs::write(format!("/proc/{}/{file}", holder.0.id()), line)?;
        }
        Ok(holder)
    }

    /// Where a namespace of it can be opened: `user`, `net`, `uts`, `ipc`.
    pub fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Shows `source` (a file or directory) at `place`, owners shifted as the user namespace says. With `whole` also what
/// is mounted below it; file systems there that cannot be shifted are shown as they are.
///
/// # Errors
/// The file system of `source` cannot be shown so.
pub(crate) fn show(source: &Path, place: &Path, users: &Path, whole: bool) -> io::Result<()> {
    let failed = |e: io::Error| {
        let text = format!("cannot mount {} for other users (idmapped): {e}", source.display());
        io::Error::new(e.kind(), text)
    };
    if source.is_dir() {
        fs::create_dir_all(place)?;
    } else {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::options().write(true).create_new(true).open(place)?;
    }
    let users = fs::File::open(users)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if whole {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(rustix::fs::CWD, source, flags).map_err(|e| failed(e.into()))?;
    if !(whole && shift(&tree, &users, libc::AT_RECURSIVE).is_ok()) {
        shift(&tree, &users, 0).map_err(failed)?;
    }
    move_mount(&tree, "", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn shift(tree: &OwnedFd, users: &fs::File, flags: libc::c_int) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    // SAFETY: a path that ends with a zero, and a structure of the size that we name.
    let status = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether pods may have user namespaces here: the kernel makes them, and can show the file system of `dir` shifted.
pub(crate) fn supported(dir: &Path) -> bool {
    let mapping = IdMapping { host_id: 65536, length: 65536 };
    let Ok(holder) = Holder::start(CloneFlags::empty(), &mapping) else { return false };
    let Ok(users) = fs::File::open(holder.namespace("user")) else { return false };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, dir, flags).is_ok_and(|tree| shift(&tree, &users, 0).is_ok())
}
