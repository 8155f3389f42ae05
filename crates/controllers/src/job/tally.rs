//! What a Job's status and pods amount to: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_meta::pod as podutil;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff::{Backoff, finished_at, left_for_index};
use super::indexes::Indexes;
use super::policy::{Effect, effect, is_failed, replaces_only_failed, success};
use crate::pods::BURST;
use crate::runtime::uid_of;

/// Held by pods that the Job has not counted yet.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label: which completion a pod works on.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how often the index failed before, as far as it counts.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation: how often the index failed before without counting.
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

/// The completion that the pod works on.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    annotation(pod, INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// How often the pod's index failed before it: counting, and not counting.
pub(super) fn earlier_failures(pod: &Pod) -> (u32, u32) {
    let number = |key| annotation(pod, key).and_then(|text| text.parse().ok()).unwrap_or(0);
    (number(FAILURES), number(IGNORED))
}

/// Whether the pod waits for being counted.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn is_true<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    condition(status, kind).filter(|c| c.status == "True")
}

/// Whether the Job is over: `Complete` or `Failed`.
pub(crate) fn finished(status: &JobStatus) -> Option<&JobCondition> {
    is_true(status, "Complete").or_else(|| is_true(status, "Failed"))
}

pub(super) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: some(reason),
        message: some(message),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(super) fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// A Job's state of affairs.
pub(super) struct Tally<'a> {
    pub job: &'a Job,
    pub spec: &'a JobSpec,
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
    /// The status as it will be written, so far.
    pub status: JobStatus,
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    pub succeeded: i32,
    pub backoff: Backoff,
    /// Indexes that the status has as completed, and with those of the pods.
    pub known_indexes: Indexes,
    pub succeeded_indexes: Indexes,
    /// With a limit per index.
    pub failed_indexes: Option<Indexes>,
    /// By index: the failed pod that tells its replacement how often the index failed.
    pub delayed: BTreeMap<i32, Arc<Pod>>,
    /// Why the Job ends: `FailureTarget`, `Failed` or `SuccessCriteriaMet`.
    pub end: Option<JobCondition>,
    /// When to look again: a deadline.
    pub again: Option<Duration>,
}

/// What to do about pods.
#[derive(Debug)]
pub(super) enum Manage {
    /// The Job ends: delete these, and keep them until they are counted.
    End(Vec<Arc<Pod>>),
    /// Delete these and count them no more: suspended, or too many.
    Remove(Vec<Arc<Pod>>),
    /// Make so many pods, for these indexes if the Job has them.
    Create(usize, Vec<i32>),
    /// Back-off.
    Wait(Duration),
    Nothing,
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

impl<'a> Tally<'a> {
    pub(super) fn new(
        job: &'a Job,
        spec: &'a JobSpec,
        pods: &'a [Arc<Pod>],
        backoff: Backoff,
        now: Timestamp,
    ) -> Self {
        let mut status = job.status.clone().unwrap_or_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        let active: Vec<Arc<Pod>> = pods.iter().filter(|pod| podutil::is_active(pod)).cloned().collect();
        let leaving = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !podutil::is_terminal(p);
        if status.start_time.is_none() && !is_suspended(spec) {
            status.start_time = Some(Time(now));
        }
        let mut tally = Self {
            job,
            spec,
            pods,
            now,
            ready: count(active.iter().filter(|pod| podutil::is_ready(pod)).count()),
            terminating: count(pods.iter().filter(leaving).count()),
            active,
            succeeded: 0,
            backoff,
            known_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            delayed: BTreeMap::new(),
            end: None,
            again: None,
            status,
        };
        tally.judge();
        tally
    }

    pub(super) fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// The pod's index, if it is one of the Job's.
    fn valid_index(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|index| *index < self.spec.completions.unwrap_or(0))
    }

    /// Whether the pod can be counted at all.
    pub(super) fn counts(&self, pod: &Pod) -> bool {
        !self.is_indexed() || self.valid_index(pod).is_some()
    }

    /// Pods that ended and are in no counter yet.
    fn newly(&self, known: Option<&Vec<String>>, ended: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let known: BTreeSet<&String> = known.into_iter().flatten().collect();
        let new = |pod: &&Arc<Pod>| {
            is_tracked(pod) && !known.contains(&uid_of(&***pod).to_owned()) && self.counts(pod) && ended(pod)
        };
        self.pods.iter().filter(new).cloned().collect()
    }

