//! Warnings about pod specs: legal, but likely not meant.

mod placement;

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::Path;
use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, PodSpec, Volume, VolumeProjection};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::text;

/// Labels of nodes that have newer names.
const DEPRECATED_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Why a label of nodes should no longer be used, if it is an old one.
pub(crate) fn deprecated_label(label: &str) -> Option<&'static str> {
    DEPRECATED_LABELS.iter().find(|(old, _)| *old == label).map(|(_, why)| *why)
}

/// Warnings for a spec below `path`, with the metadata of its pod or template.
pub(crate) fn of(spec: &PodSpec, meta: Option<&ObjectMeta>, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(why) = deprecated_label(key) {
            out.push(format!("{}: {why}", path.child("nodeSelector").key(key)));
        }
    }
    host_aliases(spec, path, &mut out);
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        volumes(volume, &path.child("volumes").index(i), &mut out);
    }
    pull_secrets(spec, path, &mut out);
    annotations(spec, meta, path, &mut out);
    containers(spec, path, &mut out);
    placement::of(spec, path, &mut out);
    out
}

/// Warnings for old label names in the terms of a node selector.
pub(crate) fn node_selector_terms(terms: &[NodeSelectorTerm], path: &Path, out: &mut Vec<String>) {
    for (i, term) in terms.iter().enumerate() {
        for (j, wanted) in term.match_expressions.iter().flatten().enumerate() {
            if let Some((label, why)) = DEPRECATED_LABELS.iter().find(|(label, _)| *label == wanted.key) {
                let at = path.index(i).child("matchExpressions").index(j).child("key");
                out.push(format!("{at}: {label} is {why}"));
            }
        }
    }
}

fn host_aliases(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(alias.ip.as_str()) {
            let at = path.child("hostAliases").index(i).child("ip");
            out.push(format!("{at}: duplicate ip {:?}", alias.ip));
        }
    }
}

fn pull_secrets(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let at = path.child("imagePullSecrets").index(i).child("name");
        if secret.name.is_empty() {
            out.push(format!("{at}: invalid empty name \"\""));
        } else if !seen.insert(secret.name.as_str()) {
            out.push(format!("{at}: duplicate name {:?}", secret.name));
        }
    }
}

/// Annotations that fields have replaced.
fn annotations(spec: &PodSpec, meta: Option<&ObjectMeta>, path: &Path, out: &mut Vec<String>) {
    const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    const GONE: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let root = path.to_string();
    let root = root.strip_suffix("spec").unwrap_or("");
    let given = |key: &str| meta.is_some_and(|m| m.annotations.as_ref().is_some_and(|a| a.contains_key(key)));
    if given(SECCOMP) && spec.security_context.as_ref().is_none_or(|c| c.seccomp_profile.is_none()) {
        out.push(format!("{root}metadata.annotations[{SECCOMP}]: {GONE}"));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let key = format!("{OF_CONTAINER}{}", container.name);
        let set = container.security_context.as_ref().is_some_and(|c| c.seccomp_profile.is_some());
        if !set && given(&key) {
            out.push(format!("{root}metadata.annotations[{key}]: {GONE}"));
        }
    }
    for key in meta.and_then(|m| m.annotations.as_ref()).into_iter().flatten().map(|(key, _)| key) {
        if key == "scheduler.alpha.kubernetes.io/critical-pod" {
            let why = "non-functional in v1.16+; use the \"priorityClassName\" field instead";
            out.push(format!("{root}metadata.annotations[{key}]: {why}"));
        }
    }
}

fn containers(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [("initContainers", inits), ("containers", spec.containers.as_slice())] {
        for (i, container) in containers.iter().enumerate() {
            let at = path.child(list).index(i);
            fractions(container, &at, out);
            host_ips(container, &at, out);
            env(container, &at, out);
        }
    }
    colliding_ports(spec, path, out);
}

