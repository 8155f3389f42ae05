//! JSONPath as printer columns use it: fields, indices, slices, unions, filters, recursion.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    Slice { from: Option<i64>, to: Option<i64>, step: i64 },
    Index(i64),
    Union(Vec<Step>),
    Filter(Operand, Comparison, Operand),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl JsonPath {
    /// Parses `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status` …
    ///
    /// # Errors
    /// When the text is no path.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.trim().strip_prefix('$').unwrap_or(text.trim()) };
        let mut steps = Vec::new();
        while !parser.rest.is_empty() {
            parser.step(&mut steps)?;
        }
        Ok(Self { steps })
    }

    /// The values that the path leads to; missing keys lead nowhere.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.apply(value)).collect();
        }
        found
    }
}

impl Step {
    fn apply<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match self {
            Self::Field(name) => value.get(name.as_str()).into_iter().collect(),
            Self::Wildcard => children(value),
            Self::Recursive => {
                let mut out = vec![value];
                let mut at = 0;
                while let Some(next) = out.get(at) {
                    out.extend(children(next));
                    at += 1;
                }
                out
            }
            Self::Index(i) => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let place = if *i < 0 { i + length(items) } else { *i };
                usize::try_from(place).ok().and_then(|i| items.get(i)).into_iter().collect()
            }
            Self::Slice { from, to, step } => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let clamp = |i: i64| (if i < 0 { i + length(items) } else { i }).clamp(0, length(items));
                let (from, to) = (clamp(from.unwrap_or(0)), clamp(to.unwrap_or_else(|| length(items))));
                let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else {
                    return Vec::new();
                };
                let step = usize::try_from((*step).max(1)).unwrap_or(1);
                items.get(from..to).unwrap_or_default().iter().step_by(step).collect()
            }
            Self::Union(steps) => steps.iter().flat_map(|step| step.apply(value)).collect(),
            Self::Filter(left, comparison, right) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().filter(|item| holds(left, *comparison, right, item)).collect()
            }
        }
    }
}

fn length(items: &[Value]) -> i64 {
    i64::try_from(items.len()).unwrap_or(i64::MAX)
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn holds(left: &Operand, comparison: Comparison, right: &Operand, item: &Value) -> bool {
    let resolve = |operand: &Operand| match operand {
        Operand::Path(path) => path.find(item).first().map(|v| (*v).clone()),
        Operand::Literal(value) => Some(value.clone()),
        Operand::None => None,
    };
    let Some(left) = resolve(left) else { return false };
    if comparison == Comparison::Exists {
        return true;
    }
    let Some(right) = resolve(right) else { return false };
    let order = match (&left, &right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match comparison {
        Comparison::Exists => true,
        Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::NotEqual => order.is_some_and(std::cmp::Ordering::is_ne),
        Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Comparison::LessEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Comparison::GreaterEqual => order.is_some_and(std::cmp::Ordering::is_ge),
    }
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn step(&mut self, steps: &mut Vec<Step>) -> Result<(), String> {
        if let Some(rest) = self.rest.strip_prefix("..") {
            self.rest = rest;
            steps.push(Step::Recursive);
            if rest.starts_with('[') {
                return Ok(());
            }
            return self.name(steps);
        }
        if let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            return self.name(steps);
        }
        if self.rest.starts_with('[') {
            let inside = self.bracket()?;
            steps.push(bracket_step(inside)?);
            return Ok(());
        }
        if self.rest.starts_with('@') {
            self.rest = &self.rest[1..];
            return Ok(());
        }
        Err(format!("unrecognized character in {:?}", self.rest))
    }

    fn name(&mut self, steps: &mut Vec<Step>) -> Result<(), String> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ' ' | '\t' | ')' | ']' | ',' | '$' | '@' | '{' | '}' => {
                    end = i;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        if end == 0 {
            return if self.rest.is_empty() || self.rest.starts_with('[') {
                Ok(())
            } else {
                Err(format!("unrecognized character in {:?}", self.rest))
            };
        }
        steps.push(if name == "*" { Step::Wildcard } else { Step::Field(name) });
        Ok(())
    }

    /// What stands between a bracket and its counterpart, quotes respected.
    fn bracket(&mut self) -> Result<&'t str, String> {
        let (mut depth, mut quote) = (0_usize, None::<char>);
        let mut escaped = false;
        for (i, c) in self.rest.char_indices() {
            if std::mem::take(&mut escaped) {
                continue;
            }
            match (c, quote) {
                ('\\', Some(_)) => escaped = true,
                (c, Some(open)) if c == open => quote = None,
                (_, Some(_)) => {}
                ('\'' | '"', None) => quote = Some(c),
                ('[' | '(', None) => depth += 1,
                (']' | ')', None) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && c == ']' {
                        let inside = &self.rest[1..i];
                        self.rest = &self.rest[i + 1..];
                        return Ok(inside);
                    }
                }
                _ => {}
            }
        }
        Err("unterminated array".into())
    }
}

