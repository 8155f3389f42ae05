//! Serves CRI v1 on a Unix socket: every call of `runtime.v1` is a row here, carried out by the service traits.

mod calls;
mod metrics;

use std::future::Future;
use std::sync::Arc;

use coracle_grpc::{Answer, Bytes, Message, Service};
use coracle_stdx::Clock;
use futures::future::BoxFuture;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::convert::{EVENTS, check_users, container_stats, filesystem, sandbox_stats};
use crate::remote::{Job, Wanted};
use crate::service::{CriError, ImageService, RuntimeService};
use crate::stream_server::StreamServer;
use crate::streaming::ExecRequest;
use crate::v1::{self, ContainerState};
use crate::wire::{self, *};

/// Length of a whole id; shorter ones are beginnings, as people type them.
const ID_LENGTH: usize = 64;
/// Answers of a stream that may be under way unread.
const WINDOW: usize = 64;

type Outcome<T> = Result<T, CriError>;

/// CRI v1 for clients in other processes.
pub struct CriServer {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    streams: Arc<StreamServer>,
    clock: Clock,
}

fn missing(what: &str) -> CriError {
    CriError::InvalidArgument(format!("the request has no {what}"))
}

/// The one id that begins so; the beginning itself when there is none or more than one.
fn complete<'a>(beginning: &str, mut ids: impl Iterator<Item = &'a str>) -> String {
    let found = ids.find(|id| id.starts_with(beginning));
    found.filter(|_| !ids.any(|id| id.starts_with(beginning))).unwrap_or(beginning).to_owned()
}

impl CriServer {
    /// A server of these services.
    pub fn new(
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        streams: Arc<StreamServer>,
        clock: Clock,
    ) -> Self {
        Self { runtime, images, streams, clock }
    }