fn fractions(container: &Container, path: &Path, out: &mut Vec<String>) {
    let Some(resources) = &container.resources else { return };
    for (name, list) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (resource, amount) in list.iter().flatten() {
            if !matches!(resource.as_str(), "memory" | "ephemeral-storage") {
                continue;
            }
            if !Number::from_api(amount).is_whole_bytes() {
                let at = path.child("resources").child(name).key(resource);
                out.push(format!(
                    "{at}: fractional byte value {:?} is invalid, must be an integer",
                    amount.0
                ));
            }
        }
    }
}

fn host_ips(container: &Container, path: &Path, out: &mut Vec<String>) {
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let ip = text(port.host_ip.as_ref());
        if !ip.is_empty() && port.host_port.unwrap_or(0) == 0 {
            out.push(format!(
                "{}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} \
                 HostIP:{ip}}}",
                path.child("ports").index(i),
                text(port.name.as_ref()),
                port.container_port,
                text(port.protocol.as_ref()),
            ));
        }
    }
}

fn env(container: &Container, path: &Path, out: &mut Vec<String>) {
    let vars = container.env.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (i, var) in vars.iter().enumerate() {
        let value = text(var.value.as_ref());
        if seen.contains(var.name.as_str()) {
            let reference = format!("$({})", var.name);
            if var.value_from.is_some() || value == reference || !value.contains(&reference) {
                let at = path.child("env").index(i);
                out.push(format!(
                    "{at}: hides previous definition of {:?}, which may be dropped when using apply",
                    var.name
                ));
            }
        }
        seen.insert(var.name.as_str());
    }
}

/// Ports that get in each other's way, in the same container or in another one.
fn colliding_ports(spec: &PodSpec, path: &Path, out: &mut Vec<String>) {
    /// Where a port stands, with its host port and host address.
    type Place<'a> = (Path, i32, &'a str);
    let init = spec.init_containers.iter().flatten().enumerate();
    let all = init.map(|(i, c)| (path.child("initContainers").index(i), c));
    let all =
        all.chain(spec.containers.iter().enumerate().map(|(i, c)| (path.child("containers").index(i), c)));
    let mut seen: BTreeMap<(i32, &str), Vec<Place<'_>>> = BTreeMap::new();
    let mut names: BTreeMap<&str, Path> = BTreeMap::new();
    for (at, container) in all {
        for (i, port) in container.ports.iter().flatten().enumerate() {
            let at = at.child("ports").index(i);
            match text(port.name.as_ref()) {
                "" => {}
                name => match names.get(name) {
                    Some(other) => out.push(format!(
                        "{at}: duplicate port name {name:?} with {other}, services and probes that select ports by \
                         name will use {other}"
                    )),
                    None => drop(names.insert(name, at.clone())),
                },
            }
            let (host_port, host_ip) = (port.host_port.unwrap_or(0), text(port.host_ip.as_ref()));
            let others = seen.entry((port.container_port, text(port.protocol.as_ref()))).or_default();
            for (other, other_port, other_ip) in &*others {
                let how = if (host_port, host_ip) == (*other_port, *other_ip) {
                    "duplicate"
                } else if host_port == 0 || *other_port == 0 {
                    "overlapping"
                } else if host_port == *other_port && host_ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{at}: {how} port definition with {other}"));
            }
            others.push((at, host_port, host_ip));
        }
    }
}

/// Says which files of a volume collide.
fn overlaps(volume: &str, files: &[(String, &str)], out: &mut Vec<String>) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (source, file) in files {
        for (before_source, before) in &seen {
            let nested = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
            if file == before || nested(file, before) || nested(before, file) {
                let show = |file: &str, source: &str| {
                    if source.is_empty() { format!("{file:?}") } else { format!("{file:?} ({source})") }
                };
                out.push(format!(
                    "volume {volume}: overlapping paths: {} with {}",
                    show(file, source),
                    show(before, before_source)
                ));
            }
        }
        seen.push((source, file));
    }
}

