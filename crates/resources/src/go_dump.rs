//! Values as messages show them when upstream prints a whole structure of its internal types: Go's field names
//! and order, zero values included. The types are in `go_types.txt`, written by `tools/go_types.py`.

use std::collections::HashMap;
use std::sync::LazyLock;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path, escaped};
use serde::Serialize;
use serde_json::{Map, Value};

static TEXT: &str = include_str!("go_types.txt");

/// One field: its name, whether an empty one is left out, and the code of its type.
struct Field {
    name: &'static str,
    omit: bool,
    code: &'static str,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let fields = |words: std::str::Split<'static, char>| words.filter_map(field).collect();
    TEXT.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, fields(words)))
        })
        .collect()
});

fn field(word: &'static str) -> Option<Field> {
    let (name, code) = word.split_once(':')?;
    let omit = name.ends_with('?');
    Some(Field { name: name.trim_end_matches('?'), omit, code })
}

/// Order of the fields of object metadata.
const META: [&str; 10] = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
];

/// The value as upstream's type `name` (e.g. `core.PodTemplateSpec`) prints; `null` for `None`.
pub(crate) fn show<T: Serialize>(name: &'static str, value: Option<&T>) -> String {
    let Some(value) = value else { return "null".to_owned() };
    let mut out = String::new();
    put(name, &serde_json::to_value(value).unwrap_or(Value::Null), &mut out);
    escaped(&out)
}

/// An `invalid` error that shows the whole value.
pub(crate) fn invalid<T: Serialize>(
    errs: &mut ErrorList,
    path: impl Into<Path>,
    name: &'static str,
    value: Option<&T>,
    detail: &str,
) {
    let (kind, path) = (ErrorKind::Invalid, path.into().to_string());
    errs.push(Error { kind, path, value: Some(show(name, value)), detail: detail.to_owned() });
}

/// `field is immutable` when the two differ, showing the new one whole.
pub(crate) fn immutable<T: Serialize + PartialEq>(
    errs: &mut ErrorList,
    path: impl Into<Path>,
    name: &'static str,
    new: Option<&T>,
    old: Option<&T>,
) {
    if new != old {
        invalid(errs, path, name, new, "field is immutable");
    }
}

/// What changed between two values, as the lines of a unified diff.
pub(crate) fn diff<T: Serialize>(old: &T, new: &T) -> String {
    const CONTEXT: usize = 3;
    let lines = |value: &T| -> Vec<String> {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let (old, new) = (lines(old), lines(new));
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let from = same.saturating_sub(CONTEXT);
    let until = |all: &[String]| (all.len() - tail + CONTEXT).min(all.len());
    let (old_end, new_end) = (until(&old), until(&new));
    let (old_count, new_count) = (old_end - from, new_end - from);
    let mut out = format!("@@ -{0},{old_count} +{0},{new_count} @@\n", from + 1);
    let mut add = |mark: char, lines: &[String]| {
        for line in lines {
            out.push(mark);
            out.push_str(line);
            out.push('\n');
        }
    };
    add(' ', &old[from..same]);
    add('-', &old[same..old.len() - tail]);
    add('+', &new[same..new.len() - tail]);
    add(' ', &old[old.len() - tail..old_end]);
    out
}

fn put(code: &'static str, value: &Value, out: &mut String) {
    if let Some(inner) = code.strip_prefix('*') {
        return if value.is_null() { out.push_str("null") } else { put(inner, value, out) };
    }
    if let Some(inner) = code.strip_prefix("[]") {
        return match value {
            // The types crate has no absent lists where they are required: those are null in Go.
            Value::Array(items) if !items.is_empty() => list(inner, items, out),
            _ => out.push_str("null"),
        };
    }
    if let Some(inner) = code.strip_prefix("{}") {
        return match value {
            Value::Object(entries) => map(inner, entries, out),
            _ => out.push_str("null"),
        };
    }
    let zero = match code {
        "s" => "\"\"",
        "n" | "i" => "0",
        "b" => "false",
        "q" => "\"0\"",
        "t" => "null",
        structure => return object(structure, value, out),
    };
    if value.is_null() { out.push_str(zero) } else { out.push_str(&value.to_string()) }
}

fn list(code: &'static str, items: &[Value], out: &mut String) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        put(code, item, out);
    }
    out.push(']');
}

