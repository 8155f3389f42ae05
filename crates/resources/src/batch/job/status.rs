//! Rules for a job's status: conditions, counters and times must agree, and finished jobs stay finished. A rule
//! holds only where the update touches what it is about, so that older faults do not block other changes.

use std::collections::BTreeSet;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use serde_json::json;

use super::policy;
use crate::check::non_negative;
use crate::go_dump;

/// Whether a condition of the type is true.
pub(super) fn is_true(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether the first condition of the type is true.
pub(super) fn first_is_true(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).is_some_and(|c| c.status == "True")
}

/// Both sides of an update, and what they say.
struct Change<'a> {
    spec: &'a JobSpec,
    new: &'a JobStatus,
    old: &'a JobStatus,
    path: Path,
}

impl Change<'_> {
    fn is(&self, kind: &str) -> bool {
        is_true(self.new, kind)
    }
    fn turns(&self, kind: &str) -> bool {
        is_true(self.new, kind) != is_true(self.old, kind)
    }
    fn finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }
    fn turns_finished(&self) -> bool {
        let before = is_true(self.old, "Complete") || is_true(self.old, "Failed");
        self.finished() != before
    }
    fn conditions(&self, why: &str, errs: &mut ErrorList) {
        let path = self.path.child("conditions").to_string();
        errs.push(Error { kind: ErrorKind::Invalid, path, value: None, detail: why.to_owned() });
    }
}

/// Checks an update of the status.
pub(super) fn validate(new: &Job, old: &Job, errs: &mut ErrorList) {
    let (empty_spec, empty) = (JobSpec::default(), JobStatus::default());
    let change = Change {
        spec: new.spec.as_ref().unwrap_or(&empty_spec),
        new: new.status.as_ref().unwrap_or(&empty),
        old: old.status.as_ref().unwrap_or(&empty),
        path: Path::new("status"),
    };
    counters(&change, errs);
    conditions(&change, errs);
    times(&change, errs);
    indexes(&change, errs);
    success(&change, errs);
    transitions(&change, errs);
}

