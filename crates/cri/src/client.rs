//! CRI v1 of a runtime in another process: the service traits over its socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_grpc::{Channel, Code, Message, Status};
use tokio::sync::mpsc;
use tracing::debug;

use crate::convert::{all, container_config, sum};
use crate::poll;
use crate::remote::{Job, Wanted};
use crate::service::{CriError, ImageService, RuntimeService};
use crate::streaming::StreamUrls;
use crate::v1::{
    AuthConfig, Container, ContainerConfig, ContainerEventResponse, ContainerFilter, ContainerStats,
    ContainerStatus, ExecSyncResponse, FilesystemUsage, Image, ImageSpec, LinuxResources, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStats, PodSandboxStatus, RuntimeStatus, VersionResponse,
};
use crate::wire;

/// How long a call may take, beside what it is asked to wait for; as upstream's `runtimeRequestTimeout`.
const LIMIT: Duration = Duration::from_secs(120);
/// Events that may wait to be read.
const QUEUE: usize = 4096;

/// A runtime, and the keeper of its images, behind Unix sockets.
#[derive(Clone, Debug)]
pub struct CriClient {
    runtime: Arc<Channel>,
    images: Arc<Channel>,
}

impl CriClient {
    /// A client of the runtime at `runtime`; `images` where another one keeps the images. Connects at the first call.
    pub fn new(runtime: &Path, images: Option<&Path>) -> Self {
        let runtime = Arc::new(Channel::unix(runtime));
        let images = images.map_or_else(|| runtime.clone(), |path| Arc::new(Channel::unix(path)));
        Self { runtime, images }
    }

    async fn ask<Q: Message, A: Message>(&self, name: &str, request: Q, wait: i64) -> Result<A, Status> {
        let limit = LIMIT + Duration::from_secs(u64::try_from(wait).unwrap_or(0));
        self.runtime.call(&format!("runtime.v1.RuntimeService/{name}"), &request, Some(limit)).await
    }

    async fn ask_images<Q: Message, A: Message>(
        &self,
        name: &str,
        request: Q,
        limit: Option<Duration>,
    ) -> Result<A, Status> {
        self.images.call(&format!("runtime.v1.ImageService/{name}"), &request, limit).await
    }
}

/// An answer without what it should hold.
fn empty(what: &str) -> CriError {
    CriError::Internal(format!("the container runtime's answer has no {what}"))
}

