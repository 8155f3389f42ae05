//! Small shared pieces of the kinds: column constructors and cell texts.

use std::collections::BTreeMap;

use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, MicroTime, ObjectMeta, Time};
use serde_json::Value;

use crate::def::{Column, age};

/// A column shown always, with its help text.
pub(crate) const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
) -> Column {
    Column { name, kind, format, priority: 0, description }
}

/// A column shown with `-o wide`, with its help text.
pub(crate) const fn wide_column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
) -> Column {
    Column { name, kind, format, priority: 1, description }
}

/// The text of an optional string, empty when absent.
pub(crate) fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}

/// The value, or a placeholder such as `<none>` when empty.
pub(crate) fn or_else(value: &str, placeholder: &str) -> Value {
    (if value.is_empty() { placeholder } else { value }).into()
}

/// An age cell from a micro time.
pub(crate) fn age_micro(time: Option<&MicroTime>, now: Timestamp) -> Value {
    age(time.map(|t| Time(t.0)).as_ref(), now)
}

/// The cell of a `date` column: RFC 3339, or null.
pub(crate) fn date(time: Option<&Time>) -> Value {
    time.map_or(Value::Null, |t| serde_json::to_value(t).unwrap_or(Value::Null))
}

/// Upstream's `labels.FormatLabels`: `a=b,c=d`, or `<none>`.
pub(crate) fn format_labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let pairs: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A label selector as upstream prints it: `app in (a,b),!x`, ordered by key; empty for one that selects all.
pub(crate) fn selector_text(selector: &LabelSelector) -> String {
    let mut parts: Vec<(&str, String)> = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        parts.push((key, format!("{key}={value}")));
    }
    for wanted in selector.match_expressions.iter().flatten() {
        let key = wanted.key.as_str();
        let mut values: Vec<&str> = wanted.values.iter().flatten().map(String::as_str).collect();
        values.sort_unstable();
        let part = match wanted.operator.as_str() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        parts.push((key, part));
    }
    parts.sort_by(|a, b| a.0.cmp(b.0));
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(",")
}

/// Names and images of a template's containers, each joined by commas.
pub(crate) fn containers_and_images(template: Option<&PodTemplateSpec>) -> (Value, Value) {
    let containers = template.and_then(|t| t.spec.as_ref()).map_or(&[][..], |s| &s.containers);
    let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let images: Vec<&str> = containers.iter().map(|c| text(c.image.as_ref())).collect();
    (names.join(",").into(), images.join(",").into())
}

/// `10.0.0.1:80`, or `[::1]:80`.
pub(crate) fn join_host_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Joins at most three items, and tells how many more of `count` there are.
pub(crate) fn join_three(items: &[String], count: usize) -> String {
    const MAX: usize = 3;
    let shown = items.iter().take(MAX).map(String::as_str).collect::<Vec<_>>().join(",");
    if count > MAX { format!("{shown} + {} more...", count - MAX) } else { shown }
}

/// Upstream's `ResetObjectMetaForStatus`: what of the metadata a write of the status may not change.
pub(crate) fn keep_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.deletion_timestamp.clone_from(&old.deletion_timestamp);
    new.generation = old.generation;
    new.labels.clone_from(&old.labels);
    new.annotations.clone_from(&old.annotations);
    new.finalizers.clone_from(&old.finalizers);
    new.owner_references.clone_from(&old.owner_references);
}

/// A warning for the name of a workload that is no DNS label.
pub(crate) fn name_warning(name: &str) -> Option<String> {
    let messages = names::dns1123_label(name);
    (!messages.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a \
             DNS label is recommended: [{}]",
            messages.join(" ")
        )
    })
}
