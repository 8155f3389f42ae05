//! Where a rollout stands: pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What is said of a change that its controller has not seen.
pub const UNSEEN: &str = "the change is not taken up yet";

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All pods are of the new version and available.
    Done(String),
    /// Not yet.
    Going(String),
}

impl Progress {
    /// What is going on, with why it does not get on by itself.
    fn held(self, is_held: bool, why: &str) -> Self {
        match self {
            Self::Going(text) if is_held && text != UNSEEN => Self::Going(format!("{text}; {why}")),
            other => other,
        }
    }
}

/// When somebody last changed an object, its status aside.
pub fn changed_at(meta: &ObjectMeta) -> Option<Timestamp> {
    let writes = meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    let last = writes.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max();
    last.or_else(|| meta.creation_timestamp.as_ref().map(|time| time.0))
}

fn observed(generation: Option<i64>, seen: Option<i64>) -> bool {
    seen.unwrap_or(0) >= generation.unwrap_or(0)
}

/// Where a Deployment's rollout stands, and whether its deadline passed.
pub fn deployment(d: &Deployment) -> (Progress, bool) {
    let status = d.status.clone().unwrap_or_default();
    let wanted = d.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let n = |count: Option<i32>| count.unwrap_or(0);
    let late = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    let (updated, total, available) =
        (n(status.updated_replicas), n(status.replicas), n(status.available_replicas));
    let progress = if !observed(d.metadata.generation, status.observed_generation) {
        Progress::Going(UNSEEN.into())
    } else if updated < wanted {
        Progress::Going(format!("{updated} of {wanted} pods are of the new version"))
    } else if total > updated {
        Progress::Going(format!("{} old pods are left", total - updated))
    } else if available < updated {
        Progress::Going(format!("{available} of {updated} new pods are available"))
    } else {
        Progress::Done(format!("{updated} of {wanted} pods are of the new version and available"))
    };
    let paused = d.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    (progress.held(paused, "it is paused"), late)
}

/// Where a StatefulSet's rollout stands.
pub fn stateful_set(set: &StatefulSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let spec = set.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let strategy = spec.and_then(|s| s.update_strategy.as_ref());
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0);
    let n = |count: Option<i32>| count.unwrap_or(0);
    if !observed(set.metadata.generation, status.observed_generation) {
        return Progress::Going(UNSEEN.into());
    }
    if n(status.ready_replicas) < wanted {
        return Progress::Going(format!("{} of {wanted} pods are ready", n(status.ready_replicas)));
    }
    let is_paused = super::back::is_paused(&set.metadata);
    let target = if is_paused { wanted } else { (wanted - partition).max(0) };
    let updated = n(status.updated_replicas);
    if status.update_revision != status.current_revision && updated < target {
        let going = Progress::Going(format!("{updated} of {target} pods are of the new version"));
        let by_hand = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        return going.held(is_paused, "it is paused").held(by_hand, BY_HAND);
    }
    Progress::Done(format!("{wanted} pods are ready, {} of the new version", target.min(wanted)))
}

const BY_HAND: &str = "its update strategy is OnDelete: a pod changes when it is deleted";

/// Where a DaemonSet's rollout stands.
pub fn daemon_set(set: &DaemonSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or(0));
    let available = status.number_available.unwrap_or(0);
    if !observed(set.metadata.generation, status.observed_generation) {
        return Progress::Going(UNSEEN.into());
    }
    if updated < wanted {
        let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let by_hand = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        let is_paused = super::back::is_paused(&set.metadata);
        let going = Progress::Going(format!("{updated} of {wanted} nodes run the new version"));
        return going.held(is_paused, "it is paused").held(by_hand && !is_paused, BY_HAND);
    }
    if available < wanted {
        return Progress::Going(format!("{available} of {wanted} pods are available"));
    }
    Progress::Done(format!("{wanted} nodes run the new version"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn going(text: &str) -> Progress {
        Progress::Going(text.into())
    }

    #[test]
    fn a_rollout_is_done_when_all_pods_are_new_and_available() {
        let check = |paused: bool, status: Value| {
            let d = json!({ "metadata": { "generation": 2 }, "status": status,
                "spec": { "replicas": 3, "selector": {}, "template": {}, "paused": paused } });
            deployment(&serde_json::from_value(d).unwrap()).0
        };
        assert_eq!(check(true, json!({ "observedGeneration": 1 })), going(UNSEEN));
        let part = json!({ "observedGeneration": 2, "updatedReplicas": 1, "replicas": 4 });
        assert_eq!(check(false, part.clone()), going("1 of 3 pods are of the new version"));
        assert_eq!(check(true, part), going("1 of 3 pods are of the new version; it is paused"));
        let full =
            json!({ "observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3 });
        assert!(matches!(check(false, full), Progress::Done(_)));
    }

    #[test]
    fn a_stateful_set_below_its_partition_is_done_and_a_paused_one_is_not() {
        let check = |annotations: Value, partition: i32| {
            let status = json!({ "observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "updatedReplicas": 1,
                "currentRevision": "a", "updateRevision": "b" });
            let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": partition } });
            let set = json!({ "metadata": { "generation": 1, "annotations": annotations }, "status": status,
                "spec": { "replicas": 3, "serviceName": "s", "selector": {}, "template": {}, "updateStrategy": strategy } });
            stateful_set(&serde_json::from_value(set).unwrap())
        };
        assert!(matches!(check(json!({}), 2), Progress::Done(_)));
        assert_eq!(check(json!({}), 0), going("1 of 3 pods are of the new version"));
        let paused = json!({ "coracle.dev/paused-strategy": "{}" });
        assert_eq!(check(paused, i32::MAX), going("1 of 3 pods are of the new version; it is paused"));
    }
}
