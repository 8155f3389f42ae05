//! TTL after finished: deletes Jobs `ttlSecondsAfterFinished` after their end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, DeleteOptions, Informer};
use coracle_meta::Status;
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use crate::job::finished;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "ttl-after-finished-controller", workers: 5 };

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let jobs = cx.informers.get::<Job>();
    let reconciler = Arc::new(Expire {
        jobs: jobs.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        clock: cx.clock.clone(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&jobs).run(reconciler).boxed()
}

struct Expire {
    jobs: Informer<Job>,
    api: Api<Job>,
    clock: Clock,
}

/// What becomes of a Job.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesIn(Duration),
    GoesNow,
}

fn decide(job: &Job, now: Timestamp) -> Fate {
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let end = job.status.as_ref().and_then(finished).and_then(|end| end.last_transition_time.as_ref());
    let (Some(ttl), Some(end), None) = (ttl, end, &job.metadata.deletion_timestamp) else {
        return Fate::Stays;
    };
    let left = SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(end.0);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Fate::GoesIn(left),
        _ => Fate::GoesNow,
    }
}

#[async_trait]
impl Reconciler for Expire {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        match decide(&job, self.clock.now()) {
            Fate::Stays => return Ok(Action::AwaitChange),
            Fate::GoesIn(left) => return Ok(Action::RequeueAfter(left)),
            Fate::GoesNow => {}
        }
        // The time to live may have been prolonged since: only the API's word counts before a deletion.
        let fresh = match self.api.get(&key.namespace, &key.name).await {
            Err(status) if status.reason() == coracle_meta::Reason::NotFound => {
                return Ok(Action::AwaitChange);
            }
            outcome => outcome?,
        };
        match decide(&fresh, self.clock.now()) {
            Fate::GoesIn(left) => Ok(Action::RequeueAfter(left)),
            Fate::Stays => Ok(Action::AwaitChange),
            Fate::GoesNow => {
                let options = DeleteOptions {
                    uid: fresh.metadata.uid.clone(),
                    resource_version: fresh.metadata.resource_version.clone(),
                    propagation_policy: Some("Foreground".to_owned()),
                    ..DeleteOptions::default()
                };
                ignore_not_found(self.api.delete(&key.namespace, name_of(&*fresh), options).await)?;
                Ok(Action::AwaitChange)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_finished_job_goes_when_its_time_to_live_is_over() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            let end = json!({ "type": kind, "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z" });
            let spec = json!({ "template": {}, "ttlSecondsAfterFinished": ttl });
            serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": { "conditions": [end] } }))
                .expect("a job")
        };
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert_eq!(decide(&job(None, "Complete"), at(1000)), Fate::Stays);
        assert_eq!(decide(&job(Some(10), "Suspended"), at(1000)), Fate::Stays);
        assert_eq!(decide(&job(Some(10), "Complete"), at(104)), Fate::GoesIn(Duration::from_secs(6)));
        assert_eq!(decide(&job(Some(10), "Failed"), at(110)), Fate::GoesNow);
        assert_eq!(decide(&job(Some(0), "Failed"), at(100)), Fate::GoesNow);
    }
}
