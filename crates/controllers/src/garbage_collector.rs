//! Garbage collection: deletes what all its owners have left, in the background or before the owner goes, or
//! lets it live on as an orphan.
//!
//! Follows <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.

mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    ApiRequest, ApiResponse, Client, DeleteOptions, EventRecorder, EventType, ListOptions, PatchKind,
    Reflected, ResourceId, Verb, WorkQueue, reflect,
};
use coracle_meta::{Object, Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use crate::ResourceEntry;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found};
use crate::served::Served;
use graph::{FOREGROUND, Graph, Node, ORPHAN, Phase, Task, Uid};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "generic-garbage-collector", workers: 20 };

/// Resources that cannot be listed are not waited for longer than this.
const SYNC_WAIT: Duration = Duration::from_secs(30);
/// Namespaces of keys; the name is a uid.
const DELETE: &str = "delete";
const ORPHANING: &str = "orphan";

/// Starts the controller: one watch per resource feeds the graph, of custom resources too.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let client = cx.client(DESCRIPTOR.name);
    let served = cx.served.clone();
    let events = cx.recorder_as(DESCRIPTOR.name, "garbage-collector-controller");
    async move {
        let resources = RwLock::default();
        let collector = Arc::new(Collector { client, resources, graph: Mutex::default(), events });
        let controller = Controller::new(DESCRIPTOR);
        let mut watches = Watches {
            collector: collector.clone(),
            queue: controller.queue(),
            synced: watch::Sender::new(0),
            running: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let mut changes = served.changes();
        changes.mark_unchanged();
        watches.adjust(&served.all());
        let (total, mut count) = (watches.running.len(), watches.synced.subscribe());
        let all = count.wait_for(|count| *count >= total);
        if tokio::time::timeout(SYNC_WAIT, all).await.is_err() {
            warn!("garbage collection starts although some resources could not be listed");
        }
        let tasks = collector.graph.lock().complete();
        enqueue(&watches.queue, tasks);
        let follow = async {
            loop {
                Served::next(&mut changes).await;
                watches.adjust(&served.all());
            }
        };
        tokio::select! {
            () = controller.run(collector) => {}
            () = follow => {}
        }
    }
    .boxed()
}

/// The watches that feed the graph.
struct Watches {
    collector: Arc<Collector>,
    queue: Arc<WorkQueue<ObjectKey>>,
    /// How many first lists are complete.
    synced: watch::Sender<usize>,
    /// By resource: its position, and the watch.
    running: HashMap<ResourceId, (usize, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Watches {
    /// Starts what is missing and stops what is not served any more.
    fn adjust(&mut self, served: &[ResourceEntry]) {
        let wanted: Vec<&ResourceEntry> = served.iter().filter(|e| e.id.resource != "events").collect();
        let gone: Vec<ResourceId> =
            self.running.keys().filter(|id| wanted.iter().all(|e| e.id != **id)).copied().collect();
        for id in gone {
            if let Some((position, watch)) = self.running.remove(&id) {
                watch.abort();
                // Nobody finds it by its kind any more.
                self.collector.resources.write()[position].kind = "";
                let mut graph = self.collector.graph.lock();
                graph.begin_list(position);
                let tasks = graph.end_list(position);
                drop(graph);
                enqueue(&self.queue, tasks);
            }
        }
        for entry in wanted {
            if self.running.contains_key(&entry.id) {
                continue;
            }
            let mut resources = self.collector.resources.write();
            let position = resources.len();
            resources.push(*entry);
            drop(resources);
            let (collector, queue, synced) =
                (self.collector.clone(), self.queue.clone(), self.synced.clone());
            let watch = self.tasks.spawn(follow(collector, position, queue, synced));
            self.running.insert(entry.id, (position, watch));
        }
    }
}

fn enqueue(queue: &WorkQueue<ObjectKey>, tasks: Vec<Task>) {
    for task in tasks {
        queue.add(match task {
            Task::Delete(uid) => ObjectKey::new(DELETE, &uid),
            Task::Orphan(uid) => ObjectKey::new(ORPHANING, &uid),
        });
    }
}

/// Feeds one resource's changes to the graph.
async fn follow(
    collector: Arc<Collector>,
    resource: usize,
    queue: Arc<WorkQueue<ObjectKey>>,
    synced: watch::Sender<usize>,
) {
    let mut is_first = true;
    let mut sink = |change: Reflected| {
        let mut graph = collector.graph.lock();
        let tasks = match change {
            Reflected::Listing => {
                graph.begin_list(resource);
                Vec::new()
            }
            Reflected::Applied(object) => graph.apply(resource, &*object),
            Reflected::Deleted(object) => graph.remove(object.meta().uid.as_deref().unwrap_or("")),
            Reflected::Progress(_) => Vec::new(),
            Reflected::Synced(_) => {
                if std::mem::take(&mut is_first) {
                    synced.send_modify(|count| *count += 1);
                }
                graph.end_list(resource)
            }
        };
        drop(graph);
        enqueue(&queue, tasks);
    };
    let id = collector.entry(resource).id;
    reflect(&collector.client, id, "", &ListOptions::default(), &mut sink).await;
}

struct Collector {
    client: Client,
    /// Positions stay: what is not served any more keeps its own.
    resources: RwLock<Vec<ResourceEntry>>,
    graph: Mutex<Graph>,
    events: EventRecorder,
}

#[async_trait]
impl Reconciler for Collector {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let node = self.graph.lock().node(&key.name).cloned();
        let Some(node) = node else { return Ok(Action::AwaitChange) };
        let done = match key.namespace.as_str() {
            ORPHANING => self.orphan_dependents(&key.name, &node).await,
            _ => self.attempt_to_delete(&key.name, &node).await,
        };
        done.map(|()| Action::AwaitChange)
    }
}

/// The owners of an object, by what is known of them.
#[derive(Debug, Default)]
struct Owners {
    /// Exist: keep the object.
    solid: Vec<OwnerReference>,
    /// Do not exist.
    dangling: Vec<OwnerReference>,
    /// Exist, but wait for this object to go.
    waiting: Vec<OwnerReference>,
}

impl Collector {
    fn entry(&self, position: usize) -> ResourceEntry {
        self.resources.read()[position]
    }

