//! YAML texts: the first document, and the keys that stand twice in a mapping.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_yaml_ng::Error;

/// More doubled keys than this are not reported.
const MAX_DOUBLED: usize = 100;
/// Nor are those for whose lines more bytes than this had to be read once more.
const READ_AGAIN: usize = 32 << 20;

/// How deep lists and mappings in brackets may stand in each other, as in Go's reader.
const MAX_DEPTH: usize = 10_000;
/// How deep our reader is let in: the time that it takes grows with the square of the depth, and in the end it gives up
/// at a hundred and some.
const READ_DEPTH: usize = 1000;

/// The first document of a YAML text; others are not looked at.
pub(super) fn first_document(text: &[u8]) -> Result<Value, Error> {
    if let Some(line) = too_deep(text, MAX_DEPTH) {
        let place = if line > 0 { format!("line {}: ", line + 1) } else { String::new() };
        return Err(serde::de::Error::custom(format!("{place}exceeded max depth of {MAX_DEPTH}")));
    }
    if too_deep(text, READ_DEPTH).is_some() {
        return Err(serde::de::Error::custom("recursion limit exceeded"));
    }
    match serde_yaml_ng::Deserializer::from_slice(text).next() {
        Some(document) => Value::deserialize(document),
        None => Ok(Value::Null),
    }
}

/// The line, counted from 0, in which more than so many brackets stand in each other. A bracket counts where a value may begin,
/// outside quotes and comments; the text of a block scalar is taken for values, which is more than enough for every
/// text that has not ten thousand open brackets in it.
fn too_deep(text: &[u8], limit: usize) -> Option<usize> {
    if text.iter().filter(|b| matches!(b, b'[' | b'{')).count() <= limit {
        return None;
    }
    let (mut depth, mut line, mut at, mut begins) = (0_usize, 0, 0, true);
    while let Some(byte) = text.get(at).copied() {
        at += 1;
        match byte {
            b'\n' => (line, begins) = (line + 1, true),
            b' ' | b'\t' | b'\r' => {}
            b'[' | b'{' if begins => {
                depth += 1;
                if depth > limit {
                    return Some(line);
                }
            }
            b']' | b'}' if depth > 0 => (depth, begins) = (depth - 1, false),
            b'"' | b'\'' if begins => {
                let rest = &text[at..];
                let mut escaped = false;
                let end = rest.iter().position(|b| {
                    let ends = *b == byte && !escaped;
                    escaped = byte == b'"' && *b == b'\\' && !escaped;
                    ends
                });
                let quoted = &rest[..end.unwrap_or(rest.len())];
                line += quoted.iter().filter(|b| **b == b'\n').count();
                (at, begins) = (at + quoted.len() + 1, false);
            }
            b'#' if at < 2 || matches!(text[at - 2], b' ' | b'\t' | b'\n') => {
                at += text[at..].iter().position(|b| *b == b'\n').unwrap_or(text.len() - at);
            }
            // After these a value begins; in a block only with a space behind them.
            b',' => begins = depth > 0,
            b':' | b'-' | b'?' => {
                begins = depth > 0 && byte == b':' || matches!(text.get(at), Some(b' ' | b'\t' | b'\n'));
            }
            _ => begins = false,
        }
    }
    None
}

/// The message of Go's scanner: the line in front, unless it is the first one, and no column.
pub(super) fn explain(e: &Error) -> String {
    let text = e.to_string();
    let why = text.split(" at line ").next().unwrap_or("");
    match e.location().map(|place| place.line()) {
        Some(line) if line > 1 => format!("line {line}: {why}"),
        _ => why.to_owned(),
    }
}

/// What Go's strict reader says of keys that stand twice in a mapping; `None` when none does. Reads the text once
/// more for every such key, as only a refusal tells a line.
pub(super) fn doubled_keys(text: &[u8]) -> Option<String> {
    let mut all = Walk::default();
    walk(text, &mut all).ok()?;
    let told = READ_AGAIN / text.len().max(1);
    let lines = all.doubled.iter().take(told.max(1)).map(|(number, key)| line(text, *number, key));
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| format!("yaml: unmarshal errors:\n{}", lines.join("\n")))
}

