//! ConfigMap: configuration data for pods.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::secret::MAX_SIZE;
use crate::check::named;
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Data",
        "string",
        "",
        "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', \
         '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys \
         stored in Data must not overlap with the keys in the BinaryData field, this is enforced during \
         validation process.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["cm"],
    columns: COLUMNS,
    ..ResourceDef::new::<ConfigMap>("configmap", &Typed::<ConfigMap, _>::new(ConfigMaps))
};

struct ConfigMaps;

impl Strategy<ConfigMap> for ConfigMaps {
    fn validate(&self, obj: &ConfigMap, errs: &mut ErrorList) {
        let mut size = 0;
        for (key, value) in obj.data.iter().flatten() {
            named(errs, &Path::new("data").key(key), key, names::config_key);
            if obj.binary_data.as_ref().is_some_and(|d| d.contains_key(key)) {
                let why = format!("duplicate of key present in binaryData: {key}");
                errs.invalid(Path::new("data").key(key), key.as_str(), why);
            }
            size += value.len();
        }
        for (key, value) in obj.binary_data.iter().flatten() {
            named(errs, &Path::new("binaryData").key(key), key, names::config_key);
            size += value.0.len();
        }
        if size > MAX_SIZE {
            // The path that upstream prints for a field without a name.
            errs.too_long("[]", MAX_SIZE);
        }
    }

    fn validate_update(&self, new: &ConfigMap, old: &ConfigMap, errs: &mut ErrorList) {
        const WHY: &str = "field is immutable when `immutable` is set";
        if old.immutable == Some(true) {
            if new.immutable != Some(true) {
                errs.forbidden("immutable", WHY);
            }
            if new.data != old.data {
                errs.forbidden("data", WHY);
            }
            if new.binary_data != old.binary_data {
                errs.forbidden("binaryData", WHY);
            }
        }
        self.validate(new, errs);
    }

    fn row(&self, obj: &ConfigMap, now: Timestamp) -> Vec<Value> {
        let count =
            obj.data.as_ref().map_or(0, |d| d.len()) + obj.binary_data.as_ref().map_or(0, |d| d.len());
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), count.into(), age(meta.creation_timestamp.as_ref(), now)]
    }
}
