//! When a CronJob starts a Job, and which of its Jobs go: pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::EventType;
use coracle_meta::cron::{Schedule, zone};
use coracle_meta::owner::controller_ref;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::job::finished;
use crate::runtime::{name_of, uid_of};

/// When the Job should have started, in the CronJob's time zone.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Clocks may differ by this much.
const DELTA: Duration = Duration::from_millis(100);
/// From here on, missed times are worth a warning.
const MANY: i64 = 100;

pub(super) type Happening = (EventType, &'static str, String);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub happenings: Vec<Happening>,
    /// The status, before a Job is started or removed.
    pub status: CronJobStatus,
    /// Finished Jobs beyond the history's limits.
    pub remove: Vec<Arc<Job>>,
    /// Jobs that give way to the one to start.
    pub replace: Vec<ObjectReference>,
    /// The Job to start, and the time it is for.
    pub start: Option<(Box<Job>, Timestamp)>,
    pub again: Option<Duration>,
}

/// Missed times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missed {
    None,
    Few,
    Many,
}

/// A schedule in its time zone.
struct Plan {
    schedule: Schedule,
    zone: TimeZone,
}

impl Plan {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }
}

/// From when on times count, the last time that passed, and how many did.
fn most_recent(
    cron: &CronJob,
    plan: &Plan,
    now: Timestamp,
    deadline: Option<i64>,
) -> Result<(Timestamp, Option<Timestamp>, Missed), String> {
    let too_close = || "time difference between two schedules is less than 1 second".to_owned();
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut earliest = last.map_or(created, |t| t.0);
    if let Some(limit) = deadline.and_then(|s| now.checked_sub(SignedDuration::from_secs(s)).ok()) {
        earliest = earliest.max(limit);
    }
    let first = plan.next(earliest).ok_or_else(too_close)?;
    if now < first {
        return Ok((earliest, None, Missed::None));
    }
    let second = plan.next(first).ok_or_else(too_close)?;
    if now < second {
        return Ok((earliest, Some(first), Missed::None));
    }
    let between = second.duration_since(first).as_secs();
    if between < 1 {
        return Err(too_close());
    }
    let count = now.duration_since(first).as_secs() / between + 1;
    // Close to the end, so that years of missed times are not walked through.
    let skip = SignedDuration::from_secs((count - 2).max(0) * between);
    let mut at = first.checked_add(skip).ok().and_then(|from| plan.next(from));
    let mut recent = None;
    while let Some(time) = at.filter(|time| *time <= now) {
        recent = Some(time);
        at = plan.next(time);
    }
    let missed = if count > MANY { Missed::Many } else { Missed::Few };
    Ok((earliest, recent, missed))
}

/// How long until the next time.
fn until_next(cron: &CronJob, plan: &Plan, now: Timestamp) -> Option<Duration> {
    let from = match most_recent(cron, plan, now, None) {
        Err(_) => now,
        Ok((_, Some(recent), _)) => recent,
        Ok((earliest, None, Missed::None)) => earliest,
        Ok((_, None, _)) => now,
    };
    let wait = plan.next(from)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or_default() + DELTA)
}

/// The name of the Job for a time.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", name_of(cron), at.as_second().div_euclid(60))
}

fn new_job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let local = at.to_zoned(zone.clone());
    let text = match local.offset().is_zero() {
        true => local.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        false => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    annotations.insert(SCHEDULED_AT.to_owned(), text);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// Jobs beyond a limit, the oldest first.
fn surplus(mut jobs: Vec<Arc<Job>>, limit: Option<i32>) -> Vec<Arc<Job>> {
    let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return Vec::new() };
    jobs.sort_by_key(|job| {
        let started = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|t| t.0);
        (started.is_none(), started, job.metadata.name.clone())
    });
    jobs.truncate(jobs.len().saturating_sub(limit));
    jobs
}

/// Brings the list of active Jobs up to date with the Jobs there are. `gone`: uids of active Jobs that are not
/// among them and were looked for.
fn follow(jobs: &[Arc<Job>], gone: &BTreeSet<String>, decision: &mut Decision) {
    let status = &mut decision.status;
    let mut active = status.active.take().unwrap_or_default();
    for job in jobs {
        let uid = uid_of(&**job);
        let listed = active.iter().any(|reference| reference.uid.as_deref() == Some(uid));
        let end = job.status.as_ref().and_then(finished);
        match end {
            None if !listed => decision.happenings.push((
                EventType::Warning,
                "UnexpectedJob",
                format!("Saw a job that the controller did not create or forgot: {}", name_of(&**job)),
            )),
            Some(end) if listed => {
                active.retain(|reference| reference.uid.as_deref() != Some(uid));
                let message = format!("Saw completed job: {}, condition: {}", name_of(&**job), end.type_);
                decision.happenings.push((EventType::Normal, "SawCompletedJob", message));
            }
            _ => {}
        }
        let done = end.filter(|end| end.type_ == "Complete");
        let at = done.and_then(|_| job.status.as_ref()?.completion_time.clone());
        if let Some(at) = at
            && status.last_successful_time.as_ref().is_none_or(|last| last.0 < at.0)
        {
            status.last_successful_time = Some(at);
        }
    }
    active.retain(|reference| {
        let missing = reference.uid.as_ref().is_some_and(|uid| gone.contains(uid));
        if missing {
            let message = format!("Active job went missing: {}", reference.name.as_deref().unwrap_or(""));
            decision.happenings.push((EventType::Normal, "MissingJob", message));
        }
        !missing
    });
    // What is removed is active no more.
    let removed: BTreeSet<&str> = decision.remove.iter().map(|job| uid_of(&**job)).collect();
    active.retain(|reference| !removed.contains(reference.uid.as_deref().unwrap_or("")));
    status.active = (!active.is_empty()).then_some(active);
}

