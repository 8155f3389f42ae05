//! Pod garbage collection: pods of nodes that are gone, finished pods beyond a threshold, and pods that were
//! deleted before they were scheduled.

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
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;

use crate::node_lifecycle::pods_by_node;
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, ignore_not_found, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "pod-garbage-collector", workers: 1 };

/// A node must be gone this long: it may just be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const FINISHED: &str = "finished";
/// Namespaces of keys that are no pods; no namespace has such a name.
const NODE_KEY: &str = "/node";
const FINISHED_KEY: &str = "/finished";

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
            if let (Change::Deleted(_), Some(name)) = (change, &change.object().metadata.name) {
                enqueue(ObjectKey::new(NODE_KEY, name));
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
            FINISHED_KEY => {
                if self.finished.count(FINISHED) > self.threshold {
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

    /// Removes a pod for good. One that was disrupted is marked as failed first.
    async fn delete(&self, pod: &Pod, disrupted: Option<&str>) -> Result<(), Status> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let name = name_of(pod);
        if let Some(why) = disrupted.filter(|_| !podutil::is_terminal(pod)) {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": why,
                "lastTransitionTime": Time(self.clock.now()),
            });
            let patch = json!({ "status": { "phase": "Failed", "conditions": [condition] } });
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
    use crate::testing::{context_at, eventually, test_clock};

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
}
