//! ComponentStatus: whether parts of the control plane are in order. Deprecated; made up by the server.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ComponentStatus;
use serde_json::Value;

use crate::common::{column, text};
use crate::def::{Column, NAME, ResourceDef, Scope, Storage, Strategy, Typed};

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "", "Status of the component conditions"),
    column("Message", "string", "", "Message of the component conditions"),
    column("Error", "string", "", "Error of the component conditions"),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["cs"],
    scope: Scope::Cluster,
    storage: Storage::Computed,
    columns: COLUMNS,
    ..ResourceDef::new::<ComponentStatus>("componentstatus", &Typed::<ComponentStatus, _>::new(Components))
};

struct Components;

impl Strategy<ComponentStatus> for Components {
    fn row(&self, obj: &ComponentStatus, _: Timestamp) -> Vec<Value> {
        let health = obj.conditions.iter().flatten().find(|c| c.type_ == "Healthy");
        let status = match health.map(|c| c.status.as_str()) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        vec![
            obj.metadata.name.clone().into(),
            status.into(),
            text(health.and_then(|c| c.message.as_ref())).into(),
            text(health.and_then(|c| c.error.as_ref())).into(),
        ]
    }
}
