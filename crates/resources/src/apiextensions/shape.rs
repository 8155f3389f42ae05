//! The JSON of schemas as Go writes it: no zero values, whole numbers without a fraction.

use serde_json::{Map, Value};

/// Brings the schemas of a definition into that shape.
pub fn tidy(definition: &mut Value) {
    let versions = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema").and_then(Value::as_object_mut) {
            tidy_schema(schema);
        }
        // A structure without fields.
        if let Some(status) = version.pointer_mut("/subresources/status").and_then(Value::as_object_mut) {
            status.clear();
        }
    }
}

/// Fields that Go leaves out when they are empty, by their types; a value of another type stays, to be refused.
const TEXTS: [&str; 7] = ["id", "$schema", "description", "type", "format", "title", "pattern"];
const LISTS: [&str; 7] =
    ["enum", "required", "allOf", "oneOf", "anyOf", "x-kubernetes-list-map-keys", "x-kubernetes-validations"];
const MAPS: [&str; 4] = ["properties", "patternProperties", "dependencies", "definitions"];
const FLAGS: [&str; 6] = [
    "exclusiveMaximum",
    "exclusiveMinimum",
    "uniqueItems",
    "nullable",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
];

fn tidy_schema(schema: &mut Map<String, Value>) {
    schema.retain(|name, value| match &*value {
        Value::Null => false,
        Value::Bool(set) => *set || !FLAGS.contains(&name.as_str()),
        Value::String(text) => !text.is_empty() || !TEXTS.contains(&name.as_str()),
        Value::Array(items) => !items.is_empty() || !LISTS.contains(&name.as_str()),
        Value::Object(map) => !map.is_empty() || !MAPS.contains(&name.as_str()),
        Value::Number(_) => true,
    });
    for (name, value) in schema.iter_mut() {
        match name.as_str() {
            "maximum" | "minimum" | "multipleOf" => whole(value),
            "items" | "additionalProperties" | "additionalItems" | "not" | "allOf" | "anyOf" | "oneOf" => {
                below(value);
            }
            // Go takes anything for an empty list of names.
            "dependencies" => {
                for value in value.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
                    match value {
                        Value::Object(_) | Value::Array(_) => below(value),
                        _ => *value = Value::Array(Vec::new()),
                    }
                }
            }
            "properties" | "patternProperties" | "definitions" => {
                value.as_object_mut().into_iter().flat_map(|map| map.values_mut()).for_each(below);
            }
            _ => {}
        }
    }
}

fn below(value: &mut Value) {
    match value {
        Value::Object(schema) => tidy_schema(schema),
        Value::Array(schemas) => schemas.iter_mut().for_each(below),
        _ => {}
    }
}

fn whole(value: &mut Value) {
    let Some(f) = value.as_f64().filter(|_| value.is_f64()) else { return };
    if f.fract() == 0.0 && f.abs() < 9e15 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
        let n = f as i64;
        *value = n.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_values_of_another_type_stay_to_be_refused() {
        let schema = json!({ "allOf": {}, "definitions": [], "format": {}, "required": [], "not": {} });
        let mut crd = json!({ "spec": { "versions": [{ "schema": { "openAPIV3Schema": schema } }] } });
        tidy(&mut crd);
        let left = json!({ "allOf": {}, "definitions": [], "format": {}, "not": {} });
        assert_eq!(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], left);
    }

    #[test]
    fn zero_values_and_fractions_of_whole_numbers_go() {
        let mut crd = json!({ "spec": { "versions": [{ "schema": { "openAPIV3Schema": { "type": "object",
            "properties": { "a": { "type": "array", "nullable": false, "required": [],
                "items": { "type": "integer", "description": "", "maximum": 5.0, "default": 1.0 } } } } } }] } });
        tidy(&mut crd);
        let items = json!({ "type": "integer", "maximum": 5, "default": 1.0 });
        let expected =
            json!({ "type": "object", "properties": { "a": { "type": "array", "items": items } } });
        assert_eq!(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], expected);
    }
}
