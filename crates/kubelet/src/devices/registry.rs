//! The socket on which plug-ins register, and the watch of each one's devices.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_grpc::{Answer, Bytes, Code, Service, Status};
use futures::future::BoxFuture;
use tracing::{info, warn};

use super::Devices;
use super::book::DeviceState;
use super::plugin::Plugin;
use super::wire::*;
use crate::context::Context;
use crate::plugins::{PluginHandler, PluginInfo};

/// Where plug-ins register, in the directory of their own sockets.
const SOCKET: &str = "kubelet.sock";
/// The API's version.
const VERSION: &str = "v1beta1";
/// How long a plug-in may be away before its resource is taken off the node, as upstream.
const AWAY: Duration = Duration::from_secs(300);

/// Takes registrations until dropped.
pub async fn run(cx: Arc<Context>) {
    let devices = cx.devices.clone();
    // Plug-ins see that their sockets are gone, and register again.
    for entry in std::fs::read_dir(&devices.dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_socket()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    match coracle_grpc::listen(&devices.dir.join(SOCKET)) {
        Ok(listener) => coracle_grpc::serve(listener, Arc::new(Registry(devices))).await,
        Err(error) => warn!(%error, dir = %devices.dir.display(), "device plugins cannot register"),
    }
}

struct Registry(Arc<Devices>);

impl Service for Registry {
    fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match method.as_str() {
                "v1beta1.Registration/Register" => {
                    Answer::unary(request, |q| async move { register(&self.0, q) }).await
                }
                _ => Answer::unimplemented(&method),
            }
        })
    }
}

fn register(devices: &Arc<Devices>, request: RegisterRequest) -> Result<Empty, Status> {
    let RegisterRequest { version, endpoint, resource_name, options } = request;
    if version != VERSION {
        let text = format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is {VERSION:?}"
        );
        return Err(Status::new(Code::Unknown, text));
    }
    if !crate::admit::is_extended(&resource_name) {
        let text = format!("the ResourceName {resource_name:?} is invalid");
        return Err(Status::new(Code::Unknown, text));
    }
    if endpoint.is_empty() || endpoint.contains('/') {
        return Err(Status::new(Code::InvalidArgument, format!("endpoint {endpoint:?} is no file's name")));
    }
    let plugin = Plugin::new(&devices.dir.join(endpoint), options.unwrap_or_default());
    take(devices, resource_name, plugin);
    Ok(Empty {})
}

/// Uses a plug-in from now on.
fn take(devices: &Arc<Devices>, resource: String, plugin: Plugin) {
    info!(resource, socket = %plugin.socket().display(), "device plugin registered");
    let plugin = Arc::new(plugin);
    devices.plugins.lock().insert(resource.clone(), plugin.clone());
    tokio::spawn(follow(devices.clone(), resource, plugin));
}

/// Registration by the plug-in watcher.
pub struct Watched(pub Arc<Devices>);

#[async_trait]
impl PluginHandler for Watched {
    fn validate(&self, plugin: &PluginInfo) -> Result<(), String> {
        let versions = &plugin.supported_versions;
        if !versions.iter().any(|v| v == VERSION) {
            return Err(format!(
                "manager version, {VERSION}, is not among plugin supported versions [{}]",
                versions.join(" ")
            ));
        }
        if !crate::admit::is_extended(&plugin.name) {
            let name = &plugin.name;
            return Err(format!(
                "invalid name of device plugin socket: the ResourceName {name:?} is invalid"
            ));
        }
        Ok(())
    }

    async fn register(&self, plugin: &PluginInfo) -> Result<(), String> {
        take(&self.0, plugin.name.clone(), Plugin::connect(Path::new(&plugin.endpoint)).await?);
        Ok(())
    }

    fn deregister(&self, plugin: &PluginInfo) {
        let known = self.0.plugins.lock().get(&plugin.name).cloned();
        if let Some(known) = known.filter(|p| p.socket() == Path::new(&plugin.endpoint)) {
            known.leave();
        }
    }
}

fn is_current(devices: &Devices, resource: &str, plugin: &Arc<Plugin>) -> bool {
    devices.plugins.lock().get(resource).is_some_and(|p| Arc::ptr_eq(p, plugin))
}

