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
