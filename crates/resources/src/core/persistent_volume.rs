//! PersistentVolume: storage that a claim can be bound to.

mod sources;

use std::collections::BTreeMap;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use coracle_meta::quantity::Quantity as Number;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus,
    VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::persistent_volume_claim::{CLASS_ANNOTATION, VOLUME_MODES, access_modes, storage, validate_modes};
use crate::check::{NOT_POSITIVE, named, one_of};
use crate::common::{column, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::defaults::{canonical_list, string};
use crate::podspec::scheduling::node_selector_term;
use crate::podspec::warnings::node_selector_terms;

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Capacity",
        "string",
        "",
        "capacity is the description of the persistent volume's resources and capacity. More \
         info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#capacity",
    ),
    column(
        "Access Modes",
        "string",
        "",
        "accessModes contains all ways the volume can be mounted. More info: \
         https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes",
    ),
    column(
        "Reclaim Policy",
        "string",
        "",
        "persistentVolumeReclaimPolicy defines what happens to a persistent volume when released \
         from its claim. Valid options are Retain (default for manually created \
         PersistentVolumes), Delete (default for dynamically provisioned PersistentVolumes), and \
         Recycle (deprecated). Recycle must be supported by the volume plugin underlying this \
         PersistentVolume. More info: \
         https://kubernetes.io/docs/concepts/storage/persistent-volumes#reclaiming",
    ),
    column(
        "Status",
        "string",
        "",
        "phase indicates if a volume is available, bound to a claim, or released by a claim. \
         More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#phase",
    ),
    column(
        "Claim",
        "string",
        "",
        "claimRef is part of a bi-directional binding between PersistentVolume and \
         PersistentVolumeClaim. Expected to be non-nil when bound. claim.VolumeName is the \
         authoritative bind between PV and PVC. More info: \
         https://kubernetes.io/docs/concepts/storage/persistent-volumes#binding",
    ),
    column("StorageClass", "string", "", "StorageClass of the pv"),
    column("VolumeAttributesClass", "string", "", "VolumeAttributesClass of the pv"),
    column(
        "Reason",
        "string",
        "",
        "reason is a brief CamelCase string that describes any failure and is meant for machine \
         parsing and tidy display in the CLI.",
    ),
    AGE,
    wide_column(
        "VolumeMode",
        "string",
        "",
        "volumeMode defines if a volume is intended to be used with a formatted filesystem or to \
         remain in raw block state. Value of Filesystem is implied when not included in spec.",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::NewTwice,
    short_names: &["pv"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<PersistentVolume>("persistentvolume", &Typed::<PersistentVolume, _>::new(Volumes))
};

struct Volumes;

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const RECLAIM: &[&str] = &["Delete", "Recycle", "Retain"];
/// Labels of nodes whose names became stable.
const RENAMED: [(&str, &str); 5] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
];

fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

impl Strategy<PersistentVolume> for Volumes {
    fn default(&self, obj: &mut PersistentVolume) {
        let spec = obj.spec.get_or_insert_default();
        string(&mut spec.persistent_volume_reclaim_policy, "Retain");
        spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
        canonical_list(&mut spec.capacity);
        sources::defaults(spec);
        string(&mut obj.status.get_or_insert_default().phase, "Pending");
    }

