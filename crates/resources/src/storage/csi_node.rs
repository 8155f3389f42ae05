//! CSINode: the CSI drivers of a node.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};
use serde_json::{Value, json};

use super::driver_name;
use crate::check::{about_struct, named, non_negative};
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Drivers", "integer", "", "Drivers indicates the number of CSI drivers registered on the node"),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    scope: Scope::Cluster,
    columns: COLUMNS,
    unconditional_update: false,
    returns_deleted: true,
    ..ResourceDef::new::<CSINode>("csinode", &Typed::<CSINode, _>::new(CsiNodes))
};

struct CsiNodes;

/// Bytes of a driver's id of a node.
const MAX_NODE_ID: usize = 256;

impl Strategy<CSINode> for CsiNodes {
    fn validate(&self, obj: &CSINode, errs: &mut ErrorList) {
        let list = Path::new("spec").child("drivers");
        let mut seen = BTreeSet::new();
        for (i, one) in obj.spec.drivers.iter().enumerate() {
            let path = list.index(i);
            driver(one, &path, errs);
            if !seen.insert(one.name.as_str()) {
                errs.duplicate(path.child("name"), one.name.as_str());
            }
        }
    }

    fn validate_update(&self, new: &CSINode, old: &CSINode, errs: &mut ErrorList) {
        self.validate(new, errs);
        for before in &old.spec.drivers {
            for one in new.spec.drivers.iter().filter(|one| one.name == before.name) {
                if (&one.node_id, &one.topology_keys) != (&before.node_id, &before.topology_keys) {
                    let shown: &[(&str, Value)] = &[
                        ("Name", json!(one.name)),
                        ("NodeID", json!(one.node_id)),
                        ("TopologyKeys", json!(one.topology_keys)),
                        ("Allocatable", Value::Null),
                    ];
                    let path = Path::new("spec").child("drivers");
                    about_struct(errs, ErrorKind::Invalid, &path, shown, "field is immutable");
                }
            }
        }
    }

    fn row(&self, obj: &CSINode, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![
            meta.name.clone().into(),
            obj.spec.drivers.len().into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }
}

fn driver(one: &CSINodeDriver, path: &Path, errs: &mut ErrorList) {
    driver_name(&one.name, &path.child("name"), errs);
    let at = path.child("nodeID");
    if one.node_id.is_empty() {
        errs.required(&at, "");
    }
    if one.node_id.len() > MAX_NODE_ID {
        errs.invalid(&at, one.node_id.as_str(), format!("must be {MAX_NODE_ID} characters or less"));
    }
    if let Some(count) = one.allocatable.as_ref().and_then(|a| a.count) {
        non_negative(errs, &path.child("allocatable").child("count"), i64::from(count));
    }
    let mut seen = BTreeSet::new();
    for key in one.topology_keys.iter().flatten() {
        if key.is_empty() {
            errs.required(path, "");
        }
        if !seen.insert(key) {
            errs.duplicate(path, key.as_str());
        }
        named(errs, path, key, names::qualified_name);
    }
}
