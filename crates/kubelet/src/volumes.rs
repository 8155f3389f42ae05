//! Volumes: one file per kind, listed in [`TABLE`]. Adding a kind is a file and a row.

pub mod atomic_writer;
mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod image;
pub mod ownership;
mod persistent;
mod projected;
mod secret;
pub mod sub_path;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::Client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::container::fields::Facts;
use crate::names;
use crate::objects::Reference;
use crate::pod::{earliest, spec};
use crate::tokens::Tokens;

/// A volume on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Directory, file or device to bind; empty for an image, which the runtime mounts.
    pub path: PathBuf,
    /// Containers may only read it.
    pub read_only: bool,
    /// A group that users of the volume must be in.
    pub group: Option<i64>,
}

/// Volumes of a pod by name.
pub type MountedVolumes = BTreeMap<String, Mounted>;

/// What volume kinds work with.
#[derive(Clone)]
pub struct VolumeContext {
    /// The kubelet's access to the API.
    pub client: Client,
    /// Service account tokens.
    pub tokens: Arc<Tokens>,
    /// The pod, newest state.
    pub pod: Arc<Pod>,
    /// The pod's directory.
    pub directory: PathBuf,
    /// What the downward API knows.
    pub facts: Arc<Facts>,
    /// The node's labels, for volumes that are not everywhere.
    pub node_labels: Arc<BTreeMap<String, String>>,
}

impl VolumeContext {
    /// `<pod>/volumes/kubernetes.io~<kind>/<name>`.
    pub fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.directory.join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
    }
    /// The group that is to own the files, if the pod names one.
    pub fn fs_group(&self) -> Option<i64> {
        spec(&self.pod).security_context.as_ref().and_then(|c| c.fs_group)
    }
    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        names::namespace(&self.pod)
    }
}

/// Why a volume is not there; the text ends up in a `FailedMount` event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// It could not be made.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    SetUp {
        /// Name of the volume.
        volume: String,
        /// What went wrong.
        cause: String,
    },
    /// What it is could not be found out.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], \
         failed to process volumes=[{volume}]: {cause}"
    )]
    Unknown {
        /// Name of the volume.
        volume: String,
        /// What went wrong.
        cause: String,
    },
}

impl VolumeError {
    fn new(volume: &str, cause: String) -> Self {
        let volume = volume.to_owned();
        if cause.starts_with(persistent::UNPROCESSED) {
            Self::Unknown { volume, cause }
        } else {
            Self::SetUp { volume, cause }
        }
    }
}

/// A kind of volume.
#[async_trait]
pub trait VolumeKind: Send + Sync {
    /// Whether the volume is of this kind.
    fn is(&self, volume: &Volume) -> bool;
    /// Makes the volume, or brings its content up to date; idempotent. May say when to do so again.
    ///
    /// # Errors
    /// The cause, as upstream words it.
    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String>;
    /// The objects whose changes concern the volume.
    fn references(&self, _namespace: &str, _volume: &Volume) -> Vec<Reference> {
        Vec::new()
    }
    /// Whether the content follows objects and is to be renewed.
    fn is_live(&self) -> bool {
        false
    }
}

/// Result of a set-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUp {
    /// The volume.
    pub mounted: Mounted,
    /// When the content must be renewed though nothing changed (tokens).
    pub renew_at: Option<Timestamp>,
}

impl SetUp {
    /// A volume that needs no renewal.
    pub fn plain(path: PathBuf, read_only: bool) -> Self {
        Self { mounted: Mounted { path, read_only, group: None }, renew_at: None }
    }
}

/// All kinds.
static TABLE: [&dyn VolumeKind; 8] = [
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &config_map::ConfigMapVolume,
    &secret::SecretVolume,
    &projected::Projected,
    &downward_api::DownwardApi,
    &image::ImageVolume,
    &persistent::Claim,
];

fn kind_of(volume: &Volume) -> Option<&'static dyn VolumeKind> {
    TABLE.iter().copied().find(|k| k.is(volume))
}

/// Sets up (or, with `live_only`, renews) all volumes of a pod; with the volumes comes the time at which to
/// renew them.
///
/// # Errors
/// The first failure.
pub async fn set_up(
    cx: &VolumeContext,
    live_only: bool,
) -> Result<(MountedVolumes, Option<Timestamp>), VolumeError> {
    let volumes = spec(&cx.pod).volumes.as_deref().unwrap_or_default();
    let work = volumes.iter().map(|volume| async move {
        let error = |cause: String| VolumeError::new(&volume.name, cause);
        let Some(kind) = kind_of(volume) else {
            return Err(error("no volume plugin matched".to_owned()));
        };
        if live_only && !kind.is_live() {
            return Ok(None);
        }
        let done = kind.set_up(cx, volume).await.map_err(error)?;
        Ok(Some((volume.name.clone(), done)))
    });
    let mut mounted = MountedVolumes::new();
    let mut renew = None;
    for result in futures::future::join_all(work).await {
        if let Some((name, done)) = result? {
            renew = earliest(renew, done.renew_at);
            mounted.insert(name, done.mounted);
        }
    }
    Ok((mounted, renew))
}

/// The objects whose changes concern a pod's volumes.
pub fn references(pod: &Pod) -> BTreeSet<Reference> {
    let namespace = names::namespace(pod);
    let volumes = spec(pod).volumes.iter().flatten();
    volumes.filter_map(|v| Some(kind_of(v)?.references(namespace, v))).flatten().collect()
}

/// Whether any volume's content follows the pod's own metadata or objects.
pub fn has_live(pod: &Pod) -> bool {
    spec(pod).volumes.iter().flatten().any(|v| kind_of(v).is_some_and(VolumeKind::is_live))
}

/// Mounts a tmpfs unless one is there; its content never gets into swap where the kernel can promise that (6.4).
pub(crate) fn mount_tmpfs(path: &Path, size: Option<i64>) -> Result<(), String> {
    use rustix::mount::{MountFlags, mount};
    std::fs::create_dir_all(path).map_err(|e| format!("mkdir {}: {e}", path.display()))?;
    if is_mount_point(path) {
        return Ok(());
    }
    let options = match size {
        Some(size) => format!("mode=0777,size={size}"),
        None => "mode=0777".to_owned(),
    };
    let with = |options: String| {
        let data = std::ffi::CString::new(options).unwrap_or_default();
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())
    };
    match with(format!("{options},noswap")) {
        Err(rustix::io::Errno::INVAL) => with(options),
        done => done,
    }
    .map_err(|e| format!("mount tmpfs on {}: {e}", path.display()))
}

/// Whether something is mounted on `path`: it lies on another device than its parent.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// Unmounts everything below a pod's volume directory. What is busy is detached.
///
/// # Errors
/// A mount that stays.
pub fn tear_down(directory: &Path) -> Result<(), std::io::Error> {
    use rustix::mount::{UnmountFlags, unmount};
    let volumes = directory.join("volumes");
    let Ok(kinds) = std::fs::read_dir(&volumes) else { return Ok(()) };
    for kind in kinds.flatten() {
        let Ok(entries) = std::fs::read_dir(kind.path()) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            while is_mount_point(&path) {
                unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

/// Unmounts and removes a pod's directory.
///
/// # Errors
/// What could not be removed.
pub fn remove_pod_directory(directory: &Path) -> Result<(), std::io::Error> {
    tear_down(directory)?;
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
