//! Checks of resource requirements: names, amounts, requests within limits, claims, resize policies.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path, show};
use coracle_meta::names;
use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::core::v1::{ContainerResizePolicy, PodSpec, ResourceClaim, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::defaults::is_pod_level;
use crate::check::{NEGATIVE, each, named, one_of};

type List = BTreeMap<String, Quantity>;

/// Whether a resource belongs to Kubernetes itself: no prefix, or one of kubernetes.io.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a resource is extended: prefixed, and usable in quotas.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether more of a resource may be promised than there is.
pub(crate) fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    matches!(
        name,
        "cpu"
            | "memory"
            | "ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
            | "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "storage"
            | "requests.storage"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

fn is_standard_container(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name)
}

/// Resources counted in whole numbers.
fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

/// Checks the name of a resource of a container; the path is the one of the whole entry.
pub(crate) fn container_resource_name(name: &str, path: &Path, errs: &mut ErrorList) {
    resource_name(name, path, errs);
    if !name.contains('/') {
        if !is_standard_container(name) {
            errs.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// Checks the name of any resource.
pub(crate) fn resource_name(name: &str, path: &Path, errs: &mut ErrorList) {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        return each(errs, path, name, messages);
    }
    if !name.contains('/') && !is_standard(name) {
        errs.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

/// Checks an amount: not negative, and whole where the resource is counted.
pub(crate) fn quantity(name: &str, value: &Quantity, path: &Path, errs: &mut ErrorList) {
    let number = Number::from_api(value);
    if number.sign() < 0 {
        errs.invalid(path, value.0.as_str(), NEGATIVE);
    }
    if is_integer(name) && !number.is_whole() {
        errs.invalid(path, value.0.as_str(), "must be an integer");
    }
}

/// Checks requirements of a container.
pub(crate) fn container(
    resources: Option<&ResourceRequirements>,
    claims: &BTreeSet<&str>,
    path: &Path,
    errs: &mut ErrorList,
) {
    let Some(resources) = resources else { return };
    requirements(resources, path, container_resource_name, errs);
    claim_names(resources.claims.as_deref().unwrap_or_default(), claims, &path.child("claims"), errs);
}

/// Checks pod overhead.
pub(crate) fn overhead(list: &List, path: &Path, errs: &mut ErrorList) {
    let resources = ResourceRequirements { limits: Some(list.clone()), ..ResourceRequirements::default() };
    requirements(&resources, path, container_resource_name, errs);
}

fn requirements(
    resources: &ResourceRequirements,
    path: &Path,
    check_name: fn(&str, &Path, &mut ErrorList),
    errs: &mut ErrorList,
) {
    let empty = List::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (name, value) in limits {
        let at = path.child("limits").key(name);
        check_name(name, &at, errs);
        quantity(name, value, &at, errs);
        whole_pages(name, value, &at, errs);
    }
    for (name, value) in requests {
        let at = path.child("requests").key(name);
        check_name(name, &at, errs);
        quantity(name, value, &at, errs);
        whole_pages(name, value, &at, errs);
        let Some(limit) = limits.get(name) else {
            if !is_overcommit_allowed(name) {
                errs.required(path.child("limits"), "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        let (asked, most) = (Number::from_api(value), Number::from_api(limit));
        if asked != most && !is_overcommit_allowed(name) {
            let why = format!("must be equal to {name} limit of {}", limit.0);
            errs.invalid(path.child("requests"), value.0.as_str(), why);
        } else if asked > most {
            let why = format!("must be less than or equal to {name} limit of {}", limit.0);
            errs.invalid(path.child("requests"), value.0.as_str(), why);
        }
    }
    let named = |test: fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|name| test(name));
    if named(is_huge_page) && !named(|name| matches!(name, "cpu" | "memory")) {
        errs.forbidden(path, "HugePages require cpu or memory");
    }
}

/// Checks that an amount of huge pages is one of whole pages.
fn whole_pages(name: &str, value: &Quantity, path: &Path, errs: &mut ErrorList) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    let size = Number::parse(size).ok().filter(|size| size.sign() > 0 && size.is_whole());
    if size.is_none_or(|size| Number::from_api(value).value() % size.value() != 0) {
        let why = format!("{} is not positive integer multiple of {name}", value.0);
        errs.invalid(path, value.0.as_str(), why);
    }
}

fn claim_names(claims: &[ResourceClaim], known: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let at = path.index(i);
        if claim.name.is_empty() {
            errs.required(&at, "");
        } else if !seen.insert((claim.name.as_str(), claim.request.as_deref())) {
            errs.duplicate(&at, claim.name.as_str());
        }
        if !claim.name.is_empty() && !known.contains(claim.name.as_str()) {
            let mut detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if known.is_empty() {
                detail.push_str(" which is empty");
            } else {
                detail.push_str(": ");
                detail.push_str(&known.iter().copied().collect::<Vec<_>>().join(", "));
            }
            let value = Some(show(claim.name.as_str()));
            errs.push(Error { kind: ErrorKind::NotFound, path: at.to_string(), value, detail });
        }
        if let Some(request) = claim.request.as_deref().filter(|r| !r.is_empty()) {
            named(errs, &at.child("request"), request, names::dns1123_label);
        }
    }
}

/// Checks requirements of a pod as a whole.
pub(crate) fn pod_level(spec: &PodSpec, claims: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    let Some(resources) = &spec.resources else { return };
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return errs.forbidden(path, "may not be set for a windows pod");
    }
    if resources.claims.is_some() {
        errs.forbidden(path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(resources, path, pod_level_name, errs);
    claim_names(resources.claims.as_deref().unwrap_or_default(), claims, &path.child("claims"), errs);
    let whole = k8s_openapi::api::core::v1::Pod {
        spec: Some(PodSpec { resources: None, overhead: None, ..spec.clone() }),
        ..Default::default()
    };
    let containers = coracle_meta::pod::requests(&whole);
    for (name, value) in resources.requests.iter().flatten() {
        if let Some(sum) = containers.get(name).filter(|sum| **sum > Number::from_api(value)) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errs.invalid(path.child("requests").key(name), value.0.as_str(), why);
        }
    }
    let used = coracle_meta::pod::limits(&whole);
    for (name, most) in resources.limits.iter().flatten().filter(|(name, _)| is_huge_page(name)) {
        if let Some(sum) = used.get(name).filter(|sum| **sum > Number::from_api(most)) {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errs.invalid(path.child("limits").key(name), most.0.as_str(), why);
        }
    }
    for (i, container) in spec.containers.iter().enumerate() {
        for (name, value) in container.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
            let most = resources.limits.as_ref().and_then(|limits| limits.get(name));
            if let Some(most) = most.filter(|most| Number::from_api(most) < Number::from_api(value)) {
                let at = path.child("containers").index(i).key(name).child("limits");
                let why = format!("must be less than or equal to pod limits of {}", most.0);
                errs.invalid(at, value.0.as_str(), why);
            }
        }
    }
}

fn pod_level_name(name: &str, path: &Path, errs: &mut ErrorList) {
    let before = errs.len();
    resource_name(name, path, errs);
    if errs.len() == before && !is_pod_level(name) {
        errs.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Checks resize policies.
pub(crate) fn resize(policies: &[ContainerResizePolicy], restart: &str, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, policy) in policies.iter().enumerate() {
        let (name, action) = (policy.resource_name.as_str(), policy.restart_policy.as_str());
        if seen.contains(name) {
            errs.duplicate(path.index(i), name);
        }
        seen.insert(name);
        if name.is_empty() {
            errs.required(path, "");
        } else {
            one_of(errs, path, name, &["cpu", "memory"]);
        }
        if action.is_empty() {
            errs.required(path, "");
        } else {
            one_of(errs, path, action, &["NotRequired", "RestartContainer"]);
        }
        if restart == "Never" && action != "NotRequired" && !action.is_empty() {
            errs.invalid(path, action, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}
