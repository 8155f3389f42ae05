//! The checks of the restricted level: what a hardened pod must say.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Volume;

use super::baseline::confines;
use super::checks::{Finding, Subject, containers, found, plural, quoted, setters};

pub(super) fn escalation_anywhere(pod: &Subject<'_>) -> Option<Finding> {
    let bad = pod.bad(|c| c.security.and_then(|s| s.allow_privilege_escalation) != Some(false));
    if bad.is_empty() {
        return None;
    }
    let what = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    found("allowPrivilegeEscalation != false", what)
}

pub(super) fn escalation(pod: &Subject<'_>) -> Option<Finding> {
    if pod.windows() { None } else { escalation_anywhere(pod) }
}

pub(super) fn capabilities_anywhere(pod: &Subject<'_>) -> Option<Finding> {
    let (mut undropped, mut adding, mut added) = (Vec::new(), Vec::new(), BTreeSet::new());
    for c in pod.containers() {
        let own = c.security.and_then(|s| s.capabilities.as_ref());
        if !own.and_then(|o| o.drop.as_ref()).is_some_and(|d| d.iter().any(|name| name == "ALL")) {
            undropped.push(c.name);
        }
        let bad: Vec<&String> = own
            .and_then(|o| o.add.as_ref())
            .into_iter()
            .flatten()
            .filter(|name| *name != "NET_BIND_SERVICE")
            .collect();
        if !bad.is_empty() {
            adding.push(c.name);
        }
        added.extend(bad);
    }
    let mut what = Vec::new();
    if !undropped.is_empty() {
        what.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&undropped)));
    }
    if !adding.is_empty() {
        let names = quoted(&added);
        what.push(format!(
            "{} must not include {names} in securityContext.capabilities.add",
            containers(&adding)
        ));
    }
    if what.is_empty() { None } else { found("unrestricted capabilities", what.join("; ")) }
}

pub(super) fn capabilities(pod: &Subject<'_>) -> Option<Finding> {
    if pod.windows() { None } else { capabilities_anywhere(pod) }
}

/// The kind of a volume that the level does not allow.
fn restricted_kind(v: &Volume) -> Option<&'static str> {
    let allowed = v.config_map.is_some()
        || v.csi.is_some()
        || v.downward_api.is_some()
        || v.empty_dir.is_some()
        || v.ephemeral.is_some()
        || v.image.is_some()
        || v.persistent_volume_claim.is_some()
        || v.projected.is_some()
        || v.secret.is_some();
    if allowed {
        return None;
    }
    let kinds = [
        (v.host_path.is_some(), "hostPath"),
        (v.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (v.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (v.git_repo.is_some(), "gitRepo"),
        (v.nfs.is_some(), "nfs"),
        (v.iscsi.is_some(), "iscsi"),
        (v.glusterfs.is_some(), "glusterfs"),
        (v.rbd.is_some(), "rbd"),
        (v.flex_volume.is_some(), "flexVolume"),
        (v.cinder.is_some(), "cinder"),
        (v.cephfs.is_some(), "cephfs"),
        (v.flocker.is_some(), "flocker"),
        (v.fc.is_some(), "fc"),
        (v.azure_file.is_some(), "azureFile"),
        (v.vsphere_volume.is_some(), "vsphereVolume"),
        (v.quobyte.is_some(), "quobyte"),
        (v.azure_disk.is_some(), "azureDisk"),
        (v.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (v.portworx_volume.is_some(), "portworxVolume"),
        (v.scale_io.is_some(), "scaleIO"),
        (v.storageos.is_some(), "storageos"),
    ];
    Some(kinds.iter().find(|(is, _)| *is).map_or("unknown", |(_, kind)| kind))
}

pub(super) fn volumes(pod: &Subject<'_>) -> Option<Finding> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in pod.spec.volumes.iter().flatten() {
        if let Some(kind) = restricted_kind(volume) {
            names.push(volume.name.as_str());
            kinds.insert(kind);
        }
    }
    if names.is_empty() {
        return None;
    }
    let (volumes, uses) = (plural("volume", "volumes", names.len()), plural("uses", "use", names.len()));
    let what = plural("restricted volume type", "restricted volume types", kinds.len());
    found("restricted volume types", format!("{volumes} {} {uses} {what} {}", quoted(names), quoted(kinds)))
}

pub(super) fn run_as_non_root_anywhere(pod: &Subject<'_>) -> Option<Finding> {
    let own = pod.spec.security_context.as_ref().and_then(|s| s.run_as_non_root);
    let of = |c: &super::checks::View<'_>| c.security.and_then(|s| s.run_as_non_root);
    let explicit = pod.bad(|c| of(c) == Some(false));
    if let Some(who) = setters(own == Some(false), &explicit) {
        return found(
            "runAsNonRoot != true",
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let implicit = pod.bad(|c| of(c).is_none() && own != Some(true));
    if implicit.is_empty() {
        return None;
    }
    let what = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit));
    found("runAsNonRoot != true", what)
}

pub(super) fn run_as_non_root(pod: &Subject<'_>) -> Option<Finding> {
    if pod.own_users() { None } else { run_as_non_root_anywhere(pod) }
}

pub(super) fn run_as_user_anywhere(pod: &Subject<'_>) -> Option<Finding> {
    let own = pod.spec.security_context.as_ref().and_then(|s| s.run_as_user) == Some(0);
    let bad = pod.bad(|c| c.security.and_then(|s| s.run_as_user) == Some(0));
    let who = setters(own, &bad)?;
    found("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn run_as_user(pod: &Subject<'_>) -> Option<Finding> {
    if pod.own_users() { None } else { run_as_user_anywhere(pod) }
}

pub(super) fn seccomp_anywhere(pod: &Subject<'_>) -> Option<Finding> {
    if let Some(finding) = super::baseline::seccomp(pod) {
        return Some(finding);
    }
    let own = pod.spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    if own.is_some_and(|profile| confines(&profile.type_)) {
        return None;
    }
    let bad = pod.bad(|c| c.security.is_none_or(|s| s.seccomp_profile.is_none()));
    if bad.is_empty() {
        return None;
    }
    let what = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&bad)
    );
    found("seccompProfile", what)
}

pub(super) fn seccomp(pod: &Subject<'_>) -> Option<Finding> {
    if pod.windows() { None } else { seccomp_anywhere(pod) }
}
