//! The daemon's side: what exists, and the CRI services over it. The records on disk and the shims are the
//! truth; what is in memory can be made again from them at any time.

mod adopt;
mod containers;
mod events;
mod figures;
mod limits;
mod pods_cgroup;
mod sandboxes;
mod service;
mod shim_client;
mod streams;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use coracle_cri::v1::{
    ContainerConfig, ContainerEventResponse, ContainerState, LinuxResources, PodSandboxConfig,
    PodSandboxMetadata,
};
use coracle_cri::{CriError, PodNetwork};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::RuntimeConfig;
use crate::cgroup::Hierarchies;
use crate::images::{self, ImageStore, Pin};
use crate::namespaces::PodNamespaces;
use crate::protocol::{Exit, LaunchSpec};

/// What `sandbox.json` says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SandboxRecord {
    id: String,
    config: PodSandboxConfig,
    created_at: i64,
    ips: Vec<String>,
    /// All of it was made; otherwise its maker died on the way.
    made: bool,
    stopped: bool,
}

#[derive(Debug, Default)]
struct SandboxState {
    ready: bool,
    made: bool,
    stopped: bool,
    ips: Vec<String>,
    pause_pid: i32,
    /// The pod's limits, where they were changed since.
    resources: Option<LinuxResources>,
}

struct Sandbox {
    id: String,
    dir: PathBuf,
    config: PodSandboxConfig,
    created_at: i64,
    state: Mutex<SandboxState>,
    /// The shim, if it is our child; collected when it ends.
    child: Mutex<Option<std::process::Child>>,
    /// Held while it is stopped or removed.
    ending: tokio::sync::Mutex<()>,
}

/// What `container.json` says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ContainerRecord {
    id: String,
    sandbox_id: String,
    config: ContainerConfig,
    image_ref: String,
    image_id: String,
    layers: Vec<String>,
    /// Layers of the images that are mounted as volumes.
    volume_layers: Vec<String>,
    /// Supplementary groups of its first process.
    groups: Vec<u32>,
    created_at: i64,
    stop_signal: i32,
    launch: LaunchSpec,
}

impl ContainerEntry {
    fn new(record: ContainerRecord, pin: Pin) -> Self {
        let now = ContainerStatusNow { state: ContainerState::Created, ..Default::default() };
        Self { record, now: now.into(), disk: Mutex::default(), busy: Default::default(), _pin: pin }
    }
}

impl ContainerRecord {
    /// Everything of the image store that it stands on.
    fn all_layers(&self) -> impl Iterator<Item = String> {
        self.layers.iter().chain(&self.volume_layers).cloned().collect::<Vec<_>>().into_iter()
    }
}

#[derive(Debug, Default)]
struct ContainerStatusNow {
    state: ContainerState,
    pid: i32,
    started_at: i64,
    exit: Option<Exit>,
    /// The limits, where they were changed after the start.
    resources: Option<LinuxResources>,
}

struct ContainerEntry {
    record: ContainerRecord,
    now: Mutex<ContainerStatusNow>,
    /// The size of its writable layer, when last looked at.
    disk: Mutex<Option<figures::Disk>>,
    /// Held while it is started, changed or removed.
    busy: tokio::sync::Mutex<()>,
    _pin: Pin,
}

/// The built-in container runtime of one node.
pub struct Runtime {
    this: Weak<Self>,
    config: RuntimeConfig,
    network: Arc<dyn PodNetwork>,
    images: Arc<ImageStore>,
    hierarchies: Hierarchies,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<ContainerEntry>>>,
    listeners: Mutex<Vec<mpsc::Sender<ContainerEventResponse>>>,
    /// Whether pods may have user namespaces, once asked.
    user_namespaces: std::sync::OnceLock<bool>,
}

