//! PersistentVolumeClaim: a request for storage. Its spec is also part of stateful sets and ephemeral volumes.

use std::collections::BTreeMap;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::quantity::Quantity as Number;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, TypedLocalObjectReference,
    TypedObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::check::{NOT_POSITIVE, each, label_selector, named, one_of};
use crate::common::{column, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::defaults::{canonical_list, string};
use crate::podspec::requirements::is_native;

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "", "phase represents the current phase of PersistentVolumeClaim."),
    column(
        "Volume",
        "string",
        "",
        "volumeName is the binding reference to the PersistentVolume backing this claim.",
    ),
    column("Capacity", "string", "", "capacity represents the actual resources of the underlying volume."),
    column(
        "Access Modes",
        "string",
        "",
        "accessModes contains the actual access modes the volume backing the PVC has. More info: \
         https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
    ),
    column("StorageClass", "string", "", "StorageClass of the pvc"),
    column("VolumeAttributesClass", "string", "", "VolumeAttributesClass of the pvc"),
    AGE,
    wide_column(
        "VolumeMode",
        "string",
        "",
        "volumeMode defines what type of volume is required by the claim. Value of Filesystem is \
         implied when not included in claim spec.",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<PersistentVolumeClaim>(
        "persistentvolumeclaim",
        &Typed::<PersistentVolumeClaim, _>::new(Claims),
    )
};

struct Claims;

/// Where the storage class was named before it had a field.
pub(super) const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub(super) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const RESIZE_STATUS: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Upstream's defaults.
pub(crate) fn defaults(obj: &mut PersistentVolumeClaim) {
    let spec = obj.spec.get_or_insert_default();
    spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
    let resources = spec.resources.get_or_insert_default();
    canonical_list(&mut resources.limits);
    canonical_list(&mut resources.requests);
    let status = obj.status.get_or_insert_default();
    string(&mut status.phase, "Pending");
    canonical_list(&mut status.capacity);
    canonical_list(&mut status.allocated_resources);
}

impl Strategy<PersistentVolumeClaim> for Claims {
    fn default(&self, obj: &mut PersistentVolumeClaim) {
        defaults(obj);
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut PersistentVolumeClaim) {
        obj.status = Some(PersistentVolumeClaimStatus::default());
        if let Some(spec) = &mut obj.spec {
            data_sources(spec, None);
        }
    }

    fn settle(&self, obj: &mut PersistentVolumeClaim) -> bool {
        let status = obj.status.get_or_insert_default();
        let bare = text(status.phase.as_ref()).is_empty();
        string(&mut status.phase, "Pending");
        bare
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut PersistentVolumeClaim, old: &PersistentVolumeClaim) {
        new.status.clone_from(&old.status);
        if let Some(spec) = &mut new.spec {
            data_sources(spec, old.spec.as_ref());
        }
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut PersistentVolumeClaim,
        old: &PersistentVolumeClaim,
    ) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &PersistentVolumeClaim, errs: &mut ErrorList) {
        validate_spec(obj.spec.as_ref(), false, &Path::new("spec"), errs);
    }

    fn validate_update(
        &self,
        new: &PersistentVolumeClaim,
        old: &PersistentVolumeClaim,
        errs: &mut ErrorList,
    ) {
        let group = |spec: &PersistentVolumeClaimSpec| {
            spec.data_source.as_ref().is_some_and(|s| s.api_group.is_some())
                || spec.data_source_ref.as_ref().is_some_and(|s| s.api_group.is_some())
        };
        let any_group = old.spec.as_ref().is_some_and(group);
        validate_spec(new.spec.as_ref(), any_group, &Path::new("spec"), errs);
        validate_change(new, old, errs);
    }

    fn validate_status_update(
        &self,
        new: &PersistentVolumeClaim,
        _: &PersistentVolumeClaim,
        errs: &mut ErrorList,
    ) {
        if let Some(status) = &new.status {
            validate_status(status, errs);
        }
    }

    fn warnings(&self, new: &PersistentVolumeClaim, _: Option<&PersistentVolumeClaim>) -> Vec<String> {
        let mut out = Vec::new();
        if new.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CLASS_ANNOTATION)) {
            out.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" \
                 attribute instead"
            ));
        }
        out.extend(new.spec.as_ref().map(|s| spec_warnings(s, &Path::new("spec"))).unwrap_or_default());
        out
    }

    fn row(&self, obj: &PersistentVolumeClaim, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let deleted = obj.metadata.deletion_timestamp.is_some();
        let phase = if deleted { "Terminating" } else { text(status.and_then(|s| s.phase.as_ref())) };
        let volume = text(spec.and_then(|s| s.volume_name.as_ref()));
        let (mut capacity, mut modes) = (String::new(), String::new());
        if !volume.is_empty() {
            modes = access_modes(status.and_then(|s| s.access_modes.as_deref()));
            capacity = storage(status.and_then(|s| s.capacity.as_ref())).to_string();
        }
        let unset = "<unset>".to_owned();
        let annotated = obj.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
        let class = text(annotated.or_else(|| spec?.storage_class_name.as_ref()));
        vec![
            obj.metadata.name.clone().into(),
            phase.into(),
            volume.into(),
            capacity.into(),
            modes.into(),
            class.into(),
            spec.and_then(|s| s.volume_attributes_class_name.clone()).unwrap_or(unset.clone()).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            spec.and_then(|s| s.volume_mode.clone()).unwrap_or(unset).into(),
        ]
    }
}

