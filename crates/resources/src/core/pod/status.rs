//! The status of a pod: what a change of it may say.

use std::collections::BTreeSet;
use std::net::IpAddr;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, LinuxContainerUser, Pod,
    PodExtendedResourceClaimStatus, PodIP, PodSpec, PodStatus, ResourceHealth, ResourceStatus,
};
use serde_json::{Value, json};

use crate::address::legacy_ip;
use crate::check::{named, one_of};
use crate::common::text;

/// Bytes of what is said of a resource's health.
const MAX_HEALTH_MESSAGE: usize = 1024;
const HEALTH: &[&str] = &["Healthy", "Unhealthy", "Unknown"];

/// A status update changes nothing but the status.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    new.spec.clone_from(&old.spec);
    new.metadata.deletion_timestamp.clone_from(&old.metadata.deletion_timestamp);
    new.metadata.owner_references.clone_from(&old.metadata.owner_references);
    let class = old.status.as_ref().and_then(|s| s.qos_class.clone());
    let status = new.status.get_or_insert_default();
    if text(status.qos_class.as_ref()).is_empty() {
        status.qos_class = class;
    }
    drop_disabled(status);
}

/// Takes out what upstream has no use for without its feature gates.
fn drop_disabled(status: &mut PodStatus) {
    status.node_allocatable_resource_claim_statuses = None;
    let all = [
        &mut status.container_statuses,
        &mut status.init_container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    let containers = all.into_iter().flat_map(|list| list.iter_mut().flatten());
    for mount in containers.flat_map(|container| container.volume_mounts.iter_mut().flatten()) {
        mount.volume_status = None;
    }
}

/// The single address and the first of the list are the same thing; the single one counts where they differ.
pub(super) fn pair_addresses(pod: &mut Pod) {
    let Some(status) = &mut pod.status else { return };
    let single = text(status.pod_ip.as_ref()).to_owned();
    let first = status.pod_ips.as_ref().and_then(|ips| ips.first()).map(|ip| ip.ip.clone());
    match first {
        Some(first) if single.is_empty() => status.pod_ip = Some(first),
        Some(first) if first == single => {}
        _ if single.is_empty() => {}
        _ => status.pod_ips = Some(vec![PodIP { ip: single }]),
    }
}

/// Checks a status update.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    let path = Path::new("status");
    let (Some(status), Some(before)) = (&new.status, &old.status) else { return };
    conditions(status, &path.child("conditions"), errs);
    nominated_node(status, before, old, &path.child("nominatedNodeName"), errs);
    if let Some(generation) = status.observed_generation.filter(|g| *g < 0) {
        errs.invalid(path.child("observedGeneration"), generation, "must be a non-negative integer");
    }
    if !text(before.qos_class.as_ref()).is_empty() {
        errs.immutable(path.child("qosClass"), &status.qos_class, &before.qos_class);
    }
    let Some(spec) = &old.spec else { return };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let lists = [
        ("containerStatuses", &status.container_statuses, &before.container_statuses),
        ("initContainerStatuses", &status.init_container_statuses, &before.init_container_statuses),
        (
            "ephemeralContainerStatuses",
            &status.ephemeral_container_statuses,
            &before.ephemeral_container_statuses,
        ),
    ];
    for ((name, now, was), containers) in lists.iter().zip([Some(&*spec.containers), Some(init), None]) {
        transitions((now.as_deref(), was.as_deref()), spec, containers, &path.child(name), errs);
    }
    claims(status, spec, &path.child("resourceClaimStatuses"), errs);
    if let Some(extended) = &status.extended_resource_claim_status {
        extended_claim(extended, spec, &path.child("extendedResourceClaimStatus"), errs);
    }
    addresses(status, before, &path, errs);
    for (name, now, _) in &lists {
        users(now.as_deref().unwrap_or_default(), spec, &path.child(name), errs);
    }
    for ((name, now, _), containers) in lists.iter().zip([Some(&*spec.containers), Some(init), None]) {
        for (i, status) in now.iter().flatten().enumerate() {
            let at = path.child(name).index(i).child("allocatedResourcesStatus");
            allocated(status, containers, &at, errs);
        }
    }
}

