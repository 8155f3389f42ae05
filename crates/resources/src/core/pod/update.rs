//! What of a pod may change after its creation.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};

use crate::common::text;
use crate::diff;
use crate::podspec::annotations::MIRROR;

/// The refusal of any other change; upstream appends a dump of the difference.
const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
                    additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be \
                    set to 1 if it was previously negative)\n";

/// Checks an update of a pod.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    mirror_annotation(new, old, errs);
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let path = Path::new("spec");
    if !containers(&spec.containers, &before.containers, &path.child("containers"), errs) {
        return;
    }
    let inits = |spec: &PodSpec| spec.init_containers.clone().unwrap_or_default();
    if !containers(&inits(spec), &inits(before), &path.child("initContainers"), errs) {
        return;
    }
    if !deadline(spec, before, &path.child("activeDeadlineSeconds"), errs) {
        return;
    }
    tolerations(spec, before, &path.child("tolerations"), errs);
    gates(spec, before, &path.child("schedulingGates"), errs);
    if spec == before {
        return;
    }
    if coracle_meta::pod::qos(new) != coracle_meta::pod::qos(old) {
        let class = new.status.as_ref().and_then(|s| s.qos_class.as_ref());
        errs.invalid("metadata", text(class), "Pod QoS is immutable");
    }
    let rest = without_changeable(spec, before);
    if rest != *before {
        errs.forbidden(&path, format!("{ONLY}{}", difference(&rest, before)));
    }
}

fn mirror_annotation(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    let value = |pod: &Pod| pod.metadata.annotations.as_ref().and_then(|a| a.get(MIRROR)).cloned();
    let at = Path::new("metadata").child("annotations").key(MIRROR);
    match (value(new), value(old)) {
        (new, Some(old)) if new.as_ref() != Some(&old) => {
            errs.forbidden(at, "may not remove or update mirror pod annotation");
        }
        (Some(_), None) => errs.forbidden(at, "may not add mirror pod annotation"),
        _ => {}
    }
}

/// Checks the lists of containers; false ends the checks.
fn containers(new: &[Container], old: &[Container], path: &Path, errs: &mut ErrorList) -> bool {
    if new.len() != old.len() {
        errs.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (i, container) in new.iter().enumerate() {
        let image = text(container.image.as_ref());
        if image.is_empty() {
            errs.required(path.index(i).child("image"), "");
        }
        if image.trim() != image {
            errs.invalid(path.index(i).child("image"), image, "must not have leading or trailing whitespace");
        }
    }
    true
}

fn deadline(new: &PodSpec, old: &PodSpec, path: &Path, errs: &mut ErrorList) -> bool {
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errs.invalid(path, new, names::in_range(0, i64::from(i32::MAX)));
            return false;
        }
        (Some(new), Some(old)) if old < new => {
            errs.invalid(path, new, "must be less than or equal to previous value");
            return false;
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errs.invalid(path, serde_json::Value::Null, why);
        }
        _ => {}
    }
    true
}

/// Old tolerations must stay; only their seconds may change.
fn tolerations(new: &PodSpec, old: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let all: Vec<&Toleration> = new.tolerations.iter().flatten().collect();
    for before in old.tolerations.iter().flatten() {
        let same = |t: &&&Toleration| {
            let probe = Toleration { toleration_seconds: before.toleration_seconds, ..(**t).clone() };
            probe == *before
        };
        if all.iter().find(same).is_none() {
            let why = "existing toleration can not be modified except its tolerationSeconds";
            errs.forbidden(path, why);
            return;
        }
    }
}

fn gates(new: &PodSpec, old: &PodSpec, path: &Path, errs: &mut ErrorList) {
    for (i, gate) in new.scheduling_gates.iter().flatten().enumerate() {
        if !old.scheduling_gates.iter().flatten().any(|g| g.name == gate.name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            errs.forbidden(path.index(i).child("name"), why);
        }
    }
}

/// The new spec with the changeable fields set back.
fn without_changeable(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut spec = new.clone();
    for (container, before) in spec.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&before.image);
    }
    let inits = old.init_containers.iter().flatten();
    for (container, before) in spec.init_containers.iter_mut().flatten().zip(inits) {
        container.image.clone_from(&before.image);
    }
    spec.active_deadline_seconds = old.active_deadline_seconds;
    spec.tolerations.clone_from(&old.tolerations);
    let gated = old.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    if gated {
        let kept = new.node_selector.clone().unwrap_or_default();
        let grown = old.node_selector.iter().flatten().all(|(key, value)| kept.get(key) == Some(value));
        if grown {
            spec.node_selector.clone_from(&old.node_selector);
        }
    }
    spec.scheduling_gates.clone_from(&old.scheduling_gates);
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        spec.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    spec
}

/// Where the two differ, as text.
fn difference(new: &PodSpec, old: &PodSpec) -> String {
    let text = |spec: &PodSpec| serde_json::to_string_pretty(spec).unwrap_or_default();
    diff::unified(&text(old), &text(new))
}
