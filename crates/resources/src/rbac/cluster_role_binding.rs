//! ClusterRoleBinding: grants a role in the whole cluster.

use coracle_meta::field::ErrorList;
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use serde_json::Value;

use super::{binding, binding_cells, binding_defaults, role_ref_change};
use crate::common::{column, wide_column};
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Role",
        "string",
        "",
        "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be \
         resolved, the Authorizer must return an error.",
    ),
    AGE,
    wide_column("Users", "string", "", "Users in the clusterRoleBinding"),
    wide_column("Groups", "string", "", "Groups in the clusterRoleBinding"),
    wide_column("ServiceAccounts", "string", "", "ServiceAccounts in the clusterRoleBinding"),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    scope: Scope::Cluster,
    create_on_update: true,
    ..ResourceDef::new::<ClusterRoleBinding>(
        "clusterrolebinding",
        &Typed::<ClusterRoleBinding, _>::new(ClusterRoleBindings),
    )
};

struct ClusterRoleBindings;

impl Strategy<ClusterRoleBinding> for ClusterRoleBindings {
    fn default(&self, obj: &mut ClusterRoleBinding) {
        binding_defaults(&mut obj.role_ref, obj.subjects.as_mut());
    }

    fn validate(&self, obj: &ClusterRoleBinding, errs: &mut ErrorList) {
        binding(&obj.role_ref, &["ClusterRole"], obj.subjects.as_deref().unwrap_or_default(), false, errs);
    }

    fn validate_update(&self, new: &ClusterRoleBinding, old: &ClusterRoleBinding, errs: &mut ErrorList) {
        role_ref_change(&new.role_ref, &old.role_ref, errs);
        self.validate(new, errs);
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &ClusterRoleBinding, now: Timestamp) -> Vec<Value> {
        binding_cells(&obj.metadata, &obj.role_ref, obj.subjects.as_deref().unwrap_or_default(), now)
    }
}
