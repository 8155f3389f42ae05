//! Checks of volume sources that outside systems provide.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    AzureDiskVolumeSource, FCVolumeSource, ISCSIVolumeSource, LocalObjectReference, QuobyteVolumeSource,
    Volume,
};

use super::volumes::OnlyOne;
use crate::check::{each, local_path, named, no_backsteps, one_of};
use crate::common::text;

/// A text that must not be empty.
pub(crate) fn required(value: &str, path: &Path, field: &str, errs: &mut ErrorList) {
    if value.is_empty() {
        errs.required(path.child(field), "");
    }
}

fn secret_ref(secret: Option<&LocalObjectReference>, path: &Path, errs: &mut ErrorList) {
    if let Some(secret) = secret {
        required(&secret.name, &path.child("secretRef"), "name", errs);
    }
}

fn partition(value: Option<i32>, path: &Path, errs: &mut ErrorList) {
    if let Some(value) = value.filter(|v| !(0..=255).contains(v)) {
        errs.invalid(path.child("partition"), value, names::in_range(1, 255));
    }
}

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// A path of the machine.
pub(crate) fn host_path(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    let Some(host_path) = &volume.host_path else { return };
    let Some(at) = only.first(true, "hostPath", errs) else { return };
    if host_path.path.is_empty() {
        return errs.required(at.child("path"), "");
    }
    no_backsteps(errs, &at.child("path"), &host_path.path);
    one_of(errs, &at.child("type"), text(host_path.type_.as_ref()), HOST_PATH_TYPES);
}

/// Git repositories and cloud disks.
pub(crate) fn disks(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(repo) = &volume.git_repo
        && let Some(at) = only.first(true, "gitRepo", errs)
    {
        required(&repo.repository, &at, "repository", errs);
        local_path(errs, &at.child("directory"), text(repo.directory.as_ref()));
    }
    if let Some(disk) = &volume.gce_persistent_disk
        && only.first(true, "gcePersistentDisk", errs).is_some()
    {
        let at = only.path().child("persistentDisk");
        required(&disk.pd_name, &at, "pdName", errs);
        partition(disk.partition, &at, errs);
    }
    if let Some(disk) = &volume.aws_elastic_block_store
        && let Some(at) = only.first(true, "awsElasticBlockStore", errs)
    {
        required(&disk.volume_id, &at, "volumeID", errs);
        partition(disk.partition, &at, errs);
    }
}

