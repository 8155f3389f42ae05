//! Why pods of a rollout do not come up, in one sentence: pure.

use coracle_meta::pod as podutil;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Event, PersistentVolumeClaim, Pod, Probe};

/// Failures in a row that a probe allows where it does not say.
const PROBE_FAILURES: i32 = 3;

/// Why pods do not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// One sentence.
    pub what: String,
    /// The pod and container whose last log lines tell more.
    pub logs: Option<(String, String)>,
    /// What the container itself left as its last words, should there be no log.
    pub last_words: String,
}

impl Cause {
    fn of(what: String) -> Self {
        Self { what, logs: None, last_words: String::new() }
    }
}

/// What a look at the pods shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It fails.
    Fails(Cause),
    /// It may still come right: what starts is not ready at first.
    Hints(String),
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Pods of the new version.
    pub pods: &'a [Pod],
    /// Pods of versions before that hold the new one up while they are not ready.
    pub before: &'a [Pod],
    /// Claims that pods may wait for.
    pub claims: &'a [PersistentVolumeClaim],
    /// Events of the namespace, oldest first.
    pub events: &'a [Event],
    /// Those about the workload and its ReplicaSet that are no older than what they tell of.
    pub owners: &'a [&'a Event],
    /// Whether pods are missing.
    pub lacks_pods: bool,
}

/// The first reason why a rollout does not get on.
pub fn find(evidence: &Evidence<'_>) -> Option<Finding> {
    let told = |reason: &str| evidence.owners.iter().rfind(|event| event.reason.as_deref() == Some(reason));
    if let Some(event) = told("FailedCreate").filter(|_| evidence.lacks_pods) {
        let why = first_line(event.message.as_deref().unwrap_or(""));
        // Recorders put this before a message that stands for several.
        let why = why.strip_prefix("(combined from similar events): ").unwrap_or(why);
        let why = why.strip_prefix("Error creating: ").unwrap_or(why);
        // A StatefulSet says first which pod it is about.
        let why = why.split_once(" failed error: ").map_or(why, |(_, why)| why);
        return Some(Finding::Fails(Cause::of(format!("pods cannot be made: {why}"))));
    }
    let findings: Vec<Finding> = evidence.pods.iter().filter_map(|pod| pod_finding(pod, evidence)).collect();
    let fails = |finding: &&Finding| matches!(finding, Finding::Fails(_));
    if let Some(found) = findings.iter().find(fails).or(findings.first()) {
        return Some(found.clone());
    }
    let held = evidence.before.iter().find_map(|pod| match pod_finding(pod, evidence)? {
        Finding::Fails(cause) => Some(cause),
        Finding::Hints(_) => None,
    });
    if let Some(cause) = held {
        let what = format!("a pod of an earlier version holds it up: {}", cause.what);
        return Some(Finding::Fails(Cause { what, ..cause }));
    }
    let waits = told("RolloutWaiting").filter(|_| evidence.pods.is_empty())?;
    Some(Finding::Hints(first_line(waits.message.as_deref().unwrap_or("")).to_owned()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("").trim()
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}

fn message(event: &Event) -> &str {
    event.message.as_deref().unwrap_or("")
}

/// How often an event was seen.
fn times(event: &Event) -> i32 {
    let series = event.series.as_ref().and_then(|series| series.count);
    event.count.unwrap_or(1).max(series.unwrap_or(1))
}

/// What is wrong with a pod.
fn pod_finding(pod: &Pod, evidence: &Evidence<'_>) -> Option<Finding> {
    if podutil::is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let is_about = |event: &&Event| event.involved_object.uid == pod.metadata.uid;
    let events: Vec<&Event> = evidence.events.iter().filter(is_about).collect();
    if let Some(said) = podutil::condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let why = first_line(said.message.as_deref().unwrap_or(""));
        let unplaced = || Cause::of(format!("pod {} finds no node: {why}", name(pod)));
        let is_stuck = said.reason.as_deref() == Some("Unschedulable");
        return is_stuck.then(|| Finding::Fails(claim_cause(pod, why, evidence).unwrap_or_else(unplaced)));
    }
    let status = pod.status.as_ref();
    let probes = probe_finding(pod, &events);
    if let Some(Finding::Fails(cause)) = probes {
        return Some(Finding::Fails(cause));
    }
    let init = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    let main = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let found =
        init.clone().filter(|c| !is_over(c)).chain(main.clone()).find_map(|c| container_cause(pod, c));
    if let Some(cause) = found {
        return Some(Finding::Fails(cause));
    }
    if let Some(cause) = refused(pod) {
        return Some(Finding::Fails(cause));
    }
    let has_started = init
        .chain(main)
        .any(|c| c.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some()));
    let mounts = ["FailedMount", "FailedAttachVolume", "FailedMapVolume"];
    let mount = events.iter().rfind(|event| mounts.contains(&event.reason.as_deref().unwrap_or("")));
    if let Some(event) = mount.filter(|_| !has_started) {
        let why = first_line(message(event));
        let what = format!("a volume of pod {} cannot be mounted: {why}", name(pod));
        return Some(Finding::Fails(Cause::of(what)));
    }
    probes
}

