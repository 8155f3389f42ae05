//! CronJob: starts a Job at every time of its schedule.

mod decide;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::event::reference;
use coracle_client::{Api, DeleteOptions, EventRecorder, EventType, Informer};
use coracle_meta::owner::is_controlled_by;
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::claim::Owned;
use crate::own_writes::OwnWrites;
use crate::pods::LAG;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of, uid_of};
use decide::{Decision, decide};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "cronjob-controller", workers: 5 };

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (crons, jobs) = (cx.informers.get::<CronJob>(), cx.informers.get::<Job>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Crons {
        crons: crons.clone(),
        jobs: Owned::new(&jobs),
        api: client.api(),
        job_api: client.api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        own: OwnWrites::default(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&crons).watch_owned(&jobs, "CronJob").run(reconciler).boxed()
}

struct Crons {
    crons: Informer<CronJob>,
    jobs: Owned<Job>,
    api: Api<CronJob>,
    job_api: Api<Job>,
    events: EventRecorder,
    clock: Clock,
    own: OwnWrites,
}

#[async_trait]
impl Reconciler for Crons {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(cron) = self.crons.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        // The list of active Jobs must be the one written last, or a Job would seem unexpected.
        if !self.own.visible(key, self.crons.revision()) {
            return Ok(Action::RequeueAfter(LAG));
        }
        let jobs = self.jobs.of(uid_of(&*cron));
        let gone = self.gone(&cron, &jobs).await?;
        let decision = decide(&cron, &jobs, &gone, self.clock.now());
        for (kind, reason, message) in &decision.happenings {
            self.events.event(&*cron, *kind, reason, message.clone());
        }
        let again = decision.again;
        let mut status = decision.status.clone();
        let outcome = self.carry_out(&cron, decision, &mut status).await;
        self.store(key, &cron, status).await?;
        outcome?;
        Ok(again.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Crons {
    /// Uids of active Jobs that exist no more.
    async fn gone(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<BTreeSet<String>, Status> {
        let active = cron.status.as_ref().and_then(|status| status.active.as_ref());
        let mut gone = BTreeSet::new();
        for reference in active.into_iter().flatten() {
            let uid = reference.uid.clone().unwrap_or_default();
            if jobs.iter().any(|job| uid_of(&**job) == uid) {
                continue;
            }
            let (namespace, name) = (reference.namespace.as_deref(), reference.name.as_deref());
            match self.job_api.get(namespace.unwrap_or(""), name.unwrap_or("")).await {
                Ok(_) => {}
                Err(status) if status.reason() == Reason::NotFound => drop(gone.insert(uid)),
                Err(status) => return Err(status),
            }
        }
        Ok(gone)
    }

    async fn carry_out(
        &self,
        cron: &Arc<CronJob>,
        decision: Decision,
        status: &mut CronJobStatus,
    ) -> Result<(), Status> {
        for job in &decision.remove {
            // What cannot be removed now is in the next pass.
            let _ = self.remove(cron, name_of(&**job), uid_of(&**job), status).await;
        }
        for old in &decision.replace {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            self.remove(cron, &text(&old.name), &text(&old.uid), status).await?;
        }
        match decision.start {
            Some((job, at)) => self.start(cron, *job, at, status).await,
            None => Ok(()),
        }
    }

    async fn remove(
        &self,
        cron: &Arc<CronJob>,
        name: &str,
        uid: &str,
        status: &mut CronJobStatus,
    ) -> Result<(), Status> {
        let namespace = cron.metadata.namespace.as_deref().unwrap_or("");
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation_policy: Some("Background".to_owned()),
            ..DeleteOptions::default()
        };
        match self.job_api.delete(namespace, name, options).await {
            Err(status) if status.reason() != Reason::NotFound => {
                let message = format!("Deleted job: {status}");
                self.events.event(&**cron, EventType::Warning, "FailedDelete", message);
                return Err(status);
            }
            _ => {}
        }
        if let Some(active) = &mut status.active {
            active.retain(|reference| reference.uid.as_deref() != Some(uid));
        }
        status.active.take_if(|active| active.is_empty());
        self.events.event(&**cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        Ok(())
    }

    async fn start(
        &self,
        cron: &Arc<CronJob>,
        job: Job,
        at: Timestamp,
        status: &mut CronJobStatus,
    ) -> Result<(), Status> {
        let namespace = cron.metadata.namespace.as_deref().unwrap_or("");
        let name = name_of(&job).to_owned();
        let made = match Box::pin(self.job_api.create(namespace, job)).await {
            Ok(made) => {
                let message = format!("Created job {name}");
                self.events.event(&**cron, EventType::Normal, "SuccessfulCreate", message);
                made
            }
            // By an earlier pass whose status was lost; or it is somebody else's, and this time has none.
            Err(status) if status.reason() == Reason::AlreadyExists => {
                let known = self.job_api.get(namespace, &name).await?;
                if !is_controlled_by(&known.metadata, uid_of(&**cron)) {
                    return Ok(());
                }
                known
            }
            Err(status) => {
                if !crate::runtime::is_namespace_terminating(&status) {
                    let message = format!("Error creating job: {status}");
                    self.events.event(&**cron, EventType::Warning, "FailedCreate", message);
                }
                return Err(status);
            }
        };
        status.active.get_or_insert_default().push(reference(&*made));
        status.last_schedule_time = Some(Time(at));
        Ok(())
    }

    async fn store(&self, key: &ObjectKey, cron: &Arc<CronJob>, status: CronJobStatus) -> Result<(), Status> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let changed = Box::new(CronJob { status: Some(status), ..(**cron).clone() });
        match Box::pin(self.api.update_status(&key.namespace, *changed)).await {
            Ok(written) => {
                self.own.note(key, &written.metadata);
                Ok(())
            }
            Err(status) if status.reason() == Reason::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