fn counters(change: &Change<'_>, errs: &mut ErrorList) {
    let (new, old, path) = (change.new, change.old, &change.path);
    for (field, value) in [
        ("active", new.active),
        ("succeeded", new.succeeded),
        ("failed", new.failed),
        ("ready", new.ready),
        ("terminating", new.terminating),
    ] {
        non_negative(errs, &path.child(field), i64::from(value.unwrap_or(0)));
    }
    if let Some(pods) = &new.uncounted_terminated_pods {
        let at = path.child("uncountedTerminatedPods");
        let mut seen = BTreeSet::new();
        for (field, list) in [("succeeded", &pods.succeeded), ("failed", &pods.failed)] {
            for (i, uid) in list.iter().flatten().enumerate() {
                let at = at.child(field).index(i);
                if uid.is_empty() {
                    errs.invalid(at, "", "must not be empty");
                } else if !seen.insert(uid) {
                    errs.duplicate(at, uid.as_str());
                }
            }
        }
        let some = pods.succeeded.iter().chain(&pods.failed).any(|list| !list.is_empty());
        let touched =
            change.turns_finished() || new.uncounted_terminated_pods != old.uncounted_terminated_pods;
        if touched && change.finished() && some {
            let name = "batch.UncountedTerminatedPods";
            go_dump::invalid(errs, at, name, Some(pods), "must be empty for finished job");
        }
    }
    let (active, before) = (new.active.unwrap_or(0), old.active.unwrap_or(0));
    if (change.turns_finished() || active != before) && active > 0 && change.finished() {
        errs.invalid(path.child("active"), active, "active>0 is invalid for finished job");
    }
    let terminating = new.terminating.unwrap_or(0);
    let touched = change.turns_finished() || new.terminating != old.terminating;
    if touched && terminating > 0 && change.finished() {
        errs.invalid(path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    if let Some(ready) = new.ready.filter(|ready| *ready > active)
        && (new.ready != old.ready || active != before)
    {
        errs.invalid(path.child("ready"), ready, "cannot set more ready pods than active");
    }
}

fn conditions(change: &Change<'_>, errs: &mut ErrorList) {
    let (complete, failed) = (change.is("Complete"), change.is("Failed"));
    let (turns_complete, turns_failed) = (change.turns("Complete"), change.turns("Failed"));
    if (turns_complete || turns_failed) && complete && failed {
        change.conditions("cannot set Complete=True and Failed=true conditions", errs);
    }
    if (turns_complete || change.turns("FailureTarget")) && complete && change.is("FailureTarget") {
        change.conditions("cannot set Complete=True and FailureTarget=true conditions", errs);
    }
    let failed_indexes = change.new.failed_indexes != change.old.failed_indexes;
    if (turns_failed || failed_indexes) && failed && !change.is("FailureTarget") {
        let why = "cannot set Failed=True condition without the FailureTarget=true condition";
        change.conditions(why, errs);
    }
    if (turns_complete || change.turns("SuccessCriteriaMet")) && complete && !change.is("SuccessCriteriaMet")
    {
        let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        change.conditions(why, errs);
    }
}

fn times(change: &Change<'_>, errs: &mut ErrorList) {
    let (new, old, path) = (change.new, change.old, &change.path);
    let (starts, completes) = (new.start_time != old.start_time, new.completion_time != old.completion_time);
    let at = path.child("completionTime");
    if change.turns("Complete") || completes {
        match (&new.completion_time, change.is("Complete")) {
            (Some(time), false) => {
                let why = "cannot set completionTime when there is no Complete=True condition";
                errs.invalid(&at, json!(time), why);
            }
            (None, true) => errs.required(&at, "completionTime is required for Complete jobs"),
            _ => {}
        }
    }
    if let (Some(start), Some(end)) = (&new.start_time, &new.completion_time)
        && (starts || completes)
        && end.0 < start.0
    {
        errs.invalid(&at, json!(end), "must be equal to or after `startTime`");
    }
    let nothing_to_do = change.spec.suspend == Some(true) && change.spec.completions == Some(0);
    let touched = (change.turns_finished() || starts) && !nothing_to_do;
    if touched && new.start_time.is_none() && change.finished() {
        errs.required(path.child("startTime"), "startTime is required for finished job");
    }
    if new.completion_time.is_some() && old.completion_time.is_some() && completes {
        errs.invalid(&at, json!(new.completion_time), "field is immutable");
    }
    let resuming = is_true(old, "Suspended")
        && new.conditions.iter().flatten().any(|c| c.type_ == "Suspended" && c.status == "False");
    if starts && !resuming && old.start_time.is_some() && change.spec.suspend != Some(true) {
        let why = "field is immutable for unsuspended job once set";
        errs.invalid(path.child("startTime"), json!(new.start_time), why);
    }
}

fn indexes(change: &Change<'_>, errs: &mut ErrorList) {
    let (spec, new, old, path) = (change.spec, change.new, change.old, &change.path);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let completed = text(&new.completed_indexes);
    let completed_touched = completed != text(&old.completed_indexes);
    let failed_touched = new.failed_indexes != old.failed_indexes;
    let (completed_at, failed_at) = (path.child("completedIndexes"), path.child("failedIndexes"));
    if completed_touched {
        if let Some(Err(why)) = spec.completions.map(|count| policy::intervals(&completed, count)) {
            let why = format!("error parsing completedIndexes: {why}");
            errs.invalid(&completed_at, completed.as_str(), why);
        }
        if !completed.is_empty() && spec.completion_mode.as_deref() != Some("Indexed") {
            let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
            errs.invalid(&completed_at, completed.as_str(), why);
        }
    }
    let Some(failed) = &new.failed_indexes else { return };
    if failed_touched && spec.backoff_limit_per_index.is_none() {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errs.invalid(&failed_at, failed.as_str(), why);
    }
    let Some(completions) = spec.completions else { return };
    if failed_touched
        && spec.backoff_limit_per_index.is_some()
        && let Err(why) = policy::intervals(failed, completions)
    {
        errs.invalid(&failed_at, failed.as_str(), format!("error parsing failedIndexes: {why}"));
    }
    if (failed_touched || completed_touched)
        && let Some(index) = overlap(&completed, failed, completions)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errs.invalid(failed_at, failed.as_str(), why);
    }
}

/// The first index that both sets have; intervals that do not parse are passed over.
fn overlap(completed: &str, failed: &str, completions: i32) -> Option<i64> {
    let parse = |text: &str| -> Vec<(i64, i64)> {
        text.split(',').filter_map(|part| policy::interval(part, completions).ok()).collect()
    };
    let (completed, failed) = (parse(completed), parse(failed));
    let (mut i, mut j) = (0, 0);
    while let (Some((a, b)), Some((x, y))) = (completed.get(i), failed.get(j)) {
        if a <= y && x <= b {
            return Some(*a.max(x));
        }
        if a <= x { i += 1 } else { j += 1 }
    }
    None
}

fn success(change: &Change<'_>, errs: &mut ErrorList) {
    let met = change.is("SuccessCriteriaMet");
    if met && change.is("Failed") {
        change.conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions", errs);
    }
    if met && change.is("FailureTarget") {
        change.conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errs);
    }
    if change.spec.success_policy.is_some() && !met && change.is("Complete") {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        change.conditions(why, errs);
    }
}

/// What may not be taken back.
fn transitions(change: &Change<'_>, errs: &mut ErrorList) {
    let (new, old) = (change.new, change.old);
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(old, kind) && !change.is(kind) {
            change.conditions(&format!("cannot disable the terminal {kind}=True condition"), errs);
        }
    }
    let (failed, succeeded) = (new.failed.unwrap_or(0), new.succeeded.unwrap_or(0));
    if failed < old.failed.unwrap_or(0) {
        errs.invalid(change.path.child("failed"), failed, "cannot decrease the failed counter");
    }
    let elastic = change.spec.completion_mode.as_deref() == Some("Indexed")
        && change.spec.completions == change.spec.parallelism;
    if !elastic && succeeded < old.succeeded.unwrap_or(0) {
        errs.invalid(change.path.child("succeeded"), succeeded, "cannot decrease the succeeded counter");
    }
    let (met, before) = (change.is("SuccessCriteriaMet"), is_true(old, "SuccessCriteriaMet"));
    if before && !met {
        change.conditions("cannot disable the SuccessCriteriaMet=True condition", errs);
    }
    if is_true(old, "Complete") && !before && met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        change.conditions(why, errs);
    }
}
