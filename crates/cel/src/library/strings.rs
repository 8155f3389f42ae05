//! Functions of strings. Positions count characters.

use super::{Host, Outcome, format_string};
use crate::value::{Fault, Value};

/// Bytes of the largest string that a function makes.
const MAX_BYTES: usize = 64 << 20;

pub(super) fn call(function: &str, args: &[Value], host: &Host<'_>) -> Option<Outcome> {
    let text = |value: String| Some(Ok(Value::string(value)));
    match (function, args) {
        ("contains", [Value::String(s), Value::String(part)]) => truth(s.contains(&**part)),
        ("startsWith", [Value::String(s), Value::String(part)]) => truth(s.starts_with(&**part)),
        ("endsWith", [Value::String(s), Value::String(part)]) => truth(s.ends_with(&**part)),
        ("charAt", [Value::String(s), Value::Int(at)]) => Some(char_at(s, *at)),
        ("indexOf", [Value::String(s), Value::String(part)]) => Some(index_of(s, part, 0)),
        ("indexOf", [Value::String(s), Value::String(part), Value::Int(at)]) => Some(index_of(s, part, *at)),
        ("lastIndexOf", [Value::String(s), Value::String(part)]) => {
            let len = int(s.chars().count());
            Some(match (part.is_empty(), s.len() < part.len()) {
                (true, _) => Ok(Value::Int(len)),
                (false, true) => Ok(Value::Int(-1)),
                _ => last_index_of(s, part, len - 1),
            })
        }
        ("lastIndexOf", [Value::String(s), Value::String(part), Value::Int(at)]) => {
            Some(last_index_of(s, part, *at))
        }
        ("lowerAscii", [Value::String(s)]) => text(s.to_ascii_lowercase()),
        ("upperAscii", [Value::String(s)]) => text(s.to_ascii_uppercase()),
        ("trim", [Value::String(s)]) => text(s.trim().to_owned()),
        ("replace", [Value::String(s), Value::String(old), Value::String(new)]) => {
            Some(replace(s, old, new, -1))
        }
        ("replace", [Value::String(s), Value::String(old), Value::String(new), Value::Int(limit)]) => {
            Some(replace(s, old, new, *limit))
        }
        ("split", [Value::String(s), Value::String(by)]) => Some(split(s, by, -1, host)),
        ("split", [Value::String(s), Value::String(by), Value::Int(limit)]) => {
            Some(split(s, by, *limit, host))
        }
        ("substring", [Value::String(s), Value::Int(start)]) => Some(substring(s, *start, None)),
        ("substring", [Value::String(s), Value::Int(start), Value::Int(end)]) => {
            Some(substring(s, *start, Some(*end)))
        }
        ("join", [Value::List(list)]) => Some(join(list, "", host)),
        ("join", [Value::List(list), Value::String(by)]) => Some(join(list, by, host)),
        ("strings.quote", [Value::String(s)]) => text(quote(s)),
        ("format", [Value::String(s), Value::List(args)]) => {
            Some(format_string::format(s, args, host.fuel).map(Value::string))
        }
        ("jsonpatch.escapeKey", [Value::String(s)]) => text(s.replace('~', "~0").replace('/', "~1")),
        _ => None,
    }
}

fn truth(value: bool) -> Option<Outcome> {
    Some(Ok(Value::Bool(value)))
}

fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn out_of_range(index: i64) -> Fault {
    Fault::new(format!("index out of range: {index}"))
}

fn char_at(s: &str, at: i64) -> Outcome {
    let chars: Vec<char> = s.chars().collect();
    let index = usize::try_from(at).ok().filter(|i| *i <= chars.len()).ok_or_else(|| out_of_range(at))?;
    Ok(Value::string(chars.get(index).map(ToString::to_string).unwrap_or_default()))
}

fn index_of(s: &str, part: &str, from: i64) -> Outcome {
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    let start = usize::try_from(from).map_err(|_| out_of_range(from))?;
    let Some((offset, _)) = s.char_indices().nth(start) else { return Ok(Value::Int(-1)) };
    let found = s[offset..].find(part).map(|at| int(s[..offset + at].chars().count()));
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn last_index_of(s: &str, part: &str, from: i64) -> Outcome {
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    let start = usize::try_from(from).map_err(|_| out_of_range(from))?;
    let Some((offset, _)) = s.char_indices().nth(start) else { return Ok(Value::Int(-1)) };
    let end = (offset + part.len()).min(s.len());
    let end = (end..=s.len()).find(|end| s.is_char_boundary(*end)).unwrap_or(s.len());
    let found = s[..end].rfind(part).filter(|at| *at <= offset);
    Ok(Value::Int(found.map_or(-1, |at| int(s[..at].chars().count()))))
}

fn replace(s: &str, old: &str, new: &str, limit: i64) -> Outcome {
    let all = s.chars().count() + 1;
    let limit = usize::try_from(limit).unwrap_or(all);
    let count = if old.is_empty() { all.min(limit) } else { s.matches(old).take(limit).count() };
    if s.len().saturating_add(count.saturating_mul(new.len())) > MAX_BYTES {
        return Err(Fault::OverBudget);
    }
    Ok(Value::string(s.replacen(old, new, limit)))
}

fn split(s: &str, by: &str, limit: i64, host: &Host<'_>) -> Outcome {
    host.fuel.take(s.len() as u64)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let parts: Vec<Value> = if by.is_empty() {
        let chars: Vec<(usize, char)> = s.char_indices().collect();
        let mut parts: Vec<Value> = Vec::new();
        for (i, (at, c)) in chars.iter().enumerate() {
            if i + 1 == limit {
                parts.push(Value::string(&s[*at..]));
                break;
            }
            parts.push(Value::string(c.to_string()));
        }
        parts
    } else {
        s.splitn(limit, by).map(Value::string).collect()
    };
    Ok(Value::list(parts))
}

fn substring(s: &str, start: i64, end: Option<i64>) -> Outcome {
    let len = int(s.chars().count());
    if let Some(end) = end
        && start > end
    {
        return Err(Fault::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    if start < 0 || start > len {
        return Err(out_of_range(start));
    }
    let end = end.unwrap_or(len);
    if end < 0 || end > len {
        return Err(out_of_range(end));
    }
    let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    Ok(Value::string(s.chars().skip(start).take(end - start).collect::<String>()))
}

fn join(list: &crate::value::List, by: &str, host: &Host<'_>) -> Outcome {
    let most = host.left.saturating_mul(10).saturating_add(100);
    let mut out = String::new();
    for (i, value) in list.iter().enumerate() {
        host.fuel.take(1)?;
        if i > 0 {
            out.push_str(by);
        }
        match value {
            Value::String(text) => out.push_str(text),
            other => return Err(Fault::new(format!("join: invalid input: {other}"))),
        }
        if out.len() as u64 > most || out.len() > MAX_BYTES {
            return Err(Fault::OverBudget);
        }
    }
    Ok(Value::string(out))
}

fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
