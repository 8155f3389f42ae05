//! Starting things: sandboxes and containers, with their events. The acting half of the worker's decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_cri::CriError;
use coracle_cri::v1::{IdMapping, Image};
use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;

use crate::container::config::{self, Inputs};
use crate::container::env::{self, References};
use crate::container::{hosts, resources, sandbox};
use crate::context::Context;
use crate::hooks;
use crate::images::{Held, Wanted};
use crate::names;
use crate::user_namespaces;
use crate::volumes::MountedVolumes;

/// Makes a pod's directories and sandbox, and its hosts file once the addresses are known.
///
/// # Errors
/// The runtime's; recorded as an event.
pub async fn start_sandbox(cx: &Context, pod: &Pod, attempt: u32) -> Result<(), CriError> {
    let result = make_sandbox(cx, pod, attempt).await;
    if let Err(e) = &result {
        let message = format!("Failed to create pod sandbox: {e}");
        cx.pod_warning(pod, "FailedCreatePodSandBox", message);
    }
    result
}

async fn make_sandbox(cx: &Context, pod: &Pod, attempt: u32) -> Result<(), CriError> {
    let mut config = sandbox::config(pod, attempt, &cx.host_dns, &cx.config);
    config.runtime_handler = runtime_handler(cx, pod).await.map_err(CriError::Internal)?;
    let directory = cx.directory(names::uid(pod));
    if cx.cpus.has_own(names::uid(pod)) {
        // Whole CPUs are no share of time.
        config.resources.cpu_quota = 0;
    }
    config.namespaces.user_namespace = users(cx, pod, &config.runtime_handler, &directory).await?;
    for path in [std::path::Path::new(&config.log_directory), &directory] {
        std::fs::create_dir_all(path)
            .map_err(|e| CriError::Internal(format!("mkdir {}: {e}", path.display())))?;
    }
    let id = cx.runtime.run_pod_sandbox(config).await?;
    let ips = if crate::pod::host_network(pod) {
        vec![cx.config.node_ip.to_string()]
    } else {
        cx.runtime.pod_sandbox_status(&id).await?.ips
    };
    write_hosts(cx, pod, &ips).map_err(|e| CriError::Internal(format!("write etc-hosts: {e}")))
}

/// The handler that the pod's RuntimeClass names; empty for the default.
async fn runtime_handler(cx: &Context, pod: &Pod) -> Result<String, String> {
    let name = crate::pod::spec(pod).runtime_class_name.as_deref().filter(|n| !n.is_empty());
    let Some(name) = name else { return Ok(String::new()) };
    let class = cx.client.api::<RuntimeClass>().get("", name).await;
    class.map(|c| c.handler.clone()).map_err(|e| format!("failed to get sandbox runtime: {e}"))
}

/// The ids that stand for the pod's users, if it wants its own.
async fn users(
    cx: &Context,
    pod: &Pod,
    handler: &str,
    directory: &std::path::Path,
) -> Result<Option<IdMapping>, CriError> {
    if !user_namespaces::wanted(pod) {
        return Ok(None);
    }
    let handlers = cx.runtime.status().await?.handlers;
    user_namespaces::check_handler(pod, handler, &handlers).map_err(CriError::Internal)?;
    cx.user_namespaces.of(pod, directory).map_err(CriError::Internal)
}

/// Writes the pod's hosts file.
fn write_hosts(cx: &Context, pod: &Pod, ips: &[String]) -> std::io::Result<()> {
    let host_file = if crate::pod::host_network(pod) {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        String::new()
    };
    let text = hosts::hosts_file(pod, ips, &cx.config.cluster_domain, &host_file);
    let path = cx.directory(names::uid(pod)).join("etc-hosts");
    std::fs::write(path, text)
}

/// What a container is started from.
#[derive(Clone)]
pub struct Start {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container.
    pub container: Container,
    /// How often it was restarted before.
    pub attempt: u32,
    /// The sandbox.
    pub sandbox_id: String,
    /// The sandbox's attempt.
    pub sandbox_attempt: u32,
    /// The sandbox's addresses.
    pub ips: Vec<String>,
    /// The pod's volumes.
    pub volumes: Arc<MountedVolumes>,
    /// Id of the container whose process namespace it shares, for ephemeral containers.
    pub target: String,
}

