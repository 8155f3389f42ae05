//! Keys of YAML mappings that JSON has not. Lists and mappings are refused by Go's reader; here each would become a
//! text, that text a part of the key around it, and its escapes twice as long each time. Null is refused by what makes
//! JSON of it all.

use std::cmp::Ordering;

use serde_json::Value;

use crate::verbs::go_quote;

const REFUSED: &str = "invalid map key: ";
/// What is merged into a mapping is something else.
pub(super) const MERGE: &str = "map merge requires map or sequence of maps as the value";

/// What the refusal of a null key begins with.
pub(super) const UNSUPPORTED: &str = "unsupported map key of type: ";
/// Stands for a null key until the document is refused.
pub(super) const NULL: &str = "\0null";

/// Why a mapping that has this value under null is no JSON.
pub(super) fn of_null(value: &Value) -> String {
    let value = if value.is_null() { "<nil>".to_owned() } else { go_syntax(value) };
    format!("{UNSUPPORTED}%!s(<nil>), key: <nil>, value: {value}")
}

/// Why the key is none, if it is no scalar.
pub(super) fn refusal(key: &Value) -> Option<String> {
    (key.is_array() || key.is_object()).then(|| format!("{REFUSED}{}", go_syntax(key)))
}

/// The message of a refusal for which Go's reader tells no place; `said` tells the path in front and the line behind.
pub(super) fn without_place(said: &str) -> Option<&str> {
    let why = said.rsplit_once(" at line ").map_or(said, |(why, _)| why);
    [REFUSED, MERGE].iter().find_map(|begin| why.get(why.find(begin)?..))
}

/// The value as Go's `%#v` prints what its reader makes of it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => go_quote(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(entries) => {
            let mut entries: Vec<(&String, &Value)> = entries.iter().collect();
            entries.sort_by(|a, b| by_kind(a.0, b.0));
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{}:{}", shown_key(key), go_syntax(value)))
                .collect();
            format!("map[interface {{}}]interface {{}}{{{}}}", entries.join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// Whether the key was a number, true or false before it became a text.
fn is_plain(key: &str) -> bool {
    matches!(key, "true" | "false") || serde_json::from_str::<serde_json::Number>(key).is_ok()
}

fn by_kind(a: &str, b: &str) -> Ordering {
    (b == NULL).cmp(&(a == NULL)).then_with(|| is_plain(a).cmp(&is_plain(b))).then_with(|| a.cmp(b))
}

fn shown_key(key: &str) -> String {
    match key {
        NULL => "interface {}(nil)".to_owned(),
        key if is_plain(key) => key.to_owned(),
        key => go_quote(key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_are_no_scalars_are_shown_as_go_shows_them() {
        let why = |key: Value| refusal(&key).unwrap_or_default();
        assert_eq!(
            why(json!({ "a": 1, "b": "x" })),
            "invalid map key: map[interface {}]interface {}{\"a\":1, \"b\":\"x\"}"
        );
        assert_eq!(
            why(json!([1, "b", 1.5, null, true])),
            "invalid map key: []interface {}{1, \"b\", 1.5, interface {}(nil), true}"
        );
        assert_eq!(
            why(json!({ "3": 4, "b": { "c": 1 } })),
            "invalid map key: map[interface {}]interface {}{\"b\":map[interface {}]interface {}{\"c\":1}, 3:4}"
        );
        assert_eq!(refusal(&json!("a")), None);
        assert_eq!(without_place("a.b: invalid map key: {} at line 4 column 3"), Some("invalid map key: {}"));
        assert_eq!(without_place("did not find expected key at line 4 column 3"), None);
    }
}
