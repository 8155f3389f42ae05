//! Deployment: rolls pods from one template to the next through ReplicaSets.

mod decide;
mod rollout;
mod scale;
mod status;
mod util;

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Informer};
use coracle_meta::owner::{controller_of, controller_ref};
use coracle_meta::pod as podutil;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use crate::claim::{Claimant, Owned, carry_out, claim};
use crate::rollouts::{Rollouts, Turn};
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, ignore_not_found,
    is_namespace_terminating, name_of, uid_of,
};
use decide::{Happening, Write};
pub use util::is_current;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "deployment-controller", workers: 5 };

/// The kind, among those that roll out.
const KIND: &str = "Deployment";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let deployments = cx.informers.get::<Deployment>();
    let (sets, pods) = (cx.informers.get::<ReplicaSet>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Deployments {
        deployments: deployments.clone(),
        sets: Owned::new(&sets),
        pods: Owned::new(&pods),
        api: client.api(),
        set_api: client.api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        rollouts: cx.rollouts.clone(),
    });
    let (selecting, recreating, parents) = (deployments.clone(), deployments.clone(), sets.clone());
    let controller = Controller::new(DESCRIPTOR);
    cx.rollouts.wakes(KIND, controller.queue());
    controller
        .watch_primary(&deployments)
        .watch_owned(&sets, "Deployment")
        .watch(&sets, move |change, enqueue| wake_adopters(&selecting, change, enqueue))
        .watch(&pods, move |change, enqueue| wake_recreate(&recreating, &parents, change, enqueue))
        .run(reconciler)
        .boxed()
}

/// A ReplicaSet without controller wakes the Deployments that select it.
fn wake_adopters(deployments: &Informer<Deployment>, change: &Change<ReplicaSet>, enqueue: Enqueue<'_>) {
    let set = change.object();
    if matches!(change, Change::Deleted(_)) || controller_of(&set.metadata).is_some() {
        return;
    }
    for deployment in deployments.list_namespace(set.metadata.namespace.as_deref().unwrap_or("")) {
        let selector = deployment.spec.as_ref().map(|spec| LabelSelector::from_api(&spec.selector));
        if selector.is_some_and(|s| s.is_ok_and(|s| s.matches_option(set.metadata.labels.as_ref()))) {
            enqueue(ObjectKey::of(&deployment.metadata));
        }
    }
}

/// The end of a pod matters to Deployments that wait for all old pods to go.
fn wake_recreate(
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    change: &Change<Pod>,
    enqueue: Enqueue<'_>,
) {
    let pod = change.object();
    let ended = matches!(change, Change::Deleted(_)) || podutil::is_terminal(pod);
    let Some(owner) = controller_of(&pod.metadata).filter(|owner| ended && owner.kind == "ReplicaSet") else {
        return;
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let Some(set) = sets.get(namespace, &owner.name) else { return };
    let Some(owner) = controller_of(&set.metadata) else { return };
    let Some(deployment) = deployments.get(namespace, &owner.name) else { return };
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate")) {
        enqueue(ObjectKey::of(&deployment.metadata));
    }
}

struct Deployments {
    deployments: Informer<Deployment>,
    sets: Owned<ReplicaSet>,
    pods: Owned<Pod>,
    api: Api<Deployment>,
    set_api: Api<ReplicaSet>,
    events: EventRecorder,
    clock: Clock,
    rollouts: Rollouts,
}

