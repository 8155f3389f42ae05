//! The `flowcontrol.apiserver.k8s.io` group, `v1`, and the objects that every cluster has.

mod flow_schema;
mod priority_level_configuration;

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use serde_json::{Value, json};

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&flow_schema::DEF, &priority_level_configuration::DEF];

/// Upstream's mandatory and suggested configuration, one object a line: kind, name and spec.
static BOOTSTRAP: &str = include_str!("flowcontrol/bootstrap.jsonl");
/// Annotation of objects that the server keeps up to date.
pub(crate) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// The flow schemas and priority levels that every cluster has; levels first.
pub(crate) fn bootstrap() -> Vec<Value> {
    let object = |line: &str| {
        let row: Value = serde_json::from_str(line).ok()?;
        Some(json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": row["kind"],
            "metadata": { "name": row["name"], "annotations": { AUTO_UPDATE: "true" } },
            "spec": row["spec"],
        }))
    };
    BOOTSTRAP.lines().filter_map(object).collect()
}

/// Checks the types of status conditions: there, and each once.
fn condition_types<'a>(types: impl Iterator<Item = &'a str>, errs: &mut ErrorList) {
    let list = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    for (i, type_) in types.enumerate() {
        let path = list.index(i).child("type");
        if !seen.insert(type_) {
            errs.duplicate(&path, type_);
        }
        if type_.is_empty() {
            errs.required(&path, "");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bootstrap_objects_are_valid_as_they_are() {
        let objects = super::bootstrap();
        assert_eq!(objects.len(), super::BOOTSTRAP.lines().count());
        for object in objects {
            let plural = match object["kind"].as_str() {
                Some("FlowSchema") => "flowschemas",
                _ => "prioritylevelconfigurations",
            };
            let def = crate::find("flowcontrol.apiserver.k8s.io", plural).expect("served");
            let mut obj = def.strategy.decode(object.clone()).expect("decodes");
            def.strategy.default(obj.as_mut());
            let mut errs = coracle_meta::field::ErrorList::new();
            def.strategy.validate(obj.as_ref(), &mut errs);
            assert!(errs.is_empty(), "{object}: {}", errs.aggregate());
        }
    }
}
