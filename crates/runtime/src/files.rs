//! Small file helpers: atomic JSON files, patient removal.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a file so that a reader sees the old or the new content; with `flush`, also after the machine fails.
fn write_atomic(path: &Path, content: &[u8], flush: bool) -> io::Result<()> {
    let temp = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&temp)?;
        file.write_all(content)?;
        if flush {
            file.sync_data()?;
        }
        fs::rename(&temp, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// Writes a value as JSON, atomically and durably.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value).map_err(io::Error::other)?, true)
}

/// Writes a value as JSON, atomically. For records of what runs: they must outlive this process, which the page
/// cache sees to, but not the machine, since nothing runs after that. Saves a disk flush per file.
pub(crate) fn write_record(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value).map_err(io::Error::other)?, false)
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}

/// Removes a tree; absence is success.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a file; absence is success.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Unmounts every layer of a mount point lazily; not being mounted is success.
pub(crate) fn unmount(path: &Path) {
    while rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).is_ok() {}
}

/// Unmounts a directory and what is mounted right in it, and removes it; absence is success. Nothing that such mounts
/// show is ever removed: only mount points are, and they are empty.
///
/// # Errors
/// A mount or something else is still there.
pub(crate) fn remove_mount_points(dir: &Path) -> io::Result<()> {
    unmount(dir);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        unmount(&entry.path());
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Mount points at or below `path` in this mount namespace, deepest first.
pub(crate) fn mounts_below(path: &Path) -> Vec<std::path::PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| std::path::PathBuf::from(unescape(field)))
        .filter(|mount| mount.starts_with(path))
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    let mut out = Vec::new();
    let bytes = field.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[at], code.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path by which a socket in `dir` can be named however long `dir` is; valid while the file is open.
pub(crate) fn short_path(dir: &fs::File, name: &str) -> std::path::PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape("/a\\040b"), "/a b");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/tail\\"), "/tail\\");
    }

    #[test]
    fn atomic_write_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        write_json(&dir.path().join("a.json"), &vec![1, 2]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&dir.path().join("a.json")).unwrap(), [1, 2]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