fn map(code: &'static str, entries: &Map<String, Value>, out: &mut String) {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    out.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        name(key, out);
        put(code, value, out);
    }
    out.push('}');
}

fn name(name: &str, out: &mut String) {
    out.push_str(&Value::from(name).to_string());
    out.push(':');
}

fn object(structure: &'static str, value: &Value, out: &mut String) {
    out.push('{');
    let mut first = true;
    fields(structure, value, out, &mut first);
    out.push('}');
}

fn comma(out: &mut String, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(',');
    }
}

fn fields(structure: &'static str, value: &Value, out: &mut String, first: &mut bool) {
    for field in TYPES.get(structure).into_iter().flatten() {
        match (field.name, field.code) {
            ("+", "m") => metadata(value.get("metadata").unwrap_or(&Value::Null), out, first),
            ("+", embedded) => fields(embedded, value, out, first),
            _ => {
                let held = member(structure, field.name, value);
                if field.omit && is_empty(&held) {
                    continue;
                }
                comma(out, first);
                name(field.name, out);
                put(field.code, &held, out);
            }
        }
    }
}

/// The value of a field by its Go name. The host's namespaces belong to the security context there.
fn member(structure: &str, name: &str, value: &Value) -> Value {
    let find = |value: &Value, name: &str| {
        let map = value.as_object()?;
        map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    };
    let mut held = find(value, name).unwrap_or(Value::Null);
    if structure == "core.PodSpec" && name == "SecurityContext" {
        let Value::Object(context) = &mut held else { return held };
        for key in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"] {
            if let Some(value) = find(value, key) {
                context.insert(key.to_owned(), value);
            }
        }
    }
    held
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

fn metadata(meta: &Value, out: &mut String, first: &mut bool) {
    for key in META {
        let Some(value) = meta.get(key).filter(|v| !is_empty(v)) else { continue };
        comma(out, first);
        name(key, out);
        match value {
            Value::Object(entries) => map("s", entries, out),
            other => out.push_str(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ObjectReference, PodTemplateSpec};
    use serde_json::json;

    #[test]
    fn structures_have_gos_names_order_and_zero_values() {
        let reference = ObjectReference { kind: Some("Node".into()), ..ObjectReference::default() };
        let expected = "{\"Kind\":\"Node\",\"Namespace\":\"\",\"Name\":\"\",\"UID\":\"\",\"APIVersion\":\"\",\
                        \"ResourceVersion\":\"\",\"FieldPath\":\"\"}";
        assert_eq!(super::show("core.ObjectReference", Some(&reference)), expected);
        assert_eq!(super::show::<ObjectReference>("core.ObjectReference", None), "null");
    }

    #[test]
    fn diffs_show_the_changed_lines_with_three_around_them() {
        let old = json!({ "a": 1, "b": 2, "c": 3, "d": 4, "e": 5 });
        let mut new = old.clone();
        new["e"] = 6.into();
        let expected =
            "@@ -3,5 +3,5 @@\n   \"b\": 2,\n   \"c\": 3,\n   \"d\": 4,\n-  \"e\": 5\n+  \"e\": 6\n }\n";
        assert_eq!(super::diff(&old, &new), expected);
    }

    #[test]
    fn metadata_is_inlined_and_host_namespaces_stand_in_the_security_context() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": { "labels": { "b": "2", "a": "1" } },
            "spec": { "hostNetwork": true, "securityContext": {}, "containers": [] } }))
        .expect("a template");
        let shown = super::show("core.PodTemplateSpec", Some(&template));
        assert!(
            shown.starts_with("{\"labels\":{\"a\":\"1\",\"b\":\"2\"},\"Spec\":{\"Volumes\":null,"),
            "{shown}"
        );
        assert!(shown.contains("\"SecurityContext\":{\"HostNetwork\":true,\"HostPID\":false,"), "{shown}");
    }
}
