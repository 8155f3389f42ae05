//! Random histories: whatever Jobs do and whenever passes come, no time is used twice and the policies hold.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::JobStatus;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::json;

use super::tests::{at, cron};
use super::*;
use crate::testing::seeded;

/// A CronJob, its Jobs, and the time.
struct World {
    cron: CronJob,
    jobs: Vec<Arc<Job>>,
    now: Timestamp,
    /// The times that got a Job.
    used: BTreeSet<Timestamp>,
}

fn is_active(job: &Job) -> bool {
    job.status.as_ref().and_then(crate::job::finished).is_none()
}

impl World {
    fn new(rng: &mut StdRng) -> Self {
        let policy = ["Allow", "Forbid", "Replace"][rng.random_range(0..3)];
        let mut spec = json!({ "schedule": format!("*/{} * * * *", rng.random_range(1..8)),
            "concurrencyPolicy": policy, "successfulJobsHistoryLimit": rng.random_range(0..3),
            "failedJobsHistoryLimit": rng.random_range(0..3) });
        if rng.random_bool(0.5) {
            spec["startingDeadlineSeconds"] = rng.random_range(10..600).into();
        }
        let (cron, now) = (cron(&spec, &json!({})), at("2024-03-10T00:00:00Z"));
        Self { cron, jobs: Vec::new(), now, used: BTreeSet::new() }
    }

    fn status(&mut self) -> &mut CronJobStatus {
        self.cron.status.get_or_insert_default()
    }

    /// One pass; a crash may come before the status is written.
    fn pass(&mut self, crashes: bool) {
        let known: BTreeSet<String> = self.jobs.iter().map(|job| uid_of(&**job).to_owned()).collect();
        let active = self.cron.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
        let gone = active.iter().filter_map(|r| r.uid.clone()).filter(|uid| !known.contains(uid)).collect();
        let decision = decide(&self.cron, &self.jobs, &gone, self.now);
        let mut status = decision.status;
        let removed: BTreeSet<String> = decision
            .remove
            .iter()
            .map(|job| uid_of(&**job).to_owned())
            .chain(decision.replace.iter().filter_map(|old| old.uid.clone()))
            .collect();
        self.jobs.retain(|job| !removed.contains(uid_of(&**job)));
        status.active = status.active.map(|active| {
            active.into_iter().filter(|r| r.uid.as_ref().is_none_or(|uid| !removed.contains(uid))).collect()
        });
        if let Some((mut job, time)) = decision.start {
            assert!(time <= self.now, "{time} is to come");
            // The name tells the time: after a crash the Job is there already.
            if !self.jobs.iter().any(|known| known.metadata.name == job.metadata.name) {
                assert!(self.used.insert(time), "{time} was used before");
                job.metadata.uid.clone_from(&job.metadata.name);
                job.status = Some(JobStatus { start_time: Some(Time(self.now)), ..JobStatus::default() });
                self.jobs.push(Arc::new((*job).clone()));
            }
            let made = self.jobs.iter().find(|known| known.metadata.name == job.metadata.name).cloned();
            status.active.get_or_insert_default().extend(made.map(|job| reference(&*job)));
            status.last_schedule_time = Some(Time(time));
        }
        if !crashes {
            *self.status() = status;
        }
    }

    fn end_some(&mut self, rng: &mut StdRng) {
        let now = Time(self.now);
        for job in self.jobs.iter_mut().filter(|job| is_active(job)) {
            if rng.random_bool(0.2) {
                let kind = if rng.random_bool(0.5) { "Complete" } else { "Failed" };
                let condition = json!({ "type": kind, "status": "True", "lastTransitionTime": now });
                let status = Arc::make_mut(job).status.get_or_insert_default();
                status.conditions = serde_json::from_value(json!([condition])).expect("conditions");
                status.completion_time = (kind == "Complete").then(|| now.clone());
            }
        }
    }

    fn count(&self, end: &str) -> usize {
        let ended = |job: &&Arc<Job>| {
            job.status.as_ref().and_then(crate::job::finished).is_some_and(|condition| condition.type_ == end)
        };
        self.jobs.iter().filter(ended).count()
    }
}

fn history(seed: u64) {
    let mut rng = seeded(seed);
    let mut world = World::new(&mut rng);
    let spec = world.cron.spec.clone();
    let limit = |limit: Option<i32>| usize::try_from(limit.unwrap_or(0)).unwrap_or(0);
    for step in 0..150 {
        let pause = if rng.random_range(0..20) == 0 { 20_000 } else { 90 };
        let wait = jiff::SignedDuration::from_secs(rng.random_range(0..pause));
        world.now = world.now.checked_add(wait).expect("in range");
        world.end_some(&mut rng);
        if rng.random_range(0..6) == 0 {
            world.pass(true);
        }
        world.pass(false);
        let active = world.jobs.iter().filter(|job| is_active(job)).count();
        if spec.concurrency_policy.as_deref() != Some("Allow") {
            assert!(active <= 1, "seed {seed}, step {step}: {active} at once");
        }
        let (done, failed) = (world.count("Complete"), world.count("Failed"));
        assert!(
            done <= limit(spec.successful_jobs_history_limit),
            "seed {seed}, step {step}: {done} are kept"
        );
        assert!(
            failed <= limit(spec.failed_jobs_history_limit),
            "seed {seed}, step {step}: {failed} are kept"
        );
        if let (Some(deadline), Some(last)) = (spec.starting_deadline_seconds, world.used.last()) {
            let made_now = world.jobs.iter().any(|job| {
                job.status.as_ref().and_then(|s| s.start_time.as_ref()).is_some_and(|t| t.0 == world.now)
            });
            let late = world.now.duration_since(*last).as_secs();
            assert!(
                !made_now || wait.is_zero() || late <= deadline,
                "seed {seed}, step {step}: {late} s late"
            );
        }
    }
    assert!(!world.used.is_empty(), "seed {seed}: nothing ran");
}

#[test]
fn no_time_is_used_twice_and_the_policies_hold_in_any_history() {
    (0..20).for_each(history);
}