    /// Serves until dropped; calls that have begun are carried to their end.
    pub async fn serve(self, listener: UnixListener) {
        let streams = self.streams.clone().serve();
        tokio::select! {
            () = coracle_grpc::serve(listener, Arc::new(self)) => {}
            () = streams => {}
        }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    async fn sandbox_id(&self, id: String) -> Outcome<String> {
        if id.len() >= ID_LENGTH || id.is_empty() {
            return Ok(id);
        }
        let all = self.runtime.list_pod_sandbox(v1::PodSandboxFilter::default()).await?;
        Ok(complete(&id, all.iter().map(|s| s.id.as_str())))
    }

    async fn container_id(&self, id: String) -> Outcome<String> {
        if id.len() >= ID_LENGTH || id.is_empty() {
            return Ok(id);
        }
        let all = self.runtime.list_containers(v1::ContainerFilter::default()).await?;
        Ok(complete(&id, all.iter().map(|c| c.id.as_str())))
    }

    async fn dispatch(self: Arc<Self>, service: &str, name: &str, q: Bytes) -> Option<Answer> {
        match service {
            "runtime.v1.RuntimeService" => match self.sandbox_call(name, q.clone()).await {
                Some(answer) => Some(answer),
                None => match self.container_call(name, q.clone()).await {
                    Some(answer) => Some(answer),
                    None => self.runtime_call(name, q).await,
                },
            },
            "runtime.v1.ImageService" => self.image_call(name, q).await,
            _ => None,
        }
    }

    async fn sandbox_call(self: &Arc<Self>, name: &str, q: Bytes) -> Option<Answer> {
        let (s, runtime) = (self.clone(), self.runtime.clone());
        Some(match name {
            "RunPodSandbox" => call(q, |q| s.run_pod_sandbox(q)).await,
            "StopPodSandbox" => {
                call(q, |q: StopPodSandboxRequest| async move {
                    runtime.stop_pod_sandbox(&s.sandbox_id(q.pod_sandbox_id).await?).await?;
                    Ok(StopPodSandboxResponse {})
                })
                .await
            }
            "RemovePodSandbox" => {
                call(q, |q: RemovePodSandboxRequest| async move {
                    runtime.remove_pod_sandbox(&s.sandbox_id(q.pod_sandbox_id).await?).await?;
                    Ok(RemovePodSandboxResponse {})
                })
                .await
            }
            "PodSandboxStatus" => call(q, |q| s.pod_sandbox_status(q)).await,
            "ListPodSandbox" => {
                call(q, |q: ListPodSandboxRequest| async move {
                    Ok(ListPodSandboxResponse { items: s.sandboxes(q.filter).await? })
                })
                .await
            }
            "StreamPodSandboxes" => {
                once(q, |q: StreamPodSandboxesRequest| async move {
                    Ok(StreamPodSandboxesResponse { pod_sandboxes: s.sandboxes(q.filter).await? })
                })
                .await
            }
            "PortForward" => call(q, |q| s.port_forward(q)).await,
            "PodSandboxStats" => {
                call(q, |q: PodSandboxStatsRequest| async move {
                    let id = s.sandbox_id(q.pod_sandbox_id).await?;
                    let filter = v1::PodSandboxFilter { id: id.clone(), ..Default::default() };
                    let absent = || CriError::NotFound(format!("sandbox {id:?}: not found"));
                    let of = runtime.list_pod_sandbox(filter).await?.pop().ok_or_else(absent)?;
                    Ok(PodSandboxStatsResponse { stats: Some(s.figures_of_sandbox(of).await?) })
                })
                .await
            }
            "ListPodSandboxStats" => {
                call(q, |q: ListPodSandboxStatsRequest| async move {
                    Ok(ListPodSandboxStatsResponse { stats: s.figures_of_sandboxes(q.filter).await? })
                })
                .await
            }
            "StreamPodSandboxStats" => {
                once(q, |q: StreamPodSandboxStatsRequest| async move {
                    let pod_sandbox_stats = s.figures_of_sandboxes(q.filter).await?;
                    Ok(StreamPodSandboxStatsResponse { pod_sandbox_stats })
                })
                .await
            }
            "UpdatePodSandboxResources" => {
                call(q, |q: UpdatePodSandboxResourcesRequest| async move {
                    let id = s.sandbox_id(q.pod_sandbox_id).await?;
                    let resources = q.resources.ok_or_else(|| missing("resources"))?;
                    runtime.update_pod_sandbox_resources(&id, resources.into()).await?;
                    Ok(UpdatePodSandboxResourcesResponse {})
                })
                .await
            }
            _ => return None,
        })
    }

    async fn container_call(self: &Arc<Self>, name: &str, q: Bytes) -> Option<Answer> {
        let (s, runtime) = (self.clone(), self.runtime.clone());
        Some(match name {
            "CreateContainer" => call(q, |q| s.create_container(q)).await,
            "StartContainer" => {
                call(q, |q: StartContainerRequest| async move {
                    runtime.start_container(&s.container_id(q.container_id).await?).await?;
                    Ok(StartContainerResponse {})
                })
                .await
            }
            "StopContainer" => {
                call(q, |q: StopContainerRequest| async move {
                    runtime.stop_container(&s.container_id(q.container_id).await?, q.timeout).await?;
                    Ok(StopContainerResponse {})
                })
                .await
            }
            "RemoveContainer" => {
                call(q, |q: RemoveContainerRequest| async move {
                    runtime.remove_container(&s.container_id(q.container_id).await?).await?;
                    Ok(RemoveContainerResponse {})
                })
                .await
            }
            "ListContainers" => {
                call(q, |q: ListContainersRequest| async move {
                    Ok(ListContainersResponse { containers: s.containers(q.filter).await? })
                })
                .await
            }
            "StreamContainers" => {
                once(q, |q: StreamContainersRequest| async move {
                    Ok(StreamContainersResponse { containers: s.containers(q.filter).await? })
                })
                .await
            }
            "ContainerStatus" => call(q, |q| s.container_status(q)).await,
            "UpdateContainerResources" => {
                call(q, |q: UpdateContainerResourcesRequest| async move {
                    let id = s.container_id(q.container_id).await?;
                    let resources = q.linux.ok_or_else(|| missing("resources"))?;
                    runtime.update_container_resources(&id, resources.into()).await?;
                    Ok(UpdateContainerResourcesResponse {})
                })
                .await
            }
            "ReopenContainerLog" => {
                call(q, |q: ReopenContainerLogRequest| async move {
                    runtime.reopen_container_log(&s.container_id(q.container_id).await?).await?;
                    Ok(ReopenContainerLogResponse {})
                })
                .await
            }
            "ExecSync" => {
                call(q, |q: ExecSyncRequest| async move {
                    let id = s.container_id(q.container_id).await?;
                    let done = runtime.exec_sync(&id, q.cmd, q.timeout).await?;
                    let (stdout, stderr) = (done.stdout.into(), done.stderr.into());
                    Ok(ExecSyncResponse { stdout, stderr, exit_code: done.exit_code })
                })
                .await
            }
            "Exec" => call(q, |q| s.exec(q)).await,
            "Attach" => call(q, |q| s.attach(q)).await,
            "ContainerStats" => {
                call(q, |q: ContainerStatsRequest| async move {
                    let id = s.container_id(q.container_id).await?;
                    let filter = v1::ContainerFilter { id: id.clone(), ..Default::default() };
                    let absent = || CriError::NotFound(format!("container {id:?}: not found"));
                    let of = runtime.list_containers(filter).await?.pop().ok_or_else(absent)?;
                    Ok(ContainerStatsResponse { stats: Some(s.figures_of_container(of).await?) })
                })
                .await
            }
            "ListContainerStats" => {
                call(q, |q: ListContainerStatsRequest| async move {
                    Ok(ListContainerStatsResponse { stats: s.figures_of_containers(q.filter).await? })
                })
                .await
            }
            "StreamContainerStats" => {
                once(q, |q: StreamContainerStatsRequest| async move {
                    let container_stats = s.figures_of_containers(q.filter).await?;
                    Ok(StreamContainerStatsResponse { container_stats })
                })
                .await
            }
            _ => return None,
        })
    }

    async fn runtime_call(self: &Arc<Self>, name: &str, q: Bytes) -> Option<Answer> {
        let (s, runtime) = (self.clone(), self.runtime.clone());
        Some(match name {
            "Version" => {
                call(q, |_: VersionRequest| async move {
                    Ok(wire::VersionResponse::from(runtime.version().await?))
                })
                .await
            }
            "Status" => {
                call(q, |q: StatusRequest| async move {
                    let mut status = wire::StatusResponse::from(runtime.status().await?);
                    if q.verbose {
                        let version = runtime.version().await?;
                        status.info.insert("config".into(), as_json(&version));
                    }
                    Ok(status)
                })
                .await
            }
            "UpdateRuntimeConfig" => {
                call(q, |q: UpdateRuntimeConfigRequest| async move {
                    let cidr = q.runtime_config.and_then(|c| c.network_config).map(|n| n.pod_cidr);
                    runtime.update_runtime_config(&cidr.unwrap_or_default()).await?;
                    Ok(UpdateRuntimeConfigResponse {})
                })
                .await
            }
            "RuntimeConfig" => {
                call(q, |_: RuntimeConfigRequest| async move {
                    // CGROUPFS: cgroups are made as directories, without systemd.
                    let linux = Some(LinuxRuntimeConfiguration { cgroup_driver: 1 });
                    Ok(RuntimeConfigResponse { linux })
                })
                .await
            }
            "ListMetricDescriptors" => {
                call(q, |_: ListMetricDescriptorsRequest| async move {
                    Ok(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
                })
                .await
            }
            "ListPodSandboxMetrics" => {
                call(q, |_: ListPodSandboxMetricsRequest| async move {
                    Ok(ListPodSandboxMetricsResponse { pod_metrics: s.metrics().await? })
                })
                .await
            }
            "StreamPodSandboxMetrics" => {
                once(q, |_: StreamPodSandboxMetricsRequest| async move {
                    Ok(StreamPodSandboxMetricsResponse { pod_sandbox_metrics: s.metrics().await? })
                })
                .await
            }
            "GetContainerEvents" => s.events().await,
            _ => return None,
        })
    }

    async fn image_call(self: &Arc<Self>, name: &str, q: Bytes) -> Option<Answer> {
        let (s, images) = (self.clone(), self.images.clone());
        Some(match name {
            "ListImages" => {
                call(q, |q: ListImagesRequest| async move {
                    Ok(ListImagesResponse { images: s.images(q.filter).await? })
                })
                .await
            }
            "StreamImages" => {
                once(q, |q: StreamImagesRequest| async move {
                    Ok(StreamImagesResponse { images: s.images(q.filter).await? })
                })
                .await
            }
            "ImageStatus" => {
                call(q, |q: ImageStatusRequest| async move {
                    let image = images.image_status(&named(q.image)?).await?;
                    let mut info = coracle_grpc::Map::new();
                    if let Some(image) = image.as_ref().filter(|_| q.verbose) {
                        info.insert("info".into(), as_json(image));
                    }
                    Ok(ImageStatusResponse { image: image.map(Into::into), info })
                })
                .await
            }
            "PullImage" => {
                call(q, |q: PullImageRequest| async move {
                    let image = named(q.image)?;
                    let image_ref = images.pull_image(&image, q.auth.map(Into::into)).await?;
                    Ok(PullImageResponse { image_ref })
                })
                .await
            }
            "RemoveImage" => {
                call(q, |q: RemoveImageRequest| async move {
                    images.remove_image(&named(q.image)?).await?;
                    Ok(RemoveImageResponse {})
                })
                .await
            }
            "ImageFsInfo" => {
                call(q, |_: ImageFsInfoRequest| async move {
                    let usage = filesystem(images.image_fs_info().await?, s.now());
                    let container_filesystems = vec![usage.clone()];
                    Ok(ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems })
                })
                .await
            }
            _ => return None,
        })
    }
}

/// The image of a request.
fn named(image: Option<wire::ImageSpec>) -> Outcome<v1::ImageSpec> {
    image.filter(|i| !i.image.is_empty()).map(Into::into).ok_or_else(|| missing("image"))
}

fn as_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// A call with one answer.
async fn call<Q, A, F>(q: Bytes, f: impl FnOnce(Q) -> F) -> Answer
where
    Q: Message,
    A: Message,
    F: Future<Output = Outcome<A>>,
{
    Answer::unary(q, f).await
}

/// A call whose answer may come in parts, given as one: the whole list.
async fn once<Q, A, F>(q: Bytes, f: impl FnOnce(Q) -> F) -> Answer
where
    Q: Message,
    A: Message,
    F: Future<Output = Outcome<A>>,
{
    let list = match call(q, f).await {
        Answer::Message(list) => list,
        failed => return failed,
    };
    let (sender, receiver) = mpsc::channel(1);
    // There is room for it, and the receiver is there.
    let _ = sender.try_send(Ok(list));
    Answer::Stream(receiver)
}

impl Service for CriServer {
    fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let (service, name) = method.rsplit_once('/').unwrap_or(("", &method));
            let answer = self.dispatch(service, name, request).await;
            answer.unwrap_or_else(|| Answer::unimplemented(&method))
        })
    }
}
