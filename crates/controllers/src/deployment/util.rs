//! Numbers, annotations and comparisons of Deployments: pure.

use std::collections::BTreeMap;

use coracle_meta::int_or_percent;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::hashing::safe_hash;
use crate::revisions::LAST_READY;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 7] = [
    LAST_READY,
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Longest list of earlier revisions kept in [`REVISION_HISTORY`].
const HISTORY_LENGTH: usize = 2000;

/// What the spec of a Deployment says, with defaults and percentages resolved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub replicas: i32,
    /// Pods allowed above `replicas`; 0 when not rolling.
    pub max_surge: i32,
    /// Pods allowed to be missing; 0 when not rolling.
    pub max_unavailable: i32,
    pub rolling: bool,
    /// Seconds; `None` for never.
    pub deadline: Option<i32>,
}

impl Numbers {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        let rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate");
        let update = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let resolve = |value: Option<&IntOrString>, up| {
            let number = int_or_percent(value.unwrap_or(&quarter), i64::from(replicas), up);
            i32::try_from(number.unwrap_or(0)).unwrap_or(i32::MAX)
        };
        let surge = resolve(update.and_then(|u| u.max_surge.as_ref()), true);
        let mut unavailable = resolve(update.and_then(|u| u.max_unavailable.as_ref()), false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let (max_surge, max_unavailable) = if rolling { (surge, unavailable.min(replicas)) } else { (0, 0) };
        let deadline = spec.and_then(|s| s.progress_deadline_seconds).filter(|d| *d != i32::MAX);
        Self { replicas, max_surge, max_unavailable, rolling, deadline }
    }

    /// The most pods at any time.
    pub(super) fn max(&self) -> i32 {
        self.replicas + self.max_surge
    }
}

/// A ReplicaSet's `spec.replicas`.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Pods it has, by its status.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(super) fn number(meta: &ObjectMeta, key: &str) -> Option<i64> {
    annotation(meta, key)?.parse().ok()
}

/// Sets an annotation; whether that changed anything.
pub(super) fn annotate(meta: &mut ObjectMeta, key: &str, value: &str) -> bool {
    let old = meta.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    old.as_deref() != Some(value)
}

/// Records the Deployment's size in a ReplicaSet; whether that changed anything.
pub(super) fn annotate_size(set: &mut ReplicaSet, numbers: Numbers) -> bool {
    let desired = annotate(&mut set.metadata, DESIRED, &numbers.replicas.to_string());
    let max = annotate(&mut set.metadata, MAX, &numbers.max().to_string());
    desired || max
}

/// Copies the Deployment's annotations to its newest ReplicaSet and gives that the newest revision; whether
/// anything changed.
pub(super) fn annotate_revision(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_INHERITED.contains(&key.as_str()) {
            changed |= annotate(&mut set.metadata, key, value);
        }
    }
    let old = annotation(&set.metadata, REVISION).map(str::to_owned);
    let old_number = old.as_deref().and_then(|old| old.parse::<i64>().ok()).unwrap_or(0);
    if old_number >= revision {
        return changed;
    }
    annotate(&mut set.metadata, REVISION, &revision.to_string());
    if let Some(old) = old {
        let history = annotation(&set.metadata, REVISION_HISTORY).unwrap_or("");
        let mut revisions: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
        revisions.push(&old);
        while revisions.join(",").len() > HISTORY_LENGTH {
            revisions.remove(0);
        }
        let history = revisions.join(",");
        annotate(&mut set.metadata, REVISION_HISTORY, &history);
    }
    true
}

/// The template without what tells ReplicaSets apart, in one shape for absent and empty.
fn essence(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels.take_if(|labels| labels.is_empty());
    meta.annotations.take_if(|annotations| annotations.is_empty());
    meta.creation_timestamp = None;
    template
}

/// Whether two templates are the same but for the hash label.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    essence(a) == essence(b)
}

/// Whether a ReplicaSet is of the template that the Deployment has now. None may be: with the strategy `Recreate`
/// it comes when all pods of the one before are gone.
pub fn is_current(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    own.zip(wanted).is_some_and(|(a, b)| same_template(a, b))
}

/// A short stable name for a template. `collisions` gives another one when the name is taken.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    safe_hash(&serde_json::to_vec(template).unwrap_or_default(), collisions)
}

/// Adds a label to a map.
pub(super) fn with_label(
    labels: Option<&BTreeMap<String, String>>,
    key: &str,
    value: &str,
) -> BTreeMap<String, String> {
    let mut labels = labels.cloned().unwrap_or_default();
    labels.insert(key.to_owned(), value.to_owned());
    labels
}

pub(super) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// A condition that became true, false or unknown now.
pub(super) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Sets a condition unless it is there with this status and reason. The time of transition stays while the
/// status does.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = condition(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    remove_condition(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

pub(super) fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
    status.conditions.take_if(|conditions| conditions.is_empty());
}