/// Whether an init container has done its work.
fn is_over(status: &ContainerStatus) -> bool {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

/// A pod that the node did not take, or threw out.
fn refused(pod: &Pod) -> Option<Cause> {
    let status = pod.status.as_ref().filter(|status| status.phase.as_deref() == Some("Failed"))?;
    let reason = status.reason.as_deref()?;
    let why = first_line(status.message.as_deref().unwrap_or(""));
    Some(Cause::of(format!("pod {} was ended by its node: {reason}: {why}", name(pod))))
}

/// The claim for which a pod finds no node.
fn claim_cause(pod: &Pod, why: &str, evidence: &Evidence<'_>) -> Option<Cause> {
    if !why.to_ascii_lowercase().contains("volume") {
        return None;
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claimed = volumes.filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        claim.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", name(pod), volume.name)))
    });
    for claim in claimed {
        let Some(found) = evidence.claims.iter().find(|c| c.metadata.name.as_ref() == Some(&claim)) else {
            return Some(Cause::of(format!("volume claim {claim} of pod {} does not exist", name(pod))));
        };
        let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Bound") {
            continue;
        }
        let said = evidence
            .events
            .iter()
            .rfind(|event| event.involved_object.uid == found.metadata.uid)
            .map(message);
        let why = first_line(said.unwrap_or(why));
        return Some(Cause::of(format!("volume claim {claim} of pod {} is not bound: {why}", name(pod))));
    }
    Some(Cause::of(format!("a volume of pod {} cannot be had: {why}", name(pod))))
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
        | "ImageInspectError"
        | "ErrImageNeverPull"
        | "SignatureValidationFailed"
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
        Cause {
            what: format!("{here} {why}"),
            logs: Some((pod_name.to_owned(), container.clone())),
            last_words: ended.message.clone().unwrap_or_default(),
        }
    })
}

/// What the probes say. A probe that failed as often as it may is a fault; before, starting looks like that.
fn probe_finding(pod: &Pod, events: &[&Event]) -> Option<Finding> {
    let spec = pod.spec.as_ref()?;
    let mut hint = None;
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let here = format!("container {} of pod {}", container.name, name(pod));
        for (kind, probe, fault) in probes(container) {
            let Some(probe) = probe else { continue };
            let prefix = format!("{kind} probe");
            let is_it = |event: &&&Event| {
                event.reason.as_deref() == Some("Unhealthy")
                    && is_in(event, &container.name)
                    && message(event).starts_with(&prefix)
            };
            let Some(last) = events.iter().rfind(is_it) else { continue };
            let failures: i32 = events.iter().filter(is_it).map(|event| times(event)).sum();
            let why = first_line(message(last));
            if failures >= probe.failure_threshold.unwrap_or(PROBE_FAILURES) {
                return Some(Finding::Fails(Cause::of(format!("{here} {fault}: {why}"))));
            }
            hint.get_or_insert(Finding::Hints(format!("{here} is not ready yet: {why}")));
        }
    }
    hint
}

/// A container's probes, as events call them, and what it means when one fails for good.
fn probes(container: &Container) -> [(&'static str, Option<&Probe>, &'static str); 3] {
    [
        ("Startup", container.startup_probe.as_ref(), "does not start"),
        ("Liveness", container.liveness_probe.as_ref(), "is unhealthy"),
        ("Readiness", container.readiness_probe.as_ref(), "does not become ready"),
    ]
}

/// Whether an event is about a container; one that does not say is about any.
fn is_in(event: &Event, container: &str) -> bool {
    let path = event.involved_object.field_path.as_deref().unwrap_or("");
    path.split_once('{').is_none_or(|(_, named)| named.trim_end_matches('}') == container)
}

#[cfg(test)]
mod tests;
