//! YAML texts: the first document, and the keys that stand twice in a mapping.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_yaml_ng::Error;

use super::{yaml_depth, yaml_key, yaml_scalar};

/// More doubled keys than this are not reported.
const MAX_DOUBLED: usize = 100;
/// Nor are those for whose lines more bytes than this had to be read once more.
const READ_AGAIN: usize = 32 << 20;

/// The first document of a YAML text, as Go reads it; others are not looked at.
pub(super) fn first_document(text: &[u8]) -> Result<Value, Error> {
    yaml_depth::check(text).map_err(<Error as serde::de::Error>::custom)?;
    let places = Places { text, state: RefCell::default(), null_key: RefCell::default() };
    let Some(document) = serde_yaml_ng::Deserializer::from_slice(text).next() else { return Ok(Value::Null) };
    let read = Reading(&places).deserialize(document)?;
    // Go makes JSON of the whole once it is read: whatever is wrong elsewhere is told instead.
    match places.null_key.take() {
        Some(why) => Err(serde::de::Error::custom(why)),
        None => Ok(read),
    }
}

/// Tells plain scalars from quoted ones, which the reader does not.
struct Places<'t> {
    text: &'t [u8],
    state: RefCell<Cursor>,
    /// What is said of a key that is null, the outermost one.
    null_key: RefCell<Option<String>>,
}

#[derive(Default)]
struct Cursor {
    /// The furthest place looked at: line and column, counted from 0, and its offset.
    at: (usize, usize, usize),
    /// What was found at places looked at: aliases lead back to them.
    plain: HashMap<(usize, usize), bool>,
}

impl Places<'_> {
    /// Whether a plain scalar without a tag stands at the place that an error tells.
    fn is_plain(&self, error: &str) -> bool {
        let place = error.rsplit_once(" at line ").and_then(|(_, place)| place.split_once(" column "));
        let number = |text: &str| text.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        // The very first character has no line.
        let (line, column) = match place {
            Some((line, column)) => match (number(line), number(column)) {
                (Some(line), Some(column)) => (line, column),
                _ => return false,
            },
            None => (0, 0),
        };
        let state = &mut *self.state.borrow_mut();
        let Cursor { at, plain } = state;
        *plain.entry((line, column)).or_insert_with(|| {
            if (line, column) < (at.0, at.1) {
                *at = (0, 0, 0);
            }
            while (at.0, at.1) < (line, column) {
                let Some(byte) = self.text.get(at.2) else { return false };
                at.2 += 1;
                match byte {
                    b'\n' => (at.0, at.1) = (at.0 + 1, 0),
                    // The rest of a character of several bytes.
                    0x80..0xc0 => {}
                    _ => at.1 += 1,
                }
            }
            while self.text.get(at.2).is_some_and(|byte| (0x80..0xc0).contains(byte)) {
                at.2 += 1;
            }
            let mut rest = &self.text[at.2..];
            if rest.first() == Some(&b'&') {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                rest = rest[end..].trim_ascii_start();
            }
            !matches!(rest.first(), None | Some(b'"' | b'\'' | b'!' | b'|' | b'>'))
        })
    }
}

/// Reads a node.
struct Reading<'r, 't>(&'r Places<'t>);

impl<'de> DeserializeSeed<'de> for Reading<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let odd = RefCell::new(None);
        let read = deserializer.deserialize_any(Building { places: self.0, odd: &odd });
        let (Some(text), Err(refused)) = (odd.take(), &read) else { return read };
        // Refused by us, to learn where it stands; nothing of the document is lost by that.
        let resolved = yaml_scalar::resolve(&text).filter(|_| self.0.is_plain(&refused.to_string()));
        Ok(resolved.unwrap_or(Value::String(text)))
    }
}

struct Building<'r, 't> {
    places: &'r Places<'t>,
    /// A text that is none for Go if it stands there without quotes.
    odd: &'r RefCell<Option<String>>,
}

