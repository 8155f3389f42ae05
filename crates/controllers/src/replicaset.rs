//! ReplicaSet: keeps as many pods of a template running as asked for.

mod decide;
mod rank;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Index, Informer};
use coracle_meta::owner::{controller_of, controller_ref};
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::claim::{Claimant, carry_out, claim};
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, is_namespace_terminating,
    name_of, uid_of,
};
use decide::{Failure, Scale};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "replicaset-controller", workers: 5 };

/// How soon to look again for pods of our own that the informer does not show, should no event come.
const LAG: Duration = Duration::from_secs(5);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (sets, pods) = (cx.informers.get::<ReplicaSet>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Sets {
        by_owner: pods.index("controller", owner_keys),
        sets: sets.clone(),
        pods: pods.clone(),
        set_api: client.api(),
        pod_api: client.api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        inflight: Mutex::default(),
    });
    let selecting = sets.clone();
    Controller::new(DESCRIPTOR)
        .watch_primary(&sets)
        .watch_owned(&pods, "ReplicaSet")
        .watch(&pods, move |change, enqueue| wake_adopters(&selecting, change, enqueue))
        .run(reconciler)
        .boxed()
}

/// Pods by controller uid; those without one by `orphans/<namespace>`.
pub(crate) fn owner_keys(pod: &Pod) -> Vec<String> {
    vec![match controller_of(&pod.metadata) {
        Some(owner) => owner.uid.clone(),
        None => orphans(pod.metadata.namespace.as_deref().unwrap_or("")),
    }]
}

fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// An orphan wakes the sets that select it.
fn wake_adopters(sets: &Informer<ReplicaSet>, change: &Change<Pod>, enqueue: Enqueue<'_>) {
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
    for set in sets.list_namespace(pod.metadata.namespace.as_deref().unwrap_or("")) {
        let selector = set.spec.as_ref().map(|spec| LabelSelector::from_api(&spec.selector));
        if selector.is_some_and(|s| s.is_ok_and(|s| s.matches_option(pod.metadata.labels.as_ref()))) {
            enqueue(ObjectKey::of(&set.metadata));
        }
    }
}

/// Writes of ours that the informer may not show yet.
#[derive(Default)]
struct Inflight {
    /// Revision of the last pod created.
    created: u64,
    /// Uids of pods whose deletion was asked for.
    deleted: BTreeSet<String>,
}

struct Sets {
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    by_owner: Index<Pod>,
    set_api: Api<ReplicaSet>,
    pod_api: Api<Pod>,
    events: EventRecorder,
    clock: Clock,
    inflight: Mutex<HashMap<String, Inflight>>,
}

#[async_trait]
impl Reconciler for Sets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.forget_vanished();
            return Ok(Action::AwaitChange);
        };
        let Some(spec) = &set.spec else { return Ok(Action::AwaitChange) };
        let selector = LabelSelector::from_api(&spec.selector).map_err(Status::bad_request)?;
        // In this order: what is in flight is judged by a state at least as new as the claim's.
        let sees_own_writes = self.sees_own_writes(uid_of(&*set));
        let mut candidates = self.by_owner.get(uid_of(&*set));
        candidates.extend(self.by_owner.get(&orphans(&key.namespace)));
        let claimant = Claimant { owner: &set.metadata, selector: &selector };
        let claimed = claim(&claimant, candidates);
        let owned = carry_out(claimed, &*set, controller_ref(&*set), &self.set_api, &self.pod_api).await?;
        let mut failure = None;
        if sees_own_writes && set.metadata.deletion_timestamp.is_none() {
            failure = self.scale(&set, &owned).await;
        }
        let now = self.clock.now();
        let (status, next_check) = decide::status(&set, &owned, failure.as_ref(), now);
        if set.status.as_ref() != Some(&status) {
            let mut changed = (*set).clone();
            changed.status = Some(status);
            match self.set_api.update_status(&key.namespace, changed).await {
                Err(status) if status.reason() == Reason::NotFound => {}
                outcome => drop(outcome?),
            }
        }
        match (failure, sees_own_writes, next_check) {
            (Some(failure), ..) if !is_namespace_terminating(&failure.status) => Err(failure.status),
            (_, false, _) => Ok(Action::RequeueAfter(LAG)),
            (_, true, Some(wait)) => Ok(Action::RequeueAfter(wait)),
            _ => Ok(Action::AwaitChange),
        }
    }
}