    fn judge(&mut self) {
        let uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let succeeded = self.newly(uncounted.succeeded.as_ref(), |pod| podutil::phase(pod) == "Succeeded");
        let failed = self.newly(uncounted.failed.as_ref(), |pod| is_failed(self.spec, pod));
        let relevant = failed.iter().filter(|pod| effect(self.spec, pod) != Effect::Ignored).count();
        let waiting = |uids: Option<&Vec<String>>| count(uids.map_or(0, Vec::len));
        let all_failed =
            self.status.failed.unwrap_or(0) + count(relevant) + waiting(uncounted.failed.as_ref());
        self.succeeded = self.status.succeeded.unwrap_or(0)
            + count(succeeded.len())
            + waiting(uncounted.succeeded.as_ref());
        self.backoff = self.backoff.after(&succeeded, &failed);
        self.end = self.known_end().or_else(|| self.failure(all_failed));
        if self.is_indexed() {
            self.judge_indexes();
        }
    }

    /// An end that an earlier pass found.
    fn known_end(&self) -> Option<JobCondition> {
        if let Some(met) = is_true(&self.status, "SuccessCriteriaMet") {
            return Some(met.clone());
        }
        let target = is_true(&self.status, "FailureTarget")?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(new_condition("Failed", "True", &text(&target.reason), &text(&target.message), self.now))
    }

    fn target(&self, reason: &str, message: &str) -> JobCondition {
        new_condition("FailureTarget", "True", reason, message, self.now)
    }

    fn failure(&mut self, failed: i32) -> Option<JobCondition> {
        for pod in self.pods.iter().filter(|pod| is_failed(self.spec, pod)) {
            if let Effect::FailsJob(message) = effect(self.spec, pod) {
                return Some(self.target("PodFailurePolicy", &message));
            }
        }
        // With a limit per index, the API sets the other one to the highest number.
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if failed > limit || self.restarted_too_often(limit) {
            let message = "Job has reached the specified backoff limit";
            return Some(self.target("BackoffLimitExceeded", message));
        }
        let deadline = self.spec.active_deadline_seconds.filter(|_| !is_suspended(self.spec))?;
        let start = self.status.start_time.as_ref()?.0;
        let left = SignedDuration::from_secs(deadline) - self.now.duration_since(start);
        if left <= SignedDuration::ZERO {
            let message = "Job was active longer than specified deadline";
            return Some(self.target("DeadlineExceeded", message));
        }
        self.again = Duration::try_from(left).ok();
        None
    }

