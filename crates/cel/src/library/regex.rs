//! Patterns in Go's syntax. Go's classes `\d`, `\s`, `\w` and its `\b` know ASCII only.

use std::sync::Arc;

use super::Outcome;
use crate::value::{Fault, Value};

/// Bytes that a compiled pattern may take.
const SIZE_LIMIT: usize = 4 << 20;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Regex(Arc<::regex::Regex>);

/// Compiles a pattern.
///
/// # Errors
/// Go's message, as far as we can tell it.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    check(pattern)?;
    let translated = translate(pattern);
    let built = ::regex::RegexBuilder::new(&translated).size_limit(SIZE_LIMIT).build();
    match built {
        Ok(regex) => Ok(Regex(Arc::new(regex))),
        Err(::regex::Error::CompiledTooBig(_)) => {
            Err("error parsing regexp: expression nests too deeply".to_owned())
        }
        Err(_) => Err(format!("error parsing regexp: invalid escape sequence: `{pattern}`")),
    }
}

/// What Go's parser refuses, with its words.
fn check(pattern: &str) -> Result<(), String> {
    let chars: Vec<char> = pattern.chars().collect();
    let fail = |why: &str, from: usize, to: usize| {
        let part: String = chars[from..to.min(chars.len())].iter().collect();
        Err(format!("error parsing regexp: {why}: `{part}`"))
    };
    let (mut depth, mut i, mut repeatable) = (0_usize, 0, false);
    let mut repeated: Option<usize> = None;
    while i < chars.len() {
        let start = i;
        match chars[i] {
            '\\' => {
                let Some(next) = chars.get(i + 1) else {
                    return fail("trailing backslash at end of expression", chars.len(), chars.len());
                };
                if *next == 'Q' {
                    let rest: String = chars[i + 2..].iter().collect();
                    i += 2 + rest
                        .find("\\E")
                        .map_or(rest.chars().count(), |at| rest[..at].chars().count() + 2);
                    repeatable = true;
                    repeated = None;
                    continue;
                }
                let known = next.is_ascii_punctuation() || "AaBbCDdfnPpQrSstvWwxz01234567".contains(*next);
                if !known
                    || ('1'..='7').contains(next)
                        && !chars.get(i + 2).is_some_and(|c| ('0'..='7').contains(c))
                {
                    return fail("invalid escape sequence", i, i + 2);
                }
                i += 2;
                (repeatable, repeated) = (true, None);
            }
            '[' => {
                let Some(end) = class_end(&chars, i) else {
                    return fail("missing closing ]", i, chars.len());
                };
                i = end;
                (repeatable, repeated) = (true, None);
            }
            '(' => {
                if chars.get(i + 1) == Some(&'?') {
                    let ok = chars
                        .get(i + 2)
                        .is_some_and(|c| matches!(c, ':' | 'P' | '<' | 'i' | 'm' | 's' | 'U' | '-'));
                    if !ok
                        || chars.get(i + 2) == Some(&'<')
                            && chars.get(i + 3).is_some_and(|c| matches!(c, '=' | '!'))
                    {
                        return fail("invalid or unsupported Perl syntax", i, i + 3);
                    }
                }
                depth += 1;
                i += 1;
                if chars.get(i) == Some(&'?') {
                    while i < chars.len() && !matches!(chars[i], ':' | '>' | ')') {
                        i += 1;
                    }
                    i += usize::from(i < chars.len() && chars[i] != ')');
                }
                (repeatable, repeated) = (false, None);
            }
            ')' => {
                if depth == 0 {
                    return Err(format!("error parsing regexp: unexpected ): `{pattern}`"));
                }
                depth -= 1;
                i += 1;
                (repeatable, repeated) = (true, None);
            }
            '*' | '+' | '?' => {
                i += 1;
                i += usize::from(chars.get(i) == Some(&'?'));
                if let Some(before) = repeated {
                    return fail("invalid nested repetition operator", before, i);
                }
                if !repeatable {
                    return fail("missing argument to repetition operator", start, i);
                }
                repeated = Some(start);
            }
            '{' => match repetition(&chars, i) {
                Some((end, valid)) => {
                    i = end + usize::from(chars.get(end) == Some(&'?'));
                    if !valid {
                        return fail("invalid repeat count", start, i);
                    }
                    if let Some(before) = repeated {
                        return fail("invalid nested repetition operator", before, i);
                    }
                    if !repeatable {
                        return fail("missing argument to repetition operator", start, i);
                    }
                    repeated = Some(start);
                }
                None => {
                    i += 1;
                    (repeatable, repeated) = (true, None);
                }
            },
            '|' => {
                i += 1;
                (repeatable, repeated) = (false, None);
            }
            _ => {
                i += 1;
                (repeatable, repeated) = (true, None);
            }
        }
    }
    if depth > 0 {
        return Err(format!("error parsing regexp: missing closing ): `{pattern}`"));
    }
    Ok(())
}

