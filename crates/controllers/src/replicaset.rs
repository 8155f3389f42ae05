//! ReplicaSet and ReplicationController: keep as many pods of a template running as asked for.

mod decide;
mod rank;

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Informer};
use coracle_meta::owner::controller_of;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;

use crate::claim::{Claimant, Owned, carry_out, claim};
use crate::pods::{LAG, PodControl, of_template, wake_adopters};
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, is_namespace_terminating, name_of, uid_of,
};
use crate::sweep::Sweep;
use coracle_meta::owner::controller_ref;
use decide::{Failure, Scale};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "replicaset-controller", workers: 5 };
pub(crate) const REPLICATION: Descriptor = Descriptor { name: "replication-controller", workers: 5 };

/// A kind that wants a number of pods: to this controller all are ReplicaSets.
trait Replicated: Kind {
    fn as_set(&self) -> Cow<'_, ReplicaSet>;
    fn set_status(&mut self, status: ReplicaSetStatus);
}

impl Replicated for ReplicaSet {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }
    fn set_status(&mut self, status: ReplicaSetStatus) {
        self.status = Some(status);
    }
}

impl Replicated for ReplicationController {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().map(|status| ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            terminating_replicas: None,
            conditions: status.conditions.map(|all| all.into_iter().map(condition_of_set).collect()),
        });
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector: ApiSelector { match_labels: spec.selector, match_expressions: None },
                template: spec.template,
            }),
            status,
        })
    }
    fn set_status(&mut self, status: ReplicaSetStatus) {
        self.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition_of_controller).collect()),
        });
    }
}

fn condition_of_set(c: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    }
}

fn condition_of_controller(c: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    }
}

/// Starts the ReplicaSet controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    start::<ReplicaSet>(cx, DESCRIPTOR)
}

/// Starts the ReplicationController controller.
pub(crate) fn run_replication(cx: &Context) -> BoxFuture<'static, ()> {
    start::<ReplicationController>(cx, REPLICATION)
}

fn start<K: Replicated>(cx: &Context, descriptor: Descriptor) -> BoxFuture<'static, ()> {
    let (sets, pods) = (cx.informers.get::<K>(), cx.informers.get::<Pod>());
    let reconciler = Arc::new(Sets {
        control: PodControl::new(cx, descriptor.name, descriptor.name),
        sets: sets.clone(),
        owned: Owned::new(&sets),
        sweep: Sweep::default(),
        set_api: cx.client(descriptor.name).api(),
        clock: cx.clock.clone(),
    });
    let selecting = sets.clone();
    Controller::new(descriptor)
        .watch_primary(&sets)
        .watch_owned(&pods, K::KIND)
        .watch(&pods, move |change, enqueue| {
            wake_adopters(&selecting, |set: &K| selector_of(&set.as_set()).ok(), change, enqueue);
        })
        .run(reconciler)
        .boxed()
}

fn selector_of(set: &ReplicaSet) -> Result<LabelSelector, String> {
    set.spec.as_ref().map_or(Ok(LabelSelector::nothing()), |spec| LabelSelector::from_api(&spec.selector))
}

struct Sets<K> {
    control: PodControl,
    sets: Informer<K>,
    owned: Owned<K>,
    set_api: Api<K>,
    sweep: Sweep,
    clock: Clock,
}

#[async_trait]
impl<K: Replicated> Reconciler for Sets<K> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(owner) = self.sets.get(&key.namespace, &key.name) else {
            if self.sweep.is_due(self.control.remembered()) {
                let known = self.sets.list().iter().filter_map(|set| set.metadata().uid.clone()).collect();
                self.control.retain(&known);
                self.sweep.done(self.control.remembered());
            }
            return Ok(Action::AwaitChange);
        };
        let set = owner.as_set();
        let selector = selector_of(&set).map_err(Status::bad_request)?;
        // In this order: what is in flight is judged by a state at least as new as the claim's.
        let sees_own_writes = self.control.sees_own_writes(uid_of(&*owner));
        let candidates = self.control.candidates(uid_of(&*owner), &key.namespace);
        let claimed = claim(&Claimant { owner: &set.metadata, selector: &selector }, candidates);
        let owned =
            carry_out(claimed, &*owner, controller_ref(&*owner), &self.set_api, &self.control.api).await?;
        let mut failure = None;
        if sees_own_writes && set.metadata.deletion_timestamp.is_none() {
            failure = self.scale(&owner, &set, &owned).await;
        }
        let (status, next_check) = decide::status(&set, &owned, failure.as_ref(), self.clock.now());
        let mut changed = (*owner).clone();
        changed.set_status(status);
        // Compared as the owner's kind has it: a ReplicationController knows less.
        if changed.as_set().status != set.status {
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

impl<K: Replicated> Sets<K> {
    async fn scale(&self, owner: &Arc<K>, set: &ReplicaSet, owned: &[Arc<Pod>]) -> Option<Failure> {
        match decide::scale(set, owned) {
            Scale::Keep => None,
            Scale::Up(count) => {
                let one = || {
                    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                    let namespace = set.metadata.namespace.as_ref();
                    let mut pod = of_template(template, namespace, controller_ref(&**owner));
                    pod.metadata.generate_name = Some(format!("{}-", name_of(&**owner)));
                    pod
                };
                let pods = (0..count).map(|_| one()).collect();
                let (_, failed) = self.control.create_all(&**owner, pods).await;
                failed.map(|status| Failure { reason: "FailedCreate", status })
            }
            Scale::Down(count) => {
                let victims = rank::victims(owned, &self.related(set), count, self.clock.now());
                let failed = self.control.delete_all(&**owner, &victims).await;
                failed.map(|status| Failure { reason: "FailedDelete", status })
            }
        }
    }

    /// Pods of all sets that have the same controller: of one Deployment.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(&set.metadata) else { return Vec::new() };
        let siblings = self.owned.of(&owner.uid);
        siblings.iter().flat_map(|sibling| self.control.controlled(uid_of(&**sibling))).collect()
    }
}

/// What a pass over a ReplicaSet with these pods comes to, for tests of those who own ReplicaSets: how many pods it
/// makes, those that it removes, and its status.
#[cfg(test)]
pub(crate) fn pass(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    related: &[Arc<Pod>],
    now: jiff::Timestamp,
) -> (usize, Vec<Arc<Pod>>, ReplicaSetStatus) {
    let (more, less) = match decide::scale(set, owned) {
        Scale::Keep => (0, Vec::new()),
        Scale::Up(count) => (count, Vec::new()),
        Scale::Down(count) => (0, rank::victims(owned, related, count, now)),
    };
    (more, less, decide::status(set, owned, None, now).0)
}

#[cfg(test)]
mod tests;
