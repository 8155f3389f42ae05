//! The metadata of whole objects, also of those embedded in others: coerced into its Go shape, and checked.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::{go, names, object_meta};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use crate::schema::Schema;

/// Go's name of the type.
const TYPE: &str = "meta/v1.ObjectMeta";

/// Checks that kind, apiVersion and metadata of whole objects have the right types.
pub fn check_shape(value: &Value, schema: &Schema, at: &Path, whole: bool, errs: &mut ErrorList) {
    walk(value, schema, at, whole, &mut |map, at| shape(map, at, errs));
}

/// As [`check_shape`] for the top of a stored or sent object, with values of the wrong type dropped instead,
/// and with metadata brought into the shape in which Go would write it. Unknown fields of embedded metadata
/// are named.
pub fn coerce(value: &mut Value, schema: &Schema, drop_malformed: bool, unknown: &mut Vec<String>) {
    coerce_below(value, schema, "", drop_malformed, unknown);
}

/// Checks names, labels … of whole objects. `whole`: the value itself is one, embedded.
pub fn validate(value: &Value, schema: &Schema, at: &Path, whole: bool, errs: &mut ErrorList) {
    walk(value, schema, at, whole, &mut |map, at| embedded(map, at, errs));
}

/// Calls `visit` with every whole object within a value.
fn walk(
    value: &Value,
    schema: &Schema,
    at: &Path,
    whole: bool,
    visit: &mut dyn FnMut(&Map<String, Value>, &Path),
) {
    match value {
        Value::Object(map) => {
            if whole {
                visit(map, at);
            }
            for (name, value) in map {
                if let Some(property) = schema.properties.get(name) {
                    walk(value, property, &at.child(name), property.embedded, visit);
                } else if let Some(rest) = schema.additional_schema() {
                    walk(value, rest, &at.key(name), rest.embedded, visit);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for (i, item) in items.iter().enumerate() {
                walk(item, schema, &at.index(i), schema.embedded, visit);
            }
        }
        _ => {}
    }
}

fn shape(map: &Map<String, Value>, at: &Path, errs: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        if let Some(value) = map.get(name).filter(|v| !v.is_string()) {
            errs.invalid(at.child(name), value.clone(), "must be a string");
        }
    }
    if let Some(value) = map.get("metadata")
        && let Err(why) = parse(value)
    {
        errs.invalid(at.child("metadata"), value.clone(), why);
    }
}

/// Metadata by Go's rules.
fn parse(value: &Value) -> Result<ObjectMeta, String> {
    let mut value = value.clone();
    if !go::canonicalize(TYPE, &mut value)
        && let Some(why) = go::type_error(TYPE, value.to_string().as_bytes())
    {
        return Err(why);
    }
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// Brings metadata into the shape in which Go would write it. Yields the fields that it does not have.
///
/// # Errors
/// Go's text for a value of the wrong type; `lenient` drops such values instead.
pub fn tidy(meta: &mut Value, lenient: bool) -> Result<Vec<String>, String> {
    if lenient && let Value::Object(fields) = meta {
        fields.retain(|name, value| {
            parse(&Value::Object(Map::from_iter([(name.clone(), value.clone())]))).is_ok()
        });
    }
    let parsed = parse(meta)?;
    let known = fields_of();
    let gone = meta.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    let gone = gone.filter(|name| !known.contains(&name.as_str())).collect();
    *meta = serde_json::to_value(parsed).unwrap_or_default();
    Ok(gone)
}

fn coerce_below(value: &mut Value, schema: &Schema, at: &str, lenient: bool, unknown: &mut Vec<String>) {
    let join = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match value {
        Value::Object(map) => {
            if schema.embedded {
                coerce_one(map, at, lenient, unknown);
            }
            for (name, value) in map.iter_mut() {
                if let Some(inner) = schema.field(name) {
                    coerce_below(value, inner, &join(name), lenient, unknown);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for (i, item) in items.iter_mut().enumerate() {
                coerce_below(item, schema, &format!("{at}[{i}]"), lenient, unknown);
            }
        }
        _ => {}
    }
}

fn coerce_one(map: &mut Map<String, Value>, at: &str, lenient: bool, unknown: &mut Vec<String>) {
    for name in ["apiVersion", "kind"] {
        if lenient && map.get(name).is_some_and(|v| !v.is_string()) {
            map.remove(name);
        }
    }
    let Some(meta) = map.get_mut("metadata") else { return };
    if let Ok(gone) = tidy(meta, lenient) {
        unknown.extend(gone.into_iter().map(|name| format!("{at}.metadata.{name}")));
    }
}

/// The fields of metadata.
fn fields_of() -> &'static [&'static str] {
    &[
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]
}

fn embedded(map: &Map<String, Value>, at: &Path, errs: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let at = at.child(name);
        match map.get(name) {
            None => errs.required(at, ""),
            Some(Value::String(text)) if text.is_empty() => errs.invalid(at, "", "must not be empty"),
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let why = format!("unexpected GroupVersion string: {text}");
                    errs.invalid(at, text.as_str(), why);
                }
            }
            Some(Value::String(text)) => {
                let faults = names::dns1035_label(&text.to_lowercase());
                if !faults.is_empty() {
                    let why = faults.join(",");
                    let why = format!("may have mixed case, but should otherwise match: {why}");
                    errs.invalid(at, text.as_str(), why);
                }
            }
            Some(other) => errs.invalid(at, other.clone(), "must be a string"),
        }
    }
    let Some(value) = map.get("metadata") else { return };
    let at = at.child("metadata");
    match parse(value) {
        Err(why) => errs.invalid(at, value.clone(), why),
        Ok(mut meta) => {
            if meta.name.as_deref().is_none_or(str::is_empty) {
                meta.name = Some("fakename".into());
            }
            let namespaced = meta.namespace.as_deref().is_some_and(|ns| !ns.is_empty());
            let check = |name: &str, _prefix: bool| names::path_segment(name);
            let mut found = ErrorList::new();
            object_meta::validate(&meta, namespaced, &check, &mut found);
            for mut error in found.iter().cloned() {
                error.path = format!("{at}{}", error.path.strip_prefix("metadata").unwrap_or(&error.path));
                errs.push(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn embedded_objects_must_be_whole_and_their_metadata_valid() {
        let schema = schema(json!({ "type": "object", "properties": { "t": { "type": "object",
            "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true } } }));
        let mut errs = ErrorList::new();
        let value = json!({ "t": { "kind": "X", "metadata": { "labels": { "bad key!": "x" } } } });
        validate(&value, &schema, &Path::new(""), false, &mut errs);
        let found: Vec<String> = errs.iter().map(|e| format!("{} {:?}", e.path, e.kind)).collect();
        assert_eq!(found, ["t.apiVersion Required", "t.metadata.labels Invalid"]);
        let mut value = json!({ "t": { "kind": "X", "metadata": { "name": "n", "foo": 1, "labels": 5 } } });
        let mut unknown = Vec::new();
        coerce(&mut value, &schema, true, &mut unknown);
        assert_eq!(value, json!({ "t": { "kind": "X", "metadata": { "name": "n" } } }));
        assert_eq!(unknown, ["t.metadata.foo"]);
    }
}
