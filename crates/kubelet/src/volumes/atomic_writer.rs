//! Writes a set of files so that readers see all of the old or all of the new ones.
//!
//! As upstream: files live in a time-stamped directory, `..data` is a symbolic link to it that is replaced by
//! rename, and each visible name is a link through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::ownership;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None` leaves root.
    pub uid: Option<u32>,
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

/// Checks that every path stays inside the volume.
///
/// # Errors
/// Names the path.
pub fn check_paths(payload: &Payload) -> Result<(), String> {
    for path in payload.keys() {
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        if path.is_empty() || !plain || path.starts_with("..") {
            return Err(format!("invalid path {path:?}: must be relative and must not contain '..'"));
        }
    }
    Ok(())
}

/// Whether the directory shows exactly `payload`.
fn is_current(directory: &Path, payload: &Payload, grouped: bool) -> bool {
    let data = directory.join(DATA);
    let mut found = BTreeSet::new();
    if list(&data, Path::new(""), &mut found).is_err() {
        return false;
    }
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            let target = data.join(path);
            found.contains(Path::new(path))
                && fs::metadata(&target)
                    .is_ok_and(|m| grouped || m.permissions().mode() & 0o777 == file.mode & 0o777)
                && fs::read(&target).is_ok_and(|d| d == file.data)
        })
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// Makes `directory` show exactly `payload`; does nothing if it does already. With `group`, files belong to
/// it and are readable by it. Whether anything was written.
///
/// # Errors
/// The file system's; the old content stays visible then.
pub fn write(directory: &Path, payload: &Payload, group: Option<i64>) -> io::Result<bool> {
    if is_current(directory, payload, group.is_some()) {
        return Ok(false);
    }
    fs::create_dir_all(directory)?;
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    let stamp = jiff_stamp();
    let fresh = directory.join(&stamp);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode & 0o7777))?;
        if file.uid.is_some() {
            std::os::unix::fs::chown(&target, file.uid, None)?;
        }
    }
    if let Some(group) = group {
        ownership::apply(&fresh, group, true)?;
    }
    let temporary = directory.join(NEW_DATA);
    let _ = fs::remove_file(&temporary);
    symlink(&stamp, &temporary)?;
    fs::rename(&temporary, &data)?;
    link_names(directory, payload)?;
    if let Some(old) = old.filter(|o| o.components().count() == 1) {
        let _ = fs::remove_dir_all(directory.join(old));
    }
    Ok(true)
}

/// One link per top-level name; links of names that are gone are removed.
fn link_names(directory: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &names {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A directory name that was never used before.
fn jiff_stamp() -> String {
    format!("..{}", coracle_stdx::random_hex(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o644, uid: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    #[test]
    fn content_changes_by_one_rename_and_unchanged_content_is_left_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("v");
        assert!(write(&path, &payload(&[("a", "1"), ("d/b", "2")]), None).expect("write"));
        assert_eq!(fs::read_to_string(path.join("d/b")).expect("file"), "2");
        assert_eq!(fs::read_link(path.join("a")).expect("link"), Path::new("..data/a"));
        assert!(!write(&path, &payload(&[("a", "1"), ("d/b", "2")]), None).expect("write"));
        let before = fs::read_link(path.join(DATA)).expect("link");
        assert!(write(&path, &payload(&[("a", "3")]), None).expect("write"));
        assert_eq!(fs::read_to_string(path.join("a")).expect("file"), "3");
        assert!(fs::symlink_metadata(path.join("d")).is_err());
        assert!(!path.join(before).exists());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for bad in ["../x", "/x", "a/../b", "", "..data"] {
            assert!(check_paths(&payload(&[(bad, "")])).is_err(), "{bad}");
        }
        assert!(check_paths(&payload(&[("a/b", "")])).is_ok());
    }
}
