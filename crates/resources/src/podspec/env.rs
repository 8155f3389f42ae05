//! Checks of environment variables and where their values come from.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector,
};

use crate::check::{local_path, named};
use crate::common::text;

/// Downward API fields an environment variable may name.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Container resources the downward API knows.
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks `env`.
pub(crate) fn env(vars: &[EnvVar], volumes: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    for (i, var) in vars.iter().enumerate() {
        let path = path.index(i);
        if var.name.is_empty() {
            errs.required(path.child("name"), "");
        } else {
            named(errs, &path.child("name"), &var.name, names::env_var_name);
        }
        if let Some(source) = &var.value_from {
            value_from(source, text(var.value.as_ref()), volumes, &path.child("valueFrom"), errs);
        }
    }
}

fn value_from(
    source: &EnvVarSource,
    value: &str,
    volumes: &BTreeSet<&str>,
    path: &Path,
    errs: &mut ErrorList,
) {
    let mut sources = 0;
    if let Some(field) = &source.field_ref {
        sources += 1;
        field_ref(field, ENV_FIELDS, &path.child("fieldRef"), errs);
    }
    if let Some(resource) = &source.resource_field_ref {
        sources += 1;
        resource_field_ref(resource, false, &path.child("resourceFieldRef"), errs);
    }
    if let Some(key) = &source.config_map_key_ref {
        sources += 1;
        let path = path.child("configMapKeyRef");
        key_ref(&key.name, &key.key, &path, errs);
    }
    if let Some(key) = &source.secret_key_ref {
        sources += 1;
        key_ref(&key.name, &key.key, &path.child("secretKeyRef"), errs);
    }
    if let Some(file) = &source.file_key_ref {
        sources += 1;
        file_key_ref(file, volumes, &path.child("fileKeyRef"), errs);
    }
    match sources {
        0 => errs.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
             `fileKeyRef`",
        ),
        _ if !value.is_empty() => errs.invalid(path, "", "may not be specified when `value` is not empty"),
        1 => {}
        _ => errs.invalid(path, "", "may not have more than one field specified at a time"),
    }
}

fn key_ref(name: &str, key: &str, path: &Path, errs: &mut ErrorList) {
    named(errs, &path.child("name"), name, names::dns1123_subdomain);
    if key.is_empty() {
        errs.required(path.child("key"), "");
    } else {
        named(errs, &path.child("key"), key, names::config_key);
    }
}

fn file_key_ref(file: &FileKeySelector, volumes: &BTreeSet<&str>, path: &Path, errs: &mut ErrorList) {
    if file.key.is_empty() {
        errs.required(path.child("key"), "");
    } else {
        named(errs, &path.child("key"), &file.key, names::env_var_name);
    }
    if file.volume_name.is_empty() {
        errs.required(path.child("volumeName"), "");
    }
    if !volumes.contains(file.volume_name.as_str()) {
        errs.not_found(path.child("volumeName"), file.volume_name.as_str());
    }
    if file.path.is_empty() {
        errs.required(path.child("path"), "");
    } else {
        local_path(errs, &path.child("path"), &file.path);
    }
}

/// `metadata.labels['x']` taken apart.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// Whether the core API can name such a field of a pod.
fn known_label(path: &str) -> bool {
    matches!(
        path,
        "metadata.annotations"
            | "metadata.labels"
            | "metadata.name"
            | "metadata.namespace"
            | "metadata.uid"
            | "spec.nodeName"
            | "spec.restartPolicy"
            | "spec.serviceAccountName"
            | "spec.schedulerName"
            | "spec.hostNetwork"
            | "spec.host"
            | "status.phase"
            | "status.hostIP"
            | "status.hostIPs"
            | "status.podIP"
            | "status.podIPs"
            | "status.nominatedNodeName"
    )
}

/// Checks a field reference; `allowed` holds the plain paths that may be used here.
pub(crate) fn field_ref(field: &ObjectFieldSelector, allowed: &[&str], path: &Path, errs: &mut ErrorList) {
    let version = text(field.api_version.as_ref());
    let wanted = field.field_path.as_str();
    if version.is_empty() {
        return errs.required(path.child("apiVersion"), "");
    }
    if wanted.is_empty() {
        return errs.required(path.child("fieldPath"), "");
    }
    let at = path.child("fieldPath");
    let base = subscript(wanted).map_or(wanted, |(base, _)| base);
    if version != "v1" {
        return errs.invalid(
            at,
            wanted,
            format!("error converting fieldPath: unsupported pod version: {version}"),
        );
    }
    if !known_label(base) || (base != wanted && !matches!(base, "metadata.annotations" | "metadata.labels")) {
        return errs.invalid(
            at,
            wanted,
            format!("error converting fieldPath: field label not supported: {wanted}"),
        );
    }
    match subscript(wanted) {
        Some(("metadata.annotations", key)) => {
            named(errs, &path.child("fieldPath"), &key.to_lowercase(), names::qualified_name);
        }
        Some((_, key)) => named(errs, &path.child("fieldPath"), key, names::qualified_name),
        None => crate::check::one_of(errs, &path.child("fieldPath"), wanted, allowed),
    }
}

/// Checks a resource reference; in volumes the container must be named.
pub(crate) fn resource_field_ref(
    field: &ResourceFieldSelector,
    volume: bool,
    path: &Path,
    errs: &mut ErrorList,
) {
    if volume && text(field.container_name.as_ref()).is_empty() {
        return errs.required(path.child("containerName"), "");
    }
    let resource = field.resource.as_str();
    if resource.is_empty() {
        return errs.required(path.child("resource"), "");
    }
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if !RESOURCES.contains(&resource) && !huge {
        return errs.not_supported(path.child("resource"), resource, RESOURCES);
    }
    divisor(field, path, errs);
}

fn divisor(field: &ResourceFieldSelector, path: &Path, errs: &mut ErrorList) {
    let Some(divisor) = field.divisor.as_ref().map(|d| d.0.as_str()).filter(|d| *d != "0") else { return };
    let kind = field.resource.split_once('.').map_or("", |(_, kind)| kind);
    let (allowed, text): (&[&str], &str) = match kind {
        "cpu" => (&["1m", "1"], "only divisor's values 1m and 1 are supported with the cpu resource"),
        "memory" => (
            SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the memory resource",
        ),
        "ephemeral-storage" => (
            SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the local ephemeral storage resource",
        ),
        _ => (
            SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the hugepages resource",
        ),
    };
    if !allowed.contains(&divisor) {
        errs.invalid(path.child("divisor"), field.resource.as_str(), text);
    }
}

const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Checks `envFrom`.
pub(crate) fn env_from(sources: &[EnvFromSource], path: &Path, errs: &mut ErrorList) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source.prefix.as_ref());
        if !prefix.is_empty() {
            named(errs, &at.child("prefix"), prefix, names::env_var_name);
        }
        let config_map = source.config_map_ref.as_ref().map(|r| ("configMapRef", r.name.as_str()));
        let secret = source.secret_ref.as_ref().map(|r| ("secretRef", r.name.as_str()));
        for (field, name) in config_map.into_iter().chain(secret) {
            let at = at.child(field).child("name");
            if name.is_empty() {
                errs.required(at, "");
            } else {
                named(errs, &at, name, names::dns1123_subdomain);
            }
        }
        match (config_map, secret) {
            (None, None) => errs.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            (Some(_), Some(_)) => {
                errs.invalid(path, "", "may not have more than one field specified at a time")
            }
            _ => {}
        }
    }
}
