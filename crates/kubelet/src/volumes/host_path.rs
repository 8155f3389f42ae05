//! hostPath: a file or directory of the node.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{SetUp, VolumeContext, VolumeKind};

pub(super) struct HostPath;

/// Checks (or makes) what `kind` asks for.
fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let meta = fs::metadata(path).ok();
    let is = |what: fn(&fs::FileType) -> bool| meta.as_ref().is_some_and(|m| what(&m.file_type()));
    let make = |mode: u32| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).map_err(|e| format!("chmod {shown}: {e}"))
    };
    let fits = match kind {
        "" => true,
        "DirectoryOrCreate" if meta.is_none() => {
            fs::create_dir_all(path).map_err(|e| format!("mkdir {shown}: {e}"))?;
            return make(0o755);
        }
        "FileOrCreate" if meta.is_none() => {
            fs::write(path, b"").map_err(|e| format!("create {shown}: {e}"))?;
            return make(0o644);
        }
        "Directory" | "DirectoryOrCreate" => is(fs::FileType::is_dir),
        "File" | "FileOrCreate" => is(fs::FileType::is_file),
        "Socket" => is(FileTypeExt::is_socket),
        "CharDevice" => is(FileTypeExt::is_char_device),
        "BlockDevice" => is(FileTypeExt::is_block_device),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    let noun = match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        _ => "block device",
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not a {noun}")) }
}

/// Checks what is there, makes what may be missing.
///
/// # Errors
/// It is not what `kind` says.
pub(super) fn provide(path: &Path, kind: &str) -> Result<(), String> {
    prepare(path, kind)?;
    if kind.is_empty() && !path.exists() {
        // Container runtimes make a missing bind source a directory.
        fs::create_dir_all(path).map_err(|e| format!("mkdir {}: {e}", path.display()))?;
    }
    Ok(())
}

#[async_trait]
impl VolumeKind for HostPath {
    fn is(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn set_up(&self, _: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.host_path.as_ref().ok_or("not a hostPath")?;
        let path = PathBuf::from(&source.path);
        provide(&path, source.type_.as_deref().unwrap_or(""))?;
        Ok(SetUp::plain(path, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_created() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("f");
        assert!(prepare(&file, "File").is_err());
        prepare(&file, "FileOrCreate").expect("created");
        prepare(&file, "File").expect("file");
        let error = prepare(&file, "Directory").expect_err("no directory");
        assert_eq!(error, format!("hostPath type check failed: {} is not a directory", file.display()));
    }
}
