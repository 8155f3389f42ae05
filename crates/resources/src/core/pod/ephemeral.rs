//! The `ephemeralcontainers` subresource: containers added to a running pod for debugging.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};

use crate::check::{named, one_of};
use crate::common::text;
use crate::podspec::defaults;

/// Nothing but the ephemeral containers changes.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    let wanted = new.spec.as_ref().and_then(|s| s.ephemeral_containers.clone());
    let metadata = new.metadata.clone();
    new.clone_from(old);
    new.metadata = metadata;
    let spec = new.spec.get_or_insert_default();
    spec.ephemeral_containers = wanted;
    spec.ephemeral_containers.iter_mut().flatten().for_each(defaults::ephemeral_container);
}

/// Checks the list: present ones stay as they are, new ones are plain.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    let path = Path::new("spec").child("ephemeralContainers");
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let wanted = spec.ephemeral_containers.as_deref().unwrap_or_default();
    let present = before.ephemeral_containers.as_deref().unwrap_or_default();
    let mut taken: BTreeSet<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    taken.extend(spec.init_containers.iter().flatten().map(|c| c.name.as_str()));
    let targets = taken.clone();
    for (i, container) in wanted.iter().enumerate() {
        let path = path.index(i);
        check(container, &path, errs);
        if !container.name.is_empty() && !taken.insert(&container.name) {
            errs.duplicate(path.child("name"), container.name.as_str());
        }
        let target = text(container.target_container_name.as_ref());
        if !target.is_empty() && !targets.contains(target) {
            errs.not_found(path.child("targetContainerName"), target);
        }
    }
    for before in present {
        match wanted.iter().position(|c| c.name == before.name) {
            None => {
                let why = format!("existing ephemeral containers {:?} may not be removed\n", before.name);
                errs.forbidden(&path, why);
            }
            Some(i) if wanted[i] != *before => {
                let why = format!("existing ephemeral containers {:?} may not be changed\n", before.name);
                errs.forbidden(&path, why);
            }
            Some(_) => {}
        }
    }
}

fn check(container: &EphemeralContainer, path: &Path, errs: &mut ErrorList) {
    if container.name.is_empty() {
        errs.required(path.child("name"), "");
    } else {
        named(errs, &path.child("name"), &container.name, names::dns1123_label);
    }
    if text(container.image.as_ref()).is_empty() {
        errs.required(path.child("image"), "");
    }
    let policy = text(container.termination_message_policy.as_ref());
    one_of(errs, &path.child("terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    let pull = text(container.image_pull_policy.as_ref());
    one_of(errs, &path.child("imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
    let used = |list: Option<bool>| list.unwrap_or(false);
    for (field, set) in [
        ("ports", used(container.ports.as_ref().map(|p| !p.is_empty()))),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
        ("resources", container.resources.as_ref().is_some_and(|r| *r != Default::default())),
        ("resizePolicy", used(container.resize_policy.as_ref().map(|p| !p.is_empty()))),
        ("restartPolicy", container.restart_policy.is_some()),
    ] {
        if set {
            errs.forbidden(path.child(field), "cannot be set for an Ephemeral Container");
        }
    }
}
