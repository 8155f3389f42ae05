//! A Status as Go writes it: fields in the order of its type, some characters escaped, a line's end behind. Clients
//! show this text as it is, and tests of clients compare it.

use serde_json::Value;

/// The fields of a Status, in order; those of `details` and of its causes.
const FIELDS: &[&str] = &["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];
const DETAILS: &[&str] = &["name", "group", "kind", "uid", "causes", "retryAfterSeconds"];
const CAUSE: &[&str] = &["reason", "message", "field"];

/// The text of a Status.
pub(super) fn write(status: &Value) -> String {
    let mut out = String::with_capacity(256);
    fields(status, FIELDS, &mut out);
    out.push('\n');
    out
}

fn fields(value: &Value, order: &[&str], out: &mut String) {
    let Some(map) = value.as_object() else { return text(value, out) };
    out.push('{');
    let known = order.iter().filter_map(|name| map.get_key_value(*name));
    let others = map.iter().filter(|(name, _)| !order.contains(&name.as_str()));
    for (i, (name, value)) in known.chain(others).enumerate() {
        if i > 0 {
            out.push(',');
        }
        text(&Value::from(name.as_str()), out);
        out.push(':');
        match (name.as_str(), value) {
            ("details", _) => fields(value, DETAILS, out),
            ("causes", Value::Array(causes)) => {
                out.push('[');
                for (i, cause) in causes.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    fields(cause, CAUSE, out);
                }
                out.push(']');
            }
            _ => text(value, out),
        }
    }
    out.push('}');
}

/// A value as Go's encoder writes it: safe within HTML.
fn text(value: &Value, out: &mut String) {
    for c in value.to_string().chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_has_the_order_and_escapes_of_go() {
        let status = json!({
            "apiVersion": "v1", "code": 409, "kind": "Status", "metadata": {}, "status": "Failure",
            "message": "a \"b\" <c> & d", "reason": "AlreadyExists",
            "details": { "causes": [{ "field": "f", "message": "m", "reason": "r" }], "kind": "k", "name": "n" },
        });
        let expected = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#.to_owned()
            + r#""message":"a \"b\" \u003cc\u003e \u0026 d","reason":"AlreadyExists","#
            + r#""details":{"name":"n","kind":"k","causes":[{"reason":"r","message":"m","field":"f"}]},"code":409}"#
            + "\n";
        assert_eq!(write(&status), expected);
        assert_eq!(serde_json::from_str::<Value>(&expected).ok(), Some(status));
    }
}