impl<'de> Visitor<'de> for Building<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = serde_json::Map::new();
        let mut null = None;
        while let Some(key) = map.next_key_seed(Reading(self.places))? {
            if let Some(why) = yaml_key::refusal(&key) {
                return Err(serde::de::Error::custom(why));
            }
            let value = map.next_value_seed(Reading(self.places))?;
            match key {
                Value::String(key) if key == "<<" => merge(value, &mut out)?,
                Value::String(key) => drop(out.insert(key, value)),
                Value::Null => {
                    null = Some(yaml_key::of_null(&value));
                    out.insert(yaml_key::NULL.to_owned(), value);
                }
                key => drop(out.insert(key.to_string(), value)),
            }
        }
        if null.is_some() {
            self.places.null_key.replace(null);
        }
        Ok(Value::Object(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = seq.next_element_seed(Reading(self.places))? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        if yaml_scalar::resolve(text).is_none() {
            return Ok(text.into());
        }
        *self.odd.borrow_mut() = Some(text.to_owned());
        Err(E::custom("text"))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(float(value))
    }
    #[expect(clippy::cast_precision_loss, reason = "as Go reads what 64 bits do not hold")]
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok((value as f64).into())
    }
    #[expect(clippy::cast_precision_loss, reason = "as Go reads what 64 bits do not hold")]
    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok((value as f64).into())
    }
}

/// A float as it is after Go has made JSON of it: a whole one has neither point nor exponent.
fn float(value: f64) -> Value {
    let digits = (value.abs() < 1e21).then(|| value.to_string());
    digits.and_then(|digits| digits.parse::<i64>().ok()).map_or_else(|| value.into(), Value::from)
}

/// The merge key `<<`: the entries of a mapping, or of several, of which the first wins.
fn merge<E: serde::de::Error>(value: Value, out: &mut serde_json::Map<String, Value>) -> Result<(), E> {
    match value {
        Value::Object(entries) => out.extend(entries),
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.into_iter().rev().try_for_each(|item| merge(item, out))?;
        }
        _ => return Err(E::custom(yaml_key::MERGE)),
    }
    Ok(())
}

/// The message of Go's reader.
pub(super) fn explain(text: &[u8], e: &Error) -> String {
    let said = e.to_string();
    if said.starts_with(yaml_key::UNSUPPORTED) {
        return said;
    }
    let why = yaml_key::without_place(&said).map_or_else(|| explain_place(text, e, &said), str::to_owned);
    format!("yaml: {why}")
}

/// The line in front, unless it is the first one, and no column.
fn explain_place(text: &[u8], e: &Error, said: &str) -> String {
    let (problem, context) = match said.split_once(", while ") {
        Some((problem, context)) => (problem, Some(context)),
        None => (said, None),
    };
    // Lines and columns are told counted from 1.
    let place = |told: &str| {
        let (line, column) = told.rsplit_once(" at line ")?.1.split_once(" column ")?;
        Some((line.parse::<usize>().ok()?.checked_sub(1)?, column.parse::<usize>().ok()?.checked_sub(1)?))
    };
    let why = problem.split(" at line ").next().unwrap_or("").split(" at position ").next().unwrap_or("");
    if why == "unknown anchor" {
        return format!("unknown anchor '{}' referenced", alias_at(text, place(problem).unwrap_or_default()));
    }
    let scanned =
        context.map_or(why.ends_with("not allowed in this context"), |c| c.starts_with("scanning "));
    let parsed =
        context.is_some_and(|c| c.starts_with("parsing ")) || why.starts_with("did not find expected <");
    if !scanned && !parsed {
        return match e.location().map(|place| place.line()) {
            Some(line) if line > 1 => format!("line {line}: {why}"),
            _ => why.to_owned(),
        };
    }
    // Go counts the lines of what its parser finds from 0.
    let line = match place(problem).map_or(0, |(line, _)| line) {
        0 => context.and_then(place).map_or(0, |(line, _)| line),
        line => line + usize::from(scanned),
    };
    if line > 0 { format!("line {line}: {why}") } else { why.to_owned() }
}

