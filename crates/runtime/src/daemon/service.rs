//! The CRI traits, over what the other files do.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::v1::{
    AuthConfig, Container, ContainerConfig, ContainerEventResponse, ContainerFilter, ContainerState,
    ContainerStats, ContainerStatus, ExecSyncResponse, FilesystemUsage, Image, ImageSpec, LinuxContainerUser,
    LinuxResources, Map, PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxStats, PodSandboxStatus,
    RuntimeHandler, RuntimeStatus, VersionResponse,
};
use coracle_cri::{Counters, CriError, ExecRequest, ExecSession, ImageService, RuntimeService, Streaming};
use tokio::sync::mpsc;

use super::shim_client::{ask, unexpected};
use super::{ContainerEntry, Runtime, blocking};
use crate::protocol::{Reply, Request};

fn selects(selector: &Map, labels: &Map) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl ContainerEntry {
    fn status(&self) -> ContainerStatus {
        let (record, now) = (&self.record, self.now.lock());
        let exit = now.exit.clone().unwrap_or_default();
        let reason = match (&now.exit, exit.reason.is_empty()) {
            (None, _) => "",
            (Some(_), false) => &exit.reason,
            (Some(e), true) if e.oom_killed => "OOMKilled",
            (Some(e), true) if e.code == 0 => "Completed",
            (Some(_), true) => "Error",
        };
        ContainerStatus {
            id: record.id.clone(),
            pod_sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            state: now.state,
            created_at: record.created_at,
            started_at: now.started_at,
            finished_at: exit.finished_at,
            exit_code: exit.code,
            signal: exit.signal,
            image: record.config.image.clone(),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.clone(),
            reason: reason.to_owned(),
            message: exit.message.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            log_path: record.launch.log_path.to_string_lossy().into_owned(),
            mounts: record.config.mounts.clone(),
            pid: now.pid,
            user: Some(LinuxContainerUser {
                uid: record.launch.uid.into(),
                gid: record.launch.gid.into(),
                supplemental_groups: record.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
            resources: now.resources.clone().unwrap_or_else(|| record.config.resources.clone()),
        }
    }
}

/// Handlers that RuntimeClasses may name: there is one way to run containers, which is the default.
pub(super) const HANDLERS: [&str; 2] = ["", "coracle"];

fn handler(name: &str, user_namespaces: bool) -> RuntimeHandler {
    RuntimeHandler { name: name.to_owned(), recursive_read_only_mounts: true, user_namespaces }
}

/// Registry part of images that the node makes itself.
const LOCAL_PREFIX: &str = "coracle.local/";

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self) -> Result<VersionResponse, CriError> {
        Ok(VersionResponse {
            runtime_name: "coracle".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }
    async fn status(&self) -> Result<RuntimeStatus, CriError> {
        let users = self.has_user_namespaces().await?;
        Ok(RuntimeStatus {
            runtime_not_ready: None,
            network_not_ready: self.network.ready().await.err(),
            handlers: HANDLERS.map(|name| handler(name, users)).to_vec(),
            supplemental_groups_policy: true,
        })
    }
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, CriError> {
        self.shared()?.make_sandbox(config).await
    }
    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        match self.sandbox(id) {
            Ok(sandbox) => self.shared()?.end_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }
    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        match self.sandbox(id) {
            Ok(sandbox) => self.shared()?.delete_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CriError> {
        let sandbox = self.sandbox(id)?;
        let state = sandbox.state.lock();
        Ok(PodSandboxStatus {
            id: sandbox.id.clone(),
            metadata: sandbox.metadata().clone(),
            ready: state.ready,
            created_at: sandbox.created_at,
            ips: state.ips.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            namespaces: sandbox.config.namespaces.clone(),
            runtime_handler: sandbox.config.runtime_handler.clone(),
        })
    }
    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>, CriError> {
        let sandboxes = self.sandboxes.lock();
        let wanted = sandboxes.values().filter(|s| {
            (filter.id.is_empty() || filter.id == s.id)
                && filter.ready.is_none_or(|ready| ready == s.state.lock().ready)
                && selects(&filter.label_selector, &s.config.labels)
        });
        Ok(wanted
            .map(|s| PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata().clone(),
                ready: s.state.lock().ready,
                created_at: s.created_at,
                labels: s.config.labels.clone(),
                annotations: s.config.annotations.clone(),
                runtime_handler: s.config.runtime_handler.clone(),
            })
            .collect())
    }
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        self.shared()?.make_container(sandbox_id, config, sandbox_config).await
    }
    async fn start_container(&self, id: &str) -> Result<(), CriError> {
        self.shared()?.launch(&self.container(id)?).await
    }
    async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), CriError> {
        match self.container(id) {
            Ok(container) => self.shared()?.end_container(&container, timeout).await,
            Err(_) => Ok(()),
        }
    }
    async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        match self.container(id) {
            Ok(container) => self.shared()?.delete_container(&container).await,
            Err(_) => Ok(()),
        }
    }
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<Container>, CriError> {
        let containers = self.containers.lock();
        let wanted = containers.values().map(|c| (c, &c.record)).filter(|(c, r)| {
            (filter.id.is_empty() || filter.id == r.id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == r.sandbox_id)
                && filter.state.is_none_or(|state| state == c.now.lock().state)
                && selects(&filter.label_selector, &r.config.labels)
        });
        Ok(wanted
            .map(|(c, r)| Container {
                id: r.id.clone(),
                pod_sandbox_id: r.sandbox_id.clone(),
                metadata: r.config.metadata.clone(),
                image: r.config.image.clone(),
                image_ref: r.image_ref.clone(),
                state: c.now.lock().state,
                created_at: r.created_at,
                labels: r.config.labels.clone(),
                annotations: r.config.annotations.clone(),
                image_id: r.image_id.clone(),
            })
            .collect())
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        Ok(self.container(id)?.status())
    }
    async fn reopen_container_log(&self, id: &str) -> Result<(), CriError> {
        let container = self.container(id)?;
        if container.now.lock().state != ContainerState::Running {
            return Err(CriError::FailedPrecondition(format!("container {id:?} is not running")));
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        match ask(&sandbox.dir, Request::Reopen { id: id.to_owned() }).await {
            Ok(Reply::Done) => Ok(()),
            other => Err(unexpected("failed to reopen container log", other)),
        }
    }
    async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, CriError> {
        self.run_to_end(id, cmd, timeout).await
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, CriError> {
        self.figures_of_container(id).await
    }
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, CriError> {
        self.figures_of_sandbox(id)
    }
    async fn counters(&self, id: &str) -> Result<Option<Counters>, CriError> {
        self.counters_of(id)
    }
    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<(), CriError> {
        self.change_container(id, resources).await
    }
    async fn update_pod_sandbox_resources(
        &self,
        id: &str,
        resources: LinuxResources,
    ) -> Result<(), CriError> {
        self.change_sandbox(id, resources).await
    }
    async fn container_events(&self) -> Result<mpsc::Receiver<ContainerEventResponse>, CriError> {
        Ok(self.listen())
    }
}

#[async_trait]
impl ImageService for Runtime {
    async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        Ok(self.images.list().iter().map(|i| i.to_cri()).collect())
    }
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>, CriError> {
        crate::images::check_name(&image.image).map_err(CriError::InvalidArgument)?;
        Ok(self.images.find(&image.image).map(|i| i.to_cri()))
    }
    async fn pull_image(&self, image: &ImageSpec, auth: Option<AuthConfig>) -> Result<String, CriError> {
        // Names below `coracle.local/` are made here and have no registry: present is as good as pulled.
        if image.image.starts_with(LOCAL_PREFIX) {
            let present = self.image_status(image).await?;
            let absent = || {
                CriError::NotFound(format!("image {:?} is made on the node, and is not there", image.image))
            };
            return present.map(|i| i.id).ok_or_else(absent);
        }
        crate::images::pull(&self.images, &image.image, auth, &self.config.registries).await
    }
    async fn remove_image(&self, image: &ImageSpec) -> Result<(), CriError> {
        // By any of its names the whole image: that is what the interface means.
        let Some(found) = self.images.find(&image.image) else { return Ok(()) };
        let images = self.images.clone();
        blocking(move || images.remove(&found.id)).await
    }
    async fn image_fs_info(&self) -> Result<FilesystemUsage, CriError> {
        Ok(self.image_usage())
    }
}

#[async_trait]
impl Streaming for Runtime {
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError> {
        self.run(request).await
    }
    async fn attach(&self, container_id: &str, stdin: bool, _tty: bool) -> Result<ExecSession, CriError> {
        self.join_streams(container_id, stdin).await
    }
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream, CriError> {
        self.forward(sandbox_id, port).await
    }
}

impl Runtime {
    /// Whether pods may have user namespaces; found out once.
    async fn has_user_namespaces(&self) -> Result<bool, CriError> {
        if let Some(known) = self.user_namespaces.get() {
            return Ok(*known);
        }
        let runtime = self.shared()?;
        blocking(move || {
            let ask = || crate::user_namespace::supported(&runtime.config.root);
            Ok(*runtime.user_namespaces.get_or_init(ask))
        })
        .await
    }
    /// Ourselves as background work needs us.
    fn shared(&self) -> Result<Arc<Self>, CriError> {
        self.this.upgrade().ok_or_else(|| CriError::Unavailable("the runtime is closing".into()))
    }
}
