//! The `authorization.k8s.io` group, `v1`: reviews answered by the server itself.

mod local_subject_access_review;
mod self_subject_access_review;
mod self_subject_rules_review;
mod subject_access_review;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, ResourceAttributes};
use serde_json::Value;

use crate::check::{about_struct, named};
use crate::common::text;
use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &local_subject_access_review::DEF,
    &self_subject_access_review::DEF,
    &self_subject_rules_review::DEF,
    &subject_access_review::DEF,
];

/// Checks what is asked: about a resource or about a URL, not both.
fn attributes(
    resource: Option<&ResourceAttributes>,
    other: Option<&NonResourceAttributes>,
    errs: &mut ErrorList,
) {
    let path = Path::new("spec");
    match (resource, other) {
        (Some(_), Some(other)) => {
            let shown =
                [("Path", text(other.path.as_ref()).into()), ("Verb", text(other.verb.as_ref()).into())];
            let why = "cannot be specified in combination with resourceAttributes";
            about_struct(errs, ErrorKind::Invalid, &path.child("nonResourceAttributes"), &shown, why);
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errs.invalid(path.child("resourceAttributes"), Value::Null, why);
        }
        _ => {}
    }
    if let Some(resource) = resource {
        selectors(resource, &path.child("resourceAttributes"), errs);
    }
}

fn selectors(resource: &ResourceAttributes, path: &Path, errs: &mut ErrorList) {
    if let Some(selector) = &resource.field_selector {
        let at = path.child("fieldSelector");
        let terms = selector.requirements.as_deref().unwrap_or_default();
        raw_or_terms(text(selector.raw_selector.as_ref()), terms.len(), &at, errs);
        for (i, term) in terms.iter().enumerate() {
            let at = at.child("requirements").index(i);
            if term.key.is_empty() {
                errs.required(at.child("key"), "must be specified");
            }
            operator(&term.operator, term.values.as_ref().map_or(0, Vec::len), &at, errs);
        }
    }
    if let Some(selector) = &resource.label_selector {
        let at = path.child("labelSelector");
        let terms = selector.requirements.as_deref().unwrap_or_default();
        raw_or_terms(text(selector.raw_selector.as_ref()), terms.len(), &at, errs);
        for (i, term) in terms.iter().enumerate() {
            let at = at.child("requirements").index(i);
            operator(&term.operator, term.values.as_ref().map_or(0, Vec::len), &at, errs);
            named(errs, &at.child("key"), &term.key, names::qualified_name);
            for (j, value) in term.values.iter().flatten().enumerate() {
                named(errs, &at.child("values").index(j), value, names::label_value);
            }
        }
    }
}

fn raw_or_terms(raw: &str, terms: usize, path: &Path, errs: &mut ErrorList) {
    if !raw.is_empty() && terms > 0 {
        errs.invalid(path.child("rawSelector"), raw, "may not specified at the same time as requirements");
    }
    if raw.is_empty() && terms == 0 {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errs.required(path.child("requirements"), why);
    }
}

fn operator(operator: &str, values: usize, path: &Path, errs: &mut ErrorList) {
    match operator {
        "In" | "NotIn" if values == 0 => {
            errs.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errs.forbidden(path.child("values"), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errs.invalid_typed(path.child("operator"), other, "not a valid selector operator"),
    }
}
