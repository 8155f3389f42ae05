//! Validation of a pod spec as a whole.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::{validate_annotations, validate_labels};
use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec, PodTemplateSpec};

use super::{container, requirements, scheduling, security, volumes, windows};
use crate::check::{Rule, named, one_of};
use crate::common::text;

/// Where the spec stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a pod that is being created.
    NewPod,
    /// In a pod that is being updated.
    Pod,
    /// In a pod template.
    Template,
}

/// Checks a pod template: its metadata and its spec.
pub(crate) fn template(template: &PodTemplateSpec, path: &Path, errs: &mut ErrorList) {
    template_metadata(template, path, errs);
    if let Some(spec) = &template.spec {
        self::spec(spec, Place::Template, &path.child("spec"), errs);
        if spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty()) {
            let at = path.child("spec").child("ephemeralContainers");
            errs.forbidden(at, "ephemeral containers not allowed in pod template");
        }
    }
}

/// Checks the metadata of a pod template alone.
pub(crate) fn template_metadata(template: &PodTemplateSpec, path: &Path, errs: &mut ErrorList) {
    let Some(metadata) = &template.metadata else { return };
    if let Some(labels) = &metadata.labels {
        validate_labels(labels, &path.child("labels"), errs);
    }
    if let Some(annotations) = &metadata.annotations {
        validate_annotations(annotations, &path.child("annotations"), errs);
    }
    super::annotations::check(metadata, template.spec.as_ref(), &path.child("annotations"), errs);
}

/// Checks a pod spec below `path`.
pub(crate) fn spec(spec: &PodSpec, place: Place, path: &Path, errs: &mut ErrorList) {
    let good = volumes::all(spec, &path.child("volumes"), errs);
    if let Some(claims) = &spec.resource_claims {
        scheduling::claims(claims, &path.child("resourceClaims"), errs);
    }
    let pod = container::Pod::new(spec, good, place == Place::Template);
    container::all(&pod, path, errs);
    container::ephemeral(&pod, &path.child("ephemeralContainers"), errs);
    requirements::pod_level(spec, pod.claims(), &path.child("resources"), errs);
    let restart = text(spec.restart_policy.as_ref());
    one_of(errs, &path.child("restartPolicy"), restart, &["Always", "OnFailure", "Never"]);
    one_of(
        errs,
        &path.child("dnsPolicy"),
        text(spec.dns_policy.as_ref()),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    if let Some(labels) = &spec.node_selector {
        validate_labels(labels, &path.child("nodeSelector"), errs);
    }
    security::pod(spec, path, errs);
    if let Some(affinity) = &spec.affinity {
        scheduling::affinity(affinity, &path.child("affinity"), errs);
    }
    dns_config(spec, &path.child("dnsConfig"), errs);
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let at = path.child("readinessGates").index(i).child("conditionType");
        named(errs, &at, &gate.condition_type, names::qualified_name);
    }
    scheduling::gates(
        spec.scheduling_gates.as_deref().unwrap_or_default(),
        &path.child("schedulingGates"),
        errs,
    );
    let spread = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    scheduling::spread(spread, &path.child("topologySpreadConstraints"), errs);
    windows::host_process(spec, path, errs);
    plain_fields(spec, path, errs);
    scheduling::tolerations(
        spec.tolerations.as_deref().unwrap_or_default(),
        &path.child("tolerations"),
        errs,
    );
    host_aliases(spec, &path.child("hostAliases"), errs);
    if let Some(overhead) = &spec.overhead {
        requirements::overhead(overhead, &path.child("overhead"), errs);
    }
    security::os(spec, path, errs);
    if place != Place::Template {
        volumes::tokens_without_account(spec, path, errs);
    }
    if place == Place::NewPod {
        only_new_pods(spec, path, errs);
    }
}

fn plain_fields(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let rules: [(&str, Option<&String>, Rule); 5] = [
        ("serviceAccountName", spec.service_account_name.as_ref(), names::dns1123_subdomain),
        ("nodeName", spec.node_name.as_ref(), names::dns1123_subdomain),
        ("hostname", spec.hostname.as_ref(), names::dns1123_label),
        ("subdomain", spec.subdomain.as_ref(), names::dns1123_label),
        ("priorityClassName", spec.priority_class_name.as_ref(), names::dns1123_subdomain),
    ];
    for (field, value, rule) in rules {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            named(errs, &path.child(field), value, rule);
        }
    }
    if let Some(class) = &spec.runtime_class_name {
        named(errs, &path.child("runtimeClassName"), class, names::dns1123_subdomain);
    }
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        let why = names::in_range(1, i64::from(i32::MAX));
        errs.invalid(path.child("activeDeadlineSeconds"), seconds, why);
    }
    if let Some(policy) = spec.preemption_policy.as_deref().filter(|p| !p.is_empty()) {
        one_of(errs, &path.child("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    if let Some(name) = &spec.hostname_override {
        let at = path.child("hostnameOverride");
        if spec.set_hostname_as_fqdn == Some(true) {
            errs.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.host_network == Some(true) {
            errs.forbidden(&at, "may not be specified when hostNetwork is true");
        }
        named(errs, &at, name, names::dns1123_subdomain);
        if name.len() > 64 {
            errs.too_long(&at, 64);
        }
    }
}

fn dns_config(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let none = spec.dns_policy.as_deref() == Some("None");
    let Some(config) = &spec.dns_config else {
        if none {
            errs.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    if none && config.nameservers.as_ref().is_none_or(Vec::is_empty) {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errs.required(path.child("nameservers"), why);
    }
    dns_lists(config, path, errs);
}

fn dns_lists(config: &PodDNSConfig, path: &Path, errs: &mut ErrorList) {
    const MAX_SERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_CHARS: usize = 2048;
    if let Some(servers) = &config.nameservers {
        let at = path.child("nameservers");
        if servers.len() > MAX_SERVERS {
            let why = format!("must not have more than {MAX_SERVERS} nameservers");
            errs.invalid(&at, servers.clone(), why);
        }
        for (i, server) in servers.iter().enumerate() {
            named(errs, &at.index(i), server, names::ip);
        }
    }
    if let Some(searches) = &config.searches {
        let at = path.child("searches");
        if searches.len() > MAX_SEARCHES {
            let why = format!("must not have more than {MAX_SEARCHES} search paths");
            errs.invalid(&at, searches.clone(), why);
        }
        let all = searches.join(" ");
        if all.len() > MAX_SEARCH_CHARS {
            let why = format!(
                "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
            );
            errs.invalid(&at, searches.clone(), why);
        }
        for (i, search) in searches.iter().enumerate() {
            if search != "." {
                let name = search.strip_suffix('.').unwrap_or(search);
                named(errs, &at.index(i), name, names::dns1123_subdomain_with_underscore);
            }
        }
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if text(option.name.as_ref()).is_empty() {
            errs.required(path.child("options").index(i), "must not be empty");
        }
    }
}

fn host_aliases(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.index(i);
        named(errs, &path.child("ip"), &alias.ip, names::ip);
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            named(errs, &path.child("hostnames").index(j), name, names::dns1123_subdomain);
        }
    }
}

/// What only the creation of a pod checks.
fn only_new_pods(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    if spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        errs.forbidden(path.child("ephemeralContainers"), "cannot be set on create");
    }
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    if gated && !text(spec.node_name.as_ref()).is_empty() {
        errs.forbidden(path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}
