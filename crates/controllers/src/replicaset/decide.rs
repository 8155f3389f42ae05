//! What a ReplicaSet needs, from its spec and the pods it owns: pure.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::selector::LabelSelector;
use coracle_meta::{Status, pod as podutil};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pods::{BURST, available_at};

/// How the number of pods must change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Keep,
    Up(usize),
    Down(usize),
}

/// Why pods could not be made or removed.
pub(super) struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    pub status: Status,
}

pub(super) fn scale(set: &ReplicaSet, owned: &[Arc<Pod>]) -> Scale {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let active = owned.iter().filter(|pod| podutil::is_active(pod)).count();
    match wanted.checked_sub(active) {
        Some(0) => Scale::Keep,
        Some(missing) => Scale::Up(missing.min(BURST)),
        None => Scale::Down((active - wanted).min(BURST)),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The status that the pods amount to, and when a ready pod becomes available next.
pub(super) fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let template = LabelSelector::from_map(&labels);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| podutil::is_active(pod)).collect();
    let (mut labeled, mut ready, mut available) = (0, 0, 0);
    let mut next: Option<Duration> = None;
    for pod in &active {
        labeled += usize::from(template.matches_option(pod.metadata.labels.as_ref()));
        ready += usize::from(podutil::is_ready(pod));
        match available_at(pod, min_ready) {
            Some(at) if at <= now => available += 1,
            Some(at) => {
                let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                next = Some(next.map_or(wait, |n| n.min(wait)));
            }
            None => {}
        }
    }
    let terminating =
        owned.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !podutil::is_terminal(p)).count();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    };
    (status, next.map(|wait| wait + Duration::from_millis(10)))
}

/// Zero is left out, as upstream's `omitempty` does.
fn some(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

fn conditions(
    set: &ReplicaSet,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let known = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (failed, mut rest): (Vec<_>, Vec<_>) = known.into_iter().partition(|c| c.type_ == "ReplicaFailure");
    match (failure, failed.into_iter().next()) {
        (Some(_), Some(failed)) => rest.push(failed),
        (Some(failure), None) => rest.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.status.to_string()),
            last_transition_time: Some(Time(now)),
        }),
        (None, _) => {}
    }
    (!rest.is_empty()).then_some(rest)
}
