//! StatefulSet: numbered pods with names and storage of their own, made and removed in order.

mod decide;
mod identity;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, EventType, Informer};
use coracle_meta::owner::controller_ref;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::claim::{Claimant, carry_out, claim};
use crate::pods::{LAG, PodControl, wake_adopters};
use crate::revisions::{History, Revisions, Subject, template_of};
use crate::rollouts::{Progress, Rollouts, Turn};
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of, uid_of};
use crate::sweep::Sweep;
use decide::{Act, Revision, View, decide, is_parallel};
use identity::Owners;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "statefulset-controller", workers: 5 };

/// The kind, among those that roll out.
const KIND: &str = "StatefulSet";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (sets, pods) = (cx.informers.get::<StatefulSet>(), cx.informers.get::<Pod>());
    let revisions = cx.informers.get::<ControllerRevision>();
    let claims = cx.informers.get::<PersistentVolumeClaim>();
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Sets {
        control: PodControl::new(cx, DESCRIPTOR.name, DESCRIPTOR.name),
        sweep: Sweep::default(),
        revisions: Revisions::new(&revisions, client.api()),
        sets: sets.clone(),
        claims: claims.clone(),
        api: client.api(),
        claim_api: client.api(),
        clock: cx.clock.clone(),
        rollouts: cx.rollouts.clone(),
    });
    let selecting = sets.clone();
    let controller = Controller::new(DESCRIPTOR);
    cx.rollouts.wakes(KIND, controller.queue());
    controller
        .watch_primary(&sets)
        .watch_owned(&pods, "StatefulSet")
        .watch(&pods, move |change, enqueue| {
            wake_adopters(&selecting, |set: &StatefulSet| selector_of(set).ok(), change, enqueue);
        })
        .watch_owned(&revisions, "StatefulSet")
        // Nothing starts before the claims are known.
        .watch(&claims, |_, _| {})
        .run(reconciler)
        .boxed()
}

fn selector_of(set: &StatefulSet) -> Result<LabelSelector, String> {
    set.spec.as_ref().map_or(Ok(LabelSelector::nothing()), |spec| LabelSelector::from_api(&spec.selector))
}

struct Sets {
    control: PodControl,
    sweep: Sweep,
    revisions: Revisions,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    api: Api<StatefulSet>,
    claim_api: Api<PersistentVolumeClaim>,
    clock: Clock,
    rollouts: Rollouts,
}

