//! JSON values as Go's YAML writer lays them out: block style, keys in natural order, long lines folded.

use std::cmp::Ordering;

use jiff::civil::Date;
use serde_json::{Map, Number, Value};

use super::yaml_scalar;

/// Lines are folded behind this column.
const WIDTH: usize = 80;
/// Longer keys stand behind a question mark.
const LONGEST_KEY: usize = 128;
/// Spaces that a level is indented by.
const INDENT: usize = 2;

/// The value as a YAML document.
///
/// # Errors
/// Go's words for a text that its reader, which the value goes through first, does not take.
pub(super) fn to_string(value: &Value) -> Result<String, &'static str> {
    let mut writer = Writer { out: String::new(), column: 0 };
    match value {
        Value::Object(map) if !map.is_empty() => writer.map(map, 0, true)?,
        Value::Array(items) if !items.is_empty() => writer.list(items, 0, true)?,
        other => writer.leaf(other, None, false)?,
    }
    writer.end_line();
    Ok(writer.out)
}

struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, c: char) {
        self.out.push(c);
        self.column = if c == '\n' { 0 } else { self.column + 1 };
    }

    fn text(&mut self, text: &str) {
        text.chars().for_each(|c| self.put(c));
    }

    fn end_line(&mut self) {
        if self.column > 0 {
            self.put('\n');
        }
    }

    /// A new line with so many spaces.
    fn line(&mut self, indent: usize) {
        self.end_line();
        (0..indent).for_each(|_| self.put(' '));
    }

    /// A mapping; `inline`: its first key stands where the writer is.
    fn map(&mut self, map: &Map<String, Value>, indent: usize, inline: bool) -> Result<(), &'static str> {
        let mut entries: Vec<_> = map.iter().collect();
        entries.sort_by(|(a, _), (b, _)| natural(a, b));
        for (i, (key, value)) in entries.into_iter().enumerate() {
            if i > 0 || !inline {
                self.line(indent);
            }
            if key.len() > LONGEST_KEY || key.contains('\n') {
                self.text("? ");
                self.string(key, Some(indent), false)?;
                self.line(indent);
                self.put(':');
                self.item(value, indent)?;
                continue;
            }
            self.string(key, Some(indent), true)?;
            self.put(':');
            match value {
                Value::Object(map) if !map.is_empty() => self.map(map, indent + INDENT, false)?,
                Value::Array(items) if !items.is_empty() => self.list(items, indent, false)?,
                other => {
                    self.put(' ');
                    self.leaf(other, Some(indent), false)?;
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, items: &[Value], indent: usize, inline: bool) -> Result<(), &'static str> {
        for (i, item) in items.iter().enumerate() {
            if i > 0 || !inline {
                self.line(indent);
            }
            self.put('-');
            self.item(item, indent)?;
        }
        Ok(())
    }

    /// What stands behind a mark, on the same line.
    fn item(&mut self, value: &Value, indent: usize) -> Result<(), &'static str> {
        self.put(' ');
        match value {
            Value::Object(map) if !map.is_empty() => self.map(map, indent + INDENT, true),
            Value::Array(items) if !items.is_empty() => self.list(items, indent + INDENT, true),
            other => self.leaf(other, Some(indent), false),
        }
    }

    /// A scalar or an empty collection, in a collection of that indentation.
    fn leaf(&mut self, value: &Value, within: Option<usize>, key: bool) -> Result<(), &'static str> {
        match value {
            Value::Null => self.text("null"),
            Value::Bool(value) => self.text(if *value { "true" } else { "false" }),
            Value::Number(number) => self.text(&number_text(number)),
            Value::String(text) => return self.string(text, within, key),
            Value::Array(_) => self.text("[]"),
            Value::Object(_) => self.text("{}"),
        }
        Ok(())
    }

    fn string(&mut self, text: &str, within: Option<usize>, key: bool) -> Result<(), &'static str> {
        if text
            .chars()
            .any(|c| matches!(c, '\u{7f}'..='\u{84}' | '\u{86}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}'))
        {
            return Err("control characters are not allowed");
        }
        let indent = within.map_or(INDENT, |indent| indent + INDENT);
        let traits = Traits::of(text);
        if text.contains('\n') {
            if traits.block && !key {
                self.literal(text, indent);
            } else {
                self.quoted('"', |writer| writer.double(text, indent, !key));
            }
        } else if reads_otherwise(text) || !traits.single {
            self.quoted('"', |writer| writer.double(text, indent, !key));
        } else if traits.plain {
            self.plain(text, indent, !key);
        } else {
            self.quoted('\'', |writer| writer.single(text, indent, !key));
        }
        Ok(())
    }

    fn quoted(&mut self, mark: char, inside: impl FnOnce(&mut Self)) {
        self.put(mark);
        inside(self);
        self.put(mark);
    }

    /// A text as it stands, on several lines if it is long.
    fn plain(&mut self, text: &str, indent: usize, fold: bool) {
        let (mut spaces, mut rest) = (false, text.chars().peekable());
        while let Some(c) = rest.next() {
            if c == ' ' && fold && !spaces && self.column > WIDTH && rest.peek() != Some(&' ') {
                self.line(indent);
            } else {
                self.put(c);
            }
            spaces = c == ' ';
        }
    }

    /// The inside of single quotes.
    fn single(&mut self, text: &str, indent: usize, fold: bool) {
        let (mut spaces, last) = (false, text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        for (i, c) in text.char_indices() {
            let lone = !text[i + c.len_utf8()..].starts_with(' ');
            if c == ' ' && fold && !spaces && self.column > WIDTH && i > 0 && i < last && lone {
                self.line(indent);
            } else {
                self.put(c);
                if c == '\'' {
                    self.put(c);
                }
            }
            spaces = c == ' ';
        }
    }

    /// The inside of double quotes.
    fn double(&mut self, text: &str, indent: usize, fold: bool) {
        // As in Go's writer, where a mark at the beginning is seen everywhere.
        let marked = text.starts_with('\u{feff}');
        let (mut spaces, last) = (false, text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        for (i, c) in text.char_indices() {
            if marked || !is_printable(c) || is_break(c) || matches!(c, '"' | '\\') {
                self.escaped(c);
                spaces = false;
            } else if c == ' ' && fold && !spaces && self.column > WIDTH && i > 0 && i < last {
                self.line(indent);
                if text[i + 1..].starts_with(' ') {
                    self.put('\\');
                }
                spaces = true;
            } else {
                self.put(c);
                spaces = c == ' ';
            }
        }
    }

    fn escaped(&mut self, c: char) {
        let short = match c {
            '\0' => '0',
            '\u{7}' => 'a',
            '\u{8}' => 'b',
            '\t' => 't',
            '\n' => 'n',
            '\u{b}' => 'v',
            '\u{c}' => 'f',
            '\r' => 'r',
            '\u{1b}' => 'e',
            '"' => '"',
            '\\' => '\\',
            '\u{85}' => 'N',
            '\u{a0}' => '_',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            c => {
                let code = u32::from(c);
                return self.text(&match code {
                    0..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                });
            }
        };
        self.put('\\');
        self.put(short);
    }

    /// Line by line.
    fn literal(&mut self, text: &str, indent: usize) {
        self.put('|');
        if text.starts_with([' ', '\n']) {
            self.text(&INDENT.to_string());
        }
        match text.strip_suffix('\n') {
            None => self.put('-'),
            Some(rest) if rest.is_empty() || rest.ends_with('\n') => self.put('+'),
            Some(_) => {}
        }
        self.put('\n');
        for line in text.split_inclusive('\n') {
            if line != "\n" {
                (0..indent).for_each(|_| self.put(' '));
            }
            self.text(line);
        }
    }
}

/// How a text may stand.
struct Traits {
    plain: bool,
    single: bool,
    block: bool,
}

impl Traits {
    fn of(text: &str) -> Self {
        if text.is_empty() {
            return Self { plain: true, single: true, block: false };
        }
        let chars: Vec<char> = text.chars().collect();
        let blank = |c: Option<&char>| c.is_none_or(|c| matches!(c, ' ' | '\t') || is_break(*c));
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut breaks, mut break_space, mut space_break) = (false, false, false, false);
        for (i, c) in chars.iter().enumerate() {
            let followed = blank(chars.get(i + 1));
            let before = i.checked_sub(1).and_then(|i| chars.get(i));
            indicators |= match c {
                '#' => i == 0 || blank(before),
                ':' => followed,
                '?' | '-' => i == 0 && followed,
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => {
                    i == 0
                }
                _ => false,
            };
            special |= !is_printable(*c);
            if *c == ' ' {
                break_space |= before.is_some_and(|c| is_break(*c));
            } else if is_break(*c) {
                breaks = true;
                space_break |= before == Some(&' ');
            }
        }
        let edge = |c: Option<&char>| c.is_some_and(|c| *c == ' ' || is_break(*c));
        let (first, last) = (chars.first(), chars.last());
        let broken = space_break || special;
        Self {
            plain: !(indicators || breaks || broken || edge(first) || edge(last)),
            single: !(break_space || broken),
            block: !(broken || last == Some(&' ')),
        }
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What Go's writer does not escape: nothing beyond the basic plane.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}

/// Whether Go's reader takes the plain text for something else than a text.
fn reads_otherwise(text: &str) -> bool {
    let word = matches!(
        text,
        "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE"
    );
    let float = matches!(
        text.strip_prefix(['+', '-']).unwrap_or(text),
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN"
    );
    word || float || yaml_scalar::resolve(text).is_some() || is_timestamp(text) || is_base_60(text)
}

/// `2001-1-2`, alone or with a time.
fn is_timestamp(text: &str) -> bool {
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some((&text[at..=at], &text[at + 1..]))),
        None => (text, None),
    };
    let number = |text: &str, most: usize| {
        let fits = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse::<i16>().ok()).flatten()
    };
    let mut parts = date.split('-');
    let mut part = |most| parts.next().and_then(|text| number(text, most));
    let (Some(year), Some(month), Some(day)) = (part(4), part(2), part(2)) else { return false };
    let small = |n: i16| i8::try_from(n).unwrap_or(0);
    let year_whole = date.find('-') == Some(4);
    if !year_whole || parts.next().is_some() || Date::new(year, small(month), small(day)).is_err() {
        return false;
    }
    let Some((mark, time)) = time else { return true };
    let (time, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], Some(&time[at..])),
        None => (time, None),
    };
    let (clock, fraction) = time.split_once('.').map_or((time, None), |(clock, f)| (clock, Some(f)));
    let below = |text: &str, limit: i16| number(text, 2).is_some_and(|n| n < limit);
    let parts: Vec<&str> = clock.split(':').collect();
    let [hour, minute, second] = parts.as_slice() else { return false };
    let zoned = match zone {
        None => mark == " ",
        Some("Z") => mark != " ",
        Some(offset) => {
            mark != " "
                && offset[1..]
                    .split_once(':')
                    .is_some_and(|(h, m)| h.len() == 2 && m.len() == 2 && below(h, 25) && below(m, 60))
        }
    };
    zoned
        && below(hour, 24)
        && below(minute, 60)
        && below(second, 60)
        && fraction.is_none_or(|f| !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()))
}