fn volumes(volume: &Volume, path: &Path, out: &mut Vec<String>) {
    let name = &volume.name;
    if volume.photon_persistent_disk.is_some() {
        out.push(format!(
            "{}: deprecated in v1.11, non-functional in v1.16+",
            path.child("photonPersistentDisk")
        ));
    }
    if volume.git_repo.is_some() {
        out.push(format!(
            "{}: deprecated in v1.11, and disabled by default in v1.33+",
            path.child("gitRepo")
        ));
    }
    if volume.scale_io.is_some() {
        out.push(format!("{}: deprecated in v1.16, non-functional in v1.22+", path.child("scaleIO")));
    }
    if volume.flocker.is_some() {
        out.push(format!("{}: deprecated in v1.22, non-functional in v1.25+", path.child("flocker")));
    }
    if volume.storageos.is_some() {
        out.push(format!("{}: deprecated in v1.22, non-functional in v1.25+", path.child("storageOS")));
    }
    if volume.quobyte.is_some() {
        out.push(format!("{}: deprecated in v1.22, non-functional in v1.25+", path.child("quobyte")));
    }
    if volume.glusterfs.is_some() {
        out.push(format!("{}: deprecated in v1.25, non-functional in v1.26+", path.child("glusterfs")));
    }
    if volume.rbd.is_some() {
        out.push(format!("{}: deprecated in v1.28, non-functional in v1.31+", path.child("rbd")));
    }
    if volume.cephfs.is_some() {
        out.push(format!("{}: deprecated in v1.28, non-functional in v1.31+", path.child("cephfs")));
    }
    if let Some(map) = &volume.config_map {
        let files: Vec<_> = map.items.iter().flatten().map(|i| (String::new(), i.path.as_str())).collect();
        overlaps(&format!("{name:?} (ConfigMap {:?})", map.name), &files, out);
    }
    if let Some(secret) = &volume.secret {
        let files: Vec<_> = secret.items.iter().flatten().map(|i| (String::new(), i.path.as_str())).collect();
        overlaps(&format!("{name:?} (Secret {:?})", text(secret.secret_name.as_ref())), &files, out);
    }
    if let Some(downward) = &volume.downward_api {
        let files: Vec<_> =
            downward.items.iter().flatten().map(|i| (String::new(), i.path.as_str())).collect();
        overlaps(&format!("{name:?} (DownwardAPI)"), &files, out);
    }
    if let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) {
        let requests = template.spec.resources.iter().flat_map(|r| r.requests.iter().flatten());
        for (resource, amount) in requests.filter(|(resource, _)| *resource == "storage") {
            if !Number::from_api(amount).is_whole_bytes() {
                let at =
                    path.child("ephemeral").child("volumeClaimTemplate").child("spec").child("resources");
                let at = at.child("requests").key(resource);
                out.push(format!(
                    "{at}: fractional byte value {:?} is invalid, must be an integer",
                    amount.0
                ));
            }
        }
    }
    projected(volume, out);
}

fn projected(volume: &Volume, out: &mut Vec<String>) {
    let Some(projected) = &volume.projected else { return };
    let sources = projected.sources.as_deref().unwrap_or_default();
    let shown = format!("{:?} (Projected)", volume.name);
    let mut files: Vec<(String, &str)> = Vec::new();
    for source in sources {
        if *source == VolumeProjection::default() {
            out.push(format!("volume {shown} has no sources provided"));
        }
        if let Some(map) = &source.config_map {
            let from = format!("ConfigMap {:?}", map.name);
            files.extend(map.items.iter().flatten().map(|i| (from.clone(), i.path.as_str())));
        }
        if let Some(secret) = &source.secret {
            let from = format!("Secret {:?}", secret.name);
            files.extend(secret.items.iter().flatten().map(|i| (from.clone(), i.path.as_str())));
        }
        if let Some(downward) = &source.downward_api {
            let items = downward.items.iter().flatten();
            files.extend(items.map(|i| ("DownwardAPI".to_owned(), i.path.as_str())));
        }
        if let Some(token) = &source.service_account_token {
            files.push(("ServiceAccountToken".to_owned(), &token.path));
        }
        if let Some(bundle) = &source.cluster_trust_bundle {
            files.push(("ClusterTrustBundle".to_owned(), &bundle.path));
        }
    }
    overlaps(&shown, &files, out);
}
