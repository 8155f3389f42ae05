//! `fsGroup`: gives a volume's files to a group.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// Makes everything below `path` belong to `group`, readable by it, writable unless `read_only`; directories
/// pass the group on.
///
/// # Errors
/// The file system's.
pub fn apply(path: &Path, group: i64, read_only: bool) -> io::Result<()> {
    let gid = u32::try_from(group).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(gid))?;
    let mut mode = meta.mode() & 0o7777;
    mode |= if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
        for entry in fs::read_dir(path)? {
            apply(&entry?.path(), group, read_only)?;
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
