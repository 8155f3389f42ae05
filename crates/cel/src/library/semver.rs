//! Semantic versions and quantities.

use std::cmp::Ordering;

use coracle_meta::quantity::Quantity;

use super::Outcome;
use crate::value::{Fault, Value, quoted};

/// A semantic version.
#[derive(Debug, PartialEq, Eq)]
pub struct Semver {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Text(String),
}

impl Semver {
    /// The order of versions; build metadata does not count.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let numbers = |v: &Self| (v.major, v.minor, v.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.pre.cmp(&other.pre),
        })
    }
}

/// Parses `1.2.3-pre+build`.
///
/// # Errors
/// The messages of the library that upstream uses.
pub(crate) fn parse(text: &str) -> Result<Semver, String> {
    if text.is_empty() {
        return Err("Version string empty".to_owned());
    }
    let parts: Vec<&str> = text.splitn(3, '.').collect();
    let [major, minor, rest] = parts.as_slice() else {
        return Err("No Major.Minor.Patch elements found".to_owned());
    };
    let number = |name: &str, text: &str| {
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("Invalid character(s) found in {name} number {}", quoted(text)));
        }
        if text.len() > 1 && text.starts_with('0') {
            return Err(format!("{} number must not contain leading zeroes {}", capital(name), quoted(text)));
        }
        text.parse::<u64>().map_err(|why| {
            let reason = if text.is_empty() { "invalid syntax" } else { "value out of range" };
            let _ = why;
            format!("strconv.ParseUint: parsing {}: {reason}", quoted(text))
        })
    };
    let (major, minor) = (number("major", major)?, number("minor", minor)?);
    let (rest, build) = rest.split_once('+').map_or((*rest, None), |(rest, build)| (rest, Some(build)));
    let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
    let patch = number("patch", patch)?;
    let mut list = Vec::new();
    for part in pre.into_iter().flat_map(|pre| pre.split('.')) {
        if part.is_empty() {
            return Err("Prerelease is empty".to_owned());
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            if part.len() > 1 && part.starts_with('0') {
                let shown = quoted(part);
                return Err(format!("Numeric PreRelease version must not contain leading zeroes {shown}"));
            }
            list.push(Part::Number(
                part.parse().map_err(|_| {
                    format!("strconv.ParseUint: parsing {}: value out of range", quoted(part))
                })?,
            ));
        } else if part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            list.push(Part::Text(part.to_owned()));
        } else {
            return Err(format!("Invalid character(s) found in prerelease {}", quoted(part)));
        }
    }
    for part in build.into_iter().flat_map(|build| build.split('.')) {
        if part.is_empty() {
            return Err("Build meta data is empty".to_owned());
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(format!("Invalid character(s) found in build meta data {}", quoted(part)));
        }
    }
    Ok(Semver { major, minor, patch, pre: list })
}

fn capital(name: &str) -> String {
    name[..1].to_ascii_uppercase() + &name[1..]
}

/// Parses versions that are written less strictly: `v1`, `01.2`.
fn normalized(text: &str) -> Result<Semver, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
    for part in parts.iter_mut().filter(|part| part.len() > 1) {
        let trimmed = part.trim_start_matches('0');
        let digit = trimmed.starts_with(|c: char| c.is_ascii_digit());
        *part = if digit { trimmed.to_owned() } else { format!("0{trimmed}") };
    }
    if parts.len() < 3 {
        if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
    }
    parse(&parts.join("."))
}

fn order(order: Ordering, function: &str) -> Value {
    match function {
        "isGreaterThan" => Value::Bool(order == Ordering::Greater),
        "isLessThan" => Value::Bool(order == Ordering::Less),
        _ => Value::Int(order as i64),
    }
}

fn int(value: u64) -> Value {
    #[expect(clippy::cast_possible_wrap, reason = "as upstream")]
    Value::Int(value as i64)
}

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    let read = |text: &str, loose: bool| if loose { normalized(text) } else { parse(text) };
    Some(Ok(match (function, args) {
        ("semver", [Value::String(text), rest @ ..]) => {
            let loose = matches!(rest, [Value::Bool(true)]);
            match read(text, loose) {
                Ok(version) => Value::Semver(version.into()),
                Err(why) => return Some(Err(Fault::new(why))),
            }
        }
        ("isSemver", [Value::String(text), rest @ ..]) => {
            Value::Bool(read(text, matches!(rest, [Value::Bool(true)])).is_ok())
        }
        ("isGreaterThan" | "isLessThan" | "compareTo", [Value::Semver(a), Value::Semver(b)]) => {
            order(a.compare(b), function)
        }
        ("major", [Value::Semver(version)]) => int(version.major),
        ("minor", [Value::Semver(version)]) => int(version.minor),
        ("patch", [Value::Semver(version)]) => int(version.patch),
        _ => return quantity(function, args),
    }))
}

fn quantity(function: &str, args: &[Value]) -> Option<Outcome> {
    let whole = |quantity: &Quantity| {
        let value = quantity.value();
        (quantity.is_whole() && value != i64::MAX && value != i64::MIN).then_some(value)
    };
    let of = |n: &i64| Quantity::from_milli(i128::from(*n) * 1000);
    Some(Ok(match (function, args) {
        ("quantity", [Value::String(text)]) => match Quantity::parse(text) {
            Ok(quantity) => Value::Quantity(quantity),
            Err(why) => return Some(Err(Fault::new(why))),
        },
        ("isQuantity", [Value::String(text)]) => Value::Bool(Quantity::parse(text).is_ok()),
        ("sign", [Value::Quantity(q)]) => Value::Int(q.sign().into()),
        ("isGreaterThan" | "isLessThan" | "compareTo", [Value::Quantity(a), Value::Quantity(b)]) => {
            order(a.cmp(b), function)
        }
        ("asApproximateFloat", [Value::Quantity(q)]) => Value::Double(q.as_f64()),
        ("isInteger", [Value::Quantity(q)]) => Value::Bool(whole(q).is_some()),
        ("asInteger", [Value::Quantity(q)]) => match whole(q) {
            Some(value) => Value::Int(value),
            None => return Some(Err(Fault::new("cannot convert value to integer"))),
        },
        ("add", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(*a + *b),
        ("add", [Value::Quantity(a), Value::Int(n)]) => Value::Quantity(*a + of(n)),
        ("sub", [Value::Quantity(a), Value::Quantity(b)]) => Value::Quantity(*a - *b),
        ("sub", [Value::Quantity(a), Value::Int(n)]) => Value::Quantity(*a - of(n)),
        _ => return None,
    }))
}
