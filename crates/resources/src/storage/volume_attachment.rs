//! VolumeAttachment: the wish that a volume be attached to a node, and how that goes.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentStatus, VolumeError,
};
use serde_json::Value;

use super::{driver_name, node_name};
use crate::check::named;
use crate::common::{column, keep_metadata, text};
use crate::core::persistent_volume::check_spec;
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
    recheck: Recheck::New,
    recheck_status: Recheck::New,
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
        (Some(volume), None) => check_spec(volume, "", true, &path.child("inlineVolumeSpec"), errs),
    }
    if let Some(name) = &source.persistent_volume_name {
        named(errs, &at, name, names::dns1123_subdomain);
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
