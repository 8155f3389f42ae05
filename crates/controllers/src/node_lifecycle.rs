//! Node lifecycle: marks nodes whose kubelet fell silent, taints nodes by their conditions, and lets taints
//! evict pods.

mod decide;
mod eviction;
mod zones;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, Change, EventRecorder, EventType, Index, Informer, ListOptions, PatchKind, WorkQueue,
};
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeSpec, ObjectReference, Pod};
use parking_lot::Mutex;
use serde_json::json;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of, uid_of};
use decide::{Evictions, Heartbeat, Verdict};
pub use zones::EvictionRates;
use zones::{Admission, Turn, Zones};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "node-controller", workers: 2 };

pub(crate) use decide::ready_status;
pub(crate) use eviction::run as run_eviction;

const LEASES: &str = "kube-node-lease";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let nodes = cx.informers.get::<Node>();
    let leases = cx.informers.filtered::<Lease>(LEASES, ListOptions::default());
    let client = cx.client(DESCRIPTOR.name);
    let controller = Controller::new(DESCRIPTOR);
    let reconciler = Arc::new(Nodes {
        queue: controller.queue(),
        zones: Mutex::new(Zones::new(cx.config.eviction_rates)),
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
    controller
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
    queue: Arc<WorkQueue<ObjectKey>>,
    /// How the nodes do as a whole, which says how fast pods may be evicted.
    zones: Mutex<Zones>,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Index<Pod>,
    api: Api<Node>,
    pod_api: Api<Pod>,
    events: EventRecorder,
    clock: Clock,
    grace: Duration,
    startup_grace: Duration,
    /// By node: when its kubelet was last heard of.
    heartbeats: Mutex<HashMap<String, Heartbeat>>,
    /// Uids of the nodes that were seen.
    known: Mutex<HashMap<String, String>>,
}

#[async_trait]
impl Reconciler for Nodes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        self.seed();
        let Some(node) = self.nodes.get("", &key.name) else {
            self.heartbeats.lock().remove(&key.name);
            let turn = self.zones.lock().forget(&key.name);
            self.follow(turn);
            if let Some(uid) = self.known.lock().remove(&key.name) {
                self.tell(&key.name, uid, "RemovingNode", "Removing Node", "from");
            }
            return Ok(Action::AwaitChange);
        };
        let uid = uid_of(&*node).to_owned();
        if self.known.lock().insert(key.name.clone(), uid.clone()).is_none() {
            self.tell(&key.name, uid, "RegisteredNode", "Registered Node", "in");
        }
        let now = self.clock.now();
        let (node, wait) = self.judge(&key.name, node, now).await?;
        let turn = self.zones.lock().observe(&key.name, &node);
        self.follow(turn);
        let (node, turn) = self.mark(&key.name, node, now).await?;
        let is_ready = decide::ready_status(&node) == "True";
        let was_ready = self.heartbeats.lock().get(&key.name).is_some_and(|heartbeat| heartbeat.was_ready);
        if was_ready && !is_ready {
            self.mark_pods_not_ready(&key.name).await?;
        }
        if let Some(heartbeat) = self.heartbeats.lock().get_mut(&key.name) {
            heartbeat.was_ready = is_ready;
        }
        let wait = [wait, turn].into_iter().flatten().min();
        Ok(wait.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Nodes {
    /// Counts all nodes before any is judged: one that is gone is not the whole cluster.
    fn seed(&self) {
        let mut zones = self.zones.lock();
        if zones.is_empty() {
            for node in self.nodes.list() {
                zones.observe(name_of(&*node), &node);
            }
        }
    }

    /// Looks again at the nodes that a change of another one concerns.
    fn follow(&self, turn: Turn) {
        if turn.resumed {
            let now = self.clock.now();
            self.heartbeats.lock().values_mut().for_each(|heartbeat| heartbeat.at = now);
        }
        turn.again.iter().for_each(|name| self.queue.add(ObjectKey::new("", name)));
    }

    /// Whether a node's kubelet is silent, which is then said; with how long it may stay so from now on.
    async fn judge(
        &self,
        name: &str,
        node: Arc<Node>,
        now: Timestamp,
    ) -> Result<(Arc<Node>, Option<Duration>), Status> {
        let lease = self.leases.get(LEASES, name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let heard = {
            let mut heartbeats = self.heartbeats.lock();
            let heartbeat = heartbeats.entry(name.to_owned()).or_insert_with(|| Heartbeat::new(now));
            heartbeat.observe(&node, renewed, now);
            heartbeat.at
        };
        let grace = if decide::never_reported(&node) { self.startup_grace } else { self.grace };
        match decide::judge(&node, heard, grace, now) {
            Verdict::Alive(wait) => Ok((node, Some(wait))),
            Verdict::Silent(None) => Ok((node, None)),
            Verdict::Silent(Some(changed)) => {
                let reported_ready = decide::ready_status(&node) == "True";
                let silent = self.api.update_status("", *changed).await?;
                if reported_ready {
                    let message = format!("Node {name} status is now: NodeNotReady");
                    self.events.event(&*silent, EventType::Normal, "NodeNotReady", message);
                }
                Ok((silent, None))
            }
        }
    }

    /// Gives a node the taints and labels it must bear; with how long until it is its turn to lose its pods.
    async fn mark(
        &self,
        name: &str,
        node: Arc<Node>,
        now: Timestamp,
    ) -> Result<(Arc<Node>, Option<Duration>), Status> {
        let (evictions, wait) = {
            let mut zones = self.zones.lock();
            if zones.is_stopped() {
                (Evictions::Stopped, None)
            } else if decide::awaits_eviction(&node) {
                match zones.admit(name, now) {
                    Admission::Now => (Evictions::Allowed, None),
                    Admission::In(wait) => (Evictions::Held, Some(wait)),
                    Admission::Held => (Evictions::Held, None),
                }
            } else {
                (Evictions::Allowed, None)
            }
        };
        let (taints, labels) = (decide::taints(&node, evictions, now), decide::labels(&node));
        if taints.is_none() && labels.is_none() {
            return Ok((node, wait));
        }
        let mut changed = (*node).clone();
        if let Some(taints) = taints {
            let taints = (!taints.is_empty()).then_some(taints);
            changed.spec = Some(NodeSpec { taints, ..changed.spec.unwrap_or_default() });
        }
        if labels.is_some() {
            changed.metadata.labels = labels;
        }
        Ok((self.api.update("", changed).await?, wait))
    }

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
