//! Pod garbage collection: pods of nodes that are gone, finished pods beyond a threshold, pods that were deleted before
//! they were scheduled, and pods that cannot end because their node is out of service.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, Index, Informer, PatchKind};
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;

use crate::node_lifecycle::{pods_by_node, ready_status};
use crate::pods::disruption_target;
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, ignore_not_found, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "pod-garbage-collector", workers: 1 };

/// A node must be gone this long: it may just be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const FINISHED: &str = "finished";
/// Taint of a node that an administrator knows to be down for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Namespaces of keys that are no pods; no namespace has such a name.
const NODE_KEY: &str = "/node";
const FINISHED_KEY: &str = "/finished";
const OUT_OF_SERVICE_KEY: &str = "/out-of-service";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (nodes, pods) = (cx.informers.get::<Node>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Collect {
        nodes: nodes.clone(),
        pods: pods.clone(),
        by_node: pods.index("node", pods_by_node),
        finished: pods.index(FINISHED, finished_keys),
        node_api: client.api(),
        api: client.api(),
        clock: cx.clock.clone(),
        threshold: cx.config.terminated_pod_threshold,
        gone: Mutex::default(),
    });
    let known = nodes.clone();
    Controller::new(DESCRIPTOR)
        .watch(&nodes, |change, enqueue| {
            let Some(name) = &change.object().metadata.name else { return };
            match change {
                Change::Deleted(_) => enqueue(ObjectKey::new(NODE_KEY, name)),
                Change::Added(node) | Change::Modified { new: node, .. } if is_out_of_service(node) => {
                    enqueue(ObjectKey::new(OUT_OF_SERVICE_KEY, name));
                }
                _ => {}
            }
        })
        .watch(&pods, move |change, enqueue| wake(&known, change, enqueue))
        .run(reconciler)
        .boxed()
}

fn finished_keys(pod: &Pod) -> Vec<String> {
    let finished = podutil::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none();
    finished.then(|| FINISHED.to_owned()).into_iter().collect()
}

fn wake(nodes: &Informer<Node>, change: &Change<Pod>, enqueue: Enqueue<'_>) {
    let (old, pod) = match change {
        Change::Added(pod) => (None, pod),
        Change::Modified { old, new } => (Some(old), new),
        Change::Deleted(_) => return,
    };
    let is_new = |was: fn(&Pod) -> bool| was(pod) && !old.is_some_and(|old| was(old));
    if is_new(podutil::is_terminal) {
        enqueue(ObjectKey::new(FINISHED_KEY, ""));
    }
    if is_new(is_leaving_unscheduled) {
        enqueue(ObjectKey::of(&pod.metadata));
    }
    if let Some(name) = podutil::node_name(pod)
        && is_new(|pod| pod.metadata.deletion_timestamp.is_some())
        && nodes.get("", name).is_some_and(|node| is_out_of_service(&node))
    {
        enqueue(ObjectKey::new(OUT_OF_SERVICE_KEY, name));
    }
    if let Some(node) = podutil::node_name(pod)
        && is_new(|pod| podutil::node_name(pod).is_some())
        && nodes.get("", node).is_none()
    {
        enqueue(ObjectKey::new(NODE_KEY, node));
    }
}

fn is_leaving_unscheduled(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && podutil::node_name(pod).is_none()
}

/// Whether nothing on a node ends any more, as it is neither ready nor coming back.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or(&[]);
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) && ready_status(node) != "True"
}

struct Collect {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    by_node: Index<Pod>,
    finished: Index<Pod>,
    node_api: Api<Node>,
    api: Api<Pod>,
    clock: Clock,
    threshold: usize,
    /// Nodes that are gone, since when.
    gone: Mutex<HashMap<String, Timestamp>>,
}

#[async_trait]
impl Reconciler for Collect {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        match key.namespace.as_str() {
            NODE_KEY => self.collect_orphans(&key.name).await,
            OUT_OF_SERVICE_KEY => {
                if self.nodes.get("", &key.name).is_some_and(|node| is_out_of_service(&node)) {
                    let stuck = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_some();
                    for pod in self.by_node.get(&key.name).iter().filter(stuck) {
                        self.delete(pod, None).await?;
                    }
                }
                Ok(Action::AwaitChange)
            }
            FINISHED_KEY => {
                if self.threshold > 0 && self.finished.count(FINISHED) > self.threshold {
                    for pod in surplus(self.finished.get(FINISHED), self.threshold) {
                        self.delete(&pod, None).await?;
                    }
                }
                Ok(Action::AwaitChange)
            }
            namespace => {
                let pod = self.pods.get(namespace, &key.name);
                if let Some(pod) = pod.filter(|pod| is_leaving_unscheduled(pod)) {
                    self.delete(&pod, None).await?;
                }
                Ok(Action::AwaitChange)
            }
        }
    }
}

/// The finished pods to remove: evicted ones first, then the oldest.
fn surplus(mut finished: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    finished.sort_by_key(|pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        (reason != Some("Evicted"), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone())
    });
    finished.truncate(finished.len().saturating_sub(threshold));
    finished
}