#[async_trait]
impl Reconciler for Sets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            if self.sweep.is_due(self.control.remembered()) {
                let known = self.sets.list().iter().filter_map(|set| set.metadata.uid.clone()).collect();
                self.control.retain(&known);
                self.sweep.done(self.control.remembered());
            }
            self.rollouts.forget(KIND, key);
            return Ok(Action::AwaitChange);
        };
        let Some(spec) = &set.spec else { return Ok(Action::AwaitChange) };
        let selector = LabelSelector::from_api(&spec.selector).map_err(Status::bad_request)?;
        if !self.control.sees_own_writes(uid_of(&*set)) {
            return Ok(Action::RequeueAfter(LAG));
        }
        let mut candidates = self.control.candidates(uid_of(&*set), &key.namespace);
        candidates.retain(|pod| identity::ordinal(&set, pod).is_some());
        let claimed = claim(&Claimant { owner: &set.metadata, selector: &selector }, candidates);
        let owned = carry_out(claimed, &*set, controller_ref(&*set), &self.api, &self.control.api).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let subject = Subject::with_hash(&set, &selector, &spec.template, collisions);
        let history = self.revisions.sync(&subject, &self.api).await?;
        let known = set.status.as_ref().and_then(|status| status.current_revision.clone());
        let current = history.all.iter().find(|r| r.metadata.name == known).unwrap_or(&history.update);
        let template = template_of(current).unwrap_or_else(|| spec.template.clone());
        let lookup = |name: &str| self.claims.get(&key.namespace, name);
        let turn = self.rollouts.turn(KIND, key, progress(&set, &owned, &history.update));
        let mut plan = decide(&View {
            may_roll: turn == Turn::Goes,
            set: &set,
            pods: &owned,
            current: Revision { name: name_of(&**current), template: &template },
            update: Revision { name: name_of(&*history.update), template: &spec.template },
            collisions: history.collisions,
            claims: &lookup,
            now: self.clock.now(),
        });
        if let Turn::Waits(before) = turn {
            let again = self.rollouts.tell(KIND, &*set, &self.control.events, before);
            plan.next = Some(plan.next.map_or(again, |other| other.min(again)));
        }
        let live = live(&history, current, &owned);
        let failed = self.carry_out(&set, plan.acts).await;
        self.store(&set, plan.status).await?;
        failed?;
        self.revisions.truncate(&key.namespace, &history, &live, spec.revision_history_limit).await?;
        Ok(plan.next.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

/// How far the change to a revision has come. Pods that the partition keeps back do not count.
fn progress(set: &StatefulSet, pods: &[Arc<Pod>], update: &ControllerRevision) -> Progress {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
        || set.metadata.deletion_timestamp.is_some()
    {
        return Progress::Idle;
    }
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0);
    let first = identity::start(set).saturating_add(partition);
    let rolls = |pod: &&Arc<Pod>| identity::ordinal(set, pod).is_some_and(|ordinal| ordinal >= first);
    let is_new = |pod: &&Arc<Pod>| identity::revision(pod) == name_of(update);
    let (new, old): (Vec<_>, Vec<_>) = pods.iter().filter(rolls).partition(is_new);
    let is_ready = |pod: &&Arc<Pod>| podutil::is_ready(pod);
    // The last old pod may have gone before its successor is ready.
    let closing = set.status.as_ref().is_some_and(|s| s.current_revision != s.update_revision);
    match (old.is_empty(), new.is_empty()) {
        (true, _) if closing && !new.iter().all(is_ready) => Progress::Begun,
        (true, _) => Progress::Idle,
        (false, true) => Progress::Due(update.metadata.creation_timestamp.as_ref().map(|time| time.0)),
        (false, false) => Progress::Begun,
    }
}

/// Names of the revisions in use.
fn live(history: &History, current: &ControllerRevision, pods: &[Arc<Pod>]) -> BTreeSet<String> {
    let mut live: BTreeSet<String> = pods.iter().map(|pod| identity::revision(pod).to_owned()).collect();
    live.extend([name_of(&*history.update).to_owned(), name_of(current).to_owned()]);
    live
}

impl Sets {
    /// One act after the other; in parallel in batches of 1, 2, 4, …. Ends with the first failure.
    async fn carry_out(&self, set: &Arc<StatefulSet>, acts: Vec<Act>) -> Result<(), Status> {
        let (mut acts, mut batch) = (acts.into_iter(), 1);
        loop {
            let now: Vec<Act> = acts.by_ref().take(batch).collect();
            if now.is_empty() {
                return Ok(());
            }
            let done = join_all(now.into_iter().map(|act| self.act(set, act))).await;
            done.into_iter().collect::<Result<Vec<()>, Status>>()?;
            if is_parallel(set) {
                batch *= 2;
            }
        }
    }

    async fn act(&self, set: &Arc<StatefulSet>, act: Act) -> Result<(), Status> {
        match act {
            Act::Create(pod) => self.create(set, &pod).await,
            Act::Delete(pod) => {
                let outcome = self.control.delete_quietly(&**set, &pod).await;
                self.tell(set, "Delete", &pod, outcome.as_ref().err());
                outcome.map(drop)
            }
            Act::Repair(pod) => {
                let outcome = self.repair(set, &pod).await;
                self.tell(set, "Update", &pod, outcome.as_ref().err());
                outcome
            }
            Act::Claims(pod) => {
                self.make_claims(set, &pod).await?;
                self.fix_owners(set, &pod).await
            }
            Act::Owners(pod) => self.fix_owners(set, &pod).await,
        }
    }

