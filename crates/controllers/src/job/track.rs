//! How a Job counts its pods, each exactly once: pure.
//!
//! A pod that ended is first written down in the status, by uid (by index if it succeeded and has one). Then its
//! finalizer is taken away, so that it may go. Then its uid leaves the list and the counter grows. Whatever
//! is interrupted in between, the next pass finds the pod in exactly one of these states.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_client::EventType;
use coracle_meta::pod as podutil;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::policy::{Effect, effect, is_failed};
use super::tally::{Tally, condition, index_of, is_suspended, is_tracked, new_condition};
use crate::runtime::uid_of;

/// Uids written down at one time.
const MOST_UNCOUNTED: usize = 500;

/// What became of the decision about pods.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Active pods now.
    pub active: i32,
    /// Those of them that are ready.
    pub ready: i32,
    /// Pods on their way out.
    pub terminating: i32,
    /// Whether everything that the decision asked for was done.
    pub done: bool,
}

/// The first half of a pass.
#[derive(Debug)]
pub(super) struct Account {
    /// To be written before finalizers are touched, if it differs from what is stored.
    pub status: JobStatus,
    /// Pods to take the finalizer from.
    pub release: Vec<Arc<Pod>>,
    /// Uids of all pods that hold it.
    pub held: BTreeSet<String>,
    /// `Complete` or `Failed`, once everything is counted.
    end: Option<JobCondition>,
    pub happenings: Vec<(EventType, String, String)>,
}

fn some(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

/// Sets a condition; whether that changed anything. One that would be false is not added.
fn ensure(status: &mut JobStatus, new: JobCondition) -> bool {
    let all = status.conditions.get_or_insert_default();
    let changed = match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(known) => {
            let differs =
                known.status != new.status || known.reason != new.reason || known.message != new.message;
            if differs {
                *known = new;
            }
            differs
        }
        None if new.status == "False" => false,
        None => {
            all.push(new);
            true
        }
    };
    status.conditions.take_if(|conditions| conditions.is_empty());
    changed
}

/// Moves the uids of pods that hold the finalizer no more from the lists to the counters.
fn count_released(status: &mut JobStatus, held: &BTreeSet<String>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let drain = |list: &mut Option<Vec<String>>| {
        let before = list.as_ref().map_or(0, Vec::len);
        if let Some(uids) = list {
            uids.retain(|uid| held.contains(uid));
        }
        let after = list.as_ref().map_or(0, Vec::len);
        list.take_if(|uids| uids.is_empty());
        i32::try_from(before - after).unwrap_or(0)
    };
    let succeeded = drain(&mut uncounted.succeeded);
    let failed = drain(&mut uncounted.failed);
    status.succeeded = some(status.succeeded.unwrap_or(0) + succeeded);
    status.failed = some(status.failed.unwrap_or(0) + failed);
}

/// The first half: what to write down, and which pods to release after that.
pub(super) fn account(tally: &Tally<'_>, outcome: Outcome) -> Account {
    let mut status = tally.status.clone();
    let mut happenings = Vec::new();
    let mut end = tally.end.clone();
    if end.is_some() {
        // Not over while pods could not be deleted.
        end = end.filter(|_| outcome.done);
    } else if tally.is_complete(outcome.active) {
        let message = "Reached expected number of succeeded pods";
        end = Some(new_condition("SuccessCriteriaMet", "True", "CompletionsReached", message, tally.now));
    } else if tally.job.metadata.deletion_timestamp.is_none() {
        note_suspension(tally, &mut status, &mut happenings);
    }
    status.active = some(outcome.active);
    status.ready = Some(outcome.ready);
    status.terminating = Some(outcome.terminating);
    let held: BTreeSet<String> =
        tally.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid_of(&**pod).to_owned()).collect();
    count_released(&mut status, &held);
    let release = write_down(tally, end.as_ref(), &mut status);
    if tally.is_indexed() {
        status.succeeded = some(tally.succeeded_indexes.total());
        let text = tally.succeeded_indexes.to_string();
        status.completed_indexes = (!text.is_empty()).then_some(text);
        status.failed_indexes = tally.failed_indexes.as_ref().map(ToString::to_string);
    }
    let end = end.map(|target| announce(target, &mut status, tally.now));
    Account { status, release, held, end, happenings }
}

fn note_suspension(
    tally: &Tally<'_>,
    status: &mut JobStatus,
    happenings: &mut Vec<(EventType, String, String)>,
) {
    if is_suspended(tally.spec) {
        if ensure(status, new_condition("Suspended", "True", "JobSuspended", "Job suspended", tally.now)) {
            status.start_time = None;
            happenings.push((EventType::Normal, "Suspended".into(), "Job suspended".into()));
        }
    } else if ensure(status, new_condition("Suspended", "False", "JobResumed", "Job resumed", tally.now)) {
        status.start_time = Some(Time(tally.now));
        happenings.push((EventType::Normal, "Resumed".into(), "Job resumed".into()));
    }
}