/// The amount of storage in a list; zero when there is none.
pub(super) fn storage(list: Option<&BTreeMap<String, Quantity>>) -> Number {
    list.and_then(|list| list.get("storage")).map(Number::from_api).unwrap_or_default()
}

/// Access modes as tables show them: `RWO,ROX`.
pub(super) fn access_modes(modes: Option<&[String]>) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes = modes.unwrap_or_default();
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// Keeps `dataSource` and `dataSourceRef` alike, and drops what older clients could not mean.
fn data_sources(spec: &mut PersistentVolumeClaimSpec, old: Option<&PersistentVolumeClaimSpec>) {
    let elsewhere = |s: &TypedObjectReference| s.namespace.as_ref().is_some_and(|n| !n.is_empty());
    let used_ref = old.is_some_and(|old| old.data_source_ref.is_some());
    // Sources in other namespaces are off, as by default upstream.
    if !used_ref && spec.data_source_ref.as_ref().is_some_and(elsewhere) {
        spec.data_source_ref = None;
    }
    let used = used_ref || old.is_some_and(|old| old.data_source.is_some());
    if !used && spec.data_source_ref.is_none() && !spec.data_source.as_ref().is_some_and(is_plain_source) {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(source)) if !elsewhere(source) => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
            });
        }
        _ => {}
    }
}

