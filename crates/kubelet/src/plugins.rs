//! The plug-in watcher: plug-ins put their sockets into `plugins_registry`, are asked there who they are, and are told
//! whether they were registered. Who leaves, or comes back at the same place, is registered no more, or anew.
//! See <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_grpc::Channel;
use coracle_stdx::Backoff;
use coracle_stdx::files::{Watch, Watcher};
use futures::future::{join_all, select_all};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::context::Context;
use crate::devices::Watched;

/// The directory of sockets, in the kubelet's.
const REGISTRY: &str = "plugins_registry";
/// How long a plug-in may take to say who it is, as upstream.
const ASK: Duration = Duration::from_secs(1);
/// How long a plug-in may take to hear what became of it, as upstream.
const TELL: Duration = Duration::from_secs(5);
/// Pauses between tries, as upstream.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));

coracle_grpc::messages! {
    /// Who are you?
    InfoRequest {}
    /// A plug-in about itself.
    PluginInfo { kind: String = 1, name: String = 2, endpoint: String = 3, supported_versions: Vec<String> = 4 }
    /// What became of it.
    RegistrationStatus { plugin_registered: bool = 1, error: String = 2 }
    /// Nothing.
    RegistrationStatusResponse {}
}

/// Takes plug-ins of a kind.
#[async_trait]
pub trait PluginHandler: Send + Sync {
    /// Whether this plug-in can be used.
    ///
    /// # Errors
    /// Why not; upstream's text.
    fn validate(&self, plugin: &PluginInfo) -> Result<(), String>;
    /// Uses it from now on, at its endpoint.
    ///
    /// # Errors
    /// Why that failed.
    async fn register(&self, plugin: &PluginInfo) -> Result<(), String>;
    /// It is gone.
    fn deregister(&self, plugin: &PluginInfo);
}

/// Who takes which plug-ins, by `PluginInfo.type`.
type Handlers = BTreeMap<&'static str, Arc<dyn PluginHandler>>;

fn handlers(cx: &Context) -> Handlers {
    let devices: Arc<dyn PluginHandler> = Arc::new(Watched(cx.devices.clone()));
    [("DevicePlugin", devices)].into()
}

/// Watches the registry until dropped.
pub async fn run(cx: Arc<Context>) {
    watch(&cx.config.root.join(REGISTRY), &cx.files, &handlers(&cx)).await;
}

/// Tells one socket from another that takes its place.
type Stamp = (u64, i64, i64);

/// Sockets below `directory`, and the directories; names that begin with a dot are left out.
fn look(directory: &Path, sockets: &mut BTreeMap<PathBuf, Stamp>, directories: &mut Vec<PathBuf>) {
    directories.push(directory.to_owned());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            look(&entry.path(), sockets, directories);
        } else if meta.file_type().is_socket() && !entry.file_name().to_string_lossy().starts_with('.') {
            sockets.insert(entry.path(), (meta.ino(), meta.ctime(), meta.ctime_nsec()));
        }
    }
}

/// What is known of the sockets.
#[derive(Default)]
struct Known {
    registered: BTreeMap<PathBuf, (Stamp, PluginInfo)>,
    refused: BTreeMap<PathBuf, (Stamp, Instant)>,
}

impl Known {
    /// Those that were registered and are not there any more.
    fn gone(&mut self, seen: &BTreeMap<PathBuf, Stamp>) -> Vec<PluginInfo> {
        let there = |path: &PathBuf, stamp: &Stamp| seen.get(path) == Some(stamp);
        self.refused.retain(|path, (stamp, _)| there(path, stamp));
        let gone = self.registered.extract_if(.., |path, (stamp, _)| !there(path, stamp));
        gone.map(|(_, (_, plugin))| plugin).collect()
    }
    /// Those that are to be registered now.
    fn due(&self, seen: &BTreeMap<PathBuf, Stamp>, now: Instant) -> Vec<(PathBuf, Stamp)> {
        let waits = |path: &PathBuf| self.refused.get(path).is_some_and(|(_, until)| *until > now);
        let new = seen.iter().filter(|(path, _)| !self.registered.contains_key(*path) && !waits(path));
        new.map(|(path, stamp)| (path.clone(), *stamp)).collect()
    }
}