impl Runtime {
    /// Opens the runtime and adopts what an earlier daemon left running: the same containers, with the same
    /// ids, go on. What has ended meanwhile is found exited; what lost its shim is killed and reported with
    /// exit code 255.
    ///
    /// # Errors
    /// The directories cannot be used, or the image index is damaged; the text names it.
    pub async fn open(config: RuntimeConfig, network: Arc<dyn PodNetwork>) -> Result<Arc<Self>, CriError> {
        let opening = config.clone();
        let (images, hierarchies) = blocking(move || {
            let parts = [
                opening.sandboxes(),
                opening.containers(),
                opening.shifted(),
                opening.root.join("containers"),
            ];
            for dir in parts {
                std::fs::create_dir_all(&dir)
                    .map_err(|e| io::Error::new(e.kind(), format!("cannot make {}: {e}", dir.display())))?;
            }
            // Users of pods pass through to their namespaces and files; the rest, with its environments, is not theirs.
            for dir in [opening.sandboxes(), opening.containers(), opening.library()] {
                std::fs::create_dir_all(&dir)?;
                std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
            }
            Ok((ImageStore::open(&opening.root)?, Hierarchies::detect()))
        })
        .await?;
        let runtime = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            config,
            network,
            images: Arc::new(images),
            hierarchies,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            listeners: Mutex::default(),
            user_namespaces: Default::default(),
        });
        adopt::adopt(&runtime).await?;
        let images = runtime.images.clone();
        blocking(move || {
            images.collect();
            Ok(())
        })
        .await?;
        Ok(runtime)
    }

    /// Imports the images of an OCI layout or docker-archive (a tar file, plain, gzip or zstd, or a
    /// directory); their names.
    ///
    /// # Errors
    /// The archive is absent or malformed; the text says how, and nothing is imported.
    pub async fn import_image(&self, path: &Path) -> Result<Vec<String>, CriError> {
        let (images, path) = (self.images.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || {
            images::import(&images, &path).map_err(|e| {
                let path = path.display();
                if e.kind() == io::ErrorKind::StorageFull {
                    let hint = "free some disk space";
                    return CriError::Internal(format!(
                        "cannot import image {path}: no space left ({e}); {hint}"
                    ));
                }
                CriError::InvalidArgument(format!("cannot import image {path}: {e}"))
            })
        })
        .await
        .map_err(|e| CriError::Internal(e.to_string()))?
    }

    /// Writes an image into a new OCI archive.
    ///
    /// # Errors
    /// There is no such image, or the file cannot be written.
    pub async fn export_image(&self, name: &str, to: &Path) -> Result<(), CriError> {
        let (images, name, to) = (self.images.clone(), name.to_owned(), to.to_owned());
        blocking(move || images::export(&images, &name, &to)).await
    }

    /// Makes sure an image exists whose entrypoint is this static program. Cheap if it has not changed.
    ///
    /// # Errors
    /// The program cannot be read, or the disk is full.
    pub async fn ensure_self_image(&self, name: &str, exe: &Path) -> Result<(), CriError> {
        let (images, name, exe) = (self.images.clone(), name.to_owned(), exe.to_owned());
        blocking(move || images::ensure_self_image(&images, &name, &exe)).await
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, CriError> {
        self.sandboxes.lock().get(id).cloned().ok_or_else(|| {
            CriError::NotFound(format!("an error occurred when try to find sandbox {id:?}: not found"))
        })
    }
    fn container(&self, id: &str) -> Result<Arc<ContainerEntry>, CriError> {
        self.containers.lock().get(id).cloned().ok_or_else(|| {
            CriError::NotFound(format!("an error occurred when try to find container {id:?}: not found"))
        })
    }
    fn containers_of(&self, sandbox: &str) -> Vec<Arc<ContainerEntry>> {
        self.containers.lock().values().filter(|c| c.record.sandbox_id == sandbox).cloned().collect()
    }
    fn namespaces(&self, sandbox: &str) -> PodNamespaces {
        PodNamespaces::new(&self.config.state, sandbox)
    }
    /// The cgroup of a pod.
    fn pod_cgroup(&self, sandbox: &str, config: &PodSandboxConfig) -> String {
        let pods = self.config.pods_cgroup();
        let parent = config.cgroup_parent.trim_matches('/');
        let parent = parent.strip_prefix(&pods).unwrap_or(parent).trim_matches('/');
        if parent.is_empty() { format!("{pods}/{sandbox}") } else { format!("{pods}/{parent}") }
    }
    fn now_nanos(&self) -> i64 {
        i64::try_from(self.config.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }
}

impl Sandbox {
    fn new(dir: PathBuf, record: SandboxRecord) -> Self {
        Self {
            id: record.id,
            dir,
            config: record.config,
            created_at: record.created_at,
            state: Mutex::new(SandboxState {
                ready: false,
                made: record.made,
                stopped: record.stopped,
                ips: record.ips,
                pause_pid: 0,
                resources: None,
            }),
            child: Mutex::new(None),
            ending: tokio::sync::Mutex::default(),
        }
    }
    fn metadata(&self) -> &PodSandboxMetadata {
        &self.config.metadata
    }
    /// Writes `sandbox.json`.
    fn save(&self) -> io::Result<()> {
        let (ips, made, stopped) = {
            let state = self.state.lock();
            (state.ips.clone(), state.made, state.stopped)
        };
        let record = SandboxRecord {
            id: self.id.clone(),
            config: self.config.clone(),
            created_at: self.created_at,
            ips,
            made,
            stopped,
        };
        crate::files::write_record(&self.dir.join("sandbox.json"), &record)
    }
    /// Collects the shim's exit status, killing it if it does not end by itself.
    fn collect_shim(&self) {
        if let Some((pid, _)) = crate::purge::live_shim(&self.dir) {
            for _ in 0..200 {
                if crate::purge::live_shim(&self.dir).is_none() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            if crate::purge::live_shim(&self.dir).is_some() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs blocking work on the blocking pool; I/O failures become internal errors.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CriError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(CriError::Internal(error.to_string())),
        Err(error) => Err(CriError::Internal(error.to_string())),
    }
}