/// One look at a CronJob and its Jobs.
pub(super) fn decide(cron: &CronJob, jobs: &[Arc<Job>], gone: &BTreeSet<String>, now: Timestamp) -> Decision {
    let mut decision = Decision { status: cron.status.clone().unwrap_or_default(), ..Decision::default() };
    let spec = &cron.spec;
    let ended = |kind: &str| -> Vec<Arc<Job>> {
        let is = |job: &&Arc<Job>| {
            job.status.as_ref().and_then(finished).is_some_and(|end| end.type_ == kind)
                && job.metadata.deletion_timestamp.is_none()
        };
        jobs.iter().filter(is).cloned().collect()
    };
    decision.remove = surplus(ended("Complete"), spec.successful_jobs_history_limit);
    decision.remove.extend(surplus(ended("Failed"), spec.failed_jobs_history_limit));
    follow(jobs, gone, &mut decision);
    if cron.metadata.deletion_timestamp.is_none() {
        start(cron, spec, now, &mut decision);
    }
    decision
}

/// The schedule in its time zone; what is wrong with it.
fn plan(spec: &CronJobSpec, decision: &mut Decision) -> Option<Plan> {
    let mut warn = |reason, message| decision.happenings.push((EventType::Warning, reason, message));
    let named = spec.time_zone.as_deref();
    let own_zone = match named.filter(|name| !name.is_empty()) {
        None => TimeZone::UTC,
        Some(name) => match zone(name) {
            Some(zone) => zone,
            None => {
                warn("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}"));
                return None;
            }
        },
    };
    if spec.suspend == Some(true) {
        return None;
    }
    if spec.schedule.contains("TZ") {
        warn(
            "UnsupportedSchedule",
            format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                spec.schedule
            ),
        );
    }
    match Schedule::parse(&spec.schedule) {
        Ok(schedule) => Some(Plan { schedule, zone: own_zone }),
        Err(why) => {
            warn("UnparseableSchedule", format!("unparseable schedule: {:?} : {why}", spec.schedule));
            None
        }
    }
}

fn start(cron: &CronJob, spec: &CronJobSpec, now: Timestamp, decision: &mut Decision) {
    let Some(plan) = plan(spec, decision) else { return };
    let deadline = spec.starting_deadline_seconds;
    let (recent, missed) = match most_recent(cron, &plan, now, deadline) {
        Ok((_, recent, missed)) => (recent, missed),
        Err(why) => {
            let message = format!("invalid schedule: {} : {why}", spec.schedule);
            decision.happenings.push((EventType::Warning, "InvalidSchedule", message));
            return;
        }
    };
    decision.again = until_next(cron, &plan, now);
    let Some(at) = recent else { return };
    if missed == Missed::Many {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check \
                       clock skew";
        decision.happenings.push((EventType::Warning, "TooManyMissedTimes", message.to_owned()));
    }
    let late = deadline.and_then(|s| at.checked_add(SignedDuration::from_secs(s)).ok());
    if late.is_some_and(|late| late < now) {
        let text = at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S +0000");
        let message = format!("Missed scheduled time to start a job: {text}");
        decision.happenings.push((EventType::Warning, "MissSchedule", message));
        return;
    }
    let active = decision.status.active.clone().unwrap_or_default();
    let name = job_name(cron, at);
    let known = active.iter().any(|reference| reference.name.as_deref() == Some(&name));
    if known || decision.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is \
                           Forbid";
            decision.happenings.push((EventType::Normal, "JobAlreadyActive", message.to_owned()));
            return;
        }
        Some("Replace") => decision.replace = active,
        _ => {}
    }
    decision.start = Some((Box::new(new_job(cron, spec, at, &plan.zone)), at));
    // The status tells of this time before the next pass; the wait is from there.
    let mut later = cron.clone();
    later.status.get_or_insert_default().last_schedule_time = Some(Time(at));
    decision.again = until_next(&later, &plan, now);
}
