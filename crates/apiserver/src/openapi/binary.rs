//! OpenAPI documents as protobuf: what kubectl and client generators ask for. The shape of the messages is a table in
//! `messages.txt`, made by `tools/openapi_protobuf.py`.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::protobuf::wire::{double, integer, nested, text};

/// One field of a message.
struct Field {
    number: u32,
    name: &'static str,
    kind: &'static str,
    repeated: bool,
}

/// A message.
struct Message {
    /// It is one of its fields.
    one: bool,
    fields: Vec<Field>,
}

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let lines = include_str!("messages.txt").lines();
    lines
        .filter_map(|line| {
            let mut words = line.split(' ').peekable();
            let name = words.next()?;
            let one = words.next_if_eq(&"|").is_some();
            Some((name, Message { one, fields: words.filter_map(field).collect() }))
        })
        .collect()
});

fn field(word: &'static str) -> Option<Field> {
    let mut parts = word.splitn(3, ':');
    let (number, name, kind) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let bare = kind.strip_prefix('*');
    Some(Field { number, name, kind: bare.unwrap_or(kind), repeated: bare.is_some() })
}

/// The document's protobuf form. `version`: `v2` or `v3`.
pub(crate) fn encode(document: &Value, version: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, &format!("{version}.Document"), document);
    out
}

fn message(out: &mut Vec<u8>, name: &str, value: &Value) {
    let (version, short) = name.split_once('.').unwrap_or(("", name));
    match short {
        // Values of any type go as YAML, which JSON is.
        "Any" => return text(out, 2, &value.to_string()),
        "TypeItem" | "StringArray" => {
            let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            return all.iter().filter_map(Value::as_str).for_each(|item| text(out, 1, item));
        }
        "ItemsItem" => {
            let kind = if version == "v2" { "v2.Schema" } else { "v3.SchemaOrReference" };
            return nested(out, 1, |out| message(out, kind, value));
        }
        _ => {}
    }
    let Some(shape) = MESSAGES.get(name) else { return };
    if shape.one {
        let which = alternative(short, value);
        if let Some(field) = shape.fields.iter().find(|f| Some(f.number) == which) {
            single(out, field, value);
        }
        return;
    }
    let Value::Object(map) = value else { return };
    for field in &shape.fields {
        let named = field.kind.split_once('.').and_then(|(_, kind)| kind.strip_prefix("Named"));
        match (named, map.get(field.name)) {
            (Some(of), _) => entries(out, field, &format!("{version}.{of}"), map),
            (None, Some(Value::Array(items))) if field.repeated => {
                items.iter().for_each(|item| single(out, field, item));
            }
            (None, Some(value)) => single(out, field, value),
            (None, None) => {}
        }
    }
}

/// Which of several things the value is, by the number of its field.
fn alternative(message: &str, value: &Value) -> Option<u32> {
    let is = |key: &str| value.get(key).and_then(Value::as_str);
    Some(match message {
        "Parameter" => 1 + u32::from(is("in") != Some("body")),
        "NonBodyParameter" => match is("in")? {
            "header" => 1,
            "formData" => 2,
            "query" => 3,
            _ => 4,
        },
        "SecurityDefinitionsItem" => 1 + u32::from(is("type") == Some("apiKey")),
        "DefaultType" => match value {
            Value::Number(_) => 1,
            Value::Bool(_) => 2,
            Value::String(_) => 3,
            _ => return None,
        },
        "AdditionalPropertiesItem" => 1 + u32::from(value.is_boolean()),
        _ => 1 + u32::from(value.get("$ref").is_some()),
    })
}

/// The entries of a map that the field is about.
fn entries(out: &mut Vec<u8>, field: &Field, of: &str, map: &Map<String, Value>) {
    let concerns = |key: &str| match field.name {
        "vendorExtension" | "specificationExtension" => key.starts_with("x-"),
        "path" => key.starts_with('/'),
        "responseCode" => !key.starts_with("x-"),
        "responseOrReference" => key != "default" && !key.starts_with("x-"),
        _ => true,
    };
    for (key, value) in map.iter().filter(|(key, _)| concerns(key)) {
        nested(out, field.number, |out| {
            text(out, 1, key);
            match value {
                Value::String(value) if of.ends_with(".String") => text(out, 2, value),
                value => nested(out, 2, |out| message(out, of, value)),
            }
        });
    }
}

/// One field; zero values are not written.
fn single(out: &mut Vec<u8>, field: &Field, value: &Value) {
    match (field.kind, value) {
        ("s", Value::String(value)) if !value.is_empty() => text(out, field.number, value),
        ("b", Value::Bool(true)) => integer(out, field.number, 1),
        ("i", Value::Number(n)) => integer(out, field.number, n.as_i64().unwrap_or(0)),
        ("f", Value::Number(n)) => double(out, field.number, n.as_f64().unwrap_or(0.0)),
        ("s" | "b" | "i" | "f", _) => {}
        (kind, value) => nested(out, field.number, |out| message(out, kind, value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(name: &str, value: &Value, want: &[u8]) {
        let mut out = Vec::new();
        message(&mut out, name, value);
        assert_eq!(out, want, "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn schemas_have_types_references_and_extensions_where_gnostic_reads_them() {
        let typed = json!({ "type": "string", "x-a": [1] });
        check("v2.Schema", &typed, b"\xb2\x01\x08\x0a\x06string\xfa\x01\x0c\x0a\x03x-a\x12\x05\x12\x03[1]");
        check("v2.Schema", &json!({ "$ref": "#/d" }), b"\x0a\x03#/d");
        check("v3.SchemaOrReference", &json!({ "$ref": "#/d" }), b"\x12\x05\x0a\x03#/d");
    }

    #[test]
    fn body_and_query_parameters_are_told_apart() {
        check("v2.Parameter", &json!({ "in": "body" }), b"\x0a\x06\x1a\x04body");
        check("v2.Parameter", &json!({ "in": "query" }), b"\x12\x09\x1a\x07\x12\x05query");
    }

    #[test]
    fn paths_and_response_codes_are_named_entries() {
        check("v2.Paths", &json!({ "/a": {} }), b"\x12\x06\x0a\x02/a\x12\x00");
        check("v2.Responses", &json!({ "200": {} }), b"\x0a\x09\x0a\x03200\x12\x02\x0a\x00");
    }
}
