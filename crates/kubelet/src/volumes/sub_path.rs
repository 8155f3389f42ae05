//! `subPath`: a file or directory inside a volume, never outside of it.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The host path of `inner` in `volume`. Missing directories are made with the volume's permissions.
///
/// # Errors
/// A path that leaves the volume, also through symbolic links.
pub fn resolve(volume: &Path, inner: &str) -> Result<PathBuf, String> {
    let relative = Path::new(inner);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subpath {inner:?} must be relative and must not contain '..'"));
    }
    let root = fs::canonicalize(volume).map_err(|e| format!("{}: {e}", volume.display()))?;
    let mut current = root.clone();
    for part in relative.components() {
        if part == Component::CurDir {
            continue;
        }
        let next = current.join(part);
        current = match fs::canonicalize(&next) {
            Ok(real) if real.starts_with(&root) => real,
            Ok(_) => return Err(format!("subpath {inner:?} is not within the volume")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && fs::symlink_metadata(&next).is_err() => {
                fs::create_dir(&next).map_err(|e| format!("mkdir {}: {e}", next.display()))?;
                if let Ok(meta) = fs::metadata(&root) {
                    let _ = fs::set_permissions(&next, meta.permissions());
                }
                next
            }
            Err(e) => return Err(format!("{}: {e}", next.display())),
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_volume_are_refused_and_missing_directories_are_made() {
        let dir = tempfile::tempdir().expect("directory");
        let volume = dir.path().join("v");
        fs::create_dir(&volume).expect("volume");
        std::os::unix::fs::symlink("/etc", volume.join("out")).expect("link");
        assert!(resolve(&volume, "out/passwd").is_err());
        assert!(resolve(&volume, "../x").is_err());
        let made = resolve(&volume, "a/b").expect("path");
        assert!(made.is_dir() && made.ends_with("v/a/b"));
    }
}