fn line(text: &[u8], number: usize, key: &str) -> String {
    let place = walk(text, &mut Walk { stop_at: Some(number), ..Walk::default() }).err();
    let line = place.and_then(|e| e.location()).map_or(1, |place| place.line());
    format!("  line {line}: key {key} already set in map")
}

fn walk(text: &[u8], state: &mut Walk) -> Result<(), Error> {
    match serde_yaml_ng::Deserializer::from_slice(text).next() {
        Some(document) => Node(state).deserialize(document),
        None => Ok(()),
    }
}

/// A walk through a document.
#[derive(Default)]
struct Walk {
    /// Doubled keys met so far.
    met: usize,
    /// Their numbers and how Go prints them, those inside a value before the value's own.
    doubled: Vec<(usize, String)>,
    /// Number of the key whose value is refused, so that the reader tells its place.
    stop_at: Option<usize>,
}

struct Node<'w>(&'w mut Walk);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<Value>()? {
            let shown = key.to_string();
            if keys.insert(shown.clone()) || self.0.doubled.len() >= MAX_DOUBLED {
                map.next_value_seed(Node(self.0))?;
                continue;
            }
            let number = self.0.met;
            self.0.met += 1;
            if self.0.stop_at == Some(number) {
                map.next_value_seed(Refuse)?;
            }
            map.next_value_seed(Node(self.0))?;
            self.0.doubled.push((number, shown));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Node(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let (_, inner) = tagged.variant::<IgnoredAny>()?;
        serde::de::VariantAccess::newtype_variant_seed(inner, Node(self.0))
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i128<E>(self, _: i128) -> Result<(), E> {
        Ok(())
    }
    fn visit_u128<E>(self, _: u128) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// Takes nothing: the error carries the place of what stands there.
struct Refuse;

impl<'de> DeserializeSeed<'de> for Refuse {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Refuse {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_that_stand_too_deep_are_refused_before_they_cost_time() {
        let why = |text: String| first_document(text.as_bytes()).map_err(|e| explain(&e)).err();
        let deep = "exceeded max depth of 10000";
        assert_eq!(why("[".repeat(1_000_000)).as_deref(), Some(deep));
        assert_eq!(why("{\"a\": ".repeat(10_001)).as_deref(), Some(deep));
        assert_eq!(why(format!("a: 1\nb: {}", "{a: [".repeat(6_000))), Some(format!("line 2: {deep}")));
        assert_eq!(why("[".repeat(5_000)).as_deref(), Some("recursion limit exceeded"));
        let side_by_side = format!("[{}]", "[1],".repeat(20_000));
        assert_eq!(why(side_by_side), None);
        let texts =
            format!("a: 'x{}'\nb: x{}\n# {}\n", "[".repeat(20_000), "{".repeat(20_000), "[".repeat(9));
        assert_eq!(why(texts), None);
    }

    #[test]
    fn doubled_keys_are_told_with_their_lines() {
        let text = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  name: b\ndata:\n  1: x\n";
        let want = "yaml: unmarshal errors:\n  line 5: key \"name\" already set in map";
        assert_eq!(doubled_keys(text).as_deref(), Some(want));
        assert_eq!(
            doubled_keys(b"a: 1\nb: [{a: 1}, {a: 2}]\n---\na: 1\na: 1\n"),
            None,
            "one document counts"
        );
        assert_eq!(doubled_keys(b"a: 'x\n"), None, "malformed: told elsewhere");
    }

    #[test]
    fn doubled_keys_inside_come_first() {
        let text = b"a: 1\na:\n  b: 1\n  b: 2\n  c: {d: 1, d: 2}\n3: x\n3: y\n";
        let want = [
            "yaml: unmarshal errors:",
            "  line 4: key \"b\" already set in map",
            "  line 5: key \"d\" already set in map",
            "  line 3: key \"a\" already set in map",
            "  line 7: key 3 already set in map",
        ];
        assert_eq!(doubled_keys(text), Some(want.join("\n")));
    }
}
