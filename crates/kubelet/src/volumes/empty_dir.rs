//! emptyDir: scratch space that lives as long as the pod, on disk or in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::Volume;

use super::{SetUp, VolumeContext, VolumeKind, mount_tmpfs, ownership};

pub(super) struct EmptyDir;

/// Mounts huge pages of one size (`2Mi`; the kernel's default when empty) unless they are there.
fn mount_huge_pages(path: &std::path::Path, size: &str) -> Result<(), String> {
    use rustix::mount::{MountFlags, mount};
    fs::create_dir_all(path).map_err(|e| format!("mkdir {}: {e}", path.display()))?;
    if super::is_mount_point(path) {
        return Ok(());
    }
    let bytes = Quantity::parse(size).map(Quantity::value).ok().filter(|b| *b > 0);
    let options = bytes.map_or_else(|| "mode=0777".to_owned(), |b| format!("mode=0777,pagesize={b}"));
    let data = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
    mount("hugetlbfs", path, "hugetlbfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())
        .map_err(|e| format!("mount hugetlbfs on {}: {e}", path.display()))
}

#[async_trait]
impl VolumeKind for EmptyDir {
    fn is(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.empty_dir.as_ref().ok_or("not an emptyDir")?;
        let path = cx.path("empty-dir", &volume.name);
        let existed = path.exists();
        if source.medium.as_deref() == Some("Memory") {
            let limit = source.size_limit.as_ref().map(|q| Quantity::from_api(q).value());
            mount_tmpfs(&path, limit.filter(|l| *l > 0))?;
        } else if let Some(size) = source.medium.as_deref().and_then(|m| m.strip_prefix("HugePages")) {
            mount_huge_pages(&path, size.trim_start_matches('-'))?;
        } else {
            fs::create_dir_all(&path).map_err(|e| format!("mkdir {}: {e}", path.display()))?;
        }
        if !existed {
            let everyone = fs::Permissions::from_mode(0o777);
            fs::set_permissions(&path, everyone).map_err(|e| format!("chmod {}: {e}", path.display()))?;
            if let Some(group) = cx.fs_group() {
                ownership::apply(&path, group, false).map_err(|e| format!("applyFSGroup failed: {e}"))?;
            }
        }
        Ok(SetUp::plain(path, false))
    }
}
