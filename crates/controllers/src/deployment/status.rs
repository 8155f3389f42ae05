//! The status of a Deployment, and whether its rollout makes progress: pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::decide::Pass;
use super::util::{actual, condition, new_condition, remove_condition, set_condition, size};

/// Whether the condition Progressing is judged in this pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Judge,
    /// Paused or scaling.
    Ignore,
}

/// Brings the working status up to date.
pub(super) fn sync(pass: &mut Pass<'_>, progress: Progress) {
    let old = pass.deployment.status.clone().unwrap_or_default();
    let mut new = counts(pass);
    new.conditions.clone_from(&pass.status.conditions);
    judge_availability(pass, &mut new);
    if progress == Progress::Judge {
        judge_progress(pass, &old, &mut new);
        note_failures(pass, &mut new);
    }
    pass.status = new;
}

/// Zero is left out, as upstream's `omitempty` does.
fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn counts(pass: &Pass<'_>) -> DeploymentStatus {
    let of = |set: &ReplicaSet, count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        set.status.as_ref().and_then(count).unwrap_or(0)
    };
    let available = pass.available();
    let known =
        pass.sets.iter().any(|p| p.set.status.as_ref().is_some_and(|s| s.terminating_replicas.is_some()));
    let terminating = pass.total(|set| of(set, |s| s.terminating_replicas));
    DeploymentStatus {
        observed_generation: pass.deployment.metadata.generation,
        replicas: some(pass.total(actual)),
        updated_replicas: some(pass.newest().map_or(0, actual)),
        ready_replicas: some(pass.total(|set| of(set, |s| s.ready_replicas))),
        available_replicas: some(available),
        unavailable_replicas: some((pass.total(size) - available).max(0)),
        collision_count: pass.status.collision_count,
        terminating_replicas: known.then_some(terminating),
        conditions: None,
    }
}

fn judge_availability(pass: &Pass<'_>, new: &mut DeploymentStatus) {
    let least = pass.numbers.replicas - pass.numbers.max_unavailable;
    let (status, reason, message) = if pass.available() >= least {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(new, new_condition("Available", status, reason, message, pass.now));
}

fn judge_progress(pass: &Pass<'_>, old: &DeploymentStatus, new: &mut DeploymentStatus) {
    let Some(deadline) = pass.numbers.deadline else {
        return remove_condition(new, "Progressing");
    };
    let current = condition(new, "Progressing").cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or("");
    if new.replicas == new.updated_replicas && reason == "NewReplicaSetAvailable" {
        return;
    }
    let name = pass.newest().and_then(|set| set.metadata.name.as_deref());
    let subject = match name {
        Some(name) => format!("ReplicaSet {name:?}"),
        None => format!("Deployment {:?}", pass.deployment.metadata.name.as_deref().unwrap_or("")),
    };
    if pass.is_complete(new) {
        let message = format!("{subject} has successfully progressed.");
        let done = new_condition("Progressing", "True", "NewReplicaSetAvailable", &message, pass.now);
        set_condition(new, done);
    } else if is_progressing(old, new) {
        let message = format!("{subject} is progressing.");
        let mut moving = new_condition("Progressing", "True", "ReplicaSetUpdated", &message, pass.now);
        if let Some(current) = current.filter(|c| c.status == "True") {
            moving.last_transition_time = current.last_transition_time;
        }
        // Also when only the time of the update changed.
        remove_condition(new, "Progressing");
        set_condition(new, moving);
    } else if has_timed_out(current.as_ref(), deadline, pass.now) {
        let message = format!("{subject} has timed out progressing.");
        let late = new_condition("Progressing", "False", "ProgressDeadlineExceeded", &message, pass.now);
        set_condition(new, late);
    }
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let left = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || left(new) < left(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// How long until the deadline; `None` when it passed.
fn time_left(condition: &DeploymentCondition, deadline: i32, now: Timestamp) -> Option<Duration> {
    let since = condition.last_update_time.as_ref().map_or(now, |t| t.0);
    let end = since.checked_add(Duration::from_secs(u64::try_from(deadline).unwrap_or(0))).ok()?;
    Duration::try_from(end.duration_since(now)).ok()
}

fn has_timed_out(condition: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> bool {
    condition.is_some_and(|condition| match condition.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => time_left(condition, deadline, now).is_none(),
    })
}

/// The ReplicaSets' own failures to make pods become the Deployment's.
fn note_failures(pass: &Pass<'_>, new: &mut DeploymentStatus) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    let found = match pass.newest() {
        Some(set) if failure(set).is_some() => failure(set),
        _ => pass.sets.iter().find_map(|p| failure(&p.set)),
    };
    match found {
        Some(found) => set_condition(
            new,
            DeploymentCondition {
                type_: found.type_,
                status: found.status,
                reason: found.reason,
                message: found.message,
                last_update_time: found.last_transition_time.clone(),
                last_transition_time: found.last_transition_time,
            },
        ),
        None => remove_condition(new, "ReplicaFailure"),
    }
}

/// When to look again whether the deadline passed.
pub(super) fn next_check(pass: &Pass<'_>) -> Option<Duration> {
    let deadline = pass.numbers.deadline?;
    let condition = condition(&pass.status, "Progressing")?;
    let over = matches!(
        condition.reason.as_deref(),
        Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded" | "DeploymentPaused")
    );
    if over || pass.is_complete(&pass.status) {
        return None;
    }
    Some(time_left(condition, deadline, pass.now).unwrap_or_default() + Duration::from_secs(1))
}
