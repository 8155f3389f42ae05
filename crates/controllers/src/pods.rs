//! Pods that a controller makes and removes: with events, in growing batches, and never twice.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Informer, PatchKind};
use coracle_meta::owner::controller_of;
use coracle_meta::pod as podutil;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Reason, Status};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::claim::Owned;
use crate::runtime::{
    Context, Enqueue, ObjectKey, ignore_not_found, is_namespace_terminating, name_of, uid_of,
};

/// How soon to look again for pods of our own that the informer does not show, should no event come.
pub(crate) const LAG: Duration = Duration::from_secs(5);

/// Most pods made or removed in one go.
pub(crate) const BURST: usize = 500;

/// An orphan wakes the owners of the kind `K` that select it.
pub(crate) fn wake_adopters<K: Kind>(
    owners: &Informer<K>,
    selector: impl Fn(&K) -> Option<LabelSelector>,
    change: &Change<Pod>,
    enqueue: Enqueue<'_>,
) {
    let pod = change.object();
    let news = match change {
        Change::Added(_) => true,
        Change::Modified { old, new } => {
            old.metadata.labels != new.metadata.labels
                || old.metadata.owner_references != new.metadata.owner_references
        }
        Change::Deleted(_) => false,
    };
    if !news || controller_of(&pod.metadata).is_some() {
        return;
    }
    for owner in owners.list_namespace(pod.metadata.namespace.as_deref().unwrap_or("")) {
        if selector(&owner).is_some_and(|s| s.matches_option(pod.metadata.labels.as_ref())) {
            enqueue(ObjectKey::of(owner.metadata()));
        }
    }
}