#[async_trait]
impl RuntimeService for CriClient {
    async fn version(&self) -> Result<VersionResponse, CriError> {
        let answer: wire::VersionResponse = self.ask("Version", wire::VersionRequest::default(), 0).await?;
        Ok(answer.into())
    }
    async fn status(&self) -> Result<RuntimeStatus, CriError> {
        let answer: wire::StatusResponse = self.ask("Status", wire::StatusRequest::default(), 0).await?;
        Ok(answer.into())
    }
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, CriError> {
        let runtime_handler = config.runtime_handler.clone();
        let request = wire::RunPodSandboxRequest { config: Some(config.into()), runtime_handler };
        // Network plug-ins may take their time.
        let answer: wire::RunPodSandboxResponse = self.ask("RunPodSandbox", request, 120).await?;
        Ok(answer.pod_sandbox_id)
    }
    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let _: wire::StopPodSandboxResponse = self.ask("StopPodSandbox", request, 0).await?;
        Ok(())
    }
    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let _: wire::RemovePodSandboxResponse = self.ask("RemovePodSandbox", request, 0).await?;
        Ok(())
    }
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CriError> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer: wire::PodSandboxStatusResponse = self.ask("PodSandboxStatus", request, 0).await?;
        answer.status.map(Into::into).ok_or_else(|| empty("status"))
    }
    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>, CriError> {
        let request = wire::ListPodSandboxRequest { filter: Some(filter.into()) };
        let answer: wire::ListPodSandboxResponse = self.ask("ListPodSandbox", request, 0).await?;
        Ok(answer.into())
    }
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(container_config(config, &sandbox_config.namespaces)),
            sandbox_config: Some(sandbox_config.into()),
        };
        let answer: wire::CreateContainerResponse = self.ask("CreateContainer", request, 0).await?;
        Ok(answer.container_id)
    }
    async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = wire::StartContainerRequest { container_id: id.to_owned() };
        let _: wire::StartContainerResponse = self.ask("StartContainer", request, 0).await?;
        Ok(())
    }
    async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), CriError> {
        let request = wire::StopContainerRequest { container_id: id.to_owned(), timeout };
        let _: wire::StopContainerResponse = self.ask("StopContainer", request, timeout).await?;
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = wire::RemoveContainerRequest { container_id: id.to_owned() };
        let _: wire::RemoveContainerResponse = self.ask("RemoveContainer", request, 0).await?;
        Ok(())
    }
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<Container>, CriError> {
        let request = wire::ListContainersRequest { filter: Some(filter.into()) };
        let answer: wire::ListContainersResponse = self.ask("ListContainers", request, 0).await?;
        Ok(all(answer.containers))
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let request = wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer: wire::ContainerStatusResponse = self.ask("ContainerStatus", request, 0).await?;
        answer.status.map(Into::into).ok_or_else(|| empty("status"))
    }
    async fn reopen_container_log(&self, id: &str) -> Result<(), CriError> {
        let request = wire::ReopenContainerLogRequest { container_id: id.to_owned() };
        let _: wire::ReopenContainerLogResponse = self.ask("ReopenContainerLog", request, 0).await?;
        Ok(())
    }
    async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, CriError> {
        let request = wire::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        let method = "runtime.v1.RuntimeService/ExecSync";
        // A command without a time limit is waited for.
        let limit = u64::try_from(timeout).ok().filter(|t| *t > 0).map(|t| LIMIT + Duration::from_secs(t));
        let answer: wire::ExecSyncResponse = self.runtime.call(method, &request, limit).await?;
        Ok(ExecSyncResponse {
            stdout: answer.stdout.into(),
            stderr: answer.stderr.into(),
            exit_code: answer.exit_code,
        })
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, CriError> {
        let request = wire::ContainerStatsRequest { container_id: id.to_owned() };
        let answer: wire::ContainerStatsResponse = self.ask("ContainerStats", request, 0).await?;
        answer.stats.map(Into::into).ok_or_else(|| empty("stats"))
    }
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, CriError> {
        let request = wire::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        match self.ask::<_, wire::PodSandboxStatsResponse>("PodSandboxStats", request, 0).await {
            Ok(answer) => answer.stats.map(Into::into).ok_or_else(|| empty("stats")),
            Err(e) if e.code == Code::Unimplemented => {
                let filter =
                    wire::ContainerStatsFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
                let request = wire::ListContainerStatsRequest { filter: Some(filter) };
                let answer: wire::ListContainerStatsResponse =
                    self.ask("ListContainerStats", request, 0).await?;
                Ok(sum(id, all(answer.stats)))
            }
            Err(e) => Err(e.into()),
        }
    }
    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<(), CriError> {
        let request = wire::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources.into()),
            ..Default::default()
        };
        let _: wire::UpdateContainerResourcesResponse =
            self.ask("UpdateContainerResources", request, 0).await?;
        Ok(())
    }
    async fn update_pod_sandbox_resources(
        &self,
        id: &str,
        resources: LinuxResources,
    ) -> Result<(), CriError> {
        let request = wire::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead: None,
            resources: Some(resources.into()),
        };
        match self
            .ask::<_, wire::UpdatePodSandboxResourcesResponse>("UpdatePodSandboxResources", request, 0)
            .await
        {
            // Runtimes before CRI 1.32 are not told: pods' limits are none of theirs.
            Err(e) if e.code == Code::Unimplemented => Ok(()),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(()),
        }
    }
    async fn update_runtime_config(&self, pod_cidr: &str) -> Result<(), CriError> {
        let network_config = Some(wire::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let runtime_config = Some(wire::RuntimeConfig { network_config });
        let request = wire::UpdateRuntimeConfigRequest { runtime_config };
        let _: wire::UpdateRuntimeConfigResponse = self.ask("UpdateRuntimeConfig", request, 0).await?;
        Ok(())
    }
    async fn container_events(&self) -> Result<mpsc::Receiver<ContainerEventResponse>, CriError> {
        let method = "runtime.v1.RuntimeService/GetContainerEvents";
        let request = wire::GetEventsRequest::default();
        let mut stream = match self.runtime.stream(method, &request).await {
            Ok(stream) => stream,
            Err(e) if e.code == Code::Unimplemented => return Ok(self.polled()),
            Err(e) => return Err(e.into()),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let client = self.clone();
        tokio::spawn(async move {
            loop {
                let next: Result<Option<wire::ContainerEventResponse>, Status> = tokio::select! {
                    next = stream.next() => next,
                    () = sender.closed() => return,
                };
                match next {
                    Ok(Some(event)) => {
                        if sender.send(event.into()).await.is_err() {
                            return;
                        }
                    }
                    // Some runtimes say only when it is read that they have no such stream.
                    Err(e) if e.code == Code::Unimplemented => {
                        let mut polled = client.polled();
                        while let Some(event) = polled.recv().await {
                            if sender.send(event).await.is_err() {
                                return;
                            }
                        }
                        return;
                    }
                    other => {
                        debug!(?other, "the runtime's events have ended");
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }
}

impl CriClient {
    fn polled(&self) -> mpsc::Receiver<ContainerEventResponse> {
        poll::watch(Arc::new(self.clone()), QUEUE)
    }
}

#[async_trait]
impl ImageService for CriClient {
    async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        let request = wire::ListImagesRequest::default();
        let answer: wire::ListImagesResponse = self.ask_images("ListImages", request, Some(LIMIT)).await?;
        Ok(all(answer.images))
    }
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>, CriError> {
        let request = wire::ImageStatusRequest { image: Some(image.clone().into()), verbose: false };
        let answer: wire::ImageStatusResponse = self.ask_images("ImageStatus", request, Some(LIMIT)).await?;
        Ok(answer.image.map(Into::into))
    }
    async fn pull_image(&self, image: &ImageSpec, auth: Option<AuthConfig>) -> Result<String, CriError> {
        let request = wire::PullImageRequest {
            image: Some(image.clone().into()),
            auth: auth.map(Into::into),
            sandbox_config: None,
        };
        // The runtime itself gives up when no more comes.
        let answer: wire::PullImageResponse = self.ask_images("PullImage", request, None).await?;
        Ok(answer.image_ref)
    }
    async fn remove_image(&self, image: &ImageSpec) -> Result<(), CriError> {
        let request = wire::RemoveImageRequest { image: Some(image.clone().into()) };
        let _: wire::RemoveImageResponse = self.ask_images("RemoveImage", request, Some(LIMIT)).await?;
        Ok(())
    }
    async fn image_fs_info(&self) -> Result<FilesystemUsage, CriError> {
        let request = wire::ImageFsInfoRequest::default();
        let answer: wire::ImageFsInfoResponse = self.ask_images("ImageFsInfo", request, Some(LIMIT)).await?;
        answer.image_filesystems.into_iter().next().map(Into::into).ok_or_else(|| empty("file system"))
    }
}

#[async_trait]
impl StreamUrls for CriClient {
    async fn command_url(&self, job: Job, wanted: Wanted) -> Result<String, CriError> {
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        match job {
            Job::Exec(exec) => {
                let (container_id, cmd) = (exec.container_id, exec.command);
                let request = wire::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
                let answer: wire::ExecResponse = self.ask("Exec", request, 0).await?;
                Ok(answer.url)
            }
            Job::Attach(container_id) => {
                let request = wire::AttachRequest { container_id, stdin, tty, stdout, stderr };
                let answer: wire::AttachResponse = self.ask("Attach", request, 0).await?;
                Ok(answer.url)
            }
        }
    }
    async fn port_forward_url(&self, sandbox_id: &str) -> Result<String, CriError> {
        let request = wire::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port: Vec::new() };
        let answer: wire::PortForwardResponse = self.ask("PortForward", request, 0).await?;
        Ok(answer.url)
    }
}
