//! VolumeAttributesClass: changeable attributes of volumes of a CSI driver.

use coracle_meta::field::{ErrorList, Path};
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::Value;

use super::{parameters, provisioner};
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] =
    &[NAME, column("DriverName", "string", "", "Name of the CSI driver This field is immutable."), AGE];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["vac"],
    scope: Scope::Cluster,
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<VolumeAttributesClass>(
        "volumeattributesclass",
        &Typed::<VolumeAttributesClass, _>::new(VolumeAttributesClasses),
    )
};

struct VolumeAttributesClasses;

impl Strategy<VolumeAttributesClass> for VolumeAttributesClasses {
    fn validate(&self, obj: &VolumeAttributesClass, errs: &mut ErrorList) {
        provisioner(&obj.driver_name, &Path::new("driverName"), errs);
        parameters(obj.parameters.as_ref(), false, &Path::new("parameters"), errs);
    }

    fn validate_update(
        &self,
        new: &VolumeAttributesClass,
        old: &VolumeAttributesClass,
        errs: &mut ErrorList,
    ) {
        if new.driver_name != old.driver_name {
            errs.forbidden("driverName", "updates to driverName are forbidden.");
        }
        if new.parameters != old.parameters {
            errs.forbidden("parameters", "updates to parameters are forbidden.");
        }
        self.validate(new, errs);
    }

    fn row(&self, obj: &VolumeAttributesClass, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![
            meta.name.clone().into(),
            obj.driver_name.clone().into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }
}
