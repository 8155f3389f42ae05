//! Job: runs pods until enough of them succeeded.

mod backoff;
mod indexes;
mod make;
mod orphans;
mod policy;
mod tally;
mod track;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, EventType, Informer, PatchKind};
use coracle_meta::owner::controller_ref;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::json;

use crate::claim::{Claimant, carry_out, claim};
use crate::own_writes::OwnWrites;
use crate::pods::{LAG, PodControl, wake_adopters};
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, is_namespace_terminating, name_of, uid_of,
};
use crate::sweep::Sweep;
use backoff::Backoff;
pub(crate) use orphans::run as run_orphans;
pub(crate) use tally::finished;
use tally::{FINALIZER, Manage, Tally, count, is_tracked};
use track::{Outcome, account, settle};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "job-controller", workers: 5 };

/// The built-in controller's own name in `spec.managedBy`.
const MANAGER: &str = "kubernetes.io/job-controller";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (jobs, pods) = (cx.informers.get::<Job>(), cx.informers.get::<Pod>());
    let reconciler = Arc::new(Jobs {
        control: PodControl::new(cx, DESCRIPTOR.name, DESCRIPTOR.name),
        sweep: Sweep::default(),
        jobs: jobs.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        clock: cx.clock.clone(),
        memory: Mutex::default(),
        own: OwnWrites::default(),
    });
    let selecting = jobs.clone();
    Controller::new(DESCRIPTOR)
        .watch_primary(&jobs)
        .watch_owned(&pods, "Job")
        .watch(&pods, move |change, enqueue| {
            wake_adopters(&selecting, |job: &Job| selector_of(job).ok(), change, enqueue);
        })
        .run(reconciler)
        .boxed()
}

fn selector_of(job: &Job) -> Result<LabelSelector, String> {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.map_or(Ok(LabelSelector::nothing()), LabelSelector::from_api)
}