    async fn create(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Status> {
        if let Err(status) = self.make_claims(set, pod).await {
            self.tell(set, "Create", pod, Some(&status));
            return Err(status);
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        match self.control.api.create(namespace, pod.clone()).await {
            Ok(made) => {
                self.control.note(uid_of(&**set), &made.metadata);
                self.fix_owners(set, &made).await?;
                self.tell(set, "Create", pod, None);
                Ok(())
            }
            // A pod of that name that the set does not own, or that is not shown yet: looked at again later.
            Err(status) if status.reason() == Reason::AlreadyExists => Err(status),
            Err(status) => {
                self.tell(set, "Create", pod, Some(&status));
                Err(status)
            }
        }
    }

    async fn repair(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Status> {
        self.make_claims(set, pod).await?;
        self.fix_owners(set, pod).await?;
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        let written = self.control.api.update(namespace, pod.clone()).await?;
        self.control.note(uid_of(&**set), &written.metadata);
        Ok(())
    }

    /// Makes the pod's claims that are missing.
    async fn make_claims(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Status> {
        let Some(ordinal) = identity::ordinal(set, pod) else { return Ok(()) };
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        let mut failed = None;
        for claim in identity::claims(set, ordinal) {
            let name = name_of(&claim).to_owned();
            if let Some(known) = self.claims.get(namespace, &name) {
                if known.metadata.deletion_timestamp.is_some() {
                    failed = Some(Status::internal(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            let outcome = self.claim_api.create(namespace, claim).await;
            let error = outcome.err().filter(|status| status.reason() != Reason::AlreadyExists);
            let (set_name, pod_name) = (name_of(&**set), name_of(pod));
            let (kind, reason, message) = match &error {
                None => {
                    let text =
                        format!("Create Claim {name} Pod {pod_name} in StatefulSet {set_name} success");
                    (EventType::Normal, "SuccessfulCreate", text)
                }
                Some(status) => {
                    let what = format!("Create Claim {name} for Pod {pod_name} in StatefulSet {set_name}");
                    (EventType::Warning, "FailedCreate", format!("{what} failed error: {status}"))
                }
            };
            self.control.events.event(&**set, kind, reason, message);
            failed = error.or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Puts the owners of a pod's claims right, by the retention policy.
    async fn fix_owners(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Status> {
        let Some(ordinal) = identity::ordinal(set, pod) else { return Ok(()) };
        let namespace = set.metadata.namespace.as_deref().unwrap_or("");
        for wanted in identity::claims(set, ordinal) {
            let Some(claim) = self.claims.get(namespace, name_of(&wanted)) else { continue };
            if identity::has_foreign_controller(set, &claim, pod) {
                let message = format!(
                    "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a manging \
                     controller, the retention policy is ignored for this claim",
                    name_of(&wanted)
                );
                self.control.events.event(&**set, EventType::Warning, "ConflictingController", message);
            }
            if let Owners::Become(owners) = identity::owners(set, &claim, pod) {
                let mut changed = (*claim).clone();
                changed.metadata.owner_references = (!owners.is_empty()).then_some(owners);
                self.claim_api.update(namespace, changed).await?;
            }
        }
        Ok(())
    }

    fn tell(&self, set: &Arc<StatefulSet>, verb: &str, pod: &Pod, error: Option<&Status>) {
        let what = format!("{verb} Pod {} in StatefulSet {}", name_of(pod), name_of(&**set));
        let events = &self.control.events;
        match error {
            None => {
                let (reason, message) = (format!("Successful{verb}"), format!("{what} successful"));
                events.event(&**set, EventType::Normal, &reason, message);
            }
            Some(status) => {
                let (reason, message) = (format!("Failed{verb}"), format!("{what} failed error: {status}"));
                events.event(&**set, EventType::Warning, &reason, message);
            }
        }
    }

    async fn store(&self, set: &Arc<StatefulSet>, status: StatefulSetStatus) -> Result<(), Status> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = StatefulSet { status: Some(status), ..(**set).clone() };
        match self.api.update_status(set.metadata.namespace.as_deref().unwrap_or(""), changed).await {
            Err(status) if status.reason() == Reason::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

#[cfg(test)]
mod tests;
