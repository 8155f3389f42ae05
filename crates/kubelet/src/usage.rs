//! How much of the disk a pod uses: volumes, writable layers and logs.

use std::path::Path;

use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::spec;
use crate::server::figures::Disk;

/// A volume's use of its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Name in the pod.
    pub name: String,
    /// Bytes on disk, or in memory for a volume there.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// The file system.
    pub disk: Disk,
    /// Counts as ephemeral storage of the node.
    pub local: bool,
    /// The most it may hold.
    pub limit: Option<u64>,
}

/// Bytes on disk and inodes of a tree, links not followed, other file systems left out.
pub fn size_of(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    fn walk(path: &Path, device: u64) -> (u64, u64) {
        let Ok(meta) = std::fs::symlink_metadata(path) else { return (0, 0) };
        if meta.dev() != device {
            return (0, 0);
        }
        let mut total = (meta.blocks() * 512, 1);
        if meta.is_dir() {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                let (bytes, inodes) = walk(&entry.path(), device);
                total = (total.0 + bytes, total.1 + inodes);
            }
        }
        total
    }
    std::fs::symlink_metadata(path).map_or((0, 0), |meta| walk(path, meta.dev()))
}

/// Use of the volumes that the kubelet keeps in a pod's directory.
pub fn volumes(directory: &Path, pod: &Pod) -> Vec<VolumeUsage> {
    let mut list = Vec::new();
    for volume in spec(pod).volumes.iter().flatten() {
        let (kind, in_memory, limit) = if let Some(e) = &volume.empty_dir {
            let medium = e.medium.as_deref().unwrap_or("");
            (Some("empty-dir"), !medium.is_empty(), e.size_limit.as_ref())
        } else if volume.config_map.is_some() {
            (Some("configmap"), false, None)
        } else if volume.downward_api.is_some() {
            (Some("downward-api"), false, None)
        } else if volume.secret.is_some() {
            (Some("secret"), true, None)
        } else if volume.projected.is_some() {
            (Some("projected"), true, None)
        } else {
            (None, false, None)
        };
        let Some(kind) = kind else { continue };
        let path = directory.join("volumes").join(format!("kubernetes.io~{kind}")).join(&volume.name);
        let (bytes, inodes) = size_of(&path);
        list.push(VolumeUsage {
            name: volume.name.clone(),
            bytes,
            inodes,
            disk: Disk::of(&path),
            local: !in_memory,
            limit: limit.map(|q| Quantity::from_api(q).value().max(0).unsigned_abs()),
        });
    }
    list
}

/// Bytes of logs of one container, rotated ones included.
pub fn logs(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}
