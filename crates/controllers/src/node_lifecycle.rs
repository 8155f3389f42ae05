//! Node lifecycle: marks nodes whose kubelet fell silent, taints nodes by their conditions, and lets taints
//! evict pods.

mod decide;
mod eviction;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Index, Informer, ListOptions, PatchKind};
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeSpec, ObjectReference, Pod};
use parking_lot::Mutex;
use serde_json::json;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of, uid_of};
use decide::{Heartbeat, Verdict};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "node-controller", workers: 2 };

pub(crate) use eviction::run as run_eviction;

const LEASES: &str = "kube-node-lease";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let nodes = cx.informers.get::<Node>();
    let leases = cx.informers.filtered::<Lease>(LEASES, ListOptions::default());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Nodes {
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: cx.informers.get::<Pod>().index("node", pods_by_node),
        api: client.api(),
        pod_api: client.api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        grace: cx.config.node_monitor_grace_period,
        startup_grace: cx.config.node_startup_grace_period,
        heartbeats: Mutex::default(),
        known: Mutex::default(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&nodes)
        .watch(&leases, |change, enqueue| {
            if let (false, Some(name)) =
                (matches!(change, Change::Deleted(_)), &change.object().metadata.name)
            {
                enqueue(ObjectKey::new("", name));
            }
        })
        .run(reconciler)
        .boxed()
}

/// Index of pods by the node they are bound to.
pub(crate) fn pods_by_node(pod: &Pod) -> Vec<String> {
    podutil::node_name(pod).map(str::to_owned).into_iter().collect()
}

struct Nodes {
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Index<Pod>,
    api: Api<Node>,
    pod_api: Api<Pod>,
    events: EventRecorder,
    clock: Clock,
    grace: std::time::Duration,
    startup_grace: std::time::Duration,
    /// By node: when its kubelet was last heard of.
    heartbeats: Mutex<HashMap<String, Heartbeat>>,
    /// Uids of the nodes that were seen.
    known: Mutex<HashMap<String, String>>,
}

#[async_trait]
impl Reconciler for Nodes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(node) = self.nodes.get("", &key.name) else {
            self.heartbeats.lock().remove(&key.name);
            if let Some(uid) = self.known.lock().remove(&key.name) {
                self.tell(&key.name, uid, "RemovingNode", "Removing Node", "from");
            }
            return Ok(Action::AwaitChange);
        };
        let uid = uid_of(&*node).to_owned();
        if self.known.lock().insert(key.name.clone(), uid.clone()).is_none() {
            self.tell(&key.name, uid, "RegisteredNode", "Registered Node", "in");
        }
        let lease = self.leases.get(LEASES, &key.name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let now = self.clock.now();
        let (heard, was_ready) = {
            let mut heartbeats = self.heartbeats.lock();
            let heartbeat = heartbeats.entry(key.name.clone()).or_insert_with(|| Heartbeat::new(now));
            heartbeat.observe(&node, renewed, now);
            (heartbeat.at, heartbeat.was_ready)
        };
        let grace = if decide::never_reported(&node) { self.startup_grace } else { self.grace };
        let (mut node, wait) = match decide::judge(&node, heard, grace, now) {
            Verdict::Alive(wait) => (node, Some(wait)),
            Verdict::Silent(None) => (node, None),
            Verdict::Silent(Some(changed)) => {
                let reported_ready = decide::ready_status(&node) == "True";
                let silent = self.api.update_status("", *changed).await?;
                if reported_ready {
                    let message = format!("Node {} status is now: NodeNotReady", key.name);
                    self.events.event(&*silent, EventType::Normal, "NodeNotReady", message);
                }
                (silent, None)
            }
        };
        if let Some(taints) = decide::taints(&node, now) {
            let mut changed = (*node).clone();
            let taints = (!taints.is_empty()).then_some(taints);
            changed.spec = Some(NodeSpec { taints, ..changed.spec.unwrap_or_default() });
            node = self.api.update("", changed).await?;
        }
        let is_ready = decide::ready_status(&node) == "True";
        if was_ready && !is_ready {
            self.mark_pods_not_ready(&key.name).await?;
        }
        if let Some(heartbeat) = self.heartbeats.lock().get_mut(&key.name) {
            heartbeat.was_ready = is_ready;
        }
        Ok(wait.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Nodes {
    /// Tells that a node has come or gone.
    fn tell(&self, name: &str, uid: String, reason: &str, what: &str, preposition: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let message = format!("Node {name} event: {what} {name} {preposition} Controller");
        self.events.event_about(about, EventType::Normal, reason, message);
    }

    /// The pods of a node that is not ready are not ready: their Services drop them.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Status> {
        for pod in self.pods.get(node).iter().filter(|pod| podutil::is_ready(pod)) {
            let condition = json!({
                "type": "Ready", "status": "False",
                "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.clock.now()),
            });
            let patch = json!({ "status": { "conditions": [condition] } });
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            let name = name_of(&**pod);
            match self.pod_api.patch_status(namespace, name, PatchKind::Strategic, patch).await {
                Err(status) if status.reason() == Reason::NotFound => {}
                outcome => drop(outcome?),
            }
            self.events.event(&**pod, EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::DeleteOptions;
    use coracle_client::testing::FakeTransport;
    use k8s_openapi::api::core::v1::Event;

    use super::*;
    use crate::testing::{context, eventually};

    #[tokio::test(start_paused = true)]
    async fn it_is_told_that_a_node_came_and_went() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run(&context(&fake)));
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n" } })).expect("a node");
        client.api::<Node>().create("", node).await.expect("created");
        let told = |reason: &'static str, message: &'static str| {
            let events = client.api::<Event>();
            async move {
                let all = events.list("", ListOptions::default()).await.expect("listed");
                all.iter().any(|event| {
                    event.reason.as_deref() == Some(reason) && event.message.as_deref() == Some(message)
                })
            }
        };
        eventually(|| told("RegisteredNode", "Node n event: Registered Node n in Controller")).await;
        client.api::<Node>().delete("", "n", DeleteOptions::default()).await.expect("deleted");
        eventually(|| told("RemovingNode", "Node n event: Removing Node n from Controller")).await;
        task.abort();
    }
}
