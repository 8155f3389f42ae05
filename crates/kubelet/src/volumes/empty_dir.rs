//! emptyDir: scratch space that lives as long as the pod, on disk or in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::Volume;

use super::{SetUp, VolumeContext, VolumeKind, mount_tmpfs, ownership};

pub(super) struct EmptyDir;

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