    async fn request(&self, node: &Node, verb: Verb) -> Result<ApiResponse, Status> {
        let (namespace, name) = (node.namespace.to_string(), node.name.to_string());
        let resource = self.entry(node.resource).id;
        self.client.request(ApiRequest { resource, namespace, name, subresource: "", verb }).await
    }

    /// The object as it is now; `None` if it is gone or another one has its name.
    async fn fresh(&self, uid: &str, node: &Node) -> Result<Option<Arc<dyn Object>>, Status> {
        match self.request(node, Verb::Get).await {
            Ok(ApiResponse::Object(object)) => {
                Ok(Some(object).filter(|o| o.meta().uid.as_deref() == Some(uid)))
            }
            Ok(_) => Err(Status::internal("not an object")),
            Err(status) if status.reason() == Reason::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Changes metadata of the object as it was read; a conflict if it changed since.
    async fn patch_meta(&self, node: &Node, meta: &ObjectMeta, mut change: Value) -> Result<(), Status> {
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let patch = json!({ "metadata": change });
        let verb = Verb::Patch(PatchKind::Merge, patch, self.client.write_options());
        ignore_not_found(self.request(node, verb).await)
    }

    async fn remove_finalizer(&self, uid: &str, node: &Node, finalizer: &str) -> Result<(), Status> {
        let Some(object) = self.fresh(uid, node).await? else { return Ok(()) };
        let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        if finalizers.len() == before {
            return Ok(());
        }
        self.patch_meta(node, object.meta(), json!({ "finalizers": finalizers })).await
    }

    async fn attempt_to_delete(&self, uid: &str, node: &Node) -> Result<(), Status> {
        match node.phase {
            Phase::Leaves | Phase::Orphans => return Ok(()),
            Phase::WaitsForDependents => return self.finish_foreground(uid, node).await,
            Phase::Lives => {}
        }
        let Some(object) = self.fresh(uid, node).await? else { return Ok(()) };
        let meta = object.meta();
        let references = meta.owner_references.clone().unwrap_or_default();
        if references.is_empty() || meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        let owners = self.classify(node, references).await?;
        if !owners.solid.is_empty() {
            if owners.dangling.is_empty() && owners.waiting.is_empty() {
                return Ok(());
            }
            return self.patch_meta(node, meta, json!({ "ownerReferences": owners.solid })).await;
        }
        let dependents = self.graph.lock().dependents(uid);
        if owners.waiting.is_empty() || dependents.is_empty() {
            return self.delete(uid, node, policy(meta)).await;
        }
        // A circle of objects that wait for one another is broken here.
        if dependents.iter().any(|(_, dependent)| dependent.phase == Phase::WaitsForDependents) {
            let unblocked: Vec<OwnerReference> = meta
                .owner_references
                .iter()
                .flatten()
                .cloned()
                .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner })
                .collect();
            self.patch_meta(node, meta, json!({ "ownerReferences": unblocked })).await?;
        }
        self.delete(uid, node, "Foreground").await
    }