/// `1:20:30.5`: a number to the base 60 for old readers.
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or("");
    let digits = |text: &str, other: &[u8]| text.bytes().all(|b| b.is_ascii_digit() || other.contains(&b));
    let mut rest: Vec<&str> = parts.collect();
    let Some(last) = rest.last_mut() else { return false };
    if let Some((whole, fraction)) = last.split_once('.') {
        if !digits(fraction, b"_") {
            return false;
        }
        *last = whole;
    }
    let sixtieth = |part: &&str| {
        digits(part, b"") && matches!((part.len(), part.as_bytes().first()), (1, _) | (2, Some(b'0'..=b'5')))
    };
    first.starts_with(|c: char| c.is_ascii_digit()) && digits(first, b"_") && rest.iter().all(sixtieth)
}

/// A number as Go prints it: fractions in their shortest form.
fn number_text(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..21).contains(&exponent) && (exponent < 6 || digits.len() > 16) || float == 0.0 {
        return format!("{float}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Go's order of keys: runs of digits count as numbers, what is no letter comes first.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = (0..a.len().min(b.len())).find(|i| a[*i] != b[*i]) else { return a.len().cmp(&b.len()) };
    let (x, y) = (a[at], b[at]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    // A zero counts only behind other digits.
    let behind = a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let begin = u128::from((x == '0' || y == '0') && behind);
    let run = |text: &[char]| {
        let digits: Vec<u32> = text[at..].iter().map_while(|c| c.to_digit(10)).collect();
        let number = digits.iter().fold(begin, |n, d| n.saturating_mul(10).saturating_add(u128::from(*d)));
        (number, digits.len())
    };
    run(&a).cmp(&run(&b)).then(x.cmp(&y))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: &str) {
        assert_eq!(to_string(&json!({ "k": text })).as_deref(), Ok(format!("k: {wanted}\n").as_str()));
    }

    #[test]
    fn texts_are_quoted_where_go_would_read_something_else() {
        for plain in
            ["x", "a#b", ":a", "-a", ".", "1.2.3.4", "=", "<<", "a\\b", "é", "a\u{a0}b", "20-1-2", "a:b"]
        {
            check(plain, plain);
        }
        for double in [
            "true",
            "010",
            "1.5",
            "",
            "null",
            "~",
            "2020-01-01",
            "2020-01-01T00:00:00Z",
            "1:20",
            "0x1f",
            ".inf",
            "y",
            "1e3",
            "1_000",
            "+1",
            "0o7",
            "0b1",
            "2020-1-2 03:04:05.6",
        ] {
            check(double, &format!("\"{double}\""));
        }
        for single in
            [" x", "x ", "a #b", "a: b", "a:", "- a", "@a", "*", "{a}", "---", "...", "?", "? a", ":", "%a"]
        {
            check(single, &format!("'{single}'"));
        }
        check("'a'", "'''a'''");
        check("a\tb\u{1}", "\"a\\tb\\x01\"");
        check("😀", "\"\\U0001F600\"");
        assert!(to_string(&json!("a\u{7f}")).is_err());
    }

    #[test]
    fn lines_stand_as_they_are_and_long_ones_are_folded() {
        check("a\nb\n", "|\n  a\n  b");
        check("a\nb", "|-\n  a\n  b");
        check(" a\nb", "|2-\n   a\n  b");
        check("a \nb", "\"a \\nb\"");
        assert_eq!(to_string(&json!({ "a": "x\n\n", "b": "\n" })).as_deref(), Ok("a: |+\n  x\n\nb: |2+\n\n"));
        let long = ["word"; 26].join(" ");
        check(&long, &format!("{}\n  {}", ["word"; 16].join(" "), ["word"; 10].join(" ")));
        check(
            &format!("yes: {long}"),
            &format!("'yes: {}\n  {}'", ["word"; 15].join(" "), ["word"; 11].join(" ")),
        );
    }

    #[test]
    fn collections_are_indented_as_go_indents_them() {
        let value = json!({ "kind": "A", "y": "n", "items": [{ "b": [], "a": { "x": {} } }, [1, [2.5]], null],
            "a10": 1, "a9": 2, "a/b": true });
        let wanted = "a/b: true\na9: 2\na10: 1\nitems:\n- a:\n    x: {}\n  b: []\n- - 1\n  - - 2.5\n- null\n\
                      kind: A\n\"y\": \"n\"\n";
        assert_eq!(to_string(&value).as_deref(), Ok(wanted));
        let key = "k".repeat(129);
        let wanted = format!("? {key}\n: a: 1\n");
        assert_eq!(to_string(&json!({ (key): { "a": 1 } })), Ok(wanted));
    }

    #[test]
    fn keys_stand_in_natural_order() {
        let mut keys = ["b", "a10", "a9", "a/b", "A", "1", "x01", "x1", ".", "f:a"];
        keys.sort_by(|a, b| natural(a, b));
        assert_eq!(keys, [".", "1", "A", "a/b", "a9", "a10", "b", "f:a", "x1", "x01"]);
    }
}
