//! Data of a custom resource as values, read by its schema. What does not fit is an error once looked at.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map as Object, Value as Json};

use super::{embedded, flag, rooted, text};
use crate::escape::{escape, is_reserved};
use crate::time;
use crate::value::{Key, List, ListKind, Map, Value};

/// The value that expressions see for `data` under `schema`.
pub fn to_value(data: &Json, schema: &Json) -> Value {
    let empty = Object::new();
    let of = schema.as_object().unwrap_or(&empty);
    if data.is_null() {
        if flag(of, "nullable") {
            return Value::Null;
        }
        return invalid("invalid data, got null for schema with nullable=false");
    }
    if flag(of, "x-kubernetes-int-or-string") {
        return match data {
            Json::String(text) => Value::string(text),
            Json::Number(number) if number.is_i64() => Value::from_json(data),
            _ => invalid("invalid data, expected XIntOrString value to be either a string or integer"),
        };
    }
    match text(of, "type") {
        "object" => object(data, of, schema),
        "array" => array(data, of),
        "string" => match data.as_str() {
            Some(data) => string(data, text(of, "format")),
            None => invalid(&format!("invalid data, expected string, got {}", go_type(data))),
        },
        "number" => match data.as_f64() {
            Some(number) => Value::Double(number),
            None => invalid(&format!("invalid data, expected float, got {}", go_type(data))),
        },
        "integer" => match data.as_i64() {
            Some(number) => Value::Int(number),
            None => invalid(&format!("invalid data, expected int, got {}", go_type(data))),
        },
        "boolean" => match data.as_bool() {
            Some(value) => Value::Bool(value),
            None => invalid(&format!("invalid data, expected bool, got {}", go_type(data))),
        },
        _ if flag(of, "x-kubernetes-preserve-unknown-fields") => Value::from_json(data),
        other => invalid(&format!(
            "invalid type, expected object, array, number, integer, boolean or string, or no type with \
             x-kubernetes-int-or-string or x-kubernetes-preserve-unknown-fields is true, got {other}"
        )),
    }
}

fn invalid(why: &str) -> Value {
    Value::Invalid(why.into())
}

fn go_type(data: &Json) -> &'static str {
    match data {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

fn object(data: &Json, of: &Object<String, Json>, schema: &Json) -> Value {
    let Some(entries) = data.as_object() else {
        return invalid("invalid data, expected a map for the provided schema with type=object");
    };
    let whole = embedded(schema).then(|| rooted(schema));
    let properties = whole.as_ref().and_then(Json::as_object).unwrap_or(of).get("properties");
    let mut map = Map::new();
    if let Some(properties) = properties.and_then(Json::as_object) {
        for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
            if let (Some(schema), Some(name)) = (properties.get(name), escape(name)) {
                map.insert(Key::String(name.into()), to_value(value, schema));
            }
            // Words that CEL keeps for itself are found as they stand, too: behind a dot they are no words.
            if let Some(schema) = properties.get(name).filter(|_| is_reserved(name)) {
                map.insert(Key::String(name.as_str().into()), to_value(value, schema));
            }
        }
    } else if let Some(schema) = of.get("additionalProperties").filter(|schema| schema.is_object()) {
        for (name, value) in entries {
            map.insert(Key::String(name.as_str().into()), to_value(value, schema));
        }
    }
    Value::Map(Arc::new(map))
}

fn array(data: &Json, of: &Object<String, Json>) -> Value {
    let Some(items) = data.as_array() else {
        return invalid("invalid data, expected an array for the provided schema with type=array");
    };
    let Some(schema) = of.get("items") else {
        return invalid("invalid array type, expected Items with a non-empty Schema");
    };
    let kind = match text(of, "x-kubernetes-list-type") {
        "set" => ListKind::Set,
        "map" => {
            let keys = of.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
            let names = keys.into_iter().flatten().filter_map(Json::as_str);
            ListKind::Map(names.map(|name| escape(name).unwrap_or_else(|| name.to_owned()).into()).collect())
        }
        _ => ListKind::Plain,
    };
    Value::List(List::with_kind(items.iter().map(|item| to_value(item, schema)).collect(), kind))
}

fn string(data: &str, format: &str) -> Value {
    match format {
        "duration" => match time::parse_duration(data) {
            Some(nanos) => Value::Duration(nanos),
            None => invalid(&format!("Invalid duration {data}: unable to parse {data} as duration")),
        },
        "date" => match time::parse_timestamp(&format!("{data}T00:00:00Z")) {
            Ok(nanos) if data.len() == 10 => Value::Timestamp(nanos),
            _ => invalid(&format!("Invalid date formatted string {data}")),
        },
        "date-time" => match time::parse_timestamp(data) {
            Ok(nanos) => Value::Timestamp(nanos),
            Err(_) => invalid(&format!("Invalid date-time formatted string {data}")),
        },
        "byte" => match STANDARD.decode(data) {
            Ok(bytes) => Value::Bytes(bytes.into()),
            Err(_) => invalid(&format!("Invalid byte formatted string {data}")),
        },
        _ => Value::string(data),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_named_like_words_of_the_language_are_found_both_ways() {
        let schema = json!({ "type": "object", "properties": { "namespace": { "type": "integer" } } });
        let Value::Map(map) = to_value(&json!({ "namespace": 1 }), &schema) else { panic!("no map") };
        for name in ["namespace", "__namespace__"] {
            assert!(matches!(map.get(&Key::String(name.into())), Some(Value::Int(1))), "{name}");
        }
    }
}