fn bracket_step(inside: &str) -> Result<Step, String> {
    let inside = inside.trim();
    if inside == "*" {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return filter_step(filter);
    }
    let parts = split_outside_quotes(inside, ',');
    if parts.len() > 1 {
        return parts.into_iter().map(bracket_step).collect::<Result<_, _>>().map(Step::Union);
    }
    if let Some(name) = quoted(inside) {
        return Ok(Step::Field(name));
    }
    let number = |text: &str| -> Result<Option<i64>, String> {
        let text = text.trim();
        if text.is_empty() {
            Ok(None)
        } else {
            text.parse().map(Some).map_err(|_| format!("invalid array index {inside}"))
        }
    };
    let mut parts = inside.split(':');
    let first = number(parts.next().unwrap_or(""))?;
    let Some(second) = parts.next() else {
        return first.map(Step::Index).ok_or_else(|| format!("invalid array index {inside}"));
    };
    let step = number(parts.next().unwrap_or(""))?.unwrap_or(1);
    Ok(Step::Slice { from: first, to: number(second)?, step })
}

fn filter_step(text: &str) -> Result<Step, String> {
    for (sign, comparison) in [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessEqual),
        (">=", Comparison::GreaterEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ] {
        if let Some(at) = find_outside_quotes(text, sign) {
            let (left, right) = (operand(&text[..at])?, operand(&text[at + sign.len()..])?);
            return Ok(Step::Filter(left, comparison, right));
        }
    }
    Ok(Step::Filter(operand(text)?, Comparison::Exists, Operand::None))
}

fn operand(text: &str) -> Result<Operand, String> {
    let text = text.trim();
    if let Some(literal) = quoted(text) {
        return Ok(Operand::Literal(literal.into()));
    }
    if let Some(path) = text.strip_prefix('@') {
        return JsonPath::parse(path).map(Operand::Path);
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) => Ok(Operand::Literal(value)),
        Err(_) => Err(format!("unrecognized operand {text:?}")),
    }
}

fn quoted(text: &str) -> Option<String> {
    let inner = ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    Some(out)
}

fn find_outside_quotes(text: &str, needle: &str) -> Option<usize> {
    let mut quote = None::<char>;
    for (i, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if text[i..].starts_with(needle) => return Some(i),
            None => {}
        }
    }
    None
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut rest, mut buffer) = (text, [0; 4]);
    let separator: &str = separator.encode_utf8(&mut buffer);
    while let Some(at) = find_outside_quotes(rest, separator) {
        out.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    out.push(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Value) {
        let value = json!({ "a": { "b": [1, 2, 3], "x.y": "dot" }, "conditions": [
            { "type": "Ready", "status": "True" }, { "type": "Other", "status": "False", "n": 5 }] });
        let path = JsonPath::parse(path).expect("a path");
        let found: Vec<Value> = path.find(&value).into_iter().cloned().collect();
        assert_eq!(Value::from(found), expected);
    }

    #[test]
    fn paths_of_printer_columns_find_their_values() {
        check(".a.b[1]", json!([2]));
        check(".a.b[-1:]", json!([3]));
        check(".a.b[*]", json!([1, 2, 3]));
        check(".a['x.y']", json!(["dot"]));
        check(r".a.x\.y", json!(["dot"]));
        check(r#".conditions[?(@.type=="Ready")].status"#, json!(["True"]));
        check(".conditions[?(@.n>4)].type", json!(["Other"]));
        check("..status", json!(["True", "False"]));
        check(".a.nope.deep", json!([]));
        assert!(JsonPath::parse("a").is_err() && JsonPath::parse(".a[").is_err());
    }
}
