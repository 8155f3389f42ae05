//! Attach and detach: asks CSI drivers, by VolumeAttachments, to attach the volumes that a node's pods use, tells the
//! node what is attached, and has it detached when no pod uses it and the node has let it go.

mod decide;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, Change, DeleteOptions, EventRecorder, EventType, Index, Informer, PatchKind, WorkQueue,
};
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;

use crate::node_lifecycle::pods_by_node;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};
use crate::volume_protection::{claims_of, pods_by_claim};
use decide::{Plan, View, Wanted, attachment_name, decide, is_managed, keeps_terminated};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "attachdetach-controller", workers: 10 };

/// Starts the controller. Its keys are nodes.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (pods, nodes) = (cx.informers.get::<Pod>(), cx.informers.get::<Node>());
    let (claims, volumes) =
        (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<PersistentVolume>());
    let (attachments, drivers) = (cx.informers.get::<VolumeAttachment>(), cx.informers.get::<CSIDriver>());
    let client = cx.client(DESCRIPTOR.name);
    let blocked = Arc::new(Mutex::new(BTreeSet::new()));
    let reconciler = Arc::new(Attachments {
        by_node: pods.index("node", pods_by_node),
        nodes: nodes.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
        attachments: attachments.clone(),
        drivers: drivers.clone(),
        node_api: client.api(),
        api: client.api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        blocked: blocked.clone(),
        unused_since: Mutex::default(),
        told: Mutex::default(),
    });
    let controller = Controller::new(DESCRIPTOR).watch_primary(&nodes).watch(&pods, |change, enqueue| {
        let pod = change.object();
        if let Some(node) = podutil::node_name(pod).filter(|_| !claims_of(pod).is_empty()) {
            enqueue(ObjectKey::new("", node));
        }
    });
    let by_claim = pods.index("claim", pods_by_claim);
    let (users, queue) = (by_claim.clone(), controller.queue());
    controller
        .watch(&claims, move |change, enqueue| {
            let key = ObjectKey::of(&change.object().metadata).to_string();
            by_claim
                .get(&key)
                .iter()
                .filter_map(|pod| podutil::node_name(pod))
                .for_each(|n| enqueue(ObjectKey::new("", n)));
        })
        .watch(&volumes, move |change, enqueue| {
            let claim =
                change.object().spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
            let (namespace, name) = (claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
            let pods = users.get(&format!("{namespace}/{name}"));
            pods.iter()
                .filter_map(|pod| podutil::node_name(pod))
                .for_each(|node| enqueue(ObjectKey::new("", node)));
        })
        .watch(&attachments, move |change, enqueue| {
            enqueue(ObjectKey::new("", &change.object().spec.node_name));
            if matches!(change, Change::Deleted(_)) {
                wake(&queue, &blocked);
            }
        })
        .watch(&drivers, |_, _| {})
        .run(reconciler)
        .boxed()
}

/// Lets those look again whose volumes were held by other nodes.
fn wake(queue: &WorkQueue<ObjectKey>, blocked: &Mutex<BTreeSet<String>>) {
    for node in std::mem::take(&mut *blocked.lock()) {
        queue.add(ObjectKey::new("", &node));
    }
}

struct Attachments {
    by_node: Index<Pod>,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    attachments: Informer<VolumeAttachment>,
    drivers: Informer<CSIDriver>,
    node_api: Api<Node>,
    api: Api<VolumeAttachment>,
    events: EventRecorder,
    clock: Clock,
    /// Nodes that wait for a volume which another node holds.
    blocked: Arc<Mutex<BTreeSet<String>>>,
    /// By attachment: since when no pod uses the volume there.
    unused_since: Mutex<HashMap<String, Timestamp>>,
    /// By attachment: the failure that was told last.
    told: Mutex<HashMap<String, String>>,
}

