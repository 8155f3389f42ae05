//! Regular expressions of schemas: Go's syntax, compiled once per text and shared.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use regex::{Regex, RegexBuilder};

/// Compiled expressions that are kept. A cluster has a few hundred; beyond this the memory is given back.
const KEPT: usize = 2048;
/// Bytes one compiled expression may take, so that a hostile one is refused and not compiled.
const SIZE: usize = 4 << 20;

static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);

/// Whether an expression can be compiled; the empty one is none.
///
/// # Errors
/// Why not, in the words of Go's parser where they are known.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() { Ok(()) } else { build(pattern).map(drop) }
}

/// The compiled expression.
///
/// # Errors
/// As [`check`].
pub(crate) fn compiled(pattern: &str) -> Result<Arc<Regex>, String> {
    if let Some(found) = COMPILED.lock().get(pattern) {
        return Ok(found.clone());
    }
    let made = Arc::new(build(pattern)?);
    let mut kept = COMPILED.lock();
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), made.clone());
    Ok(made)
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern)).size_limit(SIZE).build().map_err(|e| go_error(pattern, &e))
}

/// Go's error for what cannot be parsed.
fn go_error(pattern: &str, e: &regex::Error) -> String {
    let text = e.to_string();
    let said = |what: &str, of: &str| format!("error parsing regexp: {what}: `{of}`");
    if matches!(e, regex::Error::CompiledTooBig(_)) {
        return said("expression too large", pattern);
    }
    if text.contains("repetition operator missing expression") {
        let at = text
            .lines()
            .find_map(|line| line.trim_end().ends_with('^').then(|| line.find('^')))
            .flatten()
            .and_then(|column| column.checked_sub(4))
            .unwrap_or(0);
        let operator: String = pattern.chars().nth(at).map(String::from).unwrap_or_default();
        return said("missing argument to repetition operator", &operator);
    }
    if text.contains("unclosed group") {
        return said("missing closing )", pattern);
    }
    if text.contains("unopened group") {
        return said("unexpected )", pattern);
    }
    if text.contains("unclosed character class") {
        let from = pattern.rfind('[').unwrap_or(0);
        return said("missing closing ]", &pattern[from..]);
    }
    if text.contains("look-around") {
        let from = pattern.find("(?").unwrap_or(0);
        let end = (from + 3).min(pattern.len());
        return said("invalid or unsupported Perl syntax", pattern.get(from..end).unwrap_or(pattern));
    }
    let reason = text.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned();
    said(&reason, pattern)
}

/// Go's syntax in that of the `regex` crate: `\d`, `\s` and `\w` are ASCII, and `[`, `&&`, `--`, `~~` mean
/// themselves within a class.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut chars = pattern.chars().peekable();
    let (mut class, mut first) = (false, false);
    while let Some(c) = chars.next() {
        let at_start = std::mem::take(&mut first);
        match c {
            '\\' => match chars.next() {
                Some(perl @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => out.push_str(ascii_class(perl)),
                Some('C') => out.push_str("(?s:.)"),
                Some('Q') => {
                    let mut rest: String = chars.by_ref().collect();
                    let after = rest.find("\\E").map(|end| rest.split_off(end));
                    out.push_str(&regex::escape(&rest));
                    return out + &after.map_or_else(String::new, |tail| translate(&tail[2..]));
                }
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            '[' if !class => {
                (class, first) = (true, true);
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
            }
            '[' if class && chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' => out.push_str("\\["),
            ']' if class && at_start => out.push_str("\\]"),
            ']' if class => {
                class = false;
                out.push(']');
            }
            '&' | '~' if class => out.extend(['\\', c]),
            '-' if class && matches!(chars.peek(), Some('-' | '\\')) => out.push_str("\\-"),
            c => out.push(c),
        }
    }
    out
}

fn ascii_class(perl: char) -> &'static str {
    match perl {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        's' => "[\\t\\n\\x0c\\r ]",
        'S' => "[^\\t\\n\\x0c\\r ]",
        'w' => "[0-9A-Za-z_]",
        _ => "[^0-9A-Za-z_]",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn matches(pattern: &str, text: &str, expected: bool) {
        assert_eq!(compiled(pattern).expect("a pattern").is_match(text), expected, "{pattern} {text}");
    }

    #[test]
    fn classes_mean_what_they_mean_in_go() {
        matches(r"^[\w.-]+$", "a-b.c_1", true);
        matches(r"^\d$", "٣", false);
        matches("^[[&&]+$", "[&&", true);
        matches("^[^]a]$", "b", true);
        matches("^[^]a]$", "]", false);
        matches(r"^[[:alpha:]]+$", "abc", true);
        matches(r"^\Qa.b\E+$", "a.bbb", true);
        matches("^(?i)abc$", "ABC", true);
    }

    #[test]
    fn hostile_patterns_are_refused_and_not_compiled() {
        assert!(check("((a{1000}){1000}){1000}").is_err());
        assert_eq!(
            check("*").unwrap_err(),
            "error parsing regexp: missing argument to repetition operator: `*`"
        );
        assert_eq!(check("(a").unwrap_err(), "error parsing regexp: missing closing ): `(a`");
    }
}
