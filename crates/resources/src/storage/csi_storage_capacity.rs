//! CSIStorageCapacity: how much room a driver has for volumes of a class in a part of the cluster.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::{Value, json};

use crate::check::{NEGATIVE, label_selector, named};
use crate::common::{column, date};
use crate::def::{Column, NAME, ResourceDef, Strategy, Typed};
use crate::podspec::{defaults, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Created At",
        "date",
        "",
        "CreationTimestamp is a timestamp representing the server time when this object was created. \
         It is not guaranteed to be set in happens-before order across separate operations. Clients \
         may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the \
         system. Read-only. Null for lists. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    unconditional_update: false,
    ..ResourceDef::new::<CSIStorageCapacity>(
        "csistoragecapacity",
        &Typed::<CSIStorageCapacity, _>::new(CsiStorageCapacities),
    )
};

struct CsiStorageCapacities;

impl Strategy<CSIStorageCapacity> for CsiStorageCapacities {
    fn default(&self, obj: &mut CSIStorageCapacity) {
        obj.capacity.iter_mut().chain(&mut obj.maximum_volume_size).for_each(defaults::canonical);
    }

    fn validate(&self, obj: &CSIStorageCapacity, errs: &mut ErrorList) {
        label_selector(obj.node_topology.as_ref(), &Path::new("nodeTopology"), errs);
        named(errs, &Path::new("storageClassName"), &obj.storage_class_name, names::dns1123_subdomain);
        if let Some(capacity) = obj.capacity.as_ref().filter(|c| Quantity::from_api(c).sign() < 0) {
            errs.invalid("capacity", capacity.0.as_str(), NEGATIVE);
        }
    }

    fn validate_update(&self, new: &CSIStorageCapacity, old: &CSIStorageCapacity, errs: &mut ErrorList) {
        self.validate(new, errs);
        if new.node_topology != old.node_topology {
            errs.invalid("nodeTopology", json!(new.node_topology), "field is immutable");
        }
        errs.immutable("storageClassName", &new.storage_class_name, &old.storage_class_name);
    }

    fn warnings(&self, new: &CSIStorageCapacity, _: Option<&CSIStorageCapacity>) -> Vec<String> {
        let Some(selector) = &new.node_topology else { return Vec::new() };
        let path = Path::new("nodeTopology");
        let mut out = Vec::new();
        for (i, term) in selector.match_expressions.iter().flatten().enumerate() {
            if let Some(why) = warnings::deprecated_label(&term.key) {
                let at = path.child("matchExpressions").index(i).child("key");
                out.push(format!("{at}: {} is {why}", term.key));
            }
        }
        for key in selector.match_labels.iter().flatten().map(|(key, _)| key) {
            if let Some(why) = warnings::deprecated_label(key) {
                out.push(format!("{}: {why}", path.child("matchLabels").child(key)));
            }
        }
        out
    }

    fn row(&self, obj: &CSIStorageCapacity, _: Timestamp) -> Vec<Value> {
        vec![obj.metadata.name.clone().into(), date(obj.metadata.creation_timestamp.as_ref())]
    }
}
