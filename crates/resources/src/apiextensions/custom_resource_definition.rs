//! CustomResourceDefinition: a kind that users bring along.

use coracle_apiextensions::formats;
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionStatus,
};
use serde_json::Value;

use super::spec::{self, Options};
use super::{conditions, props};
use crate::common::{column, date};
use crate::def::{Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Created At",
        "date",
        "",
        "CreationTimestamp is a timestamp representing the server time when this object was created. It \
         is not guaranteed to be set in happens-before order across separate operations. Clients may \
         not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. \
         Read-only. Null for lists. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    unconditional_update: false,
    ..ResourceDef::new::<CustomResourceDefinition>(
        "customresourcedefinition",
        &Typed::<CustomResourceDefinition, _>::new(Definitions),
    )
};

struct Definitions;

/// Notes the storage version among those that objects may be stored in.
fn note_stored(crd: &mut CustomResourceDefinition) {
    let Some(storage) = crd.spec.versions.iter().find(|v| v.storage).map(|v| v.name.clone()) else { return };
    let stored = crd.status.get_or_insert_default().stored_versions.get_or_insert_default();
    if !stored.contains(&storage) {
        stored.push(storage);
    }
}

fn check_stored(crd: &CustomResourceDefinition, errs: &mut ErrorList) {
    let at = Path::new("status.storedVersions");
    let stored = crd.status.as_ref().and_then(|s| s.stored_versions.clone()).unwrap_or_default();
    if stored.is_empty() {
        return errs.invalid(at, Value::Null, "must have at least one stored version");
    }
    let names: Vec<&String> = crd.spec.versions.iter().map(|v| &v.name).collect();
    let mut left = stored.clone();
    for version in &crd.spec.versions {
        if left.contains(&version.name) {
            left.retain(|name| *name != version.name);
            continue;
        }
        if !version.storage {
            continue;
        }
        let why = format!("must have the storage version {}", version.name);
        errs.invalid(&at, stored.clone(), why);
    }
    for (i, name) in stored.iter().enumerate().filter(|(_, name)| !names.contains(name)) {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
             until a storage migration ensures no data remains persisted in {name} and removes {name} from \
             status.storedVersions"
        );
        errs.invalid(at.index(i), name.as_str(), why);
    }
}

fn check_status(crd: &CustomResourceDefinition, errs: &mut ErrorList) {
    if let Some(names) = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()) {
        spec::check_names(names, &Path::new("status.acceptedNames"), errs);
    }
}

fn check_preserve(
    new: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    errs: &mut ErrorList,
) {
    let set = |crd: &CustomResourceDefinition| crd.spec.preserve_unknown_fields == Some(true);
    if set(new) && !old.is_some_and(set) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                   spec.versions[*].schema instead";
        errs.invalid("spec.preserveUnknownFields", true, why);
    }
}

/// Formats that mean nothing for the type they stand at, in document order.
fn unrecognized(crd: &CustomResourceDefinition) -> Vec<String> {
    fn walk(
        s: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps,
        out: &mut Vec<String>,
    ) {
        let format = s.format.as_deref().unwrap_or("");
        if formats::is_unrecognized(format, props::kind(s)) {
            out.push(format.to_owned());
        }
        props::below(s).into_iter().for_each(|inner| walk(inner, out));
    }
    let mut out = Vec::new();
    props::of(crd).for_each(|s| walk(s, &mut out));
    out
}

impl Strategy<CustomResourceDefinition> for Definitions {
    fn default(&self, obj: &mut CustomResourceDefinition) {
        let names = &mut obj.spec.names;
        if names.singular.as_deref().unwrap_or("").is_empty() && !names.kind.is_empty() {
            names.singular = Some(names.kind.to_lowercase());
        }
        if names.list_kind.as_deref().unwrap_or("").is_empty() && !names.kind.is_empty() {
            names.list_kind = Some(format!("{}List", names.kind));
        }
        let conversion = obj
            .spec
            .conversion
            .get_or_insert_with(|| CustomResourceConversion { strategy: "None".into(), webhook: None });
        let client = conversion.webhook.as_mut().and_then(|w| w.client_config.as_mut());
        if let Some(service) = client.and_then(|c| c.service.as_mut()) {
            service.port.get_or_insert(443);
        }
        if obj.spec.preserve_unknown_fields == Some(false) {
            obj.spec.preserve_unknown_fields = None;
        }
        obj.status.get_or_insert_default().accepted_names.get_or_insert_default();
        if obj.status.as_ref().is_none_or(|s| s.stored_versions.as_ref().is_none_or(Vec::is_empty)) {
            note_stored(obj);
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut CustomResourceDefinition) {
        obj.status = Some(CustomResourceDefinitionStatus {
            accepted_names: Some(Default::default()),
            ..Default::default()
        });
        note_stored(obj);
    }

    fn prepare_update(
        &self,
        _: Context<'_>,
        new: &mut CustomResourceDefinition,
        old: &CustomResourceDefinition,
    ) {
        new.status.clone_from(&old.status);
        note_stored(new);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut CustomResourceDefinition,
        old: &CustomResourceDefinition,
    ) {
        new.spec = old.spec.clone();
    }

    fn validate(&self, obj: &CustomResourceDefinition, errs: &mut ErrorList) {
        let wanted = format!("{}.{}", obj.spec.names.plural, obj.spec.group);
        let why = "must be spec.names.plural+\".\"+spec.group";
        let meta = &obj.metadata;
        if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty() && *p != wanted) {
            errs.invalid("metadata.generateName", prefix, why);
        }
        if let Some(name) = meta.name.as_deref().filter(|n| !n.is_empty() && *n != wanted) {
            errs.invalid("metadata.name", name, why);
        }
        spec::check(obj, &Options::new(), errs);
        check_status(obj, errs);
        check_stored(obj, errs);
        conditions::check_approval(obj, None, errs);
        check_preserve(obj, None, errs);
    }

    fn validate_update(
        &self,
        new: &CustomResourceDefinition,
        old: &CustomResourceDefinition,
        errs: &mut ErrorList,
    ) {
        let established = conditions::is_true(old, "Established");
        spec::check(new, &Options::for_change(new, old, established), errs);
        if established {
            errs.immutable("spec.scope", &new.spec.scope, &old.spec.scope);
            errs.immutable("spec.names.kind", &new.spec.names.kind, &old.spec.names.kind);
        }
        errs.immutable("spec.group", &new.spec.group, &old.spec.group);
        errs.immutable("spec.names.plural", &new.spec.names.plural, &old.spec.names.plural);
        check_status(new, errs);
        check_stored(new, errs);
        conditions::check_approval(new, Some(old), errs);
        check_preserve(new, Some(old), errs);
    }

    fn validate_status_update(
        &self,
        new: &CustomResourceDefinition,
        _: &CustomResourceDefinition,
        errs: &mut ErrorList,
    ) {
        check_status(new, errs);
    }

    fn warnings(
        &self,
        new: &CustomResourceDefinition,
        old: Option<&CustomResourceDefinition>,
    ) -> Vec<String> {
        let before = old.map(unrecognized).unwrap_or_default();
        let fresh = unrecognized(new).into_iter().filter(|format| !before.contains(format));
        fresh.map(|format| format!("unrecognized format {format:?}")).collect()
    }

    fn row(&self, obj: &CustomResourceDefinition, _: jiff::Timestamp) -> Vec<Value> {
        vec![obj.metadata.name.clone().into(), date(obj.metadata.creation_timestamp.as_ref())]
    }
}
