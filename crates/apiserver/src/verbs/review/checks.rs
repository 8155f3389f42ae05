//! What access reviews may say, with upstream's texts.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::{Status, go, names};
use k8s_openapi::api::authorization::v1 as authz;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// What an access review asks about.
pub(super) struct Asked<'a> {
    pub(super) meta: &'a ObjectMeta,
    pub(super) resource: Option<&'a authz::ResourceAttributes>,
    pub(super) path: Option<&'a authz::NonResourceAttributes>,
}

/// Upstream's refusal of a review: its kind is empty by then.
pub(super) fn refuse(errs: &ErrorList) -> Result<(), Status> {
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("authorization.k8s.io", "", "", errs)) }
}

/// The attributes as upstream prints them in messages.
fn shown(path: Option<&authz::NonResourceAttributes>) -> Option<String> {
    let text = |t: &Option<String>| Value::from(t.clone().unwrap_or_default()).to_string();
    path.map(|path| format!("{{\"Path\":{},\"Verb\":{}}}", text(&path.path), text(&path.verb)))
}

fn invalid_path(errs: &mut ErrorList, at: &str, path: Option<&authz::NonResourceAttributes>, why: &str) {
    errs.push(coracle_meta::field::Error {
        kind: coracle_meta::field::ErrorKind::Invalid,
        path: at.to_owned(),
        value: Some(shown(path).unwrap_or_else(|| "null".to_owned())),
        detail: why.to_owned(),
    });
}

/// Checks what is asked; `subject`: the user and whether groups are named, where the review names them.
pub(super) fn asked(of: &Asked<'_>, subject: Option<(&str, bool)>, errs: &mut ErrorList) {
    match (of.resource, of.path) {
        (Some(_), Some(_)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            invalid_path(errs, "spec.nonResourceAttributes", of.path, why);
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errs.invalid("spec.resourceAttributes", Value::Null, why);
        }
        _ => {}
    }
    if let Some((user, grouped)) = subject
        && user.is_empty()
        && !grouped
    {
        errs.invalid("spec.user", user, "at least one of user or group must be specified");
    }
    let Some(resource) = of.resource else { return };
    let path = Path::new("spec.resourceAttributes");
    if let Some(selector) = &resource.field_selector {
        let path = path.child("fieldSelector");
        let list = selector.requirements.as_deref().unwrap_or_default();
        one_form(selector.raw_selector.as_deref(), list.len(), &path, errs);
        for (i, wanted) in list.iter().enumerate() {
            let path = path.child("requirements").index(i);
            if wanted.key.is_empty() {
                errs.required(path.child("key"), "must be specified");
            }
            values(&wanted.operator, wanted.values.as_deref(), &path, errs);
        }
    }
    if let Some(selector) = &resource.label_selector {
        let path = path.child("labelSelector");
        let list = selector.requirements.as_deref().unwrap_or_default();
        one_form(selector.raw_selector.as_deref(), list.len(), &path, errs);
        for (i, wanted) in list.iter().enumerate() {
            let path = path.child("requirements").index(i);
            values(&wanted.operator, wanted.values.as_deref(), &path, errs);
            each(errs, &path.child("key"), &wanted.key, names::qualified_name(&wanted.key));
            for (j, value) in wanted.values.iter().flatten().enumerate() {
                each(errs, &path.child("values").index(j), value, names::label_value(value));
            }
        }
    }
}

/// The rest of a LocalSubjectAccessReview: its namespace, and nothing but resources.
pub(super) fn local(of: &Asked<'_>, errs: &mut ErrorList) {
    let own = of.meta.namespace.as_deref().unwrap_or("");
    let namespace = of.resource.map(|r| r.namespace.as_deref().unwrap_or(""));
    if let Some(namespace) = namespace.filter(|n| *n != own) {
        errs.invalid("spec.resourceAttributes.namespace", namespace, "must match metadata.namespace");
    }
    if of.path.is_some() {
        let why = "disallowed on this kind of request";
        invalid_path(errs, "spec.nonResourceAttributes", of.path, why);
    }
}

/// Metadata has no place in a review, but for the namespace of a local one.
pub(super) fn metadata(meta: &ObjectMeta, local: bool, errs: &mut ErrorList) {
    let mut rest = meta.clone();
    rest.managed_fields = None;
    if local {
        rest.namespace = None;
    }
    if rest == ObjectMeta::default() {
        return;
    }
    let value = serde_json::to_value(meta).unwrap_or_default();
    errs.push(coracle_meta::field::Error {
        kind: coracle_meta::field::ErrorKind::Invalid,
        path: "metadata".to_owned(),
        value: Some(go::to_json("meta/v1.ObjectMeta", &value)),
        detail: if local { "must be empty except for namespace" } else { "must be empty" }.to_owned(),
    });
}

/// A selector is given as text or as requirements.
fn one_form(raw: Option<&str>, requirements: usize, path: &Path, errs: &mut ErrorList) {
    match (raw.filter(|raw| !raw.is_empty()), requirements) {
        (Some(raw), 1..) => {
            let why = "may not specified at the same time as requirements";
            errs.invalid(path.child("rawSelector"), raw, why);
        }
        (None, 0) => {
            let why = format!("when {path} is specified, requirements or rawSelector is required");
            errs.required(path.child("requirements"), why);
        }
        _ => {}
    }
}

fn values(operator: &str, values: Option<&[String]>, path: &Path, errs: &mut ErrorList) {
    let none = values.is_none_or(<[String]>::is_empty);
    match operator {
        "In" | "NotIn" if none => {
            errs.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !none => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errs.forbidden(path.child("values"), why);
        }
        _ => {}
    }
}

fn each(errs: &mut ErrorList, path: &Path, value: &str, messages: Vec<String>) {
    for message in messages {
        errs.invalid(path, value, message);
    }
}

/// What the status says of selectors that cannot be used, or only in part.
pub(super) fn selector_faults(resource: &authz::ResourceAttributes) -> Option<String> {
    let mut faults = Vec::new();
    let mut note = |what: &str, used: usize, ignored: usize| {
        if ignored > 0 {
            let part = if used > 0 { "partially ignored" } else { "ignored" };
            faults.push(format!("spec.resourceAttributes.{what} {part} due to parse error"));
        }
    };
    if let Some(selector) = &resource.field_selector {
        let raw = selector.raw_selector.as_deref().unwrap_or("");
        let bad_raw = !raw.is_empty() && coracle_meta::selector::FieldSelector::parse(raw).is_err();
        let list = selector.requirements.as_deref().unwrap_or_default();
        let used = list.iter().filter(|r| {
            matches!(r.operator.as_str(), "In" | "NotIn") && r.values.as_ref().is_some_and(|v| v.len() == 1)
        });
        let used = used.count();
        note("fieldSelector", used, usize::from(bad_raw) + list.len() - used);
    }
    if let Some(selector) = &resource.label_selector {
        let raw = selector.raw_selector.as_deref().unwrap_or("");
        let bad_raw = !raw.is_empty() && coracle_meta::selector::LabelSelector::parse(raw).is_err();
        let list = selector.requirements.as_deref().unwrap_or_default();
        let known = |operator: &str| matches!(operator, "In" | "NotIn" | "Exists" | "DoesNotExist");
        let used = list.iter().filter(|r| known(&r.operator)).count();
        note("labelSelector", used, usize::from(bad_raw) + list.len() - used);
    }
    (!faults.is_empty()).then(|| faults.join("; "))
}