    fn prepare_create(&self, cx: Context<'_>, obj: &mut PersistentVolume) {
        obj.status = Some(PersistentVolumeStatus {
            phase: Some("Pending".to_owned()),
            last_phase_transition_time: Some(whole_seconds(cx.now)),
            ..PersistentVolumeStatus::default()
        });
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut PersistentVolume, old: &PersistentVolume) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, cx: Context<'_>, new: &mut PersistentVolume, old: &PersistentVolume) {
        new.spec.clone_from(&old.spec);
        let empty = PersistentVolumeStatus::default();
        let before = old.status.as_ref().unwrap_or(&empty);
        let Some(status) = &mut new.status else { return };
        let (time, past) = (&mut status.last_phase_transition_time, &before.last_phase_transition_time);
        if status.phase == before.phase && time.is_none() {
            time.clone_from(past);
        } else if status.phase != before.phase && (time.is_none() || time == past) {
            *time = Some(whole_seconds(cx.now));
        }
    }

    fn validate(&self, obj: &PersistentVolume, errs: &mut ErrorList) {
        let empty = PersistentVolumeSpec::default();
        let spec = obj.spec.as_ref().unwrap_or(&empty);
        validate_spec(spec, text(obj.metadata.name.as_ref()), errs);
        if sources::takes_mount_options(spec) {
            return;
        }
        if obj.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MOUNT_OPTIONS)) {
            let at = Path::new("metadata").child("annotations").child(MOUNT_OPTIONS);
            errs.forbidden(at, "may not specify mount options for this volume type");
        }
    }

    fn validate_update(&self, new: &PersistentVolume, old: &PersistentVolume, errs: &mut ErrorList) {
        self.validate(new, errs);
        let empty = PersistentVolumeSpec::default();
        let (is, was) = (new.spec.as_ref().unwrap_or(&empty), old.spec.as_ref().unwrap_or(&empty));
        // Upstream checks the spec twice.
        validate_spec(is, text(new.metadata.name.as_ref()), errs);
        validate_change(is, was, errs);
    }

    fn warnings(&self, new: &PersistentVolume, _: Option<&PersistentVolume>) -> Vec<String> {
        let mut out = Vec::new();
        for (key, why) in [
            (CLASS_ANNOTATION, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            if new.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key)) {
                out.push(format!("metadata.annotations[{key}]: {why}"));
            }
        }
        let Some(spec) = &new.spec else { return out };
        if text(spec.persistent_volume_reclaim_policy.as_ref()) == "Recycle" {
            out.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the \
                 recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        if let Some(required) = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref()) {
            let at = Path::new("spec").child("nodeAffinity").child("required").child("nodeSelectorTerms");
            node_selector_terms(&required.node_selector_terms, &at, &mut out);
        }
        out.extend(sources::warnings(spec));
        out
    }

    fn row(&self, obj: &PersistentVolume, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let deleted = obj.metadata.deletion_timestamp.is_some();
        let phase = if deleted { "Terminating" } else { text(status.and_then(|s| s.phase.as_ref())) };
        let claim = spec.and_then(|s| s.claim_ref.as_ref());
        let claim = claim.map(|c| format!("{}/{}", text(c.namespace.as_ref()), text(c.name.as_ref())));
        let annotated = obj.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
        let class = text(annotated.or_else(|| spec?.storage_class_name.as_ref()));
        let unset = "<unset>".to_owned();
        vec![
            obj.metadata.name.clone().into(),
            storage(spec.and_then(|s| s.capacity.as_ref())).to_string().into(),
            access_modes(spec.and_then(|s| s.access_modes.as_deref())).into(),
            text(spec.and_then(|s| s.persistent_volume_reclaim_policy.as_ref())).into(),
            phase.into(),
            claim.unwrap_or_default().into(),
            class.into(),
            spec.and_then(|s| s.volume_attributes_class_name.clone()).unwrap_or(unset.clone()).into(),
            text(status.and_then(|s| s.reason.as_ref())).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            spec.and_then(|s| s.volume_mode.clone()).unwrap_or(unset).into(),
        ]
    }
}

fn validate_spec(spec: &PersistentVolumeSpec, name: &str, errs: &mut ErrorList) {
    check_spec(spec, name, false, &Path::new("spec"), errs);
}

/// Checks the spec of a volume; `inline`: of one that stands within an attachment, and must be a CSI one.
pub(crate) fn check_spec(
    spec: &PersistentVolumeSpec,
    name: &str,
    inline: bool,
    path: &Path,
    errs: &mut ErrorList,
) {
    let outside = "may not be specified in the context of inline volumes";
    if inline {
        if spec.claim_ref.is_some() {
            errs.forbidden(path.child("claimRef"), outside);
        }
        if spec.capacity.as_ref().is_some_and(|c| !c.is_empty()) {
            errs.forbidden(path.child("capacity"), outside);
        }
        if spec.csi.is_none() {
            errs.required(path.child("csi"), "has to be specified in the context of inline volumes");
        }
    }
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errs.required(path.child("accessModes"), "");
    }
    validate_modes(modes, &path.child("accessModes"), errs);
    if !inline {
        validate_capacity(spec, &path.child("capacity"), errs);
    }
    let reclaim = text(spec.persistent_volume_reclaim_policy.as_ref());
    let at = path.child("persistentVolumeReclaimPolicy");
    match reclaim {
        "" => {}
        "Retain" if inline => {}
        _ if inline => errs.forbidden(at, "may only be Retain in the context of inline volumes"),
        _ => one_of(errs, &at, reclaim, RECLAIM),
    }
    match &spec.node_affinity {
        None => {}
        Some(_) if inline => errs.forbidden(path.child("nodeAffinity"), outside),
        Some(affinity) => validate_affinity(affinity, &path.child("nodeAffinity"), errs),
    }
    sources::validate(spec, name, path, errs);
    let root = spec.host_path.as_ref().is_some_and(|h| is_root(&h.path));
    if root && reclaim == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        errs.forbidden(path.child("persistentVolumeReclaimPolicy"), why);
    }
    match text(spec.storage_class_name.as_ref()) {
        "" => {}
        _ if inline => errs.forbidden(path.child("storageClassName"), outside),
        class => named(errs, &path.child("storageClassName"), class, names::dns1123_subdomain),
    }
    match spec.volume_mode.as_deref() {
        None => {}
        Some("Filesystem") if inline => {}
        Some(_) if inline => {
            let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
            errs.forbidden(path.child("volumeMode"), why);
        }
        Some(mode) => one_of(errs, &path.child("volumeMode"), mode, VOLUME_MODES),
    }
    // Upstream does not look at the class of one that stands within an attachment.
    if let Some(class) = spec.volume_attributes_class_name.as_ref().filter(|_| !inline) {
        let at = path.child("volumeAttributesClassName");
        match class.as_str() {
            "" => errs.required(at, "an empty string is disallowed"),
            class => named(errs, &at, class, names::dns1123_subdomain),
        }
        if spec.csi.is_none() {
            let why = "has to be specified when using volumeAttributesClassName";
            errs.required(path.child("csi"), why);
        }
    }
}

