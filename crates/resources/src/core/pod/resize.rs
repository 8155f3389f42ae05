//! The `resize` subresource: cpu and memory of a running pod, and of its containers.

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::common::{keep_metadata, text};
use crate::podspec::annotations::MIRROR;

/// Nothing but the resources changes. Where containers come, go or change their places, everything is left for
/// validation to refuse.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    let (mut wanted, before) = (new.spec.take().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let count = |list: &Option<Vec<Container>>| list.as_ref().map_or(0, Vec::len);
    if wanted.containers.len() != before.containers.len()
        || count(&wanted.init_containers) != count(&before.init_containers)
    {
        new.spec = Some(wanted);
        return;
    }
    let mut spec = before;
    spec.containers = resized(wanted.containers, &spec.containers);
    spec.resources = wanted.resources.take();
    if let Some(init) = wanted.init_containers.filter(|list| !list.is_empty()) {
        spec.init_containers = Some(resized(init, spec.init_containers.as_deref().unwrap_or_default()));
    }
    new.spec = Some(spec);
    new.status.clone_from(&old.status);
    keep_metadata(&mut new.metadata, &old.metadata);
}

/// The containers as they were, with the resources asked for; as asked for where they are others.
fn resized(asked: Vec<Container>, before: &[Container]) -> Vec<Container> {
    if !asked.iter().zip(before).all(|(asked, before)| asked.name == before.name) {
        return asked;
    }
    let merge = |(asked, before): (Container, &Container)| Container {
        resources: asked.resources,
        resize_policy: asked.resize_policy,
        ..before.clone()
    };
    asked.into_iter().zip(before).map(merge).collect()
}

type List = BTreeMap<String, Quantity>;

/// Checks a resize of a pod whose spec is valid in itself.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let refusal = if old.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR)) {
        Some("static pods cannot be resized")
    } else {
        let windows = before.os.as_ref().is_some_and(|os| os.name == "windows");
        windows.then_some("windows pods cannot be resized")
    };
    if let Some(refusal) = refusal {
        *errs = ErrorList::new();
        return errs.forbidden(Path::new(""), refusal);
    }
    let told = |pod: &Pod| pod.status.as_ref().and_then(|s| s.qos_class.clone());
    let was = told(old).filter(|class| !class.is_empty());
    if was.as_deref().unwrap_or_else(|| coracle_meta::pod::qos(old)) != coracle_meta::pod::qos(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errs.invalid(&path, told(new).unwrap_or_default(), why);
    }
    let statuses = || old.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = |c: &&_| -> bool { is_running(c) };
    if statuses().find(running).is_some_and(|c| c.resources.is_none()) {
        errs.forbidden(&path, "Pod running on node without support for resize");
    }
    pod_level(spec, before, &path, errs);
    let claims = old.status.as_ref().and_then(|s| s.node_allocatable_resource_claim_statuses.as_ref());
    if claims.is_some_and(|claims| !claims.is_empty()) {
        errs.forbidden(&path, "pods with node allocatable resource claims cannot be resized");
    }
    if ordering(spec, before, &path, errs) {
        containers(spec, before, &path, errs);
    }
}

