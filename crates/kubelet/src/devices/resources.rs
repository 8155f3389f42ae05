//! The pod resources API: which pod has which devices, CPUs and memory, for monitoring agents on the node.
//! See <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>.

use std::sync::Arc;

use coracle_grpc::{Answer, Bytes, Code, Service, Status};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::wire::*;
use crate::context::Context;
use crate::cpus::CpuSet;
use crate::manager::Pods;
use crate::memory_manager::Block;
use crate::names;
use crate::pod::Role;

struct Lister {
    cx: Arc<Context>,
    pods: Pods,
}

/// Answers on `<root>/pod-resources/kubelet.sock` until dropped.
pub async fn serve(cx: Arc<Context>, pods: Pods) {
    let path = cx.config.root.join("pod-resources/kubelet.sock");
    match coracle_grpc::listen(&path) {
        Ok(listener) => {
            coracle_grpc::serve(listener, Arc::new(Lister { cx, pods })).await;
        }
        Err(error) => warn!(%error, path = %path.display(), "pod resources are not told"),
    }
}

impl Lister {
    fn of(&self, pod: &Pod) -> PodResources {
        let book = self.cx.devices.book.lock();
        let containers =
            crate::pod::containers(pod).filter(|(_, role)| matches!(role, Role::App | Role::Sidecar));
        let containers = containers.map(|(c, _)| {
            let given = book.given(names::uid(pod), &c.name).into_iter();
            let devices = given.map(|(resource, ids)| {
                let near = book.devices(&resource).filter(|(id, _)| ids.contains(*id));
                let mut nodes: Vec<i64> = near.flat_map(|(_, d)| d.nodes.clone()).collect();
                nodes.sort_unstable();
                nodes.dedup();
                ContainerDevices {
                    resource_name: resource,
                    device_ids: ids.into_iter().collect(),
                    topology: topology(nodes),
                }
            });
            let uid = names::uid(pod);
            ContainerResources {
                name: c.name.clone(),
                devices: devices.collect(),
                cpu_ids: numbers(&self.cx.cpus.own(uid, &c.name)),
                memory: self.cx.memory_manager.blocks(uid, &c.name).into_iter().map(memory).collect(),
            }
        });
        PodResources {
            name: names::name(pod).to_owned(),
            namespace: names::namespace(pod).to_owned(),
            containers: containers.collect(),
        }
    }

    fn allocatable(&self) -> AllocatableResourcesResponse {
        let book = self.cx.devices.book.lock();
        let mut devices = Vec::new();
        for resource in book.resources() {
            for (id, device) in book.devices(resource).filter(|(_, d)| d.healthy) {
                devices.push(ContainerDevices {
                    resource_name: resource.clone(),
                    device_ids: vec![id.clone()],
                    topology: topology(device.nodes.clone()),
                });
            }
        }
        AllocatableResourcesResponse {
            devices,
            cpu_ids: numbers(&self.cx.cpus.allocatable()),
            memory: self.cx.memory_manager.allocatable().into_iter().map(memory).collect(),
        }
    }

    fn get(&self, q: &GetPodResourcesRequest) -> Result<GetPodResourcesResponse, Status> {
        let pod = self.pods.find(&q.pod_namespace, &q.pod_name).ok_or_else(|| {
            let text = format!("pod {} in namespace {} not found", q.pod_name, q.pod_namespace);
            Status::new(Code::NotFound, text)
        })?;
        Ok(GetPodResourcesResponse { pod_resources: Some(self.of(&pod.pod)) })
    }
}

fn numbers(cpus: &CpuSet) -> Vec<i64> {
    cpus.numbers().map(i64::from).collect()
}

fn memory(block: Block) -> ContainerMemory {
    let nodes = block.nodes.into_iter().map(i64::from).collect();
    ContainerMemory { memory_type: block.kind, size: block.size, topology: topology(nodes) }
}

fn topology(nodes: Vec<i64>) -> Option<TopologyInfo> {
    let nodes: Vec<NumaNode> = nodes.into_iter().map(|id| NumaNode { id }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

impl Service for Lister {
    fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match method.as_str() {
                "v1.PodResourcesLister/List" => {
                    Answer::unary(request, |_: Empty| async move {
                        let all = self.pods.all();
                        let pod_resources = all.iter().map(|h| self.of(&h.pod)).collect();
                        Ok::<_, Status>(ListPodResourcesResponse { pod_resources })
                    })
                    .await
                }
                "v1.PodResourcesLister/GetAllocatableResources" => {
                    Answer::unary(request, |_: Empty| async move { Ok::<_, Status>(self.allocatable()) })
                        .await
                }
                "v1.PodResourcesLister/Get" => Answer::unary(request, |q| async move { self.get(&q) }).await,
                _ => Answer::unimplemented(&method),
            }
        })
    }
}