fn conditions(status: &PodStatus, path: &Path, errs: &mut ErrorList) {
    for (i, condition) in status.conditions.iter().flatten().enumerate() {
        let at = path.index(i);
        if let Some(generation) = condition.observed_generation.filter(|g| *g < 0) {
            errs.invalid(at.child("observedGeneration"), generation, "must be a non-negative integer");
        }
        if !matches!(condition.type_.as_str(), "PodScheduled" | "Ready" | "Initialized") {
            named(errs, &at.child("Type"), &condition.type_, names::qualified_name);
        }
    }
}

fn nominated_node(status: &PodStatus, before: &PodStatus, old: &Pod, path: &Path, errs: &mut ErrorList) {
    let node = text(status.nominated_node_name.as_ref());
    if node.is_empty() || node == text(before.nominated_node_name.as_ref()) {
        return;
    }
    named(errs, path, node, names::dns1123_subdomain);
    if !text(old.spec.as_ref().and_then(|spec| spec.node_name.as_ref())).is_empty() {
        errs.forbidden(path, "may not be set on pods that are already bound to a node");
    }
}

/// What became of the pod's claims.
fn claims(status: &PodStatus, spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, claim) in status.resource_claim_statuses.iter().flatten().enumerate() {
        let (at, name) = (path.index(i), claim.name.as_str());
        if !spec.resource_claims.iter().flatten().any(|own| own.name == name) {
            errs.invalid(at.child("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.insert(name) {
            errs.duplicate(at.child("name"), name);
        }
        if let Some(made) = &claim.resource_claim_name {
            named(errs, &at.child("resourceClaimName"), made, names::dns1123_subdomain);
        }
    }
}

/// The claim that was made for extended resources.
fn extended_claim(
    status: &PodExtendedResourceClaimStatus,
    spec: &PodSpec,
    path: &Path,
    errs: &mut ErrorList,
) {
    let all = path.child("requestMappings");
    if status.request_mappings.is_empty() {
        errs.required(&all, "at least one request mapping is required");
    }
    let mut seen = BTreeSet::new();
    for (i, mapping) in status.request_mappings.iter().enumerate() {
        let (at, container) = (all.index(i), mapping.container_name.as_str());
        let (resource, request) = (mapping.resource_name.as_str(), mapping.request_name.as_str());
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        match containers.into_iter().find(|c| c.name == container) {
            None => {
                let why =
                    "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                errs.invalid(at.child("containerName"), container, why);
            }
            Some(found) if !requests(found).any(|name| name == resource) => {
                let why = "must match the extended resource name of an entry in \
                           spec.initContainers.resources.requests or spec.containers.resources.requests";
                errs.invalid(at.child("resourceName"), resource, why);
            }
            Some(_) => {}
        }
        named(errs, &path.child("requestName"), request, names::dns1123_label);
        if !seen.insert((container, resource, request)) {
            errs.duplicate(at.child("containerName"), container);
            errs.duplicate(at.child("resourceName"), resource);
            errs.duplicate(at.child("requestName"), request);
        }
    }
    match status.resource_claim_name.as_str() {
        "" => errs.required(path.child("resourceClaimName"), ""),
        name => named(errs, &path.child("resourceClaimName"), name, names::dns1123_subdomain),
    }
}

/// The names of the resources that a container asks for.
fn requests(container: &Container) -> impl Iterator<Item = &str> {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.into_iter().flatten().map(|(name, _)| name.as_str())
}

/// Addresses of the pod and of its node.
fn addresses(status: &PodStatus, before: &PodStatus, path: &Path, errs: &mut ErrorList) {
    fn of<T>(list: Option<&Vec<T>>, ip: fn(&T) -> &String) -> Vec<&str> {
        list.into_iter().flatten().map(|item| ip(item).as_str()).collect()
    }
    let (now, was) = (status.pod_ips.as_ref(), before.pod_ips.as_ref());
    families(&of(now, |ip| &ip.ip), &of(was, |ip| &ip.ip), &path.child("podIPs"), errs);
    let (now, was) = (of(status.host_ips.as_ref(), |ip| &ip.ip), of(before.host_ips.as_ref(), |ip| &ip.ip));
    let at = path.child("hostIPs");
    if let Some(first) = now.first().filter(|first| **first != text(status.host_ip.as_ref())) {
        errs.invalid(at.index(0).child("ip"), *first, "must be equal to `hostIP`");
    }
    families(&now, &was, &at, errs);
}

/// Addresses, of which each is of a family of its own. Those that were there before may be anything.
fn families(ips: &[&str], before: &[&str], path: &Path, errs: &mut ErrorList) {
    for (i, ip) in ips.iter().enumerate().filter(|(_, ip)| !before.contains(ip)) {
        named(errs, &path.index(i), ip, legacy_ip);
    }
    if ips.len() < 2 {
        return;
    }
    let parsed: Vec<Option<IpAddr>> = ips.iter().map(|ip| ip.parse().ok()).collect();
    if let Some(at) = parsed.iter().position(Option::is_none) {
        let why = format!("failed to check for dual stack with error:invalid IP[{at}]: {}", ips[at]);
        errs.internal(path, why);
    }
    let has =
        |v4: bool| parsed.iter().all(Option::is_some) && parsed.iter().flatten().any(|ip| ip.is_ipv4() == v4);
    if !(has(true) && has(false)) || ips.len() > 2 {
        let shown: Value = ips.iter().map(|ip| json!({ "IP": ip })).collect();
        errs.invalid(path, shown, "may specify no more than one IP for each IP family");
    }
}

/// Who the containers run as.
fn users(statuses: &[ContainerStatus], spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let os = spec.os.as_ref().map_or("linux", |os| os.name.as_str());
    for (i, status) in statuses.iter().enumerate() {
        let Some(linux) = status.user.as_ref().and_then(|user| user.linux.as_ref()) else { continue };
        let at = path.index(i).child("user").child("linux");
        match os {
            "windows" => errs.forbidden(at, "cannot be set for a windows pod"),
            "linux" => linux_user(linux, &at, errs),
            _ => {}
        }
    }
}

fn linux_user(user: &LinuxContainerUser, path: &Path, errs: &mut ErrorList) {
    const MAX_ID: i64 = i32::MAX as i64;
    let mut id = |at: Path, id: i64| {
        if !(0..=MAX_ID).contains(&id) {
            errs.invalid(at, id, names::in_range(0, MAX_ID));
        }
    };
    id(path.child("uid"), user.uid);
    id(path.child("gid"), user.gid);
    for (i, gid) in user.supplemental_groups.iter().flatten().enumerate() {
        id(path.child("supplementalGroups").index(i), *gid);
    }
}

/// How the resources do that a container was given. `containers`: those of the kind; ephemeral ones have none.
fn allocated(status: &ContainerStatus, containers: Option<&[Container]>, path: &Path, errs: &mut ErrorList) {
    let resources = status.allocated_resources_status.as_deref().unwrap_or_default();
    let Some(containers) = containers else {
        if !resources.is_empty() {
            errs.forbidden(path, "must not be specified in container status");
        }
        return;
    };
    let container = containers.iter().find(|c| c.name == status.name);
    for (i, resource) in resources.iter().enumerate() {
        let at = path.index(i);
        if let Some(container) = container {
            asked_for(resource, container, &at.child("name"), errs);
        }
        let mut seen = BTreeSet::new();
        for (j, one) in resource.resources.iter().flatten().enumerate() {
            health(one, &mut seen, &at.child("resources").index(j), errs);
        }
    }
}

fn asked_for(resource: &ResourceStatus, container: &Container, path: &Path, errs: &mut ErrorList) {
    let (found, why) = match resource.name.strip_prefix("claim:") {
        Some(claimed) => {
            let claims = container.resources.as_ref().and_then(|r| r.claims.as_ref());
            let is = |claim: &k8s_openapi::api::core::v1::ResourceClaim| match text(claim.request.as_ref()) {
                "" => claim.name == claimed,
                request => format!("{}/{request}", claim.name) == claimed,
            };
            let why = "must match one of the container's resource claims in a format \
                       'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty";
            (claims.into_iter().flatten().any(is), why)
        }
        None => {
            let why = "must match one of the container's resource requests";
            (requests(container).any(|name| name == resource.name), why)
        }
    };
    if !found {
        errs.invalid_typed(path, &resource.name, why);
    }
}

fn health<'a>(one: &'a ResourceHealth, seen: &mut BTreeSet<&'a str>, path: &Path, errs: &mut ErrorList) {
    one_of(errs, &path.child("health"), text(one.health.as_ref()), HEALTH);
    match one.message.as_deref() {
        None => {}
        Some("") => errs.required(path.child("message"), "must be non-empty if specified"),
        Some(long) if long.len() > MAX_HEALTH_MESSAGE => {
            errs.too_long(path.child("message"), MAX_HEALTH_MESSAGE);
        }
        Some(_) => {}
    }
    if !seen.insert(&one.resource_id) {
        errs.duplicate(path.child("resourceID"), one.resource_id.as_str());
    }
}

