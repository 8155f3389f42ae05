//! The kinds of storage behind a PersistentVolume. Those that pods can also mount directly are checked as there.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, GlusterfsPersistentVolumeSource, ISCSIPersistentVolumeSource,
    PersistentVolumeSpec, SecretReference, Volume,
};

use crate::check::{named, no_backsteps};
use crate::common::text;
use crate::podspec::defaults::{network_volume, string};
use crate::podspec::volume_sources::{self, csi_driver, is_initiator, required};
use crate::podspec::volumes::OnlyOne;

/// Upstream's defaults of each source.
pub(super) fn defaults(spec: &mut PersistentVolumeSpec) {
    if let Some(host_path) = &mut spec.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(rbd) = &mut spec.rbd {
        string(&mut rbd.pool, "rbd");
        string(&mut rbd.user, "admin");
        string(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(iscsi) = &mut spec.iscsi {
        string(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(scale_io) = &mut spec.scale_io {
        string(&mut scale_io.storage_mode, "ThinProvisioned");
        string(&mut scale_io.fs_type, "xfs");
    }
    let mut volume = Volume { azure_disk: spec.azure_disk.take(), ..Volume::default() };
    network_volume(&mut volume);
    spec.azure_disk = volume.azure_disk;
}

/// Whether the kind of volume takes mount options.
pub(super) fn takes_mount_options(spec: &PersistentVolumeSpec) -> bool {
    spec.gce_persistent_disk.is_some()
        || spec.aws_elastic_block_store.is_some()
        || spec.glusterfs.is_some()
        || spec.nfs.is_some()
        || spec.rbd.is_some()
        || spec.quobyte.is_some()
        || spec.iscsi.is_some()
        || spec.cinder.is_some()
        || spec.cephfs.is_some()
        || spec.azure_file.is_some()
        || spec.vsphere_volume.is_some()
        || spec.azure_disk.is_some()
        || spec.fc.is_some()
        || spec.photon_persistent_disk.is_some()
        || spec.portworx_volume.is_some()
        || spec.csi.is_some()
}

/// Warnings about kinds that do not work any more.
pub(super) fn warnings(spec: &PersistentVolumeSpec) -> Vec<String> {
    let gone = [
        (spec.cephfs.is_some(), "cephfs: deprecated in v1.28, non-functional in v1.31+"),
        (
            spec.photon_persistent_disk.is_some(),
            "photonPersistentDisk: deprecated in v1.11, non-functional in v1.16+",
        ),
        (spec.scale_io.is_some(), "scaleIO: deprecated in v1.16, non-functional in v1.22+"),
        (spec.storageos.is_some(), "storageOS: deprecated in v1.22, non-functional in v1.25+"),
        (spec.glusterfs.is_some(), "glusterfs: deprecated in v1.25, non-functional in v1.26+"),
        (spec.rbd.is_some(), "rbd: deprecated in v1.28, non-functional in v1.31+"),
    ];
    gone.into_iter().filter(|(used, _)| *used).map(|(_, why)| format!("spec.{why}")).collect()
}

/// The source alone, to be compared. A secret for expansion may be added to one that `old` did not have.
pub(super) fn of(spec: &PersistentVolumeSpec, old: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    let mut only = PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    };
    let added = old.csi.as_ref().is_some_and(|csi| csi.controller_expand_secret_ref.is_none());
    if let (Some(csi), true) = (&mut only.csi, added) {
        csi.controller_expand_secret_ref = None;
    }
    only
}

/// Looks at one kind of source (or some that come one after the other) of a volume of that name.
type Check = fn(&PersistentVolumeSpec, &str, &mut OnlyOne<'_>, &mut ErrorList);

/// In upstream's order, as the first source is the one that counts. Those that pods can mount are checked as there.
const SOURCES: &[Check] = &[
    |spec, _, only, errs| {
        let volume = Volume { host_path: spec.host_path.clone(), ..Volume::default() };
        volume_sources::host_path(&volume, only, errs);
    },
    |spec, _, only, errs| {
        let volume = Volume {
            gce_persistent_disk: spec.gce_persistent_disk.clone(),
            aws_elastic_block_store: spec.aws_elastic_block_store.clone(),
            ..Volume::default()
        };
        volume_sources::disks(&volume, only, errs);
    },
    |spec, _, only, errs| {
        if let Some(source) = &spec.glusterfs
            && let Some(at) = only.first(true, "glusterfs", errs)
        {
            glusterfs(source, &at, errs);
        }
    },
    |spec, _, only, errs| {
        let volume = Volume { flocker: spec.flocker.clone(), ..Volume::default() };
        volume_sources::network(&volume, only, errs);
    },
    |spec, _, only, errs| {
        let volume = Volume { nfs: spec.nfs.clone(), ..Volume::default() };
        volume_sources::network(&volume, only, errs);
    },
    |spec, _, only, errs| {
        if let Some(rbd) = &spec.rbd
            && let Some(at) = only.first(true, "rbd", errs)
        {
            if rbd.monitors.is_empty() {
                errs.required(at.child("monitors"), "");
            }
            required(&rbd.image, &at, "image", errs);
        }
    },
    |spec, _, only, errs| {
        let volume = Volume { quobyte: spec.quobyte.clone(), ..Volume::default() };
        volume_sources::clusters(&volume, only, errs);
    },
    |spec, _, only, errs| {
        if let Some(cephfs) = &spec.cephfs
            && only.first(true, "cephFS", errs).is_some()
            && cephfs.monitors.is_empty()
        {
            errs.required(only.path().child("cephfs").child("monitors"), "");
        }
    },
    |spec, name, only, errs| {
        if let Some(source) = &spec.iscsi
            && let Some(at) = only.first(true, "iscsi", errs)
        {
            iscsi(source, name, &at, errs);
        }
    },
    |spec, _, only, errs| {
        if let Some(cinder) = &spec.cinder
            && let Some(at) = only.first(true, "cinder", errs)
        {
            required(&cinder.volume_id, &at, "volumeID", errs);
            named_secret(cinder.secret_ref.as_ref(), &at, errs);
        }
    },
    |spec, _, only, errs| {
        let volume = Volume { fc: spec.fc.clone(), ..Volume::default() };
        volume_sources::channels(&volume, only, errs);
    },
    flex,
    azure_file,
    |spec, _, only, errs| {
        let volume = Volume {
            vsphere_volume: spec.vsphere_volume.clone(),
            photon_persistent_disk: spec.photon_persistent_disk.clone(),
            portworx_volume: spec.portworx_volume.clone(),
            azure_disk: spec.azure_disk.clone(),
            ..Volume::default()
        };
        volume_sources::cloud(&volume, only, errs);
    },
    scale_io,
    local,
    storage_os,
    |spec, _, only, errs| {
        if let Some(source) = &spec.csi
            && let Some(at) = only.first(true, "csi", errs)
        {
            csi(source, &at, errs);
        }
    },
];

/// Exactly one source, and that one in order.
pub(crate) fn validate(spec: &PersistentVolumeSpec, name: &str, path: &Path, errs: &mut ErrorList) {
    let mut only = OnlyOne::new(path);
    SOURCES.iter().for_each(|check| check(spec, name, &mut only, errs));
    if only.count() == 0 {
        errs.required(path, "must specify a volume type");
    }
}

fn local(spec: &PersistentVolumeSpec, _: &str, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(local) = &spec.local
        && let Some(at) = only.first(true, "local", errs)
    {
        required(&local.path, &at, "path", errs);
        no_backsteps(errs, &at.child("path"), &local.path);
        if spec.node_affinity.is_none() {
            errs.required(only.path().child("nodeAffinity"), "Local volume requires node affinity");
        }
    }
}

fn flex(spec: &PersistentVolumeSpec, _: &str, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    let Some(flex) = &spec.flex_volume else { return };
    // Upstream lets this one stand beside others that come before it.
    let at = only.another("flexVolume");
    required(&flex.driver, &at, "driver", errs);
    for key in flex.options.iter().flatten().map(|(key, _)| key) {
        let namespace = format!(".{}", key.split('/').next().unwrap_or("").to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errs.invalid(at.child("options").key(key), key.as_str(), why);
        }
    }
}

fn azure_file(spec: &PersistentVolumeSpec, _: &str, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(file) = &spec.azure_file
        && let Some(at) = only.first(true, "azureFile", errs)
    {
        required(&file.secret_name, &at, "secretName", errs);
        required(&file.share_name, &at, "shareName", errs);
        if file.secret_namespace.as_ref().is_some_and(String::is_empty) {
            errs.required(at.child("secretNamespace"), "");
        }
    }
}

fn scale_io(spec: &PersistentVolumeSpec, _: &str, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(scale_io) = &spec.scale_io
        && let Some(at) = only.first(true, "scaleIO", errs)
    {
        required(&scale_io.gateway, &at, "gateway", errs);
        required(&scale_io.system, &at, "system", errs);
        required(text(scale_io.volume_name.as_ref()), &at, "volumeName", errs);
    }
}

fn storage_os(spec: &PersistentVolumeSpec, _: &str, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(storage) = &spec.storageos
        && let Some(at) = only.first(true, "storageos", errs)
    {
        match text(storage.volume_name.as_ref()) {
            "" => errs.required(at.child("volumeName"), ""),
            name => named(errs, &at.child("volumeName"), name, names::dns1123_label),
        }
        let namespace = text(storage.volume_namespace.as_ref());
        if !namespace.is_empty() {
            named(errs, &at.child("volumeNamespace"), namespace, names::dns1123_label);
        }
        let secret = storage.secret_ref.as_ref();
        let secret = secret.map(|s| SecretReference { name: s.name.clone(), namespace: s.namespace.clone() });
        named_secret(secret.as_ref(), &at, errs);
    }
}

fn glusterfs(source: &GlusterfsPersistentVolumeSource, path: &Path, errs: &mut ErrorList) {
    required(&source.endpoints, path, "endpoints", errs);
    required(&source.path, path, "path", errs);
    let at = path.child("endpointsNamespace");
    match source.endpoints_namespace.as_deref() {
        None => {}
        Some("") => {
            errs.invalid(at, "", "if the endpointnamespace is set, it must be a valid namespace name");
        }
        Some(namespace) => named(errs, &at, namespace, names::dns1123_label),
    }
}

/// A secret's name and namespace must be given.
fn named_secret(secret: Option<&SecretReference>, path: &Path, errs: &mut ErrorList) {
    let Some(secret) = secret else { return };
    let at = path.child("secretRef");
    required(text(secret.name.as_ref()), &at, "name", errs);
    required(text(secret.namespace.as_ref()), &at, "namespace", errs);
}

fn iscsi(source: &ISCSIPersistentVolumeSource, name: &str, path: &Path, errs: &mut ErrorList) {
    required(&source.target_portal, path, "targetPortal", errs);
    let length = name.len() + 1 + source.target_portal.len();
    if source.initiator_name.is_some() && length > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                   iscsi.initiatorName is specified.";
        errs.invalid(path.child("targetportal"), source.target_portal.as_str(), why);
    }
    let format = "must be valid format";
    if source.iqn.is_empty() {
        errs.required(path.child("iqn"), "");
    } else if !is_initiator(&source.iqn) {
        errs.invalid(path.child("iqn"), source.iqn.as_str(), format);
    }
    if !(0..=255).contains(&source.lun) {
        errs.invalid(path.child("lun"), source.lun, names::in_range(0, 255));
    }
    let chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    match &source.secret_ref {
        None if chap => errs.required(path.child("secretRef"), ""),
        None => {}
        Some(secret) => required(text(secret.name.as_ref()), &path.child("secretRef"), "name", errs),
    }
    if let Some(initiator) = source.initiator_name.as_deref().filter(|name| !is_initiator(name)) {
        errs.invalid(path.child("initiatorname"), initiator, format);
    }
}

fn csi(source: &CSIPersistentVolumeSource, path: &Path, errs: &mut ErrorList) {
    csi_driver(&source.driver, &path.child("driver"), errs);
    required(&source.volume_handle, path, "volumeHandle", errs);
    for (field, secret) in [
        ("controllerPublishSecretRef", &source.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &source.controller_expand_secret_ref),
        ("nodePublishSecretRef", &source.node_publish_secret_ref),
        ("nodeExpandSecretRef", &source.node_expand_secret_ref),
    ] {
        let Some(secret) = secret else { continue };
        let at = path.child(field);
        match text(secret.name.as_ref()) {
            "" => errs.required(at.child("name"), ""),
            name => named(errs, &at.child("name"), name, names::dns1123_subdomain),
        }
        match text(secret.namespace.as_ref()) {
            "" => errs.required(at.child("namespace"), ""),
            namespace => named(errs, &at.child("namespace"), namespace, names::dns1123_label),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(spec: serde_json::Value, told: &[&str]) {
        let spec = serde_json::from_value(spec).unwrap();
        let mut errs = ErrorList::new();
        validate(&spec, "pv", &Path::new("spec"), &mut errs);
        assert_eq!(
            errs.iter()
                .map(|e| format!("{}: {}", e.path, e.body().split(':').next().unwrap()))
                .collect::<Vec<_>>(),
            told
        );
    }

    #[test]
    fn of_several_sources_the_first_in_upstreams_order_counts() {
        let iscsi = json!({ "targetPortal": "1.2.3.4:3260", "iqn": "iqn.2001-04.com.example:a", "lun": 0 });
        check(json!({ "iscsi": iscsi, "cinder": { "volumeID": "" } }), &["spec.cinder: Forbidden"]);
        let disk = json!({ "diskName": "d", "diskURI": "u" });
        check(
            json!({ "azureDisk": disk, "azureFile": { "secretName": "", "shareName": "s" } }),
            &["spec.azureFile.secretName: Required value", "spec.azureDisk: Forbidden"],
        );
        check(
            json!({ "flocker": {}, "nfs": { "server": "", "path": "" }, "csi": { "driver": "", "volumeHandle": "" } }),
            &["spec.flocker: Required value", "spec.nfs: Forbidden", "spec.csi: Forbidden"],
        );
        check(json!({}), &["spec: Required value"]);
    }
}