fn is_running(status: &k8s_openapi::api::core::v1::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Checks changes of the resources of the pod as a whole.
fn pod_level(spec: &PodSpec, before: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let is_set = |resources: &Option<ResourceRequirements>| {
        resources.as_ref().is_some_and(|r| !list(&r.requests).is_empty() || !list(&r.limits).is_empty())
    };
    if !is_set(&spec.resources) && !is_set(&before.resources) {
        return;
    }
    let at = path.child("resources");
    let empty = ResourceRequirements::default();
    let now = match (&spec.resources, &before.resources) {
        (None, Some(_)) => return errs.forbidden(at, "pod-level resources cannot be removed"),
        (now, _) => now.as_ref().unwrap_or(&empty),
    };
    let then = before.resources.as_ref().unwrap_or(&empty);
    for (field, now, then, what) in [
        ("requests", &now.requests, &then.requests, "pod-level resource requests cannot be removed"),
        ("limits", &now.limits, &then.limits, "pod-level resource limits cannot be removed"),
    ] {
        if removed(now, then) {
            errs.forbidden(at.child(field), what);
        }
    }
    let same_claims = now.claims.as_deref().unwrap_or_default() == then.claims.as_deref().unwrap_or_default();
    if !same_but_for_cpu_and_memory(now, then) || !same_claims {
        errs.forbidden(path, "only cpu and memory resources are mutable at pod-level");
    }
}

/// Whether the containers are the same, in the same places.
fn ordering(spec: &PodSpec, before: &PodSpec, path: &Path, errs: &mut ErrorList) -> bool {
    let init = |spec: &PodSpec| spec.init_containers.clone().unwrap_or_default();
    let mut same = true;
    for (kind, now, then) in [
        ("containers", spec.containers.clone(), before.containers.clone()),
        ("initContainers", init(spec), init(before)),
    ] {
        let at = path.child(kind);
        if now.len() != then.len() {
            errs.forbidden(at, format!("{kind} may not be added or removed on resize"));
            same = false;
            continue;
        }
        for (i, _) in now.iter().zip(&then).enumerate().filter(|(_, (now, then))| now.name != then.name) {
            let why = format!("{kind} may not be renamed or reordered on resize");
            errs.forbidden(at.index(i).child("name"), why);
            same = false;
        }
    }
    same
}

/// Checks what changes in containers.
fn containers(spec: &PodSpec, before: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let empty = ResourceRequirements::default();
    let none = Vec::new();
    let init = spec.init_containers.as_ref().unwrap_or(&none);
    let init_before = before.init_containers.as_ref().unwrap_or(&none);
    for (kind, now, then) in
        [("initContainers", init, init_before), ("containers", &spec.containers, &before.containers)]
    {
        for (i, (container, before)) in now.iter().zip(then).enumerate() {
            let at = path.child(kind).index(i);
            let now = container.resources.as_ref().unwrap_or(&empty);
            let then = before.resources.as_ref().unwrap_or(&empty);
            for (field, now, then, what) in [
                ("requests", &now.requests, &then.requests, "resource requests cannot be removed"),
                ("limits", &now.limits, &then.limits, "resource limits cannot be removed"),
            ] {
                if removed(now, then) {
                    errs.forbidden(at.child("resources").child(field), what);
                }
            }
            let policies = |c: &Container| c.resize_policy.clone().unwrap_or_default();
            // Claims of a container are not carried over by a resize, so that there must be none.
            let same = same_but_for_cpu_and_memory(now, then)
                && then.claims.as_ref().is_none_or(Vec::is_empty)
                && policies(container) == policies(before);
            if kind == "containers" {
                if !same {
                    errs.forbidden(path, "only cpu and memory resources are mutable");
                }
                continue;
            }
            if !same {
                let why = "only cpu and memory resources for init or sidecar containers are mutable";
                errs.forbidden(&at, why);
            }
            let sidecar = text(container.restart_policy.as_ref()) == "Always";
            let restarts = policies(container).into_iter().filter(|p| p.restart_policy == "RestartContainer");
            if !sidecar && container != before {
                for _ in restarts {
                    let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be \
                               resized";
                    errs.forbidden(&at, why);
                }
            }
        }
    }
}

fn list(list: &Option<List>) -> List {
    list.clone().unwrap_or_default()
}

/// Whether a resource that was there is no more.
fn removed(now: &Option<List>, then: &Option<List>) -> bool {
    let now = list(now);
    list(then).keys().any(|name| !now.contains_key(name))
}

fn same_but_for_cpu_and_memory(now: &ResourceRequirements, then: &ResourceRequirements) -> bool {
    let others = |from: &Option<List>| -> List {
        list(from).into_iter().filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory")).collect()
    };
    others(&now.limits) == others(&then.limits) && others(&now.requests) == others(&then.requests)
}
