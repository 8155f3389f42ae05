//! Role: rights within a namespace.

use coracle_meta::field::ErrorList;
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::Role;
use serde_json::Value;

use super::policy_rules;
use crate::common::{column, date};
use crate::def::{Column, NAME, ResourceDef, Strategy, Typed};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Created At",
        "date",
        "",
        "CreationTimestamp is a timestamp representing the server time when this object was created. It \
         is not guaranteed to be set in happens-before order across separate operations. Clients may \
         not set this value. It is represented in RFC3339 form and is in UTC.

Populated by the system. \
         Read-only. Null for lists. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<Role>("role", &Typed::<Role, _>::new(Roles))
};

struct Roles;

impl Strategy<Role> for Roles {
    fn validate(&self, obj: &Role, errs: &mut ErrorList) {
        policy_rules(obj.rules.as_deref().unwrap_or_default(), true, errs);
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &Role, _now: Timestamp) -> Vec<Value> {
        vec![obj.metadata.name.clone().into(), date(obj.metadata.creation_timestamp.as_ref())]
    }
}