/// Network file systems.
pub(crate) fn network(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(nfs) = &volume.nfs
        && let Some(at) = only.first(true, "nfs", errs)
    {
        required(&nfs.server, &at, "server", errs);
        required(&nfs.path, &at, "path", errs);
        if !nfs.path.starts_with('/') {
            errs.invalid(at.child("path"), nfs.path.as_str(), "must be an absolute path");
        }
    }
    if let Some(source) = &volume.iscsi
        && let Some(at) = only.first(true, "iscsi", errs)
    {
        iscsi(source, &at, errs);
    }
    if let Some(glusterfs) = &volume.glusterfs
        && let Some(at) = only.first(true, "glusterfs", errs)
    {
        required(&glusterfs.endpoints, &at, "endpoints", errs);
        required(&glusterfs.path, &at, "path", errs);
    }
    if let Some(flocker) = &volume.flocker
        && let Some(at) = only.first(true, "flocker", errs)
    {
        let (name, uuid) = (text(flocker.dataset_name.as_ref()), text(flocker.dataset_uuid.as_ref()));
        if name.is_empty() && uuid.is_empty() {
            errs.required(&at, "one of datasetName and datasetUUID is required");
        }
        if !name.is_empty() && !uuid.is_empty() {
            errs.invalid(&at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
        }
        if name.contains('/') {
            errs.invalid(at.child("datasetName"), name, "must not contain '/'");
        }
    }
}

/// Clustered storage.
pub(crate) fn clusters(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(rbd) = &volume.rbd
        && let Some(at) = only.first(true, "rbd", errs)
    {
        if rbd.monitors.is_empty() {
            errs.required(at.child("monitors"), "");
        }
        required(&rbd.image, &at, "image", errs);
    }
    if let Some(cinder) = &volume.cinder
        && let Some(at) = only.first(true, "cinder", errs)
    {
        required(&cinder.volume_id, &at, "volumeID", errs);
        secret_ref(cinder.secret_ref.as_ref(), &at, errs);
    }
    if let Some(cephfs) = &volume.cephfs
        && only.first(true, "cephFS", errs).is_some()
        && cephfs.monitors.is_empty()
    {
        errs.required(only.path().child("cephfs").child("monitors"), "");
    }
    if let Some(quobyte) = &volume.quobyte
        && let Some(at) = only.first(true, "quobyte", errs)
    {
        self::quobyte(quobyte, &at, errs);
    }
}

fn quobyte(source: &QuobyteVolumeSource, path: &Path, errs: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let at = path.child("registry");
    if source.registry.is_empty() {
        errs.required(at, PAIRS);
    } else if text(source.tenant.as_ref()).len() >= 65 {
        errs.required(path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for _ in source.registry.split(',').filter(|pair| !is_host_port(pair)) {
            errs.invalid(&at, source.registry.as_str(), PAIRS);
        }
    }
    required(&source.volume, path, "volume", errs);
}

/// Whether Go's `net.SplitHostPort` takes a text apart: one colon, but for those in brackets.
fn is_host_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let inner = match host.strip_prefix('[') {
        Some(host) => match host.split_once(']') {
            Some((inner, "")) => inner,
            _ => return false,
        },
        None if host.contains(':') => return false,
        None => host,
    };
    ![inner, port].iter().any(|part| part.contains(['[', ']']))
}

fn is_iqn(text: &str) -> bool {
    // iqn.yyyy-mm.reversed.domain:anything
    let Some((date, rest)) = text.strip_prefix("iqn.").and_then(|t| t.split_once('.')) else { return false };
    let digits = |t: &str, n: usize| t.len() == n && t.bytes().all(|b| b.is_ascii_digit());
    let dated = date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2));
    dated && rest.split_once(':').is_some_and(|(domain, id)| !domain.is_empty() && !id.is_empty())
}

/// Whether a name is an iSCSI qualified one.
pub(crate) fn is_initiator(name: &str) -> bool {
    let plain = |prefix: &str, length: usize| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    is_iqn(name) || plain("eui.", 16) || plain("naa.", 32)
}

/// Checks an iSCSI qualified name.
fn qualified_initiator(name: &str, path: &Path, errs: &mut ErrorList) {
    if !["iqn", "eui", "naa"].iter().any(|prefix| name.starts_with(prefix)) {
        errs.invalid(path, name, "must be valid format starting with iqn, eui, or naa");
    } else if !is_initiator(name) {
        errs.invalid(path, name, "must be valid format");
    }
}

fn iscsi(source: &ISCSIVolumeSource, path: &Path, errs: &mut ErrorList) {
    required(&source.target_portal, path, "targetPortal", errs);
    if source.iqn.is_empty() {
        errs.required(path.child("iqn"), "");
    } else {
        qualified_initiator(&source.iqn, &path.child("iqn"), errs);
    }
    if !(0..=255).contains(&source.lun) {
        errs.invalid(path.child("lun"), source.lun, names::in_range(0, 255));
    }
    let chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    if chap && source.secret_ref.is_none() {
        errs.required(path.child("secretRef"), "");
    }
    if let Some(initiator) = &source.initiator_name {
        qualified_initiator(initiator, &path.child("initiatorname"), errs);
    }
}

/// Fibre channel and flex volumes.
pub(crate) fn channels(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(source) = &volume.fc
        && let Some(at) = only.first(true, "fc", errs)
    {
        fibre_channel(source, &at, errs);
    }
    if let Some(flex) = &volume.flex_volume
        && let Some(at) = only.first(true, "flexVolume", errs)
    {
        required(&flex.driver, &at, "driver", errs);
    }
}