/// The end of `{n,m}` at `at` and whether its counts are allowed; `None` if it is plain text.
fn repetition(chars: &[char], at: usize) -> Option<(usize, bool)> {
    let close = at + chars[at..].iter().position(|c| *c == '}')?;
    let inner: String = chars[at + 1..close].iter().collect();
    let (low, high) = inner.split_once(',').map_or((inner.as_str(), None), |(low, high)| (low, Some(high)));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if low.is_empty() || !digits(low) || !high.is_none_or(digits) {
        return None;
    }
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n <= 1000);
    let valid = match (number(low), high) {
        (None, _) => false,
        (Some(_), None | Some("")) => true,
        (Some(low), Some(high)) => number(high).is_some_and(|high| low <= high),
    };
    Some((close + 1, valid))
}

/// The end of the class at `at`.
fn class_end(chars: &[char], at: usize) -> Option<usize> {
    let mut i = at + 1;
    i += usize::from(chars.get(i) == Some(&'^'));
    i += usize::from(chars.get(i) == Some(&']'));
    loop {
        match chars.get(i)? {
            ']' => return Some(i + 1),
            '\\' => i += 2,
            '[' if chars.get(i + 1) == Some(&':') => {
                let rest = &chars[i + 2..];
                let end = rest.windows(2).position(|pair| pair == [':', ']']);
                i = end.map_or(i + 1, |end| i + 2 + end + 2);
            }
            _ => i += 1,
        }
    }
}

/// The same pattern in the syntax of our engine.
fn translate(pattern: &str) -> String {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let (mut i, mut class) = (0, false);
    while i < chars.len() {
        match chars[i] {
            '\\' => {
                let next = chars.get(i + 1).copied().unwrap_or('\\');
                i += 2;
                match next {
                    'd' if class => out.push_str("0-9"),
                    'w' if class => out.push_str("0-9A-Za-z_"),
                    's' if class => out.push_str(r"\t\n\x0C\r "),
                    'd' => out.push_str("[0-9]"),
                    'w' => out.push_str("[0-9A-Za-z_]"),
                    's' => out.push_str(r"[\t\n\x0C\r ]"),
                    'D' => out.push_str("[^0-9]"),
                    'W' => out.push_str("[^0-9A-Za-z_]"),
                    'S' => out.push_str(r"[^\t\n\x0C\r ]"),
                    'b' if !class => out.push_str(r"(?-u:\b)"),
                    'B' if !class => out.push_str(r"(?-u:\B)"),
                    'C' => out.push_str("(?s:.)"),
                    'Q' => {
                        let rest: String = chars[i..].iter().collect();
                        let literal = rest.split("\\E").next().unwrap_or("");
                        out.push_str(&::regex::escape(literal));
                        i += literal.chars().count() + if rest.len() > literal.len() { 2 } else { 0 };
                    }
                    '0'..='7' => {
                        let mut value = next.to_digit(8).unwrap_or(0);
                        let mut count = 1;
                        while let Some(digit) = chars.get(i).and_then(|c| c.to_digit(8)).filter(|_| count < 3)
                        {
                            value = value * 8 + digit;
                            i += 1;
                            count += 1;
                        }
                        out.push_str(&format!("\\x{{{value:x}}}"));
                    }
                    c => {
                        out.push('\\');
                        out.push(c);
                    }
                }
                continue;
            }
            '[' if class && chars.get(i + 1) != Some(&':') => out.push_str("\\["),
            '[' if !class => {
                class = true;
                out.push('[');
                if chars.get(i + 1) == Some(&'^') {
                    out.push('^');
                    i += 1;
                }
                if chars.get(i + 1) == Some(&']') {
                    out.push_str("\\]");
                    i += 1;
                }
            }
            '[' => {
                let end = chars[i..].iter().position(|c| *c == ']').map_or(chars.len(), |at| i + at + 1);
                out.extend(&chars[i..end]);
                i = end;
                continue;
            }
            ']' if class => {
                class = false;
                out.push(']');
            }
            c @ ('&' | '~') if class => {
                out.push('\\');
                out.push(c);
            }
            '-' if class && chars.get(i + 1) == Some(&'-') => out.push_str("\\-"),
            '{' if !class && repetition(&chars, i).is_none() => out.push_str("\\{"),
            c => out.push(c),
        }
        i += 1;
    }
    out
}

pub(super) fn call(function: &str, args: &[Value], pattern: Option<&Regex>) -> Option<Outcome> {
    let (Value::String(text), Value::String(source)) = (args.first()?, args.get(1)?) else { return None };
    let compiled = |illegal: &str| match pattern {
        Some(pattern) => Ok(pattern.clone()),
        None => compile(source).map_err(|why| Fault::new(format!("{illegal}{why}"))),
    };
    let illegal = "Illegal regex: ";
    Some(match (function, args.get(2)) {
        ("matches", None) => compiled("").map(|p| Value::Bool(p.0.is_match(text))),
        ("find", None) => {
            compiled(illegal).map(|p| Value::string(p.0.find(text).map_or("", |found| found.as_str())))
        }
        ("findAll", limit) => {
            let limit = match limit {
                None => usize::MAX,
                Some(Value::Int(limit)) => usize::try_from(*limit).unwrap_or(usize::MAX),
                Some(_) => return None,
            };
            compiled(illegal).map(|p| {
                Value::list(
                    p.0.find_iter(text).take(limit).map(|found| Value::string(found.as_str())).collect(),
                )
            })
        }
        _ => return None,
    })
}