impl Collect {
    async fn collect_orphans(&self, node: &str) -> Result<Action, Status> {
        let orphans = self.by_node.get(node);
        if self.nodes.get("", node).is_some() || orphans.is_empty() {
            self.gone.lock().remove(node);
            return Ok(Action::AwaitChange);
        }
        let now = self.clock.now();
        let since = *self.gone.lock().entry(node.to_owned()).or_insert(now);
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if waited < QUARANTINE {
            return Ok(Action::RequeueAfter(QUARANTINE - waited));
        }
        match self.node_api.get("", node).await {
            Ok(_) => return Ok(Action::AwaitChange),
            Err(status) if status.reason() == Reason::NotFound => {}
            Err(status) => return Err(status),
        }
        for pod in orphans {
            self.delete(&pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(Action::AwaitChange)
    }

    /// Removes a pod for good; nobody else would say of it that it has ended. `disrupted` is why it was disrupted.
    async fn delete(&self, pod: &Pod, disrupted: Option<&str>) -> Result<(), Status> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let name = name_of(pod);
        if !podutil::is_terminal(pod) {
            let condition = disrupted.and_then(|why| {
                let now = self.clock.now();
                disruption_target(pod, "DeletionByPodGC", why, now)
            });
            let mut status = json!({ "phase": "Failed", "observedGeneration": pod.metadata.generation });
            if let Some(condition) = condition {
                status["conditions"] = json!([condition]);
            }
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
            let patched = self.api.patch_status(namespace, name, PatchKind::Strategic, patch).await;
            ignore_not_found(patched)?;
        }
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: pod.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        ignore_not_found(self.api.delete(namespace, name, options).await)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::ListOptions;
    use coracle_client::testing::FakeTransport;

    use super::*;
    use crate::testing::{context, context_at, eventually, test_clock};

    fn pod(name: &str, node: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "ns" },
            "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase },
        }))
        .expect("a pod")
    }

    #[test]
    fn the_oldest_finished_pods_beyond_the_threshold_go() {
        let pods = ["a", "b", "c"].map(|name| Arc::new(pod(name, "n", "Failed")));
        let gone = surplus(pods.to_vec(), 2);
        assert_eq!(gone.iter().map(|pod| name_of(&**pod)).collect::<Vec<_>>(), ["a"]);
        assert!(surplus(pods.to_vec(), 3).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_a_node_that_is_gone_are_removed_after_the_quarantine() {
        let clock = test_clock();
        let fake = FakeTransport::new(clock.clone());
        let client = fake.client();
        let pods = client.api::<Pod>();
        pods.create("ns", pod("lost", "gone", "Running")).await.expect("created");
        pods.create("ns", pod("kept", "there", "Running")).await.expect("created");
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "there" } });
        let node: Node = serde_json::from_value(node).expect("a node");
        client.api::<Node>().create("", node).await.expect("created");
        let task = tokio::spawn(run(&context_at(&fake, clock)));
        tokio::time::sleep(Duration::from_secs(30)).await;
        let names = || async {
            let all = pods.list("ns", ListOptions::default()).await.expect("listed");
            all.iter().map(|pod| name_of(&**pod).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names().await, ["kept", "lost"]);
        eventually(|| async { names().await == ["kept"] }).await;
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_end_on_a_node_out_of_service_are_marked_failed_and_removed() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let (pods, nodes) = (client.api::<Pod>(), client.api::<Node>());
        let down = json!({ "metadata": { "name": "down" },
            "spec": { "taints": [{ "key": OUT_OF_SERVICE, "effect": "NoExecute" }] } });
        nodes.create("", serde_json::from_value(down).expect("a node")).await.expect("created");
        let mut stuck = pod("stuck", "down", "Running");
        stuck.metadata.finalizers = Some(vec!["example.com/seen".to_owned()]);
        pods.create("ns", stuck).await.expect("created");
        pods.create("ns", pod("stays", "down", "Running")).await.expect("created");
        let task = tokio::spawn(run(&context(&fake)));
        pods.delete("ns", "stuck", DeleteOptions::default()).await.expect("deleted");
        let phase = |name: &'static str| {
            let pods = pods.clone();
            async move { podutil::phase(&pods.get("ns", name).await.expect("there")).to_owned() }
        };
        eventually(|| async { phase("stuck").await == "Failed" }).await;
        assert_eq!(phase("stays").await, "Running", "nobody deleted it");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_threshold_of_zero_keeps_all_finished_pods() {
        let fake = FakeTransport::new(Clock::system());
        let pods = fake.client().api::<Pod>();
        let node = json!({ "metadata": { "name": "n" } });
        let node = serde_json::from_value(node).expect("a node");
        fake.client().api::<Node>().create("", node).await.expect("created");
        pods.create("ns", pod("done", "n", "Succeeded")).await.expect("created");
        let mut cx = context(&fake);
        let mut config = (*cx.config).clone();
        config.terminated_pod_threshold = 0;
        cx.config = Arc::new(config);
        let task = tokio::spawn(run(&cx));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(pods.list("ns", ListOptions::default()).await.expect("listed").len(), 1);
        task.abort();
    }
}