impl Attachments {
    /// What the node's pods need attached, by the names that nodes know volumes by.
    fn wanted(&self, node: &str, keeps_terminated: bool) -> BTreeMap<String, Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for pod in self.by_node.get(node) {
            if podutil::is_terminal(&pod) && !keeps_terminated {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            for claim in claims_of(&pod) {
                let claim = self.claims.get(namespace, &claim);
                let volume = claim
                    .and_then(|claim| self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?));
                let Some(found) = volume.and_then(|volume| Wanted::of(&volume)) else { continue };
                let driver = self.drivers.get("", &found.driver);
                if driver.is_some_and(|driver| driver.spec.attach_required == Some(false)) {
                    continue;
                }
                wanted.entry(found.unique()).or_insert(found).pods.push(pod.clone());
            }
        }
        wanted
    }

    /// For how long volumes have been without a use there, from now on for those that are new among them.
    fn note_unused(
        &self,
        node: &str,
        wanted: &BTreeMap<String, Wanted>,
        now: Timestamp,
    ) -> HashMap<String, Timestamp> {
        let mine: Vec<Arc<VolumeAttachment>> =
            self.attachments.list().into_iter().filter(|a| a.spec.node_name == node).collect();
        let used: BTreeSet<String> = wanted.values().map(|w| attachment_name(w, node)).collect();
        let mut since = self.unused_since.lock();
        for attachment in &mine {
            let name = name_of(&**attachment);
            if used.contains(name) {
                since.remove(name);
            } else {
                since.entry(name.to_owned()).or_insert(now);
            }
        }
        mine.iter().filter_map(|a| since.get_key_value(name_of(&**a))).map(|(k, v)| (k.clone(), *v)).collect()
    }

    async fn attach(&self, node: &str, wanted: &Wanted) -> Result<(), Status> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(attachment_name(wanted, node)), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: wanted.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(wanted.volume.clone()),
                    inline_volume_spec: None,
                },
            },
            status: None,
        };
        match self.api.create("", attachment).await {
            Err(status) if status.reason() != Reason::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }

    fn tell(&self, wanted: &Wanted, kind: EventType, reason: &str, message: &str) {
        wanted.pods.iter().for_each(|pod| self.events.event(&**pod, kind, reason, message));
    }

    /// Tells the pods what drivers said, each failure once.
    fn tell_failures(&self, node: &str, wanted: &BTreeMap<String, Wanted>) {
        for wanted in wanted.values() {
            let name = attachment_name(wanted, node);
            let attachment = self.attachments.get("", &name);
            let error = attachment.and_then(|a| a.status.as_ref()?.attach_error.clone()?.message);
            let mut told = self.told.lock();
            match error {
                None => drop(told.remove(&name)),
                Some(error) if told.get(&name) == Some(&error) => {}
                Some(error) => {
                    let volume = &wanted.volume;
                    let message = format!("AttachVolume.Attach failed for volume {volume:?} : {error}");
                    self.tell(wanted, EventType::Warning, "FailedAttachVolume", &message);
                    told.insert(name, error);
                }
            }
        }
    }

    async fn report(
        &self,
        node: &Node,
        plan: &Plan,
        wanted: &BTreeMap<String, Wanted>,
    ) -> Result<(), Status> {
        let Some(attached) = &plan.report else { return Ok(()) };
        let entries: Vec<_> = attached.iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
        let patch = json!({ "status": { "volumesAttached": entries } });
        ignore_not_found(self.node_api.patch_status("", name_of(node), PatchKind::Merge, patch).await)?;
        let before = decide::attached_of(node);
        for name in attached.iter().filter(|name| !before.contains(*name)) {
            if let Some(wanted) = wanted.get(name) {
                let message = format!("AttachVolume.Attach succeeded for volume {:?} ", wanted.volume);
                self.tell(wanted, EventType::Normal, "SuccessfulAttachVolume", &message);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Attachments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let (node, now) = (self.nodes.get("", &key.name), self.clock.now());
        if node.as_deref().is_some_and(|node| !is_managed(node)) {
            return Ok(Action::AwaitChange);
        }
        let keeps = node.as_deref().is_some_and(keeps_terminated);
        let wanted = if node.is_some() { self.wanted(&key.name, keeps) } else { BTreeMap::new() };
        let unused_since = self.note_unused(&key.name, &wanted, now);
        let all = self.attachments.list();
        let view =
            View { name: &key.name, node: node.as_deref(), wanted: &wanted, all: &all, unused_since, now };
        let plan = decide(&view);
        for name in &plan.attach {
            self.attach(&key.name, &wanted[name]).await?;
        }
        if plan.blocked.is_empty() {
            self.blocked.lock().remove(&key.name);
        } else {
            self.blocked.lock().insert(key.name.clone());
        }
        for name in &plan.blocked {
            let volume = &wanted[name].volume;
            let message = format!(
                "Multi-Attach error for volume {volume:?} Volume is already exclusively attached to one node and \
                 can't be attached to another"
            );
            self.tell(&wanted[name], EventType::Warning, "FailedAttachVolume", &message);
        }
        self.tell_failures(&key.name, &wanted);
        if let Some(node) = &node {
            self.report(node, &plan, &wanted).await?;
        }
        // The node must not believe in a volume that is being detached: only now.
        for name in &plan.detach {
            ignore_not_found(self.api.delete("", name, DeleteOptions::default()).await)?;
            self.unused_since.lock().remove(name);
        }
        Ok(plan.again.map_or(Action::AwaitChange, |wait: Duration| Action::RequeueAfter(wait)))
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_client::{Client, ListOptions};
    use coracle_meta::Kind;
    use serde_json::Value;

    use super::*;
    use crate::testing::{context, eventually};

    async fn create<K: Kind>(client: &Client, namespace: &str, value: Value) {
        let object: K = serde_json::from_value(value).expect("an object");
        client.api::<K>().create(namespace, object).await.expect("created");
    }

    async fn attachments(client: &Client) -> Vec<Arc<VolumeAttachment>> {
        client.api::<VolumeAttachment>().list("", ListOptions::default()).await.expect("listed")
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_attached_for_a_pod_and_detached_when_the_node_has_let_it_go() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let node = json!({ "metadata": { "name": "n", "annotations": {
            "volumes.kubernetes.io/controller-managed-attach-detach": "true" } } });
        create::<Node>(&client, "", node).await;
        let volume = json!({ "metadata": { "name": "pv" }, "spec": { "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": "d", "volumeHandle": "h" } } });
        create::<PersistentVolume>(&client, "", volume).await;
        let claim = json!({ "metadata": { "name": "data" }, "spec": { "volumeName": "pv" } });
        create::<PersistentVolumeClaim>(&client, "ns", claim).await;
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "containers": [],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] } });
        create::<Pod>(&client, "ns", pod).await;
        let task = tokio::spawn(run(&context(&fake)));
        eventually(|| async { attachments(&client).await.len() == 1 }).await;
        let name = name_of(&*attachments(&client).await[0]).to_owned();
        let patch = json!({ "status": { "attached": true } });
        client
            .api::<VolumeAttachment>()
            .patch_status("", &name, PatchKind::Merge, patch)
            .await
            .expect("attached");
        let nodes = client.api::<Node>();
        let attached = || async { decide::attached_of(&nodes.get("", "n").await.expect("there")) };
        eventually(|| async { attached().await.contains("kubernetes.io/csi/d^h") }).await;
        // The node uses it: the pod may go, the volume stays attached.
        let in_use = |names: Value| json!({ "status": { "volumesInUse": names } });
        nodes
            .patch_status("", "n", PatchKind::Merge, in_use(json!(["kubernetes.io/csi/d^h"])))
            .await
            .expect("used");
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        client.api::<Pod>().delete("ns", "p", now).await.expect("deleted");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(attachments(&client).await.len(), 1);
        nodes.patch_status("", "n", PatchKind::Merge, in_use(json!([]))).await.expect("let go");
        eventually(|| async { attachments(&client).await.is_empty() }).await;
        assert!(attached().await.is_empty());
        task.abort();
    }
}