#[async_trait]
impl Reconciler for Deployments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else {
            self.rollouts.forget(KIND, key);
            return Ok(Action::AwaitChange);
        };
        let Some(spec) = &deployment.spec else { return Ok(Action::AwaitChange) };
        let selector = LabelSelector::from_api(&spec.selector).map_err(Status::bad_request)?;
        if selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.event(&*deployment, EventType::Warning, "SelectingAll", message);
            return self.observe(&deployment).await;
        }
        let candidates = self.sets.candidates(uid_of(&*deployment), &key.namespace);
        let claimed = claim(&Claimant { owner: &deployment.metadata, selector: &selector }, candidates);
        let owner = controller_ref(&*deployment);
        let owned = carry_out(claimed, &*deployment, owner, &self.api, &self.set_api).await?;
        let sets: Vec<ReplicaSet> = owned.iter().map(|set| (**set).clone()).collect();
        let turn = self.rollouts.turn(KIND, key, decide::progress(&deployment, &sets));
        let running = |set: &ReplicaSet| self.pods.of(uid_of(set)).iter().any(|p| !podutil::is_terminal(p));
        let mut decision = decide::decide(&deployment, sets, &running, turn == Turn::Goes, self.clock.now());
        if let Turn::Waits(before) = turn {
            let again = self.rollouts.tell(KIND, &*deployment, &self.events, before);
            decision.check_again = Some(decision.check_again.map_or(again, |other| other.min(again)));
        }
        for write in decision.writes {
            if let Some(action) = self.write(&deployment, write).await? {
                return Ok(action);
            }
        }
        // One write for both, as upstream's: the status may bring annotations with it.
        if decision.revision.is_some() || decision.status.is_some() {
            let mut changed = match &decision.revision {
                Some(revision) => decide::with_revision(&deployment, revision),
                None => (*deployment).clone(),
            };
            changed.status = decision.status.or(changed.status);
            self.api.update_status(&key.namespace, changed).await?;
        }
        Ok(decision.check_again.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Deployments {
    /// Marks the generation as seen, and does nothing else.
    async fn observe(&self, deployment: &Arc<Deployment>) -> Result<Action, Status> {
        let seen = deployment.status.as_ref().and_then(|status| status.observed_generation);
        if seen < deployment.metadata.generation {
            let mut changed = (**deployment).clone();
            changed.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
            let namespace = deployment.metadata.namespace.as_deref().unwrap_or("");
            self.api.update_status(namespace, changed).await?;
        }
        Ok(Action::AwaitChange)
    }

    /// Carries one write out; what to do instead of going on, if it was in vain.
    async fn write(&self, deployment: &Arc<Deployment>, write: Write) -> Result<Option<Action>, Status> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or("");
        match write {
            Write::Update(set, happenings) => {
                self.set_api.update(namespace, *set).await?;
                self.tell(deployment, happenings);
            }
            Write::Delete(set) => {
                let options = DeleteOptions { uid: set.metadata.uid.clone(), ..DeleteOptions::default() };
                ignore_not_found(self.set_api.delete(namespace, name_of(&*set), options).await)?;
            }
            Write::Create(set, happenings) => match self.set_api.create(namespace, (*set).clone()).await {
                Ok(_) => self.tell(deployment, happenings),
                Err(status) if status.reason() == Reason::AlreadyExists => {
                    return self.resolve_collision(deployment, &set).await.map(Some);
                }
                Err(status) if is_namespace_terminating(&status) => return Ok(Some(Action::AwaitChange)),
                Err(status) => {
                    self.note_create_error(deployment, &set, &status).await?;
                    return Err(status);
                }
            },
        }
        Ok(None)
    }

    fn tell(&self, deployment: &Arc<Deployment>, happenings: Vec<Happening>) {
        for (kind, reason, message) in happenings {
            self.events.event(&**deployment, kind, reason, message);
        }
    }

    /// The name is taken: by our own ReplicaSet that the informer does not show yet, or by a stranger; then
    /// the next pass uses another name.
    async fn resolve_collision(
        &self,
        deployment: &Arc<Deployment>,
        wanted: &ReplicaSet,
    ) -> Result<Action, Status> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or("");
        let taken = self.set_api.get(namespace, name_of(wanted)).await?;
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        let ours = controller_of(&taken.metadata)
            .is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref());
        let same = template(&taken)
            .zip(template(wanted))
            .is_some_and(|(taken, wanted)| util::same_template(&taken, &wanted));
        if ours && same {
            return Ok(Action::AwaitChange);
        }
        let mut changed = (**deployment).clone();
        let count = changed.status.get_or_insert_default().collision_count.get_or_insert(0);
        *count += 1;
        self.api.update_status(namespace, changed).await?;
        Ok(Action::AwaitChange)
    }

    async fn note_create_error(
        &self,
        deployment: &Arc<Deployment>,
        set: &ReplicaSet,
        status: &Status,
    ) -> Result<(), Status> {
        let message = format!("Failed to create new replica set {:?}: {status}", name_of(set));
        self.events.event(&**deployment, EventType::Warning, "ReplicaSetCreateError", message.clone());
        if util::Numbers::of(deployment).deadline.is_none() {
            return Ok(());
        }
        let mut changed = (**deployment).clone();
        let now = self.clock.now();
        let new = util::new_condition("Progressing", "False", "ReplicaSetCreateError", &message, now);
        util::set_condition(changed.status.get_or_insert_default(), new);
        if changed.status != deployment.status {
            let namespace = deployment.metadata.namespace.as_deref().unwrap_or("");
            self.api.update_status(namespace, changed).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