/// Claims and snapshots: what `dataSource` can name.
fn is_plain_source(source: &TypedLocalObjectReference) -> bool {
    matches!(
        (text(source.api_group.as_ref()), source.kind.as_str()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

/// Warnings about a claim's spec below `path`.
pub(crate) fn spec_warnings(spec: &PersistentVolumeClaimSpec, path: &Path) -> Vec<String> {
    let Some(resources) = &spec.resources else { return Vec::new() };
    let fraction = |(field, list): (&str, &Option<BTreeMap<String, Quantity>>)| {
        let amount = storage(list.as_ref());
        let at = path.child("resources").child(field).key("storage");
        let why = || format!("{at}: fractional byte value \"{amount}\" is invalid, must be an integer");
        (amount.milli() % 1000 != 0).then(why)
    };
    [("requests", &resources.requests), ("limits", &resources.limits)]
        .into_iter()
        .filter_map(fraction)
        .collect()
}

/// Checks access modes: known ones, and none beside the exclusive one.
pub(super) fn validate_modes(modes: &[String], path: &Path, errs: &mut ErrorList) {
    for mode in modes {
        one_of(errs, path, mode, MODES);
    }
    let exclusive = |mode: &String| mode == "ReadWriteOncePod";
    let shared = |mode: &String| !exclusive(mode) && MODES.contains(&mode.as_str());
    if modes.iter().any(exclusive) && modes.iter().any(shared) {
        errs.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Checks a claim's spec. `any_group`: sources may name groups that are no DNS names, as they did before.
pub(crate) fn validate_spec(
    spec: Option<&PersistentVolumeClaimSpec>,
    any_group: bool,
    path: &Path,
    errs: &mut ErrorList,
) {
    let empty = PersistentVolumeClaimSpec::default();
    let spec = spec.unwrap_or(&empty);
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errs.required(path.child("accessModes"), "at least 1 access mode is required");
    }
    label_selector(spec.selector.as_ref(), &path.child("selector"), errs);
    validate_modes(modes, &path.child("accessModes"), errs);
    let at = path.child("resources").key("storage");
    match spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")) {
        None => errs.required(at, ""),
        Some(size) if Number::from_api(size).sign() <= 0 => errs.invalid(at, size.0.as_str(), NOT_POSITIVE),
        Some(_) => {}
    }
    for (field, value) in [
        ("storageClassName", &spec.storage_class_name),
        ("volumeAttributesClassName", &spec.volume_attributes_class_name),
    ] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            named(errs, &path.child(field), value, names::dns1123_subdomain);
        }
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(errs, &path.child("volumeMode"), mode, VOLUME_MODES);
    }
    validate_sources(spec, any_group, path, errs);
}

/// One of the two references to a source: its group, kind and name.
struct Source<'a>(&'a str, &'a str, &'a str);

fn validate_sources(spec: &PersistentVolumeClaimSpec, any_group: bool, path: &Path, errs: &mut ErrorList) {
    let source = spec.data_source.as_ref();
    let reference = spec.data_source_ref.as_ref();
    if let Some(s) = source {
        let parts = Source(text(s.api_group.as_ref()), &s.kind, &s.name);
        validate_source(&parts, any_group, &path.child("dataSource"), errs);
    }
    let Some(reference) = reference else { return };
    let at = path.child("dataSourceRef");
    let parts = Source(text(reference.api_group.as_ref()), &reference.kind, &reference.name);
    validate_source(&parts, any_group, &at, errs);
    let namespace = text(reference.namespace.as_ref());
    if !namespace.is_empty() {
        named(errs, &at.child("namespace"), namespace, names::dns1123_label);
    }
    let Some(source) = source else { return };
    let same = |s: &TypedLocalObjectReference| {
        (&s.api_group, &s.kind, &s.name) == (&reference.api_group, &reference.kind, &reference.name)
    };
    let why = match namespace {
        "" if same(source) => return,
        "" => "must match dataSourceRef",
        _ => "may not be specified when dataSourceRef.namespace is specified",
    };
    // Upstream shows a path object there, which prints as nothing.
    let (kind, value) = (ErrorKind::Invalid, Some("{}".to_owned()));
    errs.push(Error { kind, path: path.to_string(), value, detail: why.to_owned() });
}

