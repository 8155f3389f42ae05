//! Brings a JSON value into the form that decoding it into Go and encoding it again gives, as far as the
//! typed decoder that follows needs it: empty values of fields that are no pointers count as absent, and
//! `null` in lists and maps is the zero value.

use serde_json::{Map, Value};

use super::{Field, Id, Shape, TABLE, Table, Type, base64, time};
use crate::quantity::Quantity;

/// Tidies a value meant for the type. False when a value somewhere has the wrong type or form; then
/// [`super::type_error`] tells the message. Types that are not known are left alone.
pub fn canonicalize(type_name: &str, value: &mut Value) -> bool {
    let table = &*TABLE;
    table.names.get(type_name).is_none_or(|id| tidy(table, *id, value))
}

fn tidy(table: &Table, id: Id, value: &mut Value) -> bool {
    let shape = &table.get(id).shape;
    match (shape, &mut *value) {
        (Shape::Any | Shape::Schema(_), _) | (_, Value::Null) => true,
        (Shape::Struct(_), Value::Object(map)) => fields(table, id, map),
        (Shape::List(element), Value::Array(items)) => {
            items.iter_mut().all(|item| element_of(table, *element, item))
        }
        (Shape::Map(element), Value::Object(map)) => {
            map.values_mut().all(|item| element_of(table, *element, item))
        }
        (Shape::Bytes, Value::String(text)) => base64::corrupt_at(text.as_bytes()).is_none(),
        (Shape::String | Shape::IntOrString, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Float, Value::Number(_)) => true,
        (Shape::Time, Value::String(text)) => time::parse_error(text, false).is_none(),
        (Shape::MicroTime, Value::String(text)) => time::parse_error(text, true).is_none(),
        (Shape::Int(64), Value::Number(number)) => number.is_i64(),
        (Shape::Int(_) | Shape::IntOrString, Value::Number(number)) => {
            number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (Shape::Quantity, Value::String(text)) => {
            let amount = text.trim();
            let fits = Quantity::parse(amount).is_ok();
            if amount.len() != text.len() {
                *text = amount.to_owned();
            }
            fits
        }
        (Shape::Quantity, Value::Number(number)) => {
            *value = Value::String(number.to_string());
            true
        }
        _ => false,
    }
}

/// An item of a list or map, where `null` stands for the zero value.
fn element_of(table: &Table, id: Id, item: &mut Value) -> bool {
    if item.is_null() {
        *item = match table.get(id).shape {
            Shape::String | Shape::Bytes => "".into(),
            Shape::Int(_) | Shape::Float | Shape::IntOrString => 0.into(),
            Shape::Bool => false.into(),
            Shape::Quantity => "0".into(),
            Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
            Shape::List(_) => Value::Array(Vec::new()),
            Shape::Any | Shape::Schema(_) | Shape::Time | Shape::MicroTime => return true,
        };
    }
    tidy(table, id, item)
}

fn fields(table: &Table, id: Id, map: &mut Map<String, Value>) -> bool {
    let of = table.get(id);
    let mut fits = true;
    map.retain(|name, value| {
        let Some(field) = of.field(name) else { return true };
        let kept =
            if is_template_of_claims(of) && name == "metadata" { empty_lists(value) } else { Vec::new() };
        if !tidy(table, field.of, value) {
            fits = false;
            return true;
        }
        for name in kept {
            value[name] = Value::Array(Vec::new());
        }
        mark_empty(table, field, value);
        field.pointer || !field.omit || !is_zero(&table.get(field.of).shape, value)
    });
    fits
}

/// Whether upstream asks which fields of the metadata within were set at all, be it to nothing.
fn is_template_of_claims(of: &Type) -> bool {
    matches!(of.display.as_str(), "v1.PersistentVolumeClaimTemplate" | "v1.ResourceClaimTemplateSpec")
}

fn empty_lists(value: &Value) -> Vec<String> {
    let fields = value.as_object().into_iter().flatten();
    fields.filter(|(_, v)| v.as_array().is_some_and(Vec::is_empty)).map(|(name, _)| name.clone()).collect()
}

/// A required structure that is there but empty is told from an absent one by an empty field in it: the typed
/// form has no other place for it.
fn mark_empty(table: &Table, field: &Field, value: &mut Value) {
    let of = table.get(field.of);
    if field.pointer
        && let Value::Object(map) = value
        && map.iter().all(|(name, value)| value.is_null() || of.field(name).is_none())
    {
        match of.display.as_str() {
            "v1.LabelSelector" if !field.omit => {
                drop(map.insert("matchLabels".to_owned(), Value::Object(Map::new())))
            }
            "v1.ParentReference" => drop(map.insert("group".to_owned(), "".into())),
            _ => {}
        }
    }
}

/// Whether Go leaves the value out of an encoding. What decodes itself is a structure to it, which never is.
fn is_zero(shape: &Shape, value: &Value) -> bool {
    match value {
        _ if matches!(shape, Shape::Any | Shape::Schema(_)) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(shape, Shape::Map(_)),
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::canonicalize;

    #[test]
    fn empty_values_count_as_absent_unless_they_are_data_or_pointers() {
        let mut value = json!({
            "metadata": { "labels": {}, "annotations": { "a": "", "b": null }, "generateName": "" },
            "spec": { "tolerations": [], "hostNetwork": false, "securityContext": {}, "runtimeClassName": "",
                      "containers": [{ "args": [null], "name": "c",
                                       "resources": { "limits": { "cpu": 1 } } }],
                      "imagePullSecrets": [null], "terminationGracePeriodSeconds": 0, "nodeName": "" },
        });
        assert!(canonicalize("core/v1.Pod", &mut value));
        let expected = json!({
            "metadata": { "annotations": { "a": "", "b": "" } },
            "spec": { "securityContext": {}, "runtimeClassName": "",
                      "containers": [{ "args": [""], "name": "c",
                                       "resources": { "limits": { "cpu": "1" } } }],
                      "imagePullSecrets": [{}], "terminationGracePeriodSeconds": 0 },
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn an_empty_selector_is_no_absent_one() {
        let mut value = json!({ "spec": { "selector": { "matchLabels": {} } } });
        assert!(canonicalize("apps/v1.Deployment", &mut value));
        assert_eq!(value, json!({ "spec": { "selector": { "matchLabels": {} } } }));
    }

    #[test]
    fn values_of_another_type_are_noticed() {
        let check = |text: serde_json::Value, fits: bool| {
            let mut value = json!({ "spec": text });
            assert_eq!(canonicalize("core/v1.Pod", &mut value), fits, "{value}");
        };
        check(json!({ "priority": 2_147_483_648_i64 }), false);
        check(json!({ "priority": 1, "hostname": null, "containers": null }), true);
        check(json!({ "overhead": { "cpu": "x" } }), false);
        check(json!({ "containers": {} }), false);
        check(json!({ "securityContext": [] }), false);
        check(json!({ "nodeSelector": { "a": 1 } }), false);
    }

    #[test]
    fn times_have_gos_forms() {
        let check = |time: &str, fits: bool| {
            let mut value = json!({ "spec": { "renewTime": time } });
            assert_eq!(canonicalize("coordination/v1.Lease", &mut value), fits, "{time}");
        };
        check("2026-01-02T03:04:05.000000Z", true);
        check("2026-01-02T03:04:05.123456+01:00", true);
        check("2026-01-02T03:04:05.5Z", false);
        check("2026-01-02T03:04:05Z", false);
    }
}
