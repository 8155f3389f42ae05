//! ClusterRole: rights in the whole cluster.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::Value;

use super::policy_rules;
use crate::check::label_selector;
use crate::common::{column, date};
use crate::def::{Column, NAME, ResourceDef, Scope, Strategy, Typed};

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
    scope: Scope::Cluster,
    create_on_update: true,
    ..ResourceDef::new::<ClusterRole>("clusterrole", &Typed::<ClusterRole, _>::new(ClusterRoles))
};

struct ClusterRoles;

impl Strategy<ClusterRole> for ClusterRoles {
    fn validate(&self, obj: &ClusterRole, errs: &mut ErrorList) {
        policy_rules(obj.rules.as_deref().unwrap_or_default(), false, errs);
        let Some(rule) = &obj.aggregation_rule else { return };
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = rule.cluster_role_selectors.as_deref().unwrap_or_default();
        if selectors.is_empty() {
            errs.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (i, selector) in selectors.iter().enumerate() {
            let path = path.index(i);
            label_selector(Some(selector), &path, errs);
            if LabelSelector::from_api(selector).is_err() {
                errs.invalid(path, Value::Null, "invalid label selector.");
            }
        }
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &ClusterRole, _now: Timestamp) -> Vec<Value> {
        vec![obj.metadata.name.clone().into(), date(obj.metadata.creation_timestamp.as_ref())]
    }
}
