//! Where a rollout stands, and why it fails, in one sentence: pure.

use coracle_meta::pod as podutil;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};

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

/// Why pods do not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// One sentence.
    pub what: String,
    /// The pod and container whose last log lines tell more.
    pub logs: Option<(String, String)>,
}

impl Cause {
    fn of(what: String) -> Self {
        Self { what, logs: None }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("").trim()
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}

/// What is wrong with one container.
fn container_cause(pod: &Pod, status: &ContainerStatus) -> Option<Cause> {
    let (pod_name, container) = (name(pod), &status.name);
    let here = format!("container {container} of pod {pod_name}");
    let state = status.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("");
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or("");
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable" => {
            let image = &status.image;
            let why = first_line(message);
            return Some(Cause::of(format!("image {image:?} of {here} cannot be had: {why}")));
        }
        "CreateContainerError" | "RunContainerError" | "CreateContainerConfigError" => {
            // Runtimes say in these words that there is no such program.
            let why = first_line(message);
            let command =
                why.split_once("exec: ").map(|(_, why)| format!("command of {here} cannot be run: {why}"));
            return Some(Cause::of(command.unwrap_or_else(|| format!("{here} cannot be started: {why}"))));
        }
        _ => {}
    }
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let ended = state.and_then(|state| state.terminated.as_ref()).or(last)?;
    if matches!(ended.reason.as_deref(), Some("StartError" | "ContainerCannotRun")) {
        let why = first_line(ended.message.as_deref().unwrap_or(""));
        return Some(Cause::of(format!("command of {here} cannot be run: {why}")));
    }
    let crashed = status.restart_count > 0 || ended.exit_code != 0;
    crashed.then(|| {
        let why = match (ended.reason.as_deref(), ended.exit_code) {
            (Some("OOMKilled"), _) => "ran out of memory".to_owned(),
            (_, code) => format!("ended with exit code {code}"),
        };
        Cause { what: format!("{here} {why}"), logs: Some((pod_name.to_owned(), container.clone())) }
    })
}

/// What is wrong with a pod; `events` are those about it.
fn pod_cause(pod: &Pod, events: &[&Event]) -> Option<Cause> {
    if podutil::is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let last = |reasons: &[&str]| {
        let is = |event: &&&Event| reasons.contains(&event.reason.as_deref().unwrap_or(""));
        events.iter().rfind(is).copied()
    };
    let text = |event: &Event| first_line(event.message.as_deref().unwrap_or("")).to_owned();
    if let Some(said) = podutil::condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let why = first_line(said.message.as_deref().unwrap_or(""));
        let what = format!("pod {} finds no node: {why}", name(pod));
        return (said.reason.as_deref() == Some("Unschedulable")).then(|| Cause::of(what));
    }
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let main = status.and_then(|status| status.container_statuses.as_ref());
    let restarted_by_probe = last(&["Unhealthy"])
        .filter(|event| event.message.as_deref().is_some_and(|m| !m.starts_with("Readiness")));
    if let Some(event) = restarted_by_probe {
        return Some(Cause::of(format!("pod {} is unhealthy: {}", name(pod), text(event))));
    }
    let found = init.into_iter().chain(main).flatten().find_map(|c| container_cause(pod, c));
    if found.is_some() {
        return found;
    }
    if let Some(event) = last(&["FailedMount", "FailedAttachVolume", "FailedMapVolume"]) {
        return Some(Cause::of(format!("a volume of pod {} cannot be mounted: {}", name(pod), text(event))));
    }
    // One unready answer is what starting looks like; several are a fault.
    let unready = last(&["Unhealthy"]).filter(|event| event.count.unwrap_or(1) >= 3);
    unready.map(|event| Cause::of(format!("pod {} does not become ready: {}", name(pod), text(event))))
}

/// The first reason why a rollout does not get on. `owners` are events about the workload and its ReplicaSet.
pub fn cause(pods: &[Pod], events: &[Event], owners: &[&Event]) -> Option<Cause> {
    let refused = owners.iter().rfind(|event| event.reason.as_deref() == Some("FailedCreate"));
    if let Some(event) = refused {
        let why = first_line(event.message.as_deref().unwrap_or(""));
        return Some(Cause::of(format!(
            "pods cannot be made: {}",
            why.trim_start_matches("Error creating: ")
        )));
    }
    pods.iter().find_map(|pod| {
        let is = |event: &&Event| event.involved_object.uid == pod.metadata.uid;
        pod_cause(pod, &events.iter().filter(is).collect::<Vec<_>>())
    })
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
    (progress, late)
}

/// Where a StatefulSet's rollout stands.
pub fn stateful_set(set: &StatefulSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let spec = set.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let rolling = spec.and_then(|s| s.update_strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
    let n = |count: Option<i32>| count.unwrap_or(0);
    if !observed(set.metadata.generation, status.observed_generation) {
        return Progress::Going(UNSEEN.into());
    }
    if n(status.ready_replicas) < wanted {
        return Progress::Going(format!("{} of {wanted} pods are ready", n(status.ready_replicas)));
    }
    let target = (wanted - partition).max(0);
    let updated = n(status.updated_replicas);
    if status.update_revision != status.current_revision && updated < target {
        return Progress::Going(format!("{updated} of {target} pods are of the new version"));
    }
    Progress::Done(format!("{wanted} pods are ready, {} of the new version", target.min(wanted)))
}

/// Where a DaemonSet's rollout stands.
pub fn daemon_set(set: &DaemonSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or(0));
    let available = status.number_available.unwrap_or(0);
    if !observed(set.metadata.generation, status.observed_generation) {
        return Progress::Going(UNSEEN.into());
    }
    if updated < wanted {
        return Progress::Going(format!("{updated} of {wanted} nodes run the new version"));
    }
    if available < wanted {
        return Progress::Going(format!("{available} of {wanted} pods are available"));
    }
    Progress::Done(format!("{wanted} nodes run the new version"))
}