/// Finds the image, creates the container, starts it and runs its postStart hook; returns its id.
///
/// # Errors
/// What the container's status is to show until the next try.
pub async fn start_container(cx: &Context, s: &Start) -> Result<String, Held> {
    let retry = || Some(crate::pod::after(cx.clock.now(), 10));
    let name = &s.container.name;
    let warn = |message: String| cx.container_warning(&s.pod, name, "Failed", message);
    let image = cx.images.ensure(cx, &s.pod, Wanted::of(&s.container)).await?;
    let image_volumes = image_volumes(cx, s).await?;
    let config = match configure(cx, s, &image, &image_volumes).await {
        Ok(config) => config,
        Err(e) => {
            warn(format!("Error: {e}"));
            return Err(Held::new("CreateContainerConfigError", e, retry()));
        }
    };
    let log_folder = log_directory(cx, &s.pod).join(name);
    if let Err(e) = std::fs::create_dir_all(&log_folder) {
        return Err(Held::new(
            "CreateContainerError",
            format!("mkdir {}: {e}", log_folder.display()),
            retry(),
        ));
    }
    let mut sandbox = sandbox::config(&s.pod, s.sandbox_attempt, &cx.host_dns, &cx.config);
    // All volumes of a pod have its users.
    sandbox.namespaces.user_namespace = config.mounts.iter().find_map(|m| m.id_mapping.clone());
    let id = match cx.runtime.create_container(&s.sandbox_id, config, sandbox).await {
        Ok(id) => id,
        Err(e) => {
            warn(format!("Error: {e}"));
            return Err(Held::new("CreateContainerError", e.to_string(), retry()));
        }
    };
    cx.container_event(&s.pod, name, "Created", "Container created");
    if let Err(e) = cx.devices.before_start(names::uid(&s.pod), name).await {
        warn(format!("Error: {e}"));
        return Err(Held::new("PreStartHookError", e, retry()));
    }
    if let Err(e) = cx.runtime.start_container(&id).await {
        warn(format!("Error: {e}"));
        return Err(Held::new("RunContainerError", e.to_string(), retry()));
    }
    cx.container_event(&s.pod, name, "Started", "Container started");
    let hook = s.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    if let Some(hook) = hook {
        let ip = s.ips.first().map_or("", String::as_str);
        if let Err(e) = hooks::run(cx, &s.container, &id, ip, hook).await {
            cx.container_warning(&s.pod, name, "FailedPostStartHook", "PostStartHook failed");
            cx.container_event(&s.pod, name, "Killing", "FailedPostStartHook");
            let grace = crate::pod::grace_period(&s.pod);
            if let Err(e) = cx.runtime.stop_container(&id, grace).await {
                tracing::warn!(container = id, error = %e, "container not stopped after a failed hook");
            }
            return Err(Held::new("PostStartHookError", e, retry()));
        }
    }
    Ok(id)
}

/// A pod's log directory.
pub fn log_directory(cx: &Context, pod: &Pod) -> std::path::PathBuf {
    names::log_directory(&cx.config.log_root, names::namespace(pod), names::name(pod), names::uid(pod))
}

/// Pulls the images that the container mounts; their ids by volume.
async fn image_volumes(cx: &Context, s: &Start) -> Result<BTreeMap<String, String>, Held> {
    let mut found = BTreeMap::new();
    for volume in crate::pod::spec(&s.pod).volumes.iter().flatten() {
        let Some(source) = &volume.image else { continue };
        if !s.container.volume_mounts.iter().flatten().any(|m| m.name == volume.name) {
            continue;
        }
        let wanted = Wanted {
            container: &s.container.name,
            image: source.reference.as_deref().unwrap_or(""),
            policy: source.pull_policy.as_deref(),
        };
        let image = cx.images.ensure(cx, &s.pod, wanted).await?;
        found.insert(volume.name.clone(), image.id);
    }
    Ok(found)
}

async fn configure(
    cx: &Context,
    s: &Start,
    image: &Image,
    image_volumes: &BTreeMap<String, String>,
) -> Result<coracle_cri::v1::ContainerConfig, String> {
    let refs = references(cx, s).await.map_err(|e| e.to_string())?;
    let facts = cx.facts(&s.pod, &s.ips);
    cx.services.wait_synced().await;
    let mut services = cx.services.list_namespace(names::namespace(&s.pod));
    services.extend(cx.services.get("default", "kubernetes"));
    let service_env = env::services(&s.pod, &services);
    let env = env::environment(&s.pod, &s.container, service_env, &refs, &facts)?;
    let mut config = config::build(Inputs {
        pod: &s.pod,
        container: &s.container,
        attempt: s.attempt,
        image,
        env: &env,
        volumes: &s.volumes,
        image_volumes,
        root: &cx.config.root,
        directory: &cx.directory(names::uid(&s.pod)),
        memory_capacity: cx.machine.memory,
        target: &s.target,
    })?;
    cx.devices.equip(names::uid(&s.pod), &mut config);
    let sizes = cx.machine.huge_pages.keys().copied();
    resources::limit_huge_pages(&s.container, sizes, &mut config.resources);
    cx.machine.swap.limit(&s.pod, &s.container, &mut config.resources);
    cx.hint_providers().iter().for_each(|p| p.starts(&s.pod, &s.container));
    cx.cpus.apply(names::uid(&s.pod), &s.container.name, &mut config.resources);
    cx.memory_manager.apply(names::uid(&s.pod), &s.container.name, &mut config.resources);
    let users = cx.user_namespaces.of(&s.pod, &cx.directory(names::uid(&s.pod)))?;
    config.mounts.iter_mut().for_each(|m| m.id_mapping.clone_from(&users));
    Ok(config)
}

fn found<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(s) if s.reason() == Reason::NotFound => Ok(None),
        Err(s) => Err(s),
    }
}

/// Reads what the container's environment refers to.
async fn references(cx: &Context, s: &Start) -> Result<References, Status> {
    let (mut maps, mut secrets) = env::referenced(&s.container);
    for names in [&mut maps, &mut secrets] {
        names.sort();
        names.dedup();
    }
    let namespace = names::namespace(&s.pod);
    let volumes = s.volumes.iter().map(|(name, volume)| (name.clone(), volume.path.clone())).collect();
    let mut refs = References { volumes, ..References::default() };
    for name in maps {
        let object = found(cx.client.api::<ConfigMap>().get(namespace, &name).await)?;
        refs.config_maps.insert(name, object);
    }
    for name in secrets {
        let object = found(cx.client.api::<Secret>().get(namespace, &name).await)?;
        refs.secrets.insert(name, object);
    }
    Ok(refs)
}