/// Action of a restart rule that starts the whole pod over.
const RESTART_ALL: &str = "RestartAllContainers";

/// Whether a container that ended with this code may run again: by its rules, its own policy, or the pod's.
fn restarts(spec: &PodSpec, container: &Container, code: i32) -> bool {
    let by_policy = |policy: &str| match policy {
        "Always" => Some(true),
        "OnFailure" => Some(code != 0),
        "Never" => Some(false),
        _ => None,
    };
    if let Some(own) = container.restart_policy.as_deref() {
        let speaks = |rule: &&ContainerRestartRule| {
            let Some(codes) = &rule.exit_codes else { return false };
            let listed = codes.values.iter().flatten().any(|v| *v == code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        };
        let rule = container.restart_policy_rules.iter().flatten().find(speaks);
        if rule.is_some_and(|r| matches!(r.action.as_str(), "Restart" | RESTART_ALL)) {
            return true;
        }
        if let Some(answer) = by_policy(own) {
            return answer;
        }
    }
    by_policy(text(spec.restart_policy.as_ref())).unwrap_or(true)
}

/// A container that has ended for good cannot run again.
fn transitions(
    (new, old): (Option<&[ContainerStatus]>, Option<&[ContainerStatus]>),
    spec: &PodSpec,
    containers: Option<&[Container]>,
    path: &Path,
    errs: &mut ErrorList,
) {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut rules = all.flat_map(|c| c.restart_policy_rules.iter().flatten());
    if containers.is_some() && rules.any(|rule| rule.action == RESTART_ALL) {
        return;
    }
    for (i, before) in old.unwrap_or_default().iter().enumerate() {
        let Some(ended) = before.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
        // Ephemeral containers never run again.
        let container = containers.into_iter().flatten().find(|c| c.name == before.name);
        if container.is_some_and(|c| restarts(spec, c, ended.exit_code)) {
            continue;
        }
        let now = new.unwrap_or_default().iter().find(|s| s.name == before.name);
        if now.is_some_and(|s| s.state.as_ref().is_none_or(|s| s.terminated.is_none())) {
            let why = "may not be transitioned to non-terminated state";
            errs.forbidden(path.index(i).child("state"), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: Value, told: &[&str]) {
        let pod = |status: Value| -> Pod {
            let spec = json!({ "nodeName": "n", "resourceClaims": [{ "name": "r", "resourceClaimName": "c" }],
                "containers": [{ "name": "c", "image": "i", "resources": {
                    "requests": { "example.com/a": "1" }, "claims": [{ "name": "r" }] } }] });
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec, "status": status }))
                .unwrap()
        };
        let mut errs = ErrorList::new();
        validate(&pod(status), &pod(json!({ "qosClass": "Burstable" })), &mut errs);
        let said: Vec<String> = errs.iter().map(|e| e.to_string().replace("status.", "")).collect();
        assert_eq!(said, told);
    }

    fn with(mut status: Value) -> Value {
        status["qosClass"] = "Burstable".into();
        status
    }

    #[test]
    fn addresses_are_one_of_each_family() {
        check(with(json!({ "podIP": "1.2.3.4", "podIPs": [{ "ip": "1.2.3.4" }, { "ip": "fe80::1" }] })), &[]);
        let two = with(json!({ "hostIP": "1.2.3.4", "hostIPs": [{ "ip": "1.2.3.4" }, { "ip": "1.2.3.5" }] }));
        check(
            two,
            &[
                "hostIPs: Invalid value: [{\"IP\":\"1.2.3.4\"},{\"IP\":\"1.2.3.5\"}]: may specify no more than \
                     one IP for each IP family",
            ],
        );
        let other = with(json!({ "hostIPs": [{ "ip": "1.2.3.4" }] }));
        check(other, &["hostIPs[0].ip: Invalid value: \"1.2.3.4\": must be equal to `hostIP`"]);
    }

    #[test]
    fn claims_and_resources_are_those_of_the_spec() {
        check(
            with(json!({ "resourceClaimStatuses": [{ "name": "r" }, { "name": "r" }, { "name": "x" }] })),
            &[
                "resourceClaimStatuses[1].name: Duplicate value: \"r\"",
                "resourceClaimStatuses[2].name: Invalid value: \"x\": must match the name of an entry in \
                 `spec.resourceClaims`",
            ],
        );
        let extended = json!({ "resourceClaimName": "", "requestMappings": [
            { "containerName": "c", "resourceName": "example.com/a", "requestName": "q" },
            { "containerName": "z", "resourceName": "a", "requestName": "q" }] });
        check(
            with(json!({ "extendedResourceClaimStatus": extended })),
            &[
                "extendedResourceClaimStatus.requestMappings[1].containerName: Invalid value: \"z\": must match the name \
             of an entry in spec.initContainers.name or spec.containers.name",
                "extendedResourceClaimStatus.resourceClaimName: Required value",
            ],
        );
        let container = json!({ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResourcesStatus": [{ "name": "claim:r" }, { "name": "x", "resources": [
                { "resourceID": "1", "health": "Fine" }, { "resourceID": "1", "health": "Healthy" }] }] });
        check(
            with(json!({ "containerStatuses": [container] })),
            &[
                "containerStatuses[0].allocatedResourcesStatus[1].name: Invalid value: \"x\": must match one of the \
             container's resource requests",
                "containerStatuses[0].allocatedResourcesStatus[1].resources[0].health: Unsupported value: \"Fine\": \
             supported values: \"Healthy\", \"Unhealthy\", \"Unknown\"",
                "containerStatuses[0].allocatedResourcesStatus[1].resources[1].resourceID: Duplicate value: \"1\"",
            ],
        );
    }

    #[test]
    fn a_pod_on_a_node_is_nominated_for_no_other() {
        check(
            with(json!({ "nominatedNodeName": "m", "observedGeneration": -1,
            "conditions": [{ "type": "Ready", "status": "True", "observedGeneration": -1 }] })),
            &[
                "conditions[0].observedGeneration: Invalid value: -1: must be a non-negative integer",
                "nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node",
                "observedGeneration: Invalid value: -1: must be a non-negative integer",
            ],
        );
    }
}