/// Whether another controller looks after the Job.
fn is_foreign(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

/// What is remembered of a Job between passes.
#[derive(Default)]
struct Memory {
    backoff: Backoff,
    /// Uids of pods whose finalizer was taken away and that the informer shows with it.
    released: BTreeSet<String>,
}

struct Jobs {
    control: PodControl,
    sweep: Sweep,
    jobs: Informer<Job>,
    api: Api<Job>,
    clock: Clock,
    /// By uid.
    memory: Mutex<HashMap<String, Memory>>,
    own: OwnWrites,
}

#[async_trait]
impl Reconciler for Jobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else {
            let remembered = || self.control.remembered() + self.memory.lock().len();
            if self.sweep.is_due(remembered()) {
                let known: BTreeSet<String> =
                    self.jobs.list().iter().filter_map(|job| job.metadata.uid.clone()).collect();
                self.memory.lock().retain(|uid, _| known.contains(uid));
                self.control.retain(&known);
                self.sweep.done(remembered());
            }
            return Ok(Action::AwaitChange);
        };
        let Some(spec) = &job.spec else { return Ok(Action::AwaitChange) };
        let over = job.status.as_ref().is_some_and(|status| finished(status).is_some());
        if is_foreign(&job) || over {
            self.memory.lock().remove(uid_of(&*job));
            return Ok(Action::AwaitChange);
        }
        if !matches!(spec.completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.control.events.event(&*job, EventType::Warning, "UnknownCompletionMode", message);
            return Ok(Action::AwaitChange);
        }
        if !self.is_current(key, &job) {
            return Ok(Action::RequeueAfter(LAG));
        }
        let pods = self.pods(&job).await?;
        let backoff = self.memory.lock().entry(uid_of(&*job).to_owned()).or_default().backoff;
        // As the API keeps times: a start time that differs in its fraction would be another one.
        let now = self.clock.now();
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let tally = Tally::new(&job, spec, &pods, backoff, now);
        let (outcome, failure, wait) = self.manage(&job, &tally).await;
        self.track(key, &job, spec, &tally, outcome).await?;
        if let Some(status) = failure.filter(|status| !is_namespace_terminating(status)) {
            return Err(status);
        }
        let wait = [wait, tally.again].into_iter().flatten().min();
        Ok(wait.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Jobs {
    /// Whether the informers show all of our own writes for the Job. Nothing is counted before.
    fn is_current(&self, key: &ObjectKey, job: &Job) -> bool {
        let uid = uid_of(job);
        let mut current = self.own.visible(key, self.jobs.revision()) && self.control.sees_own_writes(uid);
        if let Some(memory) = self.memory.lock().get_mut(uid)
            && !memory.released.is_empty()
        {
            let pods = self.control.controlled(uid);
            let holds =
                |uid: &String| pods.iter().any(|p| p.metadata.uid.as_ref() == Some(uid) && is_tracked(p));
            memory.released.retain(holds);
            current &= memory.released.is_empty();
        }
        current
    }

    /// The Job's pods. What is adopted gets the finalizer, so that it is counted.
    async fn pods(&self, job: &Arc<Job>) -> Result<Vec<Arc<Pod>>, Status> {
        let selector = selector_of(job).map_err(Status::bad_request)?;
        let namespace = job.metadata.namespace.as_deref().unwrap_or("");
        let candidates = self.control.candidates(uid_of(&**job), namespace);
        let claimed = claim(&Claimant { owner: &job.metadata, selector: &selector }, candidates);
        let adopted: BTreeSet<String> =
            claimed.adopt.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let owner = controller_ref(&**job);
        let mut pods = carry_out(claimed, &**job, owner, &self.api, &self.control.api).await?;
        for pod in &mut pods {
            if adopted.contains(uid_of(&**pod)) && !is_tracked(pod) {
                let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
                finalizers.push(FINALIZER.to_owned());
                let patch = json!({ "metadata": { "uid": pod.metadata.uid, "finalizers": finalizers,
                    "resourceVersion": pod.metadata.resource_version } });
                *pod = self.control.api.patch(namespace, name_of(&**pod), PatchKind::Merge, patch).await?;
                self.control.note(uid_of(&**job), &pod.metadata);
            }
        }
        Ok(pods)
    }

    /// Makes and removes pods. What came of it, the first failure, and how long to wait for a back-off.
    async fn manage(
        &self,
        job: &Arc<Job>,
        tally: &Tally<'_>,
    ) -> (Outcome, Option<Status>, Option<std::time::Duration>) {
        let mut outcome = Outcome {
            active: count(tally.active.len()),
            ready: tally.ready,
            terminating: tally.terminating,
            done: true,
        };
        match tally.manage() {
            Manage::Nothing => (outcome, None, None),
            Manage::Wait(left) => (outcome, None, Some(left)),
            Manage::Create(number, indexes) => {
                let replaced = |index: &i32| tally.delayed.get(index).map(|pod| &**pod);
                let pods = if indexes.is_empty() {
                    (0..number).map(|_| make::new_pod(job, None, None)).collect()
                } else {
                    indexes.iter().map(|i| make::new_pod(job, Some(*i), replaced(i))).collect()
                };
                let (made, failure) = self.control.create_all(&**job, pods).await;
                outcome.active += count(made);
                (outcome, failure, None)
            }
            Manage::End(pods) => {
                let failure = self.remove(job, &pods, false, &mut outcome).await;
                outcome.done = failure.is_none();
                (outcome, failure, None)
            }
            Manage::Remove(pods) => {
                let failure = self.remove(job, &pods, true, &mut outcome).await;
                (outcome, failure, None)
            }
        }
    }

    async fn remove(
        &self,
        job: &Arc<Job>,
        pods: &[Arc<Pod>],
        uncounted: bool,
        outcome: &mut Outcome,
    ) -> Option<Status> {
        let removals = pods.iter().map(|pod| async move {
            if uncounted {
                self.release(job, pod).await?;
            }
            self.control.delete(&**job, pod).await
        });
        let mut failure = None;
        for (pod, result) in pods.iter().zip(join_all(removals).await) {
            match result {
                Ok(()) => {
                    outcome.active -= 1;
                    outcome.terminating += 1;
                    outcome.ready -= i32::from(podutil::is_ready(pod));
                }
                Err(status) => failure = Some(status),
            }
        }
        failure
    }

    /// Takes the finalizer from a pod.
    async fn release(&self, job: &Job, pod: &Arc<Pod>) -> Result<(), Status> {
        if !is_tracked(pod) {
            return Ok(());
        }
        let (job_uid, uid) = (uid_of(job).to_owned(), uid_of(&**pod).to_owned());
        self.memory.lock().entry(job_uid.clone()).or_default().released.insert(uid.clone());
        let outcome = orphans::remove_finalizer(&self.control.api, pod).await;
        if outcome.is_err()
            && let Some(memory) = self.memory.lock().get_mut(&job_uid)
        {
            memory.released.remove(&uid);
        }
        outcome
    }

    async fn track(
        &self,
        key: &ObjectKey,
        job: &Arc<Job>,
        spec: &JobSpec,
        tally: &Tally<'_>,
        outcome: Outcome,
    ) -> Result<(), Status> {
        let account = account(tally, outcome);
        let current = self.store(key, job, account.status.clone()).await?;
        if let Some(memory) = self.memory.lock().get_mut(uid_of(&**job)) {
            memory.backoff = tally.backoff;
        }
        for (kind, reason, message) in &account.happenings {
            self.control.events.event(&**job, *kind, reason, message.clone());
        }
        let released = join_all(account.release.iter().map(|pod| self.release(job, pod))).await;
        let mut held = account.held.clone();
        let mut failure = None;
        for (pod, result) in account.release.iter().zip(released) {
            match result {
                Ok(()) => drop(held.remove(uid_of(&**pod))),
                Err(status) => failure = Some(status),
            }
        }
        let (status, happenings) = settle(&account, &held, spec.completions, tally.is_indexed());
        self.store(key, &current, status).await?;
        for (kind, reason, message) in happenings {
            self.control.events.event(&**job, kind, &reason, message);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Writes a status if it differs; the Job as it is then.
    async fn store(&self, key: &ObjectKey, job: &Arc<Job>, status: JobStatus) -> Result<Arc<Job>, Status> {
        if job.status.as_ref() == Some(&status) {
            return Ok(job.clone());
        }
        let changed = Box::new(Job { status: Some(status), ..(**job).clone() });
        match Box::pin(self.api.update_status(&key.namespace, *changed)).await {
            Ok(written) => {
                self.own.note(key, &written.metadata);
                Ok(written)
            }
            Err(status) if status.reason() == Reason::NotFound => Ok(job.clone()),
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod tests;
