//! The two CRI services as traits. Method and message names are those of `runtime.v1`.

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::counters::Counters;
use crate::v1::{
    AuthConfig, Container, ContainerConfig, ContainerEventResponse, ContainerFilter, ContainerStats,
    ContainerStatus, ExecSyncResponse, FilesystemUsage, Image, ImageSpec, LinuxResources, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStats, PodSandboxStatus, RuntimeStatus, VersionResponse,
};

/// Why a runtime call failed; the variants are the gRPC codes that CRI clients rely on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CriError {
    /// The sandbox, container or image is unknown.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is in a state that does not allow this.
    #[error("{0}")]
    FailedPrecondition(String),
    /// It took too long.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The runtime cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else that failed; the text names the cause.
    #[error("{0}")]
    Internal(String),
}

/// Pod sandboxes and containers. All calls are idempotent where CRI says so (stop, remove).
#[async_trait]
#[expect(missing_docs, reason = "the methods of runtime.v1.RuntimeService")]
pub trait RuntimeService: Send + Sync + 'static {
    async fn version(&self) -> Result<VersionResponse, CriError>;
    async fn status(&self) -> Result<RuntimeStatus, CriError>;
    /// Creates and starts a sandbox (namespaces, network); returns its id.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, CriError>;
    /// Kills what runs in it and releases the network.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError>;
    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError>;
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CriError>;
    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>, CriError>;
    /// Creates a container in a sandbox; returns its id.
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError>;
    async fn start_container(&self, id: &str) -> Result<(), CriError>;
    /// SIGTERM (or the image's stop signal), then SIGKILL after `timeout` seconds; returns when it is dead.
    async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), CriError>;
    async fn remove_container(&self, id: &str) -> Result<(), CriError>;
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<Container>, CriError>;
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError>;
    async fn reopen_container_log(&self, id: &str) -> Result<(), CriError>;
    /// Runs a command to its end; `timeout` 0 means none.
    async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: i64)
    -> Result<ExecSyncResponse, CriError>;
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, CriError>;
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, CriError>;
    /// Changes the limits of a container that runs; zero fields are left as they are.
    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<(), CriError>;
    /// Changes the limits of a whole pod; zero fields are left as they are.
    async fn update_pod_sandbox_resources(&self, id: &str, resources: LinuxResources)
    -> Result<(), CriError>;
    /// Tells the range of the node's pods to runtimes whose network plug-ins want it; others need not care.
    async fn update_runtime_config(&self, pod_cidr: &str) -> Result<(), CriError> {
        let _ = pod_cidr;
        Ok(())
    }
    /// What else the kernel counts of a container that runs; `None` where the runtime does not tell.
    async fn counters(&self, id: &str) -> Result<Option<Counters>, CriError> {
        let _ = id;
        Ok(None)
    }
    /// Container and sandbox events from now on; dropped events are made up for by listing.
    async fn container_events(&self) -> Result<mpsc::Receiver<ContainerEventResponse>, CriError>;
}

/// Images.
#[async_trait]
#[expect(missing_docs, reason = "the methods of runtime.v1.ImageService")]
pub trait ImageService: Send + Sync + 'static {
    async fn list_images(&self) -> Result<Vec<Image>, CriError>;
    /// `None` when the image is not present.
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>, CriError>;
    /// Returns the image id.
    async fn pull_image(&self, image: &ImageSpec, auth: Option<AuthConfig>) -> Result<String, CriError>;
    async fn remove_image(&self, image: &ImageSpec) -> Result<(), CriError>;
    /// Where images are, and how much room they take.
    async fn image_fs_info(&self) -> Result<FilesystemUsage, CriError>;
}
