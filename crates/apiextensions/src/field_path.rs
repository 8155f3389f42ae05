//! Paths to one field, as selectable fields and CEL rules name them: `.spec.a`, `.m['key']`.

use crate::schema::Schema;

/// A path that a schema has.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<'s> {
    /// The names on the way.
    pub steps: Vec<String>,
    /// What the schema says of the field.
    pub schema: Option<&'s Schema>,
}

/// Follows a path. `brackets`: `['name']` is allowed beside `.name`.
///
/// # Errors
/// Upstream's text for a malformed path, or one that leads nowhere.
pub fn follow<'s>(path: &str, schema: &'s Schema, brackets: bool) -> Result<Found<'s>, String> {
    let end = || "unexpected end of JSON path".to_owned();
    let mut tokens = tokens(path).into_iter();
    let mut found = Found { steps: Vec::new(), schema: Some(schema) };
    while let Some(token) = tokens.next() {
        match token.as_str() {
            "[" if !brackets => return Err("array notation is not allowed".into()),
            "[" => {
                let quoted = tokens.next().ok_or_else(end)?;
                let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let Some(inner) = inner.filter(|_| quoted.len() >= 2) else {
                    return Err(format!("expected single quoted string but got {quoted}"));
                };
                step(&mut found, &unescape(inner)?)?;
                match tokens.next().ok_or_else(end)?.as_str() {
                    "]" => {}
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            "." => step(&mut found, &tokens.next().ok_or_else(end)?)?,
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    Ok(found)
}

fn step(found: &mut Found<'_>, name: &str) -> Result<(), String> {
    let schema = found.schema.ok_or("does not refer to a valid field")?;
    found.schema = if schema.properties.is_empty() {
        if schema.additional.is_none() {
            return Err("does not refer to a valid field".into());
        }
        schema.additional_schema()
    } else {
        Some(schema.properties.get(name).ok_or("does not refer to a valid field")?)
    };
    found.steps.push(name.to_owned());
    Ok(())
}

/// The delimiters `.`, `[` and `]`, quoted strings, and what stands between.
fn tokens(path: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '.' | '[' | ']' => 1,
            '\'' => {
                let bytes = rest.as_bytes();
                (1..bytes.len())
                    .find(|i| bytes[*i] == b'\'' && bytes[i - 1] != b'\\')
                    .map_or(rest.len(), |i| i + 1)
            }
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length);
        out.push(token.to_owned());
        rest = tail;
    }
    out
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('\\', Some(next @ ('\'' | '\\'))) => {
                chars.next();
                out.push(next);
            }
            ('\\', _) => return Err("invalid string literal: invalid syntax".into()),
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn paths_lead_to_declared_fields_only() {
        let schema = schema(json!({ "type": "object", "properties": {
            "spec": { "type": "object", "properties": { "a": { "type": "string" },
                "m": { "type": "object", "additionalProperties": { "type": "integer" } } } } } }));
        let kind =
            |path| follow(path, &schema, true).map(|f| f.schema.map(|s| s.kind.clone()).unwrap_or_default());
        assert_eq!(kind(".spec.a"), Ok("string".into()));
        assert_eq!(kind(".spec['m'].any"), Ok("integer".into()));
        assert_eq!(kind(".spec.nope"), Err("does not refer to a valid field".into()));
        assert_eq!(kind("bad"), Err("expected [ or . but got: bad".into()));
        assert_eq!(kind("."), Err("unexpected end of JSON path".into()));
        assert_eq!(follow(".spec['a']", &schema, false), Err("array notation is not allowed".into()));
    }
}
