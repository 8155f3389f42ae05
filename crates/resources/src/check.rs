//! Checks that many kinds share. Each adds field errors with upstream's texts.

use std::collections::BTreeMap;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::validate_labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

/// A rule of [`names`]: the messages for a text that breaks it.
pub(crate) type Rule = fn(&str) -> Vec<String>;

/// What a number below zero is told.
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";
/// What a number below one is told.
pub(crate) const NOT_POSITIVE: &str = "must be greater than zero";

/// One `invalid` error per message.
pub(crate) fn each(errs: &mut ErrorList, path: &Path, value: impl Into<Value>, messages: Vec<String>) {
    if messages.is_empty() {
        return;
    }
    let value = value.into();
    for message in messages {
        errs.invalid(path, value.clone(), message);
    }
}

/// A text that must match a rule of [`names`].
pub(crate) fn named(errs: &mut ErrorList, path: &Path, value: &str, rule: Rule) {
    each(errs, path, value, rule(value));
}

/// The value must be one of a closed set.
pub(crate) fn one_of(errs: &mut ErrorList, path: &Path, value: &str, set: &[&str]) {
    if !set.contains(&value) {
        errs.not_supported(path, value, set);
    }
}

/// As [`one_of`], of what upstream has as a plain text.
pub(crate) fn one_of_texts(errs: &mut ErrorList, path: &Path, value: &str, set: &[&str]) {
    if !set.contains(&value) {
        errs.not_supported_text(path, value, set);
    }
}

/// The number must not be negative.
pub(crate) fn non_negative(errs: &mut ErrorList, path: &Path, value: i64) {
    if value < 0 {
        errs.invalid(path, value, NEGATIVE);
    }
}

/// A port number.
pub(crate) fn port(errs: &mut ErrorList, path: &Path, value: i32) {
    each(errs, path, value, names::port_number(i64::from(value)));
}

/// A port as number or name.
pub(crate) fn port_or_name(errs: &mut ErrorList, path: &Path, value: &IntOrString) {
    match value {
        IntOrString::Int(number) => port(errs, path, *number),
        IntOrString::String(name) => named(errs, path, name, names::port_name),
    }
}

/// A number of things, or a percentage of things; not negative.
pub(crate) fn int_or_percent(errs: &mut ErrorList, path: &Path, value: &IntOrString) {
    match value {
        IntOrString::Int(number) => non_negative(errs, path, i64::from(*number)),
        IntOrString::String(text) => named(errs, path, text, names::percent),
    }
}

/// A set of transport protocols, sorted.
pub(crate) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// A label selector of the API form.
pub(crate) fn label_selector(selector: Option<&LabelSelector>, path: &Path, errs: &mut ErrorList) {
    let Some(selector) = selector else { return };
    if let Some(labels) = &selector.match_labels {
        validate_labels(labels, &path.child("matchLabels"), errs);
    }
    let list = path.child("matchExpressions");
    for (i, term) in selector.match_expressions.iter().flatten().enumerate() {
        let path = list.index(i);
        let values = term.values.as_deref().unwrap_or_default();
        match term.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errs.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errs.forbidden(path.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errs.invalid_typed(path.child("operator"), other, "not a valid selector operator"),
        }
        named(errs, &path.child("key"), &term.key, names::qualified_name);
        for (j, value) in values.iter().enumerate() {
            named(errs, &path.child("values").index(j), value, names::label_value);
        }
    }
}

/// Like [`label_selector`], for selectors that must be syntactically usable when used as a set of labels.
pub(crate) fn has_selector(selector: &LabelSelector) -> bool {
    let some = |map: Option<&BTreeMap<String, String>>| map.is_some_and(|m| !m.is_empty());
    some(selector.match_labels.as_ref()) || selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
}

/// A path below a directory: relative, without `..`.
pub(crate) fn local_path(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.starts_with('/') {
        errs.invalid(path, value, "must be a relative path");
    }
    no_backsteps(errs, path, value);
}

/// No element of the path may be `..`.
pub(crate) fn no_backsteps(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.split('/').any(|part| part == "..") {
        errs.invalid(path, value, "must not contain '..'");
    }
}

/// Like [`local_path`], and the first element may not begin with two dots.
pub(crate) fn local_file(errs: &mut ErrorList, path: &Path, value: &str) {
    local_path(errs, path, value);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.invalid(path, value, "must not start with '..'");
    }
}

/// A value as Go prints a struct: fields in the order of declaration.
pub(crate) fn go_struct(fields: &[(&str, Value)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// An error about a whole struct, shown as [`go_struct`] prints it.
pub(crate) fn about_struct(
    errs: &mut ErrorList,
    kind: ErrorKind,
    path: &Path,
    fields: &[(&str, Value)],
    detail: &str,
) {
    about_text(errs, kind, path, go_struct(fields), detail);
}

/// An error whose value is already in the form that messages show.
pub(crate) fn about_text(errs: &mut ErrorList, kind: ErrorKind, path: &Path, shown: String, detail: &str) {
    errs.push(Error { kind, path: path.to_string(), value: Some(shown), detail: detail.to_owned() });
}
