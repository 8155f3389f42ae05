//! The `resize` subresource: cpu and memory of a running pod's containers.

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Nothing but the resources of containers changes.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    let wanted = new.spec.take();
    let mut metadata = std::mem::take(&mut new.metadata);
    metadata.deletion_timestamp.clone_from(&old.metadata.deletion_timestamp);
    metadata.labels.clone_from(&old.metadata.labels);
    metadata.annotations.clone_from(&old.metadata.annotations);
    metadata.finalizers.clone_from(&old.metadata.finalizers);
    metadata.owner_references.clone_from(&old.metadata.owner_references);
    new.clone_from(old);
    new.metadata = metadata;
    let (Some(spec), Some(wanted)) = (&mut new.spec, wanted) else { return };
    let same = |a: &[Container], b: &[Container]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.name == b.name)
    };
    if !same(&spec.containers, &wanted.containers) {
        // Left in place for validation to refuse.
        spec.containers = wanted.containers;
        return;
    }
    for (container, asked) in spec.containers.iter_mut().zip(wanted.containers) {
        container.resources = asked.resources;
    }
    let asked = wanted.init_containers.unwrap_or_default();
    for (container, asked) in spec.init_containers.iter_mut().flatten().zip(asked) {
        if container.name == asked.name {
            container.resources = asked.resources;
        }
    }
}

type List = BTreeMap<String, Quantity>;

fn fixed(list: Option<&List>) -> List {
    let other = |(name, _): &(&String, &Quantity)| !matches!(name.as_str(), "cpu" | "memory");
    list.into_iter().flatten().filter(other).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Checks a resize.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let names = |all: &[Container]| all.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if names(&spec.containers) != names(&before.containers) {
        errs.forbidden(path.child("containers"), "containers may not be added or removed on resize");
        return;
    }
    let (was, is) = (coracle_meta::pod::qos(old), coracle_meta::pod::qos(new));
    if was != is {
        errs.invalid(&path, was, "Pod QOS Class may not change as a result of resizing");
    }
    let empty = ResourceRequirements::default();
    for (i, (container, before)) in spec.containers.iter().zip(&before.containers).enumerate() {
        let now = container.resources.as_ref().unwrap_or(&empty);
        let then = before.resources.as_ref().unwrap_or(&empty);
        if fixed(now.limits.as_ref()) != fixed(then.limits.as_ref())
            || fixed(now.requests.as_ref()) != fixed(then.requests.as_ref())
        {
            errs.forbidden(&path, "only cpu and memory resources are mutable");
        }
        let at = path.child("containers").index(i).child("resources");
        for (field, now, then, what) in [
            ("limits", &now.limits, &then.limits, "resource limits cannot be removed"),
            ("requests", &now.requests, &then.requests, "resource requests cannot be removed"),
        ] {
            let gone = |name: &str| now.as_ref().is_none_or(|list| !list.contains_key(name));
            let mut lost = then.iter().flatten().map(|(name, _)| name.as_str());
            if lost.any(|name| matches!(name, "cpu" | "memory") && gone(name)) {
                errs.forbidden(at.child(field), what);
            }
        }
    }
}