    fn restarted_too_often(&self, limit: i32) -> bool {
        let spec = self.spec.template.spec.as_ref();
        if spec.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let live = self.pods.iter().filter(|pod| matches!(podutil::phase(pod), "Running" | "Pending"));
        let statuses = live.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
            let main = status.container_statuses.iter().flatten();
            main.chain(status.init_container_statuses.iter().flatten())
        });
        let restarts: i32 = statuses.map(|status| status.restart_count).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn judge_indexes(&mut self) {
        let completions = self.spec.completions.unwrap_or(0);
        let text = self.status.completed_indexes.as_deref().unwrap_or("");
        self.known_indexes = Indexes::parse(text, completions);
        let done = self.pods.iter().filter(|pod| podutil::phase(pod) == "Succeeded" && is_tracked(pod));
        let done: Vec<i32> = done.filter_map(|pod| self.valid_index(pod)).collect();
        self.succeeded_indexes = self.known_indexes.clone();
        done.into_iter().for_each(|index| self.succeeded_indexes.insert(index));
        self.succeeded = self.succeeded_indexes.total();
        if let Some(limit) = self.spec.backoff_limit_per_index {
            self.judge_failed_indexes(limit);
        }
        if self.end.is_none()
            && let Some(message) = success(self.job, &self.succeeded_indexes)
        {
            self.end = Some(new_condition("SuccessCriteriaMet", "True", "SuccessPolicy", &message, self.now));
        }
    }

    fn judge_failed_indexes(&mut self, limit: i32) {
        let completions = self.spec.completions.unwrap_or(0);
        let text = self.status.failed_indexes.as_deref().unwrap_or("");
        let mut failed = Indexes::parse(text, completions);
        for pod in self.pods.iter().filter(|pod| is_tracked(pod) && is_failed(self.spec, pod)) {
            let Some(index) = self.valid_index(pod) else { continue };
            let often = i64::from(earlier_failures(pod).0) >= i64::from(limit);
            match effect(self.spec, pod) {
                Effect::FailsIndex => failed.insert(index),
                Effect::Counts | Effect::FailsJob(_) if often => failed.insert(index),
                _ => {}
            }
        }
        if self.end.is_none() {
            let total = failed.total();
            if self.spec.max_failed_indexes.is_some_and(|most| total > most) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                self.end = Some(self.target("MaxFailedIndexesExceeded", message));
            } else if total > 0 && total + self.succeeded_indexes.total() >= completions {
                self.end = Some(self.target("FailedIndexes", "Job has failed indexes"));
            }
        }
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        for pod in self.pods.iter().filter(|pod| is_tracked(pod) && is_failed(self.spec, pod)) {
            let Some(index) = self.valid_index(pod) else { continue };
            if self.succeeded_indexes.has(index) || failed.has(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| {
                let (counting, ignored) = earlier_failures(pod);
                (counting + ignored, finished_at(pod))
            };
            let known = self.delayed.get(&index);
            if known.is_none_or(|known| rank(known) <= rank(pod)) {
                self.delayed.insert(index, pod.clone());
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// What to do about pods now.
    pub(super) fn manage(&self) -> Manage {
        if self.end.is_some() {
            return Manage::End(self.active.clone());
        }
        if self.job.metadata.deletion_timestamp.is_some() {
            return Manage::Nothing;
        }
        if is_suspended(self.spec) {
            return match self.active.is_empty() {
                true => Manage::Nothing,
                false => Manage::Remove(self.active.clone()),
            };
        }
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let active = count(self.active.len());
        let wanted = match self.spec.completions {
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        };
        let mut surplus = self.surplus(usize::try_from(active - wanted).unwrap_or(0));
        if !surplus.is_empty() {
            surplus.truncate(BURST);
            return Manage::Remove(surplus);
        }
        let leaving = if replaces_only_failed(self.spec) { self.terminating } else { 0 };
        match usize::try_from(wanted - leaving - active) {
            Ok(missing) if missing > 0 => self.grow(missing.min(BURST)),
            _ => Manage::Nothing,
        }
    }

    fn grow(&self, missing: usize) -> Manage {
        if self.spec.backoff_limit_per_index.is_none()
            && let Some(left) = self.backoff.left(self.now)
        {
            return Manage::Wait(left);
        }
        if !self.is_indexed() {
            return Manage::Create(missing, Vec::new());
        }
        let mut busy = self.succeeded_indexes.clone();
        self.active.iter().filter_map(|pod| index_of(pod)).for_each(|index| busy.insert(index));
        if replaces_only_failed(self.spec) {
            let leaving = self.pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some());
            let leaving = leaving.filter(|pod| !podutil::is_terminal(pod));
            leaving.filter_map(|pod| index_of(pod)).for_each(|index| busy.insert(index));
        }
        if let Some(failed) = &self.failed_indexes {
            busy.extend(failed);
        }
        let mut indexes = busy.first_missing(missing, self.spec.completions.unwrap_or(0));
        let left = |index: &i32| {
            let pod = self.delayed.get(index)?;
            let (counting, ignored) = earlier_failures(pod);
            left_for_index(counting + ignored + 1, pod, self.now)
        };
        let soonest = indexes.iter().filter_map(left).min();
        indexes.retain(|index| left(index).is_none());
        match (indexes.is_empty(), soonest) {
            (true, Some(left)) => Manage::Wait(left),
            (true, None) => Manage::Nothing,
            (false, _) => Manage::Create(indexes.len(), indexes),
        }
    }

    /// Active pods to remove: those without a valid index of their own, and others up to `least`.
    fn surplus(&self, least: usize) -> Vec<Arc<Pod>> {
        let mut pods = self.active.clone();
        // The last to go stays: it is the furthest.
        pods.sort_by_key(|pod| removal_rank(pod));
        if !self.is_indexed() {
            pods.truncate(least);
            return pods;
        }
        let (mut taken, mut gone, mut kept) = (BTreeSet::new(), Vec::new(), Vec::new());
        for pod in pods.into_iter().rev() {
            match self.valid_index(&pod) {
                Some(index) if taken.insert(index) => kept.push(pod),
                _ => gone.push(pod),
            }
        }
        kept.reverse();
        kept.truncate(least.saturating_sub(gone.len()));
        gone.extend(kept);
        gone
    }

    /// Whether all completions are there, given how many pods are active now.
    pub(super) fn is_complete(&self, active: i32) -> bool {
        active == 0
            && match self.spec.completions {
                None => self.succeeded > 0,
                Some(completions) => self.succeeded >= completions,
            }
    }
}

/// What goes first: not bound, not running, not ready, and the younger.
fn removal_rank(pod: &Pod) -> impl Ord + use<> {
    let phase = match podutil::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let name = pod.metadata.name.clone();
    (podutil::node_name(pod).is_some(), phase, podutil::is_ready(pod), std::cmp::Reverse(created), name)
}