/// The name behind the asterisk at a line and column.
fn alias_at(text: &[u8], (line, column): (usize, usize)) -> String {
    let text = String::from_utf8_lossy(text);
    let rest = text.lines().nth(line).unwrap_or("").chars().skip(column).skip_while(|c| *c == '*');
    rest.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect()
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
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_words_are_booleans_and_quoted_ones_text() {
        let text = "a: yes\nb: 'yes'\nc: \"on\"\nd: [y, 'y', &x no, *x, !!str off, \u{e9}, n]\n\
                    e: |-\n  yes\nf: >-\n  no\ny: 010\n'n': '010'\n";
        let read = first_document(text.as_bytes()).unwrap();
        let wanted = json!({ "a": true, "b": "yes", "c": "on",
            "d": [true, "y", false, false, "off", "\u{e9}", false], "e": "yes", "f": "no",
            "true": 8, "n": "010" });
        assert_eq!(read, wanted);
        assert_eq!(first_document(b"yes").unwrap(), json!(true));
        assert_eq!(first_document(b"'yes'").unwrap(), json!("yes"));
    }

    /// Found by the fuzz target: the key of a key was a text, that text part of a text, and so on.
    #[test]
    fn keys_within_keys_do_not_double_at_every_level() {
        let fault = first_document("? ".repeat(80).as_bytes()).unwrap_err();
        assert!(fault.to_string().starts_with("invalid map key: map[interface {}]interface {}{"), "{fault}");
    }

    #[test]
    fn faults_are_told_in_the_words_of_gos_reader() {
        for (text, wanted) in [
            ("a: [b\n", "line 1: did not find expected ',' or ']'"),
            ("\tx: 1\n", "found character that cannot start any token"),
            ("a: *b\n", "unknown anchor 'b' referenced"),
            ("a: 1\nb:\n  ? {c: 1}\n", "invalid map key: map[interface {}]interface {}{\"c\":1}"),
            ("a: 1\nb:\n  <<: 5\n", "map merge requires map or sequence of maps as the value"),
            ("a: b: c\n", "mapping values are not allowed in this context"),
            ("x: 1\na: b: c\n", "line 2: mapping values are not allowed in this context"),
            ("a: 1\n b: 2\n", "line 2: mapping values are not allowed in this context"),
            ("a: 'x\n", "line 2: found unexpected end of stream"),
        ] {
            let fault = first_document(text.as_bytes()).unwrap_err();
            assert_eq!(explain(text.as_bytes(), &fault), format!("yaml: {wanted}"), "{text:?}");
        }
    }

    #[test]
    fn whole_floats_are_whole_numbers_if_64_bits_hold_them() {
        let read = first_document(b"[1.0, 1E5, -0.0, 1e16, 1.5, 1e19, 18446744073709551616, 123]").unwrap();
        let wanted =
            json!([1, 100_000, 0, 10_000_000_000_000_000_i64, 1.5, 1e19, 18_446_744_073_709_551_616.0, 123]);
        assert_eq!(read, wanted);
    }

    #[test]
    fn keys_that_are_null_are_refused_once_the_text_is_read() {
        let refused = |text: &str| explain(text.as_bytes(), &first_document(text.as_bytes()).unwrap_err());
        let of = |value: &str| format!("unsupported map key of type: %!s(<nil>), key: <nil>, value: {value}");
        for (text, wanted) in [
            ("a: {null: x}\n", of("\"x\"")),
            ("? \n: 1\n", of("1")),
            ("~: {~: y}\n", of("map[interface {}]interface {}{interface {}(nil):true}")),
            ("null: 1\na: {null: 2}\n", of("1")),
            ("a: {<<: {null: 2}}\n", of("2")),
            ("? null\n", of("<nil>")),
            ("null: 1\na: [b\n", "yaml: line 2: did not find expected ',' or ']'".to_owned()),
        ] {
            assert_eq!(refused(text), wanted, "{text:?}");
        }
        assert_eq!(first_document(b"'null': 1\n").unwrap(), json!({ "null": 1 }));
    }

    #[test]
    fn the_merge_key_brings_in_what_a_mapping_has() {
        let text = b"a: &a {x: 1, y1: 2}\nb: &b {x: 3}\nc:\n  <<: [*a, *b]\n  y1: 4\nd: {<<: *b}\n";
        let read = first_document(text).unwrap();
        assert_eq!(read["c"], json!({ "x": 1, "y1": 4 }));
        assert_eq!(read["d"], json!({ "x": 3 }));
        assert!(first_document(b"a: {<<: 1}\n").is_err());
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