fn validate_source(source: &Source<'_>, any_group: bool, path: &Path, errs: &mut ErrorList) {
    let Source(group, kind, name) = *source;
    if name.is_empty() {
        errs.required(path.child("name"), "");
    }
    if kind.is_empty() {
        errs.required(path.child("kind"), "");
    }
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        errs.invalid(path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !group.is_empty() && !any_group {
        named(errs, &path.child("apiGroup"), group, names::dns1123_subdomain);
    }
}

fn validate_change(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim, errs: &mut ErrorList) {
    let empty = PersistentVolumeClaimSpec::default();
    let (before, after) = (old.spec.as_ref().unwrap_or(&empty), new.spec.as_ref().unwrap_or(&empty));
    let (mut was, mut is) = (before.clone(), after.clone());
    // Sources of claims from earlier versions are alike, too.
    data_sources(&mut was, Some(before));
    if text(was.volume_name.as_ref()).is_empty() {
        was.volume_name.clone_from(&is.volume_name);
    }
    validate_class(new, old, (&mut is, &was), errs);
    let bound = new.status.as_ref().is_some_and(|s| text(s.phase.as_ref()) == "Bound");
    let size =
        |spec: &PersistentVolumeClaimSpec| storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    if bound {
        let old_size = was.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")).cloned();
        if let Some(requests) = is.resources.as_mut().and_then(|r| r.requests.as_mut()) {
            requests.insert("storage".to_owned(), old_size.unwrap_or_default());
        }
        is.volume_attributes_class_name.clone_from(&was.volume_attributes_class_name);
    }
    if is != was {
        let changes = go_dump::diff(&was, &is);
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
             claims\n{changes}"
        );
        errs.forbidden("spec", why);
    }
    let present = storage(old.status.as_ref().and_then(|s| s.capacity.as_ref()));
    if size(after) < size(before) && size(after) <= present {
        let at = Path::new("spec").child("resources").child("requests").child("storage");
        errs.forbidden(at, "field can not be less than status.capacity");
    }
    errs.immutable("volumeMode", &after.volume_mode, &before.volume_mode);
    let current = old.status.as_ref().and_then(|s| s.current_volume_attributes_class_name.as_ref());
    if before.volume_attributes_class_name != after.volume_attributes_class_name && current.is_some() {
        let at = Path::new("spec").child("volumeAttributesClassName");
        let now = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match after.volume_attributes_class_name.as_deref() {
            None => errs.forbidden(at, format!("update to nil {now}")),
            Some("") => errs.forbidden(at, format!("update to empty string {now}")),
            Some(_) => {}
        }
    }
}

/// The storage class may move from its annotation to its field, and may be set once.
fn validate_class(
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
    (is, was): (&mut PersistentVolumeClaimSpec, &PersistentVolumeClaimSpec),
    errs: &mut ErrorList,
) {
    fn annotated(obj: &PersistentVolumeClaim) -> Option<&String> {
        obj.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION)
    }
    let (then, now) = (annotated(old), annotated(new));
    let class = is.storage_class_name.as_ref();
    let unset = was.storage_class_name.is_none();
    if then.is_some() && unset && class == then && (now.is_none() || now == then) {
        is.storage_class_name = None;
        return;
    }
    if text(now) != text(then) {
        let at = Path::new("metadata").child("annotations").child(CLASS_ANNOTATION);
        errs.invalid(at, text(now), "field is immutable");
    }
    if unset && class.is_some() && (then.is_none() || class == then) {
        is.storage_class_name = None;
    }
}

fn validate_status(status: &PersistentVolumeClaimStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let amounts =
        |field: &str, list: &Option<BTreeMap<String, Quantity>>, keys: bool, errs: &mut ErrorList| {
            for (name, amount) in list.iter().flatten() {
                let before = errs.len();
                if keys {
                    resource_key(name, &path.child(field), errs);
                }
                let value = Number::from_api(amount).value();
                if value < 0 && errs.len() == before {
                    let at = path.child(field).key(name);
                    errs.invalid(at, value, "must be a valid resource quantity");
                }
            }
        };
    amounts("capacity", &status.capacity, false, errs);
    let at = path.child("allocatedResourceStatuses");
    for (name, state) in status.allocated_resource_statuses.iter().flatten() {
        resource_key(name, &at, errs);
        if !RESIZE_STATUS.contains(&state.as_str()) {
            errs.not_supported(&at, name.as_str(), RESIZE_STATUS);
        }
    }
    amounts("allocatedResources", &status.allocated_resources, true, errs);
}

fn resource_key(name: &str, path: &Path, errs: &mut ErrorList) {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        return each(errs, path, name, messages);
    }
    if is_native(name) && name != "storage" {
        errs.not_supported(path, name, &["storage"]);
    }
}