    async fn delete(&self, uid: &str, node: &Node, policy: &str) -> Result<(), Status> {
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation_policy: Some(policy.to_owned()),
            ..DeleteOptions::default()
        };
        match self.request(node, Verb::Delete(options)).await {
            // Another object has the name by now.
            Err(status) if status.reason() == Reason::Conflict => Ok(()),
            outcome => ignore_not_found(outcome),
        }
    }

    /// Lets an object in foreground deletion go once nothing blocks it.
    async fn finish_foreground(&self, uid: &str, node: &Node) -> Result<(), Status> {
        let blocking = self.graph.lock().blocking(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(uid, node, FOREGROUND).await;
        }
        // Those that live were queued when the owner's deletion was seen, or are when they appear.
        Ok(())
    }

    async fn orphan_dependents(&self, uid: &str, node: &Node) -> Result<(), Status> {
        if node.phase != Phase::Orphans {
            return Ok(());
        }
        let dependents: Vec<(Uid, Node)> = self.graph.lock().dependents(uid);
        for (dependent_uid, dependent) in dependents {
            let Some(object) = self.fresh(&dependent_uid, &dependent).await? else { continue };
            let mut owners = object.meta().owner_references.clone().unwrap_or_default();
            owners.retain(|owner| owner.uid != uid);
            self.patch_meta(&dependent, object.meta(), json!({ "ownerReferences": owners })).await?;
        }
        self.remove_finalizer(uid, node, ORPHAN).await
    }

    async fn classify(&self, node: &Node, references: Vec<OwnerReference>) -> Result<Owners, Status> {
        let mut owners = Owners::default();
        for reference in references {
            let near = |owner: &Node| owner.namespace.is_empty() || owner.namespace == node.namespace;
            let known = self.graph.lock().node(&reference.uid).map(|owner| (near(owner), owner.phase));
            if known.is_some_and(|(near, _)| !near) {
                // Owners are found in the dependent's own namespace, and nowhere else.
                self.tell_wrong_namespace(node, &reference);
                owners.dangling.push(reference);
                continue;
            }
            let phase = match known.map(|(_, phase)| phase) {
                Some(phase) => Some(phase),
                None => self.look_up(node, &reference).await?,
            };
            match phase {
                None => owners.dangling.push(reference),
                Some(Phase::WaitsForDependents) if reference.block_owner_deletion == Some(true) => {
                    owners.waiting.push(reference);
                }
                Some(_) => owners.solid.push(reference),
            }
        }
        Ok(owners)
    }

    fn tell_wrong_namespace(&self, node: &Node, owner: &OwnerReference) {
        let entry = self.entry(node.resource);
        let api_version = match entry.id.group {
            "" => entry.id.version.to_owned(),
            group => format!("{group}/{}", entry.id.version),
        };
        let about = ObjectReference {
            api_version: Some(api_version),
            kind: Some(entry.kind.to_owned()),
            name: Some(node.name.to_string()),
            namespace: Some(node.namespace.to_string()),
            ..ObjectReference::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.api_version, owner.kind, node.namespace, owner.name, owner.uid, node.namespace
        );
        self.events.event_about(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Asks the API for an owner that no watch knows. Owners of unknown kinds, and owners in a namespace of
    /// an object in none, are taken to exist: nothing is deleted on a guess.
    async fn look_up(&self, node: &Node, reference: &OwnerReference) -> Result<Option<Phase>, Status> {
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        let entry = |entry: &ResourceEntry| entry.id.group == group && entry.kind == reference.kind;
        let found = self.resources.read().iter().rposition(entry);
        let Some(resource) = found else { return Ok(Some(Phase::Lives)) };
        let namespace: Arc<str> = match (self.entry(resource).namespaced, &*node.namespace) {
            (false, _) => "".into(),
            (true, "") => return Ok(Some(Phase::Lives)),
            (true, namespace) => namespace.into(),
        };
        let owner = Node { resource, namespace, name: reference.name.as_str().into(), ..node.clone() };
        let found = self.fresh(&reference.uid, &owner).await?;
        Ok(found.map(|object| Phase::of(object.meta())))
    }
}

/// How an object's own dependents are to be treated, by the finalizers it has already.
fn policy(meta: &ObjectMeta) -> &'static str {
    let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
    if has(ORPHAN) {
        "Orphan"
    } else if has(FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    }
}

#[cfg(test)]
mod tests;
