//! The `rbac.authorization.k8s.io` group, `v1`.

mod cluster_role;
mod cluster_role_binding;
mod role;
mod role_binding;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::check::{named, one_of, one_of_texts};
use crate::common::text;
use crate::def::{ResourceDef, age};

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] =
    &[&cluster_role::DEF, &cluster_role_binding::DEF, &role::DEF, &role_binding::DEF];

/// The cells of a binding's row.
fn binding_cells(meta: &ObjectMeta, role: &RoleRef, subjects: &[Subject], now: Timestamp) -> Vec<Value> {
    let of_kind = |kind: &str| {
        let names = subjects.iter().filter(|s| s.kind == kind).map(|s| match text(s.namespace.as_ref()) {
            namespace if kind == "ServiceAccount" => format!("{namespace}/{}", s.name),
            _ => s.name.clone(),
        });
        Value::from(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        meta.name.clone().into(),
        format!("{}/{}", role.kind, role.name).into(),
        age(meta.creation_timestamp.as_ref(), now),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks the rules of a role; those of a namespaced one may not name URLs.
fn policy_rules(rules: &[PolicyRule], namespaced: bool, errs: &mut ErrorList) {
    for (i, rule) in rules.iter().enumerate() {
        let path = Path::new("rules").index(i);
        let filled = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
        if rule.verbs.is_empty() {
            errs.required(path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.non_resource_urls.as_deref().unwrap_or_default();
        if !urls.is_empty() {
            let at = path.child("nonResourceURLs");
            if namespaced {
                errs.invalid(&at, urls.to_vec(), "namespaced rules cannot apply to non-resource URLs");
            }
            if filled(&rule.api_groups) || filled(&rule.resources) || filled(&rule.resource_names) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errs.invalid(&at, urls.to_vec(), why);
            }
            continue;
        }
        if !filled(&rule.api_groups) {
            errs.required(path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if !filled(&rule.resources) {
            errs.required(path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn binding_defaults(role: &mut RoleRef, subjects: Option<&mut Vec<Subject>>) {
    if text(role.api_group.as_ref()).is_empty() {
        role.api_group = Some(GROUP.to_owned());
    }
    for subject in subjects.into_iter().flatten() {
        if matches!(subject.kind.as_str(), "User" | "Group") && text(subject.api_group.as_ref()).is_empty() {
            subject.api_group = Some(GROUP.to_owned());
        }
    }
}

/// Checks role reference and subjects of a binding.
fn binding(role: &RoleRef, kinds: &[&str], subjects: &[Subject], namespaced: bool, errs: &mut ErrorList) {
    let path = Path::new("roleRef");
    one_of_texts(errs, &path.child("apiGroup"), text(role.api_group.as_ref()), &[GROUP]);
    one_of(errs, &path.child("kind"), &role.kind, kinds);
    if role.name.is_empty() {
        errs.required(path.child("name"), "");
    } else {
        named(errs, &path.child("name"), &role.name, names::path_segment);
    }
    for (i, subject) in subjects.iter().enumerate() {
        let path = Path::new("subjects").index(i);
        if subject.name.is_empty() {
            errs.required(path.child("name"), "");
        }
        let group = text(subject.api_group.as_ref());
        match subject.kind.as_str() {
            "ServiceAccount" => {
                if !subject.name.is_empty() {
                    named(errs, &path.child("name"), &subject.name, names::dns1123_subdomain);
                }
                one_of_texts(errs, &path.child("apiGroup"), group, &[""]);
                if !namespaced && text(subject.namespace.as_ref()).is_empty() {
                    errs.required(path.child("namespace"), "");
                }
            }
            "User" | "Group" => one_of_texts(errs, &path.child("apiGroup"), group, &[GROUP]),
            other => {
                errs.not_supported_text(path.child("kind"), other, &["ServiceAccount", "User", "Group"]);
            }
        }
    }
}

fn role_ref_change(new: &RoleRef, old: &RoleRef, errs: &mut ErrorList) {
    if new != old {
        let group = text(new.api_group.as_ref());
        let shown = json!({ "APIGroup": group, "Kind": new.kind, "Name": new.name });
        errs.invalid("roleRef", shown, "cannot change roleRef");
    }
}
