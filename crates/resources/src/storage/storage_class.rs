//! StorageClass: how volumes are provisioned.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::{parameters, provisioner};
use crate::check::{named, one_of};
use crate::common::{column, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};
use crate::podspec::warnings;

const COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "string", "", "provisioner indicates the type of the provisioner."),
    column(
        "ReclaimPolicy",
        "string",
        "",
        "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of \
         this storage class. Defaults to Delete.",
    ),
    column(
        "VolumeBindingMode",
        "string",
        "",
        "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  \
         When unset, VolumeBindingImmediate is used. This field is only honored by servers that \
         enable the VolumeScheduling feature.",
    ),
    column(
        "AllowVolumeExpansion",
        "string",
        "",
        "allowVolumeExpansion shows whether the storage class allow volume expand.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["sc"],
    scope: Scope::Cluster,
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<StorageClass>("storageclass", &Typed::<StorageClass, _>::new(StorageClasses))
};

struct StorageClasses;

/// Annotations that make a class the default one.
const DEFAULT_MARKS: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Strategy<StorageClass> for StorageClasses {
    fn default(&self, obj: &mut StorageClass) {
        obj.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        obj.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, obj: &StorageClass, errs: &mut ErrorList) {
        provisioner(&obj.provisioner, &Path::new("provisioner"), errs);
        parameters(obj.parameters.as_ref(), true, &Path::new("parameters"), errs);
        if let Some(policy) = obj.reclaim_policy.as_deref().filter(|policy| !policy.is_empty()) {
            one_of(errs, &Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        }
        let path = Path::new("volumeBindingMode");
        match &obj.volume_binding_mode {
            None => errs.required(path, ""),
            Some(mode) => one_of(errs, &path, mode, &["Immediate", "WaitForFirstConsumer"]),
        }
        topologies(obj.allowed_topologies.as_deref().unwrap_or_default(), errs);
    }

    fn validate_update(&self, new: &StorageClass, old: &StorageClass, errs: &mut ErrorList) {
        self.validate(new, errs);
        let of = |class: &StorageClass| class.parameters.clone().unwrap_or_default();
        if of(new) != of(old) {
            let shown = new.parameters.as_ref().map_or(Value::Null, |p| json!(p));
            errs.invalid("parameters", shown, "field is immutable");
        }
        errs.immutable("provisioner", &new.provisioner, &old.provisioner);
        errs.immutable("reclaimPolicy", &new.reclaim_policy, &old.reclaim_policy);
        errs.immutable("volumeBindingMode", &new.volume_binding_mode, &old.volume_binding_mode);
    }

    fn warnings(&self, new: &StorageClass, _: Option<&StorageClass>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, term) in new.allowed_topologies.iter().flatten().enumerate() {
            let path = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
            for (j, expression) in term.match_label_expressions.iter().flatten().enumerate() {
                if let Some(why) = warnings::deprecated_label(&expression.key) {
                    out.push(format!("{}: {why}", path.index(j).child("key")));
                }
            }
        }
        out
    }

    fn row(&self, obj: &StorageClass, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        let mark =
            |key: &&str| meta.annotations.as_ref().and_then(|a| a.get(*key)).is_some_and(|v| v == "true");
        let suffix = if DEFAULT_MARKS.iter().any(mark) { " (default)" } else { "" };
        vec![
            format!("{}{suffix}", text(meta.name.as_ref())).into(),
            obj.provisioner.clone().into(),
            obj.reclaim_policy.as_deref().unwrap_or("Delete").into(),
            obj.volume_binding_mode.as_deref().unwrap_or("Immediate").into(),
            obj.allow_volume_expansion.unwrap_or(false).into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }
}

/// Values by key of a term.
type Expressions<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Checks the topologies, no two of which may say the same.
fn topologies(terms: &[TopologySelectorTerm], errs: &mut ErrorList) {
    let list = Path::new("allowedTopologies");
    let mut seen: Vec<Expressions<'_>> = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let path = list.index(i).child("matchLabelExpressions");
        let found = expressions(term, &path, errs);
        // Upstream's list of terms seen begins with as many empty ones as there are terms.
        let empty = if found.is_empty() { terms.len() } else { 0 };
        for _ in 0..empty + seen.iter().filter(|other| **other == found).count() {
            errs.duplicate(&path, "");
        }
        seen.push(found);
    }
}

fn expressions<'a>(term: &'a TopologySelectorTerm, path: &Path, errs: &mut ErrorList) -> Expressions<'a> {
    let mut found = Expressions::new();
    for (i, expression) in term.match_label_expressions.iter().flatten().enumerate() {
        let path = path.index(i);
        let at = path.child("values");
        if expression.values.is_empty() {
            errs.required(&at, "");
        }
        let mut values = BTreeSet::new();
        for (j, value) in expression.values.iter().enumerate() {
            if !values.insert(value.as_str()) {
                errs.duplicate(at.index(j), value.as_str());
            }
        }
        named(errs, &path.child("key"), &expression.key, names::qualified_name);
        if found.insert(&expression.key, values).is_some() {
            errs.duplicate(path.child("key"), expression.key.as_str());
        }
    }
    found
}