impl Sets {
    fn sees_own_writes(&self, uid: &str) -> bool {
        let mut inflight = self.inflight.lock();
        let Some(writes) = inflight.get_mut(uid) else { return true };
        if !writes.deleted.is_empty() {
            let visible = self.by_owner.get(uid);
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

    fn forget_vanished(&self) {
        let known: BTreeSet<String> =
            self.sets.list().iter().filter_map(|set| set.metadata.uid.clone()).collect();
        self.inflight.lock().retain(|uid, _| known.contains(uid));
    }

    async fn scale(&self, set: &Arc<ReplicaSet>, owned: &[Arc<Pod>]) -> Option<Failure> {
        match decide::scale(set, owned) {
            Scale::Keep => None,
            Scale::Up(count) => self.create(set, count).await,
            Scale::Down(count) => {
                let related = self.related(set);
                self.delete(set, rank::victims(owned, &related, count, self.clock.now())).await
            }
        }
    }

    /// Pods of all sets that have the same controller: of one Deployment.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(&set.metadata) else { return Vec::new() };
        let sets = self.sets.list_namespace(set.metadata.namespace.as_deref().unwrap_or(""));
        let siblings = sets.iter().filter(|s| controller_of(&s.metadata).is_some_and(|o| o.uid == owner.uid));
        siblings.flat_map(|sibling| self.by_owner.get(uid_of(&**sibling))).collect()
    }

    /// Creates pods in batches of 1, 2, 4, …, so that what fails for all fails once.
    async fn create(&self, set: &Arc<ReplicaSet>, count: usize) -> Option<Failure> {
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
            let created = join_all((0..now).map(|_| self.create_one(set))).await;
            let failed = created.into_iter().find_map(Result::err);
            if let Some(status) = failed {
                return Some(Failure { reason: "FailedCreate", status });
            }
            left -= now;
            batch *= 2;
        }
        None
    }

    async fn create_one(&self, set: &Arc<ReplicaSet>) -> Result<(), Status> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        match self.pod_api.create(namespace, decide::new_pod(set)).await {
            Ok(pod) => {
                let revision = pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
                let mut inflight = self.inflight.lock();
                let writes = inflight.entry(uid_of(&**set).to_owned()).or_default();
                writes.created = writes.created.max(revision.unwrap_or(0));
                drop(inflight);
                let message = format!("Created pod: {}", name_of(&*pod));
                self.events.event(&**set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(status) => {
                if !is_namespace_terminating(&status) {
                    let message = format!("Error creating: {status}");
                    self.events.event(&**set, EventType::Warning, "FailedCreate", message);
                }
                Err(status)
            }
        }
    }

    async fn delete(&self, set: &Arc<ReplicaSet>, victims: Vec<Arc<Pod>>) -> Option<Failure> {
        let uids = victims.iter().map(|pod| uid_of(&**pod).to_owned());
        self.inflight.lock().entry(uid_of(&**set).to_owned()).or_default().deleted.extend(uids);
        let deleted = join_all(victims.iter().map(|pod| self.delete_one(set, pod))).await;
        let status = deleted.into_iter().find_map(Result::err)?;
        Some(Failure { reason: "FailedDelete", status })
    }

    async fn delete_one(&self, set: &Arc<ReplicaSet>, pod: &Arc<Pod>) -> Result<(), Status> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
        match self.pod_api.delete(namespace, name_of(&**pod), options).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", name_of(&**pod));
                self.events.event(&**set, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(status) if status.reason() == Reason::NotFound => Ok(()),
            Err(status) => {
                let mut inflight = self.inflight.lock();
                if let Some(writes) = inflight.get_mut(uid_of(&**set)) {
                    writes.deleted.remove(uid_of(&**pod));
                }
                drop(inflight);
                let message = format!("Error deleting: {status}");
                self.events.event(&**set, EventType::Warning, "FailedDelete", message);
                Err(status)
            }
        }
    }
}

#[cfg(test)]
mod tests;
