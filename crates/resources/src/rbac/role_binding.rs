//! RoleBinding: grants a role within a namespace.

use coracle_meta::field::ErrorList;
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::RoleBinding;
use serde_json::Value;

use super::{binding, binding_cells, binding_defaults, role_ref_change};
use crate::common::{column, wide_column};
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Role",
        "string",
        "",
        "RoleRef can reference a Role in the current namespace or a ClusterRole in the global \
         namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
    ),
    AGE,
    wide_column("Users", "string", "", "Users in the roleBinding"),
    wide_column("Groups", "string", "", "Groups in the roleBinding"),
    wide_column("ServiceAccounts", "string", "", "ServiceAccounts in the roleBinding"),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<RoleBinding>("rolebinding", &Typed::<RoleBinding, _>::new(RoleBindings))
};

struct RoleBindings;

impl Strategy<RoleBinding> for RoleBindings {
    fn default(&self, obj: &mut RoleBinding) {
        binding_defaults(&mut obj.role_ref, obj.subjects.as_mut());
    }

    fn validate(&self, obj: &RoleBinding, errs: &mut ErrorList) {
        binding(
            &obj.role_ref,
            &["Role", "ClusterRole"],
            obj.subjects.as_deref().unwrap_or_default(),
            true,
            errs,
        );
    }

    fn validate_update(&self, new: &RoleBinding, old: &RoleBinding, errs: &mut ErrorList) {
        role_ref_change(&new.role_ref, &old.role_ref, errs);
        self.validate(new, errs);
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &RoleBinding, now: Timestamp) -> Vec<Value> {
        binding_cells(&obj.metadata, &obj.role_ref, obj.subjects.as_deref().unwrap_or_default(), now)
    }
}
