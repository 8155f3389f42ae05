//! `fieldPath` of a rule: where the field is that an error is reported for.

use serde_json::Value as Json;

/// The normal form of a path such as `.spec['a.b'].c` below a schema: `spec[a.b].c`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn normalize(path: &str, schema: &Json) -> Result<String, String> {
    let mut at = schema;
    let mut out = String::new();
    let tokens = tokens(path);
    let mut tokens = tokens.iter().map(String::as_str);
    while let Some(token) = tokens.next() {
        let end = || "unexpected end of JSON path".to_owned();
        let name = match token {
            "[" => {
                let quoted = tokens.next().ok_or_else(end)?;
                let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let inner = inner
                    .filter(|_| quoted.len() >= 2)
                    .ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let name = unescape(inner)?;
                if tokens.next().ok_or_else(end)? != "]" {
                    return Err("expected ]".to_owned());
                }
                name
            }
            "." => tokens.next().ok_or_else(end)?.to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let missing = || "does not refer to a valid field".to_owned();
        if let Some(properties) = at.get("properties") {
            at = properties.get(&name).ok_or_else(missing)?;
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        } else {
            at = at.get("additionalProperties").ok_or_else(missing)?;
            out.push_str(&format!("[{name}]"));
        }
    }
    Ok(out)
}

fn tokens(path: &str) -> Vec<String> {
    let mut list = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let len = if rest.starts_with('\'') {
            let bytes = rest.as_bytes();
            (1..bytes.len())
                .find(|i| bytes[*i] == b'\'' && bytes[i - 1] != b'\\')
                .map_or(rest.len(), |i| i + 1)
        } else if rest.starts_with(['.', '[', ']']) {
            1
        } else {
            rest.find(['.', '[', ']']).unwrap_or(rest.len())
        };
        list.push(rest[..len].to_owned());
        rest = &rest[len..];
    }
    list
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some('\'') => '\'',
            Some('\\') => '\\',
            Some(other) => return Err(format!("invalid string literal: invalid escape char \\{other}")),
            None => '\\',
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn field_paths_follow_the_schema() {
        let schema = json!({"properties": {"spec": {"additionalProperties": {"properties": {"x": {}}}}}});
        assert_eq!(normalize(".spec['a.b'].x", &schema).as_deref(), Ok("spec[a.b].x"));
        assert_eq!(normalize(".nope", &schema), Err("does not refer to a valid field".to_owned()));
        assert_eq!(normalize("spec", &schema), Err("expected [ or . but got: spec".to_owned()));
    }
}