/// Writes ended pods into the lists; the pods that may be released after that.
fn write_down(tally: &Tally<'_>, end: Option<&JobCondition>, status: &mut JobStatus) -> Vec<Arc<Pod>> {
    let mut pods: Vec<&Arc<Pod>> = tally.pods.iter().filter(|pod| is_tracked(pod)).collect();
    if tally.is_indexed() {
        pods.sort_by_key(|pod| index_of(pod));
    }
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let mut succeeded = uncounted.succeeded.take().unwrap_or_default();
    let mut failed = uncounted.failed.take().unwrap_or_default();
    let known: BTreeSet<String> = succeeded.iter().chain(&failed).cloned().collect();
    let (mut release, mut new_indexes) = (Vec::new(), 0);
    // When the Job fails, what has not ended has failed.
    let fails_all = end.is_some_and(|end| end.type_ != "SuccessCriteriaMet");
    for pod in pods {
        let uid = uid_of(&**pod).to_owned();
        let is_failure = is_failed(tally.spec, pod);
        if !may_release(tally, end, pod, is_failure) {
            continue;
        }
        release.push(pod.clone());
        let was_failure = failed.contains(&uid);
        if podutil::phase(pod) == "Succeeded" && !was_failure {
            if tally.is_indexed() {
                let index = index_of(pod).filter(|_| tally.counts(pod));
                new_indexes += usize::from(index.is_some_and(|index| !tally.known_indexes.has(index)));
            } else if !known.contains(&uid) {
                succeeded.push(uid);
            }
        } else if (is_failure || fails_all)
            && !known.contains(&uid)
            && tally.counts(pod)
            && effect(tally.spec, pod) != Effect::Ignored
        {
            failed.push(uid);
        }
        if new_indexes + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
            break;
        }
    }
    uncounted.succeeded = (!succeeded.is_empty()).then_some(succeeded);
    uncounted.failed = (!failed.is_empty()).then_some(failed);
    release
}

fn may_release(tally: &Tally<'_>, end: Option<&JobCondition>, pod: &Arc<Pod>, is_failure: bool) -> bool {
    if tally.job.metadata.deletion_timestamp.is_some() || end.is_some() || podutil::phase(pod) == "Succeeded"
    {
        return true;
    }
    // One failed pod per index stays until its replacement knows how often the index failed.
    let stays = index_of(pod).and_then(|index| tally.delayed.get(&index));
    is_failure && stays.is_none_or(|stays| uid_of(&**stays) != uid_of(&**pod))
}

/// Adds the interim condition of an end; the final one.
fn announce(target: JobCondition, status: &mut JobStatus, now: Timestamp) -> JobCondition {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (reason, message) = (text(&target.reason), text(&target.message));
    let kind = match target.type_.as_str() {
        "SuccessCriteriaMet" => "Complete",
        _ => "Failed",
    };
    if target.type_ != "Failed" && condition(status, &target.type_).is_none() {
        status.conditions.get_or_insert_default().push(target);
    }
    new_condition(kind, "True", &reason, &message, now)
}

/// The second half, with the pods that hold the finalizer still: the status to write if it differs, and what
/// to tell once it is written.
pub(super) fn settle(
    account: &Account,
    held: &BTreeSet<String>,
    completions: Option<i32>,
    is_indexed: bool,
) -> (JobStatus, Vec<(EventType, String, String)>) {
    let mut status = account.status.clone();
    // Those that succeeded with an index are counted by it.
    let by_index = status.succeeded;
    count_released(&mut status, held);
    if is_indexed {
        status.succeeded = by_index;
    }
    let Some(end) = &account.end else { return (status, Vec::new()) };
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let waits = uncounted.succeeded.is_some() || uncounted.failed.is_some();
    if waits || status.terminating.unwrap_or(0) > 0 {
        return (status, Vec::new());
    }
    ensure(&mut status, end.clone());
    let mut happenings = Vec::new();
    if end.type_ == "Complete" {
        status.completion_time.clone_from(&end.last_transition_time);
        if completions.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            happenings.push((EventType::Warning, "TooManySucceededPods".into(), message.into()));
        }
        happenings.push((EventType::Normal, "Completed".into(), "Job completed".into()));
    } else {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        happenings.push((EventType::Warning, text(&end.reason), text(&end.message)));
    }
    (status, happenings)
}