/// Whether a path is `/` once `.` and `..` are resolved.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

fn validate_capacity(spec: &PersistentVolumeSpec, path: &Path, errs: &mut ErrorList) {
    let empty = BTreeMap::new();
    let capacity = spec.capacity.as_ref().unwrap_or(&empty);
    if capacity.is_empty() {
        errs.required(path, "");
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        errs.not_supported(path, json!(spec.capacity), &["storage"]);
    }
    for (name, amount) in capacity {
        let (at, number) = (path.key(name), Number::from_api(amount));
        if number.value() < 0 {
            errs.invalid(&at, number.value(), "must be a valid resource quantity");
        }
        if number.sign() <= 0 {
            errs.invalid(&at, number.to_string(), NOT_POSITIVE);
        }
    }
}

fn validate_affinity(affinity: &VolumeNodeAffinity, path: &Path, errs: &mut ErrorList) {
    let Some(required) = &affinity.required else {
        return errs.required(path.child("required"), "must specify required node constraints");
    };
    let at = path.child("required").child("nodeSelectorTerms");
    if required.node_selector_terms.is_empty() {
        errs.required(&at, "must have at least one node selector term");
    }
    for (i, term) in required.node_selector_terms.iter().enumerate() {
        node_selector_term(term, true, &at.index(i), errs);
    }
}

fn validate_change(new: &PersistentVolumeSpec, old: &PersistentVolumeSpec, errs: &mut ErrorList) {
    if sources::of(new, old) != sources::of(old, old) {
        let changes = go_dump::diff(&sources::of(old, old), &sources::of(new, old));
        let why = format!("spec.persistentvolumesource is immutable after creation\n{changes}");
        errs.forbidden(Path::new("spec").child("persistentvolumesource"), why);
    }
    errs.immutable("volumeMode", &new.volume_mode, &old.volume_mode);
    if old.node_affinity.is_some() && !same_affinity(new.node_affinity.as_ref(), old.node_affinity.as_ref()) {
        let shown = go_dump::show("core.VolumeNodeAffinity", new.node_affinity.as_ref());
        let detail = "field is immutable, except for updating from beta label to GA".to_owned();
        let (kind, path) = (ErrorKind::Invalid, "nodeAffinity".to_owned());
        errs.push(Error { kind, path, value: Some(shown), detail });
    }
    if old.volume_attributes_class_name.is_some() && new.volume_attributes_class_name.is_none() {
        let at = Path::new("spec").child("volumeAttributesClassName");
        errs.forbidden(at, "update from non-nil value to nil is forbidden");
    }
}

/// Whether nothing changed but old label names into their stable ones.
fn same_affinity(new: Option<&VolumeNodeAffinity>, old: Option<&VolumeNodeAffinity>) -> bool {
    let mut old = old.cloned();
    let wanted = requirements(new);
    let terms = old.iter_mut().filter_map(|a| a.required.as_mut()).flat_map(|r| &mut r.node_selector_terms);
    let held = terms.flat_map(|term| term.match_expressions.iter_mut().flatten());
    for (held, wanted) in held.zip(wanted) {
        let renamed = RENAMED.iter().find(|(old, _)| *old == held.key).map_or("", |(_, new)| *new);
        // Upstream takes an empty key for the new name of any label that has none.
        if renamed == wanted.key {
            held.key.clone_from(&wanted.key);
        }
    }
    new == old.as_ref()
}

fn requirements(affinity: Option<&VolumeNodeAffinity>) -> Vec<&NodeSelectorRequirement> {
    let terms = affinity.and_then(|a| a.required.as_ref()).map(|r| r.node_selector_terms.as_slice());
    terms.unwrap_or_default().iter().flat_map(|term| term.match_expressions.iter().flatten()).collect()
}
