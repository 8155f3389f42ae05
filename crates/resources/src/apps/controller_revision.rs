//! ControllerRevision: a snapshot of a controller's template.

use coracle_meta::field::{ErrorList, Path};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use crate::check::non_negative;
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "string", "", "Controller of the object"),
    column("Revision", "string", "", "Revision indicates the revision of the state represented by Data."),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    ..ResourceDef::new::<ControllerRevision>(
        "controllerrevision",
        &Typed::<ControllerRevision, _>::new(ControllerRevisions),
    )
};

struct ControllerRevisions;

impl Strategy<ControllerRevision> for ControllerRevisions {
    fn validate(&self, obj: &ControllerRevision, errs: &mut ErrorList) {
        non_negative(errs, &Path::new("revision"), obj.revision);
        match obj.data.as_ref().map(|data| &data.0) {
            None | Some(Value::Null) => errs.required("data", "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => errs.required("data", "data must be a valid JSON object"),
        }
    }

    fn validate_update(&self, new: &ControllerRevision, old: &ControllerRevision, errs: &mut ErrorList) {
        non_negative(errs, &Path::new("revision"), new.revision);
        if new.data != old.data {
            errs.invalid("data", json!(new.data.as_ref().map(|data| &data.0)), "field is immutable");
        }
    }

    fn row(&self, obj: &ControllerRevision, now: Timestamp) -> Vec<Value> {
        let owners = obj.metadata.owner_references.iter().flatten();
        let mut controller = owners.filter(|owner| owner.controller == Some(true)).map(|owner| {
            let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
            let kind = owner.kind.to_lowercase();
            let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
            format!("{kind}/{}", owner.name)
        });
        vec![
            obj.metadata.name.clone().into(),
            controller.next_back().unwrap_or_else(|| "<none>".to_owned()).into(),
            obj.revision.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