/// A pod of a template, to be created for an owner. The caller names it.
pub(crate) fn of_template(
    template: Option<&PodTemplateSpec>,
    namespace: Option<&String>,
    owner: OwnerReference,
) -> Pod {
    let template = template.cloned().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: namespace.cloned(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The condition that tells why a pod is about to be disrupted, unless it says just that already.
pub(crate) fn disruption_target(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> Option<Value> {
    let said = podutil::condition(pod, "DisruptionTarget").filter(|said| said.status == "True");
    let is_same = |said: &&PodCondition| {
        said.reason.as_deref() == Some(reason)
            && said.message.as_deref() == Some(message)
            && said.observed_generation == pod.metadata.generation
    };
    if said.as_ref().is_some_and(is_same) {
        return None;
    }
    let since = said.and_then(|said| said.last_transition_time.clone()).unwrap_or(Time(now));
    Some(json!({
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "observedGeneration": pod.metadata.generation, "lastTransitionTime": since,
    }))
}

/// Deletes a pod, after saying in its conditions why. One that is gone, or another by now, is left alone.
pub(crate) async fn disrupt(
    api: &Api<Pod>,
    pod: &Pod,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Result<(), Status> {
    let key = ObjectKey::of(&pod.metadata);
    if let Some(condition) = disruption_target(pod, reason, message, now) {
        let patch =
            json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
        match api.patch_status(&key.namespace, &key.name, PatchKind::Strategic, patch).await {
            Err(status) if status.reason() == Reason::NotFound => return Ok(()),
            outcome => drop(outcome?),
        }
    }
    let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
    ignore_not_found(api.delete(&key.namespace, &key.name, options).await)
}

/// When a ready pod becomes, or became, available.
pub(crate) fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let ready = podutil::condition(pod, "Ready").filter(|c| c.status == "True")?;
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    since.checked_add(Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0))).ok()
}

/// Whether a pod has been ready for long enough.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// Writes of ours that the informer may not show yet.
#[derive(Default)]
struct Inflight {
    /// Revision of the last pod created.
    created: u64,
    /// Uids of pods whose deletion was asked for.
    deleted: BTreeSet<String>,
}

/// One controller's hand on pods.
pub(crate) struct PodControl {
    pods: Informer<Pod>,
    owned: Owned<Pod>,
    pub api: Api<Pod>,
    pub events: EventRecorder,
    /// By owner uid.
    inflight: Mutex<HashMap<String, Inflight>>,
}

impl PodControl {
    /// The pods that `name` makes.
    pub(crate) fn new(cx: &Context, name: &str, component: &str) -> Self {
        let pods = cx.informers.get::<Pod>();
        Self {
            owned: Owned::new(&pods),
            pods,
            api: cx.client(name).api(),
            events: cx.recorder_as(name, component),
            inflight: Mutex::default(),
        }
    }

    /// Pods that the owner controls.
    pub(crate) fn controlled(&self, uid: &str) -> Vec<Arc<Pod>> {
        self.owned.of(uid)
    }

    /// Pods that the owner controls, and those of its namespace that nobody does.
    pub(crate) fn candidates(&self, uid: &str, namespace: &str) -> Vec<Arc<Pod>> {
        self.owned.candidates(uid, namespace)
    }

    /// Whether the informer shows all that was made and removed for the owner. Ask before the pods.
    pub(crate) fn sees_own_writes(&self, uid: &str) -> bool {
        let mut inflight = self.inflight.lock();
        let Some(writes) = inflight.get_mut(uid) else { return true };
        if !writes.deleted.is_empty() {
            let visible = self.owned.of(uid);
            let untouched = |uid: &String| {
                let found = visible.iter().find(|pod| pod.metadata.uid.as_ref() == Some(uid));
                found.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none())
            };
            writes.deleted.retain(untouched);
        }
        let seen = writes.deleted.is_empty() && self.pods.revision() >= writes.created;
        if seen {
            inflight.remove(uid);
        }
        seen
    }

    /// Remembers a write to a pod of the owner until the informer shows it.
    pub(crate) fn note(&self, owner_uid: &str, written: &ObjectMeta) {
        let revision = written.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut inflight = self.inflight.lock();
        let writes = inflight.entry(owner_uid.to_owned()).or_default();
        writes.created = writes.created.max(revision);
    }

    /// Of how many owners something is remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.inflight.lock().len()
    }

    /// Forgets owners that exist no more.
    pub(crate) fn retain(&self, known: &BTreeSet<String>) {
        self.inflight.lock().retain(|uid, _| known.contains(uid));
    }

    /// Creates pods in batches of 1, 2, 4, …, so that what fails for all fails once. How many were made,
    /// and the first failure.
    pub(crate) async fn create_all<O: Kind>(&self, owner: &O, pods: Vec<Pod>) -> (usize, Option<Status>) {
        let (mut pods, mut batch, mut made) = (pods.into_iter(), 1, 0);
        loop {
            let now: Vec<Pod> = pods.by_ref().take(batch).collect();
            if now.is_empty() {
                return (made, None);
            }
            let created = join_all(now.into_iter().map(|pod| self.create(owner, pod))).await;
            made += created.iter().filter(|outcome| outcome.is_ok()).count();
            if let Some(status) = created.into_iter().find_map(Result::err) {
                return (made, Some(status));
            }
            batch *= 2;
        }
    }

    /// Creates a pod and tells of it.
    pub(crate) async fn create<O: Kind>(&self, owner: &O, pod: Pod) -> Result<Arc<Pod>, Status> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or("");
        match self.api.create(namespace, pod).await {
            Ok(pod) => {
                self.note(uid_of(owner), &pod.metadata);
                let message = format!("Created pod: {}", name_of(&*pod));
                self.events.event(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(pod)
            }
            Err(status) => {
                if !is_namespace_terminating(&status) {
                    let message = format!("Error creating: {status}");
                    self.events.event(owner, EventType::Warning, "FailedCreate", message);
                }
                Err(status)
            }
        }
    }

    /// Deletes pods and tells of it; the first failure.
    pub(crate) async fn delete_all<O: Kind>(&self, owner: &O, victims: &[Arc<Pod>]) -> Option<Status> {
        let deleted = join_all(victims.iter().map(|pod| self.delete(owner, pod))).await;
        deleted.into_iter().find_map(Result::err)
    }

    /// Deletes a pod and tells of it.
    pub(crate) async fn delete<O: Kind>(&self, owner: &O, pod: &Arc<Pod>) -> Result<(), Status> {
        match self.delete_quietly(owner, pod).await {
            Ok(true) => {
                let message = format!("Deleted pod: {}", name_of(&**pod));
                self.events.event(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(status) => {
                let message = format!("Error deleting: {status}");
                self.events.event(owner, EventType::Warning, "FailedDelete", message);
                Err(status)
            }
        }
    }

    /// Deletes a pod without a word; whether it was there.
    pub(crate) async fn delete_quietly<O: Kind>(&self, owner: &O, pod: &Arc<Pod>) -> Result<bool, Status> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or("");
        let (owner_uid, uid) = (uid_of(owner), uid_of(&**pod));
        self.inflight.lock().entry(owner_uid.to_owned()).or_default().deleted.insert(uid.to_owned());
        let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
        match self.api.delete(namespace, name_of(&**pod), options).await {
            Ok(()) => Ok(true),
            Err(status) if status.reason() == Reason::NotFound => Ok(false),
            Err(status) => {
                if let Some(writes) = self.inflight.lock().get_mut(owner_uid) {
                    writes.deleted.remove(uid);
                }
                Err(status)
            }
        }
    }
}
