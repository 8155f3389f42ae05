//! Values as Go encodes them: the fields of structs in the order of their declaration, keys of maps sorted. A document
//! of a type that is not in the table (a custom resource) is a map.

use serde_json::Value;

use super::{Id, Shape, TABLE, Type, number};

/// How an answer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// On one line.
    Compact,
    /// Over lines, with steps of two spaces.
    Pretty,
}

/// A value of that type on one line.
pub fn to_json(type_name: &str, value: &Value) -> String {
    let mut out = Vec::new();
    append(type_name, value, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// Appends a value of that type on one line.
pub fn append(type_name: &str, value: &Value, out: &mut Vec<u8>) {
    let mut writer = Writer { out: std::mem::take(out), style: Style::Compact, depth: 0 };
    writer.value(TABLE.names.get(type_name).copied(), value, &Value::Null);
    *out = writer.out;
}

/// A patched value as upstream shows it: the objects and lists on the way to a change have lost their order,
/// and `touched` (objects all the way) says which these are.
pub fn patched_json(type_name: &str, value: &Value, touched: &Value) -> String {
    let mut writer = Writer { out: Vec::new(), style: Style::Compact, depth: 0 };
    writer.value(TABLE.names.get(type_name).copied(), value, touched);
    String::from_utf8(html_safe(writer.out)).unwrap_or_default()
}

/// A document as an answer carries it, of the type that its `kind` and `apiVersion` name; safe within HTML, as Go's
/// encoder writes strings.
pub fn encode(document: &Value, style: Style) -> Vec<u8> {
    encode_id(document_type(document), document, style)
}

/// As [`encode`], of a type that the document does not name.
pub fn encode_as(type_name: &str, document: &Value, style: Style) -> Vec<u8> {
    encode_id(TABLE.names.get(type_name).copied(), document, style)
}

fn encode_id(id: Option<Id>, document: &Value, style: Style) -> Vec<u8> {
    let mut writer = Writer { out: Vec::with_capacity(512), style, depth: 0 };
    writer.value(id, document, &Value::Null);
    html_safe(writer.out)
}

/// The type of a document, unless it is a custom resource.
fn document_type(document: &Value) -> Option<Id> {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let kind = text("kind")?;
    let api_version = text("apiVersion").unwrap_or("v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = match group {
        "" => "core",
        "rbac.authorization.k8s.io" => "rbac",
        "flowcontrol.apiserver.k8s.io" => "flowcontrol",
        _ => group.strip_suffix(".k8s.io").unwrap_or(group),
    };
    let of = |name: String| TABLE.names.get(&name).copied();
    let shared = || matches!(package, "core" | "meta").then(|| of(format!("meta/v1.{kind}"))).flatten();
    of(format!("{package}/{version}.{kind}")).or_else(shared)
}

struct Writer {
    out: Vec<u8>,
    style: Style,
    depth: usize,
}

impl Writer {
    fn value(&mut self, id: Option<Id>, value: &Value, touched: &Value) {
        let of = id.map(|id| TABLE.get(id));
        match value {
            Value::Object(map) if map.is_empty() => self.out.extend_from_slice(b"{}"),
            Value::Array(items) if items.is_empty() => self.out.extend_from_slice(b"[]"),
            // Of no type, and on one line: as it stands.
            _ if self.style == Style::Compact && of.is_none() => self.plain(value),
            Value::Object(map) => self.object(of, map, touched),
            Value::Array(items) => {
                let element = match of.map(|of| &of.shape) {
                    Some(Shape::List(element) | Shape::Schema(element)) => Some(*element),
                    _ => None,
                };
                self.open(b'[');
                for (i, item) in items.iter().enumerate() {
                    self.next(i == 0);
                    let touched = if touched.is_null() { touched } else { &touched[i.to_string()] };
                    self.value(element, item, touched);
                }
                self.close(b']');
            }
            plain => self.plain(plain),
        }
    }

    fn object(&mut self, of: Option<&Type>, map: &serde_json::Map<String, Value>, touched: &Value) {
        let (mut fields, mut element) = (None, None);
        match of.map(|of| (&of.shape, of)) {
            Some((Shape::Struct(_), of)) => fields = Some(of),
            Some((Shape::Map(of), _)) => element = Some(*of),
            Some((Shape::Schema(of), _)) => fields = Some(TABLE.get(*of)),
            // The objects within the rows of a table.
            Some((Shape::Any, of))
                if of.display == "runtime.RawExtension" && map.contains_key("metadata") =>
            {
                let id = map.get("kind").and(document_type(&Value::Object(head_of(map))));
                fields = id.map(|id| TABLE.get(id));
            }
            _ => {}
        }
        self.open(b'{');
        let Some(fields) = fields else {
            for (i, (name, value)) in map.iter().enumerate() {
                self.next(i == 0);
                self.name(name);
                self.value(element, value, &touched[name.as_str()]);
            }
            return self.close(b'}');
        };
        let ordered = !touched.is_object();
        let mut entries: Vec<(usize, &String, &Value, Option<Id>)> = Vec::with_capacity(map.len());
        for (name, value) in map {
            let field = fields.field(name);
            let place = field.filter(|_| ordered).map_or(usize::MAX, |field| field.place);
            entries.push((place, name, value, field.map(|field| field.of)));
        }
        // They come sorted by name, and stay so where they have no place.
        entries.sort_by_key(|(place, ..)| *place);
        for (i, (_, name, value, of)) in entries.into_iter().enumerate() {
            self.next(i == 0);
            self.name(name);
            self.value(of, value, &touched[name.as_str()]);
        }
        self.close(b'}');
    }

    fn name(&mut self, name: &str) {
        // Writing to a Vec does not fail.
        let _ = serde_json::to_writer(&mut self.out, name);
        self.out.extend_from_slice(if self.style == Style::Pretty { b": " } else { b":" });
    }

    fn plain(&mut self, value: &Value) {
        number::write(value, &mut self.out);
    }

    fn open(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.depth += 1;
    }

    fn next(&mut self, first: bool) {
        if !first {
            self.out.push(b',');
        }
        self.line();
    }

    fn close(&mut self, bracket: u8) {
        self.depth -= 1;
        self.line();
        self.out.push(bracket);
    }

    fn line(&mut self) {
        if self.style == Style::Pretty {
            self.out.push(b'\n');
            self.out.resize(self.out.len() + 2 * self.depth, b' ');
        }
    }
}

/// What tells the type of an embedded object.
fn head_of(map: &serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    let head = map.iter().filter(|(name, _)| matches!(name.as_str(), "kind" | "apiVersion"));
    head.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The same JSON with the characters escaped that mean something in HTML or end a line in JavaScript. They stand in
/// strings only.
fn html_safe(json: Vec<u8>) -> Vec<u8> {
    let special = |b: &u8| matches!(b, b'<' | b'>' | b'&' | 0xe2);
    if !json.iter().any(special) {
        return json;
    }
    let mut out = Vec::with_capacity(json.len() + 64);
    let mut rest = json.as_slice();
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        let (escaped, length): (&[u8], usize) = match &rest[at..] {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            other => (&other[..1], 1),
        };
        out.extend_from_slice(escaped);
        rest = &rest[at + length..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structs_are_written_in_the_order_of_their_fields() {
        let meta = serde_json::json!({ "annotations": { "b": "1", "a": "2" }, "namespace": "n", "name": "x",
            "ownerReferences": [{ "uid": "u", "name": "o", "kind": "K", "apiVersion": "v1" }] });
        let expected = r#"{"name":"x","namespace":"n","annotations":{"a":"2","b":"1"},"ownerReferences":"#;
        let owners = r#"[{"apiVersion":"v1","kind":"K","name":"o","uid":"u"}]}"#;
        assert_eq!(to_json("meta/v1.ObjectMeta", &meta), format!("{expected}{owners}"));
        let touched = serde_json::json!({ "annotations": {} });
        let text = patched_json("meta/v1.ObjectMeta", &meta, &touched);
        let marked = patched_json("meta/v1.ObjectMeta", &json!({ "name": "a<b" }), &touched);
        assert_eq!(marked, r#"{"name":"a\u003cb"}"#);
        assert!(
            text.starts_with(r#"{"annotations":{"a":"2","b":"1"},"name":"x","namespace":"n","#),
            "{text}"
        );
    }

    #[track_caller]
    fn check(document: &Value, expected: &str) {
        assert_eq!(String::from_utf8(encode(document, Style::Compact)).expect("text"), expected);
    }

    #[test]
    fn documents_of_known_types_begin_with_their_kind() {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "a", "name": "n" } });
        let text = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"n","namespace":"a"}}"#;
        check(&pod, text);
        let row = json!({ "cells": ["n"], "object": pod });
        let table = json!({ "apiVersion": "meta.k8s.io/v1", "kind": "Table", "columnDefinitions": null,
            "metadata": {}, "rows": [row] });
        let head = r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":null,"#;
        check(&table, &format!(r#"{head}"rows":[{{"cells":["n"],"object":{text}}}]}}"#));
        let groups = json!({ "apiVersion": "v1", "kind": "APIGroupList", "groups": [] });
        check(&groups, r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#);
        let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": null });
        check(&role, r#"{"kind":"Role","apiVersion":"rbac.authorization.k8s.io/v1","rules":null}"#);
    }

    #[test]
    fn custom_resources_are_maps() {
        let custom = json!({ "kind": "Deployment", "apiVersion": "apps.example.com/v1", "data": 1 });
        check(&custom, r#"{"apiVersion":"apps.example.com/v1","data":1,"kind":"Deployment"}"#);
    }

    #[test]
    fn strings_are_safe_within_html() {
        check(&json!({ "a": "<b> & \u{2028}é\u{20ac}" }), r#"{"a":"\u003cb\u003e \u0026 \u2028é€"}"#);
    }

    #[test]
    fn pretty_documents_are_indented_and_empty_ones_are_not() {
        let document =
            json!({ "kind": "ConfigMap", "apiVersion": "v1", "data": {}, "metadata": { "name": "a" } });
        let text = "{\n  \"kind\": \"ConfigMap\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n    \"name\": \"a\"\n  },\n  \"data\": {}\n}";
        assert_eq!(String::from_utf8(encode(&document, Style::Pretty)).expect("text"), text);
    }
}