/// Follows a plug-in's devices until it is gone or replaced; after a while without it the resource goes too.
async fn follow(devices: Arc<Devices>, resource: String, plugin: Arc<Plugin>) {
    tokio::select! {
        told = listen(&devices, &resource, &plugin) => if let Err(error) = told {
            warn!(resource, %error, "device plugin's list has ended");
        },
        () = plugin.left() => info!(resource, "device plugin has left"),
    }
    if !is_current(&devices, &resource, &plugin) {
        return;
    }
    devices.book.lock().doubt(&resource);
    devices.told();
    tokio::time::sleep(AWAY).await;
    if is_current(&devices, &resource, &plugin) {
        devices.plugins.lock().remove(&resource);
        devices.book.lock().remove(&resource);
        devices.told();
    }
}

async fn listen(devices: &Devices, resource: &str, plugin: &Arc<Plugin>) -> Result<(), Status> {
    let mut lists = plugin.watch().await?;
    while let Some(list) = lists.next().await? {
        if !is_current(devices, resource, plugin) {
            return Ok(());
        }
        let state = |d: PluginDevice| {
            let nodes = d.topology.unwrap_or_default().nodes.into_iter().map(|n| n.id).collect();
            (d.id, DeviceState { healthy: d.health == "Healthy", nodes })
        };
        let all: BTreeMap<_, _> = list.devices.into_iter().map(state).collect();
        devices.book.lock().set_devices(resource, all);
        if let Err(error) = devices.save() {
            warn!(%error, "who has which devices is not written down");
        }
        devices.told();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use coracle_grpc::Message;
    use tokio::sync::mpsc;

    use super::*;
    use crate::topology_manager::NodeSet;

    const RESOURCE: &str = "test.example/widget";

    /// A plug-in with one healthy device, which wants nothing.
    struct Widgets;

    impl Service for Widgets {
        fn call(self: Arc<Self>, method: String, q: Bytes) -> BoxFuture<'static, Answer> {
            Box::pin(async move {
                match method.as_str() {
                    "v1beta1.DevicePlugin/GetDevicePluginOptions" => {
                        Answer::unary(q, |_: Empty| async { Ok::<_, Status>(DevicePluginOptions::default()) })
                            .await
                    }
                    "v1beta1.DevicePlugin/ListAndWatch" => {
                        let device =
                            PluginDevice { id: "w0".into(), health: "Healthy".into(), ..Default::default() };
                        let (sender, receiver) = mpsc::channel(1);
                        let list = ListAndWatchResponse { devices: vec![device] }.encode();
                        sender.try_send(Ok(list)).expect("room for one");
                        tokio::spawn(async move { sender.closed().await });
                        Answer::Stream(receiver)
                    }
                    _ => Answer::unimplemented(&method),
                }
            })
        }
    }

    fn info(endpoint: PathBuf, name: &str, version: &str) -> PluginInfo {
        PluginInfo {
            kind: "DevicePlugin".into(),
            name: name.into(),
            endpoint: endpoint.display().to_string(),
            supported_versions: vec![version.into()],
        }
    }

    #[tokio::test]
    async fn devices_of_a_plugin_that_the_watcher_found_are_there_until_it_leaves() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("widgets.sock");
        let listener = coracle_grpc::listen(&socket).expect("a socket");
        let server = tokio::spawn(coracle_grpc::serve(listener, Arc::new(Widgets)));
        let devices = Arc::new(Devices::open(&dir.path().join("plugins"), NodeSet::default()));
        let watched = Watched(devices.clone());
        let old = watched.validate(&info(socket.clone(), RESOURCE, "v1alpha")).unwrap_err();
        assert_eq!(old, "manager version, v1beta1, is not among plugin supported versions [v1alpha]");
        let odd = watched.validate(&info(socket.clone(), "cpu", VERSION)).unwrap_err();
        assert_eq!(odd, "invalid name of device plugin socket: the ResourceName \"cpu\" is invalid");
        let missing = watched.register(&info(dir.path().join("none"), RESOURCE, VERSION)).await.unwrap_err();
        assert!(missing.starts_with("failed to get device plugin options: rpc error"), "{missing}");

        let plugin = info(socket, RESOURCE, VERSION);
        assert_eq!(watched.validate(&plugin), Ok(()));
        let mut changes = devices.changes();
        let counts = || devices.amounts().get(RESOURCE).map(|(all, healthy)| (all.value(), healthy.value()));
        watched.register(&plugin).await.expect("registered");
        changes.changed().await.expect("told");
        assert_eq!(counts(), Some((1, 1)));
        watched.deregister(&plugin);
        changes.changed().await.expect("told");
        assert_eq!(counts(), Some((1, 0)), "it is there, but nobody knows how it does");
        server.abort();
    }
}