async fn watch(registry: &Path, files: &Watcher, handlers: &Handlers) {
    if let Err(error) = std::fs::create_dir_all(registry) {
        warn!(%error, registry = %registry.display(), "plug-ins cannot register");
    }
    let mut known = Known::default();
    let mut pauses = Backoff::new(RETRY.0, RETRY.1);
    let mut watches: BTreeMap<PathBuf, Watch> = BTreeMap::new();
    loop {
        let (seen, directories) = settle(registry, files, &mut watches);
        for plugin in known.gone(&seen) {
            info!(kind = plugin.kind, name = plugin.name, "plug-in is gone");
            if let Some(handler) = handlers.get(plugin.kind.as_str()) {
                handler.deregister(&plugin);
            }
        }
        let tries = known.due(&seen, Instant::now()).into_iter().map(|(path, stamp)| async move {
            let result = register(&path, handlers).await;
            (path, stamp, result)
        });
        for (path, stamp, result) in join_all(tries).await {
            match result {
                Ok(plugin) => {
                    info!(kind = plugin.kind, name = plugin.name, socket = %path.display(), "plug-in registered");
                    known.refused.remove(&path);
                    pauses.reset(&path);
                    known.registered.insert(path, (stamp, plugin));
                }
                Err(error) => {
                    warn!(socket = %path.display(), error, "plug-in not registered");
                    let until = Instant::now() + pauses.next(path.clone());
                    known.refused.insert(path, (stamp, until));
                }
            }
        }
        watches.retain(|path, _| directories.contains(path));
        let changed = async {
            match watches.is_empty() {
                true => tokio::time::sleep(RETRY.1).await,
                false => drop(select_all(watches.values().map(|w| Box::pin(w.changed()))).await),
            }
        };
        let retry = async {
            match known.refused.values().map(|(_, until)| *until).min() {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = retry => {}
        }
    }
}

/// What is there now; every directory is watched before it is read.
fn settle(
    registry: &Path,
    files: &Watcher,
    watches: &mut BTreeMap<PathBuf, Watch>,
) -> (BTreeMap<PathBuf, Stamp>, Vec<PathBuf>) {
    loop {
        let (mut seen, mut directories) = (BTreeMap::new(), Vec::new());
        look(registry, &mut seen, &mut directories);
        let mut more = false;
        for directory in &directories {
            if !watches.contains_key(directory)
                && let Ok(watch) = files.folder(directory)
            {
                watches.insert(directory.clone(), watch);
                more = true;
            }
        }
        if !more {
            return (seen, directories);
        }
    }
}

/// Asks a plug-in who it is, hands it to who takes its kind, and tells it what became of that.
async fn register(socket: &Path, handlers: &Handlers) -> Result<PluginInfo, String> {
    let channel = Channel::unix(socket);
    let at = socket.display();
    let info = channel.call("pluginregistration.Registration/GetInfo", &InfoRequest {}, Some(ASK)).await;
    let mut plugin: PluginInfo = info.map_err(|e| {
        format!(
            "RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {e}"
        )
    })?;
    if plugin.endpoint.is_empty() {
        plugin.endpoint = at.to_string();
    }
    let handler = handlers.get(plugin.kind.as_str()).ok_or_else(|| {
        format!(
            "RegisterPlugin error -- no handler registered for plugin type: {} at socket {at}",
            plugin.kind
        )
    });
    let valid = handler.and_then(|handler| {
        let valid = handler.validate(&plugin);
        valid
            .map(|()| handler)
            .map_err(|e| format!("RegisterPlugin error -- plugin validation failed with err: {e}"))
    });
    let taken = match valid {
        Ok(handler) => {
            let taken = handler.register(&plugin).await;
            taken
                .map(|()| handler)
                .map_err(|e| format!("RegisterPlugin error -- plugin registration failed with err: {e}"))
        }
        Err(why) => Err(why),
    };
    let error = taken.as_ref().err().cloned().unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: taken.is_ok(), error };
    let method = "pluginregistration.Registration/NotifyRegistrationStatus";
    let told: Result<RegistrationStatusResponse, _> = channel.call(method, &status, Some(TELL)).await;
    match (taken, told) {
        (Ok(_), Ok(_)) => Ok(plugin),
        (Ok(handler), Err(e)) => {
            handler.deregister(&plugin);
            Err(format!(
                "RegisterPlugin error -- failed to send registration status at socket {at}, err: {e}"
            ))
        }
        (Err(why), _) => Err(why),
    }
}

#[cfg(test)]
mod tests;