fn revision(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    let text = annotations.and_then(|a| a.get("deployment.kubernetes.io/revision"));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The ReplicaSet to go back to: the one before the newest, or (`ready`) the newest of the older ones that has ready
/// pods, else the one before.
pub fn previous(sets: &[ReplicaSet], to: Option<i64>, ready: bool) -> Option<&ReplicaSet> {
    let mut sorted: Vec<&ReplicaSet> = sets.iter().collect();
    sorted.sort_by_key(|set| std::cmp::Reverse(revision(set)));
    if let Some(to) = to {
        return sorted.into_iter().find(|set| revision(set) == to);
    }
    let older = sorted.get(1..)?;
    let has_ready =
        |set: &&&ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0) > 0;
    older.iter().find(|set| ready && has_ready(set)).or(older.first()).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" }, "status": status })).unwrap()
    }

    fn event(reason: &str, message: &str, count: i32) -> Event {
        serde_json::from_value(json!({ "metadata": {}, "involvedObject": { "uid": "u" }, "reason": reason,
            "message": message, "count": count }))
        .unwrap()
    }

    fn container(state: Value, last: Value, restarts: i32) -> Value {
        json!({ "containerStatuses": [{ "name": "c", "image": "shop:2", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last }] })
    }

    fn told(status: Value, events: &[Event]) -> String {
        cause(&[pod(status)], events, &[]).map(|c| c.what).unwrap_or_default()
    }

    #[test]
    fn every_common_fault_is_named_in_a_sentence() {
        let waiting =
            |reason: &str, message: &str| json!({ "waiting": { "reason": reason, "message": message } });
        let pull = container(waiting("ErrImagePull", "no such image\nmore"), json!({}), 0);
        assert_eq!(told(pull, &[]), "image \"shop:2\" of container c of pod p cannot be had: no such image");
        let config =
            container(waiting("CreateContainerConfigError", "configmap \"x\" not found"), json!({}), 0);
        assert_eq!(told(config, &[]), "container c of pod p cannot be started: configmap \"x\" not found");
        let command = "unable to start container process: exec: \"/x\": stat /x: no such file or directory";
        assert_eq!(
            told(container(waiting("RunContainerError", command), json!({}), 0), &[]),
            "command of container c of pod p cannot be run: \"/x\": stat /x: no such file or directory"
        );
        let ended = json!({ "terminated": { "exitCode": 3 } });
        let crash = container(waiting("CrashLoopBackOff", "back-off"), ended, 2);
        assert_eq!(told(crash, &[]), "container c of pod p ended with exit code 3");
        let start =
            json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": "no such file" } });
        assert_eq!(
            told(container(start, json!({}), 0), &[]),
            "command of container c of pod p cannot be run: no such file"
        );
        let node = json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu." }] });
        assert_eq!(told(node, &[]), "pod p finds no node: 0/1 nodes are available: 1 Insufficient cpu.");
        let mount = [event("FailedMount", "secret \"s\" not found", 1)];
        assert_eq!(told(json!({}), &mount), "a volume of pod p cannot be mounted: secret \"s\" not found");
        let live = [event("Unhealthy", "Liveness probe failed: 500", 1)];
        assert_eq!(told(json!({}), &live), "pod p is unhealthy: Liveness probe failed: 500");
        assert_eq!(told(json!({}), &[event("Unhealthy", "Readiness probe failed: 503", 1)]), "");
        let unready = [event("Unhealthy", "Readiness probe failed: 503", 3)];
        assert_eq!(told(json!({}), &unready), "pod p does not become ready: Readiness probe failed: 503");
        let quota = event("FailedCreate", "Error creating: pods \"p\" is forbidden: exceeded quota: q", 1);
        let what = cause(&[], &[], &[&quota]).map(|c| c.what);
        assert_eq!(what.as_deref(), Some("pods cannot be made: pods \"p\" is forbidden: exceeded quota: q"));
    }

    #[test]
    fn a_rollout_is_done_when_all_pods_are_new_and_available() {
        let check = |status: Value| {
            let d = json!({ "metadata": { "generation": 2 }, "spec": { "replicas": 3, "selector": {}, "template": {} },
                "status": status });
            deployment(&serde_json::from_value(d).unwrap()).0
        };
        let going = |text: &str| Progress::Going(text.into());
        assert_eq!(check(json!({ "observedGeneration": 1 })), going("the change is not taken up yet"));
        let part = json!({ "observedGeneration": 2, "updatedReplicas": 1, "replicas": 4 });
        assert_eq!(check(part), going("1 of 3 pods are of the new version"));
        let full =
            json!({ "observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3 });
        assert!(matches!(check(full), Progress::Done(_)));
    }

    #[test]
    fn undo_takes_the_version_before_and_abort_the_last_that_was_ready() {
        let set = |name: &str, revision: i64, ready: i32| -> ReplicaSet {
            serde_json::from_value(json!({ "metadata": { "name": name,
                "annotations": { "deployment.kubernetes.io/revision": revision.to_string() } },
                "status": { "replicas": ready, "readyReplicas": ready } }))
            .unwrap()
        };
        let sets = [set("a", 1, 2), set("c", 3, 0), set("b", 2, 0)];
        let pick = |to, ready| previous(&sets, to, ready).and_then(|s| s.metadata.name.clone());
        assert_eq!(pick(None, false).as_deref(), Some("b"));
        assert_eq!(pick(None, true).as_deref(), Some("a"));
        assert_eq!(pick(Some(1), false).as_deref(), Some("a"));
        assert_eq!(previous(&sets[..1], None, true), None);
    }
}
