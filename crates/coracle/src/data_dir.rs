//! The data directory: whether a cluster may live in it, who works on it, and its removal.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{Paths, is_at};
use crate::error::Failure;
use crate::process::start_time;

/// All that a cluster puts into its directory. `purge` removes these and nothing else.
const OURS: &[&str] = &[
    "cni",
    "cluster.json",
    "coracle.log",
    "coracle.pid",
    "kubeconfig",
    "kubelet",
    "logs",
    "pki",
    "runtime",
    "store",
];
/// What people put there for a cluster, before its first start too; it stays theirs.
const GIVEN: &[&str] = &["images", "manifests", "registries.yaml"];
/// What says nothing about whether a cluster lives here.
const TRACES: &[&str] = &["coracle.log", "coracle.pid", "lost+found"];
/// Free bytes below which no start is tried: the store's reserve, and something to write into.
const LEAST_FREE: u64 = 48 << 20;

fn is_ours(name: &str) -> bool {
    OURS.contains(&name) || name.contains(".tmp-")
}

fn names(dir: &Path) -> Result<Vec<String>, Failure> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Failure::file("read", dir, &e)),
    }
}

/// Whether nothing of a cluster is in the directory yet: a start that fails then leaves nothing.
pub fn is_new(dir: &Path) -> bool {
    names(dir)
        .is_ok_and(|names| names.iter().all(|n| TRACES.contains(&n.as_str()) || GIVEN.contains(&n.as_str())))
}

/// Checks that a cluster lives in the directory, or may.
///
/// # Errors
/// It is no directory, holds someone else's files, or its file system is (nearly) full.
pub fn check(dir: &Path) -> Result<(), Failure> {
    if dir.exists() && !dir.is_dir() {
        let what = format!("{} is not a directory", dir.display());
        return Err(Failure::new(what, "choose another --data-dir"));
    }
    let names = names(dir)?;
    let known = |n: &str| is_ours(n) || TRACES.contains(&n) || GIVEN.contains(&n);
    let foreign = names.iter().find(|n| !known(n));
    if let (Some(foreign), false) = (foreign, names.iter().any(|n| n == "cluster.json")) {
        let what = format!("{} holds other files ({foreign:?}) and no cluster", dir.display());
        return Err(Failure::new(what, "choose an empty or a new directory as --data-dir"));
    }
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(dir);
    if let Ok(stat) = rustix::fs::statvfs(existing) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < LEAST_FREE {
            let (free, least) = (free >> 20, LEAST_FREE >> 20);
            let what = format!("the disk of {} is full: {free} MB are free", dir.display());
            let hint = format!("free some space (at least {least} MB) and start again; nothing is lost");
            return Err(Failure::new(what, hint));
        }
    }
    Ok(())
}

/// The right to work on a data directory, held from the start of `up` to its end. It is a lock on the pid
/// file: the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct Owner {
    path: PathBuf,
    file: File,
}

impl Owner {
    /// Takes the directory.
    ///
    /// # Errors
    /// Another process has it, which is named; or the file system's.
    pub fn take(paths: &Paths) -> Result<Self, Failure> {
        let path = paths.pid();
        let failed = |e: std::io::Error| Failure::file("lock", &path, &e);
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o644);
            let mut file = options.open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let text = patiently_read(&mut file);
                    let pid = text.split_whitespace().next().unwrap_or("unknown");
                    return Err(Failure::new(
                        format!("another coracle (pid {pid}) is at work on {}", paths.data.display()),
                        "wait for it, or end it with `coracle down`",
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // Who had it before may have removed the file after we opened it.
            if !is_at(&file, &path) {
                continue;
            }
            let me = std::process::id();
            let started = i32::try_from(me).ok().and_then(start_time).unwrap_or_default();
            let written = file.set_len(0).and_then(|()| writeln!(file, "{me} {started}"));
            written.map_err(failed)?;
            return Ok(Self { path, file });
        }
    }
}

/// Who has just taken the lock needs a moment to write who it is.
fn patiently_read(file: &mut File) -> String {
    let mut text = String::new();
    for _ in 0..10 {
        let _ = file.read_to_string(&mut text);
        if !text.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    text
}

impl Drop for Owner {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a cluster put into the directory, and the directory when that empties it. Returns the names
/// of what is left: it is not ours.
///
/// # Errors
/// The file system's.
pub fn remove(dir: &Path) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    for name in names(dir)? {
        if is_ours(&name) {
            remove_patiently(&dir.join(name))?;
        } else {
            left.push(name);
        }
    }
    if left.is_empty() {
        // A mount point stays, empty.
        let _ = fs::remove_dir(dir);
    }
    Ok(left)
}

/// A task that was just stopped may still finish a file: a few tries.
fn remove_patiently(path: &Path) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match removed {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty && tries < 50 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => return Err(Failure::file("remove", path, &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_spares_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("store/data")).unwrap();
        for name in ["cluster.json", "cluster.tmp-12", "letter.txt"] {
            fs::write(data.join(name), "x").unwrap();
        }
        assert_eq!(remove(&data).unwrap(), ["letter.txt"]);
        assert_eq!(names(&data).unwrap(), ["letter.txt"]);
        fs::remove_file(data.join("letter.txt")).unwrap();
        assert!(remove(&data).unwrap().is_empty() && !data.exists());
    }

    #[test]
    fn directory_with_foreign_files_is_refused_unless_a_cluster_lives_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter.txt"), "x").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("letter.txt"));
        fs::write(dir.path().join("cluster.json"), "{}").unwrap();
        check(dir.path()).unwrap();
        assert!(check(&dir.path().join("letter.txt")).is_err());
    }

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path()).unwrap();
        let owner = Owner::take(&paths).unwrap();
        let refused = Owner::take(&paths).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(owner);
        assert!(!paths.pid().exists());
        Owner::take(&paths).unwrap();
    }
}