/// File shares and block stores of clouds.
pub(crate) fn cloud(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(file) = &volume.azure_file
        && let Some(at) = only.first(true, "azureFile", errs)
    {
        required(&file.secret_name, &at, "secretName", errs);
        required(&file.share_name, &at, "shareName", errs);
    }
    if let Some(disk) = &volume.vsphere_volume
        && let Some(at) = only.first(true, "vsphereVolume", errs)
    {
        required(&disk.volume_path, &at, "volumePath", errs);
    }
    if let Some(disk) = &volume.photon_persistent_disk
        && let Some(at) = only.first(true, "photonPersistentDisk", errs)
    {
        required(&disk.pd_id, &at, "pdID", errs);
    }
    if let Some(portworx) = &volume.portworx_volume
        && let Some(at) = only.first(true, "portworxVolume", errs)
    {
        required(&portworx.volume_id, &at, "volumeID", errs);
    }
    if let Some(source) = &volume.azure_disk
        && let Some(at) = only.first(true, "azureDisk", errs)
    {
        azure_disk(source, &at, errs);
    }
    if let Some(storage) = &volume.storageos
        && let Some(at) = only.first(true, "storageos", errs)
    {
        match text(storage.volume_name.as_ref()) {
            "" => errs.required(at.child("volumeName"), ""),
            name => named(errs, &at.child("volumeName"), name, names::dns1123_label),
        }
        if let Some(namespace) = storage.volume_namespace.as_deref().filter(|n| !n.is_empty()) {
            named(errs, &at.child("volumeNamespace"), namespace, names::dns1123_label);
        }
        secret_ref(storage.secret_ref.as_ref(), &at, errs);
    }
}

fn fibre_channel(source: &FCVolumeSource, path: &Path, errs: &mut ErrorList) {
    let targets = source.target_wwns.as_deref().unwrap_or_default();
    let ids = source.wwids.as_deref().unwrap_or_default();
    let at = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        errs.required(&at, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errs.invalid(&at, targets.to_vec(), why);
    }
    if targets.is_empty() {
        return;
    }
    match source.lun {
        None => errs.required(path.child("lun"), "lun is required if targetWWNs is specified"),
        Some(lun) if !(0..=255).contains(&lun) => {
            errs.invalid(path.child("lun"), lun, names::in_range(0, 255));
        }
        Some(_) => {}
    }
}

fn azure_disk(source: &AzureDiskVolumeSource, path: &Path, errs: &mut ErrorList) {
    required(&source.disk_name, path, "diskName", errs);
    required(&source.disk_uri, path, "diskURI", errs);
    if let Some(mode) = source.caching_mode.as_deref() {
        one_of(errs, &path.child("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
    }
    let kind = text(source.kind.as_ref());
    one_of(errs, &path.child("kind"), kind, &["Dedicated", "Managed", "Shared"]);
    let at = path.child("diskURI");
    if kind == "Managed" && !source.disk_uri.starts_with("/subscriptions") {
        let form =
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        errs.not_supported(at, source.disk_uri.as_str(), &[form]);
    } else if kind != "Managed" && !source.disk_uri.starts_with("https://") {
        let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        errs.not_supported(at, source.disk_uri.as_str(), &[form]);
    }
}

/// ScaleIO and CSI.
pub(crate) fn others(volume: &Volume, only: &mut OnlyOne<'_>, errs: &mut ErrorList) {
    if let Some(scale_io) = &volume.scale_io
        && let Some(at) = only.first(true, "scaleIO", errs)
    {
        required(&scale_io.gateway, &at, "gateway", errs);
        required(&scale_io.system, &at, "system", errs);
        required(text(scale_io.volume_name.as_ref()), &at, "volumeName", errs);
    }
    if let Some(csi) = &volume.csi
        && let Some(at) = only.first(true, "csi", errs)
    {
        csi_driver(&csi.driver, &at.child("driver"), errs);
        if let Some(secret) = &csi.node_publish_secret_ref {
            required(&secret.name, &at.child("nodePublishSecretRef"), "name", errs);
            if !secret.name.is_empty() {
                named(errs, &at.child("name"), &secret.name, names::dns1123_subdomain);
            }
        }
    }
}

/// Checks the name of a CSI driver.
pub(crate) fn csi_driver(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    if name.len() > 63 {
        errs.too_long(path, 63);
    }
    each(errs, path, name, names::dns1123_subdomain(&name.to_lowercase()));
}
