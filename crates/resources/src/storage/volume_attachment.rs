//! VolumeAttachment: the wish that a volume be attached to a node, and how that goes.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentStatus, VolumeError,
};
use serde_json::Value;

use super::{driver_name, node_name};
use crate::check::{named, one_of};
use crate::common::{column, keep_metadata, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};
use crate::go_dump;

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Attacher",
        "string",
        "name",
        "attacher indicates the name of the volume driver that MUST handle this request. This is the \
         name returned by GetPluginName().",
    ),
    column(
        "PV",
        "string",
        "",
        "persistentVolumeName represents the name of the persistent volume to attach.",
    ),
    column("Node", "string", "", "nodeName represents the node that the volume should be attached to."),
    column(
        "Attached",
        "boolean",
        "",
        "attached indicates the volume is successfully attached. This field must only be set by the \
         entity completing the attach operation, i.e. the external-attacher.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    unconditional_update: false,
    returns_deleted: true,
    ..ResourceDef::new::<VolumeAttachment>(
        "volumeattachment",
        &Typed::<VolumeAttachment, _>::new(VolumeAttachments),
    )
};

struct VolumeAttachments;

/// Bytes of the metadata that an attacher leaves.
const MAX_METADATA: usize = 256 * 1024;
/// Bytes of an error's message.
const MAX_MESSAGE: usize = 1024;

impl Strategy<VolumeAttachment> for VolumeAttachments {
    fn default(&self, obj: &mut VolumeAttachment) {
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut VolumeAttachment) {
        obj.status = Some(VolumeAttachmentStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut VolumeAttachment, old: &VolumeAttachment) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut VolumeAttachment, old: &VolumeAttachment) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
    }

    fn validate(&self, obj: &VolumeAttachment, errs: &mut ErrorList) {
        let path = Path::new("spec");
        driver_name(&obj.spec.attacher, &path.child("attacher"), errs);
        source(&obj.spec.source, &path.child("source"), errs);
        node_name(&obj.spec.node_name, &path.child("nodeName"), errs);
        if let Some(status) = &obj.status {
            validate_status(status, errs);
        }
    }

    fn validate_update(&self, new: &VolumeAttachment, old: &VolumeAttachment, errs: &mut ErrorList) {
        self.validate(new, errs);
        let (is, was) = (Some(&new.spec), Some(&old.spec));
        go_dump::immutable(errs, "spec", "storage.VolumeAttachmentSpec", is, was);
    }

    fn validate_status_update(&self, new: &VolumeAttachment, old: &VolumeAttachment, errs: &mut ErrorList) {
        self.validate_update(new, old, errs);
    }

    fn row(&self, obj: &VolumeAttachment, now: Timestamp) -> Vec<Value> {
        vec![
            obj.metadata.name.clone().into(),
            obj.spec.attacher.clone().into(),
            text(obj.spec.source.persistent_volume_name.as_ref()).into(),
            obj.spec.node_name.clone().into(),
            obj.status.as_ref().is_some_and(|s| s.attached).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn source(source: &VolumeAttachmentSource, path: &Path, errs: &mut ErrorList) {
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let at = path.child("persistentVolumeName");
    match (&source.inline_volume_spec, &source.persistent_volume_name) {
        (None, None) => errs.required(path, one),
        (Some(_), Some(_)) => errs.forbidden(path, one),
        (None, Some(name)) if name.is_empty() => {
            errs.required(&at, "must specify non empty persistentVolumeName");
        }
        (None, Some(_)) => {}
        (Some(volume), None) => inline_volume(volume, &path.child("inlineVolumeSpec"), errs),
    }
    if let Some(name) = &source.persistent_volume_name {
        named(errs, &at, name, names::dns1123_subdomain);
    }
}

/// Checks a volume that is described in place: it must be a CSI one.
fn inline_volume(volume: &PersistentVolumeSpec, path: &Path, errs: &mut ErrorList) {
    let inline = "may not be specified in the context of inline volumes";
    if volume.claim_ref.is_some() {
        errs.forbidden(path.child("claimRef"), inline);
    }
    if volume.capacity.as_ref().is_some_and(|c| !c.is_empty()) {
        errs.forbidden(path.child("capacity"), inline);
    }
    match &volume.csi {
        Some(csi) => csi_source(csi, &path.child("csi"), errs),
        None => {
            errs.required(path.child("csi"), "has to be specified in the context of inline volumes");
            errs.required(path, "must specify a volume type");
        }
    }
    access_modes(volume.access_modes.as_deref().unwrap_or_default(), &path.child("accessModes"), errs);
    if !matches!(text(volume.persistent_volume_reclaim_policy.as_ref()), "" | "Retain") {
        let why = "may only be Retain in the context of inline volumes";
        errs.forbidden(path.child("persistentVolumeReclaimPolicy"), why);
    }
    if volume.node_affinity.is_some() {
        errs.forbidden(path.child("nodeAffinity"), inline);
    }
    if !text(volume.storage_class_name.as_ref()).is_empty() {
        errs.forbidden(path.child("storageClassName"), inline);
    }
    if volume.volume_mode.as_ref().is_some_and(|mode| mode != "Filesystem") {
        let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errs.forbidden(path.child("volumeMode"), why);
    }
}

fn access_modes(modes: &[String], path: &Path, errs: &mut ErrorList) {
    const SUPPORTED: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    if modes.is_empty() {
        errs.required(path, "");
    }
    modes.iter().for_each(|mode| one_of(errs, path, mode, SUPPORTED));
    let (alone, others): (Vec<&String>, _) = modes.iter().partition(|mode| *mode == "ReadWriteOncePod");
    if !alone.is_empty() && others.iter().any(|mode| SUPPORTED.contains(&mode.as_str())) {
        errs.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn csi_source(csi: &CSIPersistentVolumeSource, path: &Path, errs: &mut ErrorList) {
    driver_name(&csi.driver, &path.child("driver"), errs);
    if csi.volume_handle.is_empty() {
        errs.required(path.child("volumeHandle"), "");
    }
    for (field, secret) in [
        ("controllerPublishSecretRef", &csi.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &csi.controller_expand_secret_ref),
        ("nodePublishSecretRef", &csi.node_publish_secret_ref),
        ("nodeExpandSecretRef", &csi.node_expand_secret_ref),
    ] {
        let Some(secret) = secret else { continue };
        let path = path.child(field);
        match text(secret.name.as_ref()) {
            "" => errs.required(path.child("name"), ""),
            name => named(errs, &path.child("name"), name, names::dns1123_subdomain),
        }
        match text(secret.namespace.as_ref()) {
            "" => errs.required(path.child("namespace"), ""),
            name => named(errs, &path.child("namespace"), name, names::dns1123_label),
        }
    }
}

fn validate_status(status: &VolumeAttachmentStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let metadata = status.attachment_metadata.as_ref();
    let size: usize = metadata.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_METADATA {
        errs.too_long(path.child("attachmentMetadata"), MAX_METADATA);
    }
    error(status.attach_error.as_ref(), &path.child("attachError"), errs);
    error(status.detach_error.as_ref(), &path.child("detachError"), errs);
}

fn error(error: Option<&VolumeError>, path: &Path, errs: &mut ErrorList) {
    let Some(error) = error else { return };
    if text(error.message.as_ref()).len() > MAX_MESSAGE {
        errs.too_long(path.child("message"), MAX_METADATA);
    }
    if let Some(code) = error.error_code.filter(|code| *code < 0) {
        errs.invalid(path.child("errorCode"), code, names::in_range(0, i64::from(i32::MAX)));
    }
}
