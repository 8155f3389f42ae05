//! Value validation, check by check in the order of `kube-openapi`, with its words.
//!
//! On an update, a part of the object that did not change is not blamed for being invalid (ratcheting):
//! fields are followed by name, items of keyed lists by their keys, items of other lists not at all.

mod numbers;
mod outcome;

use std::collections::HashMap;

use coracle_meta::field::{ErrorList, Path};
use serde_json::{Map, Value};

use crate::list_types::key_of;
use crate::schema::{Additional, Checks, Schema};
use crate::{formats, pattern};
use outcome::{Fault, Outcome, What};

/// Checks a new value.
pub fn validate(value: &Value, schema: &Schema, at: &Path, errs: &mut ErrorList) {
    check(schema, value, "", Old::Unknown).report(at, errs);
}

/// Checks a changed value; `old` is what was there before.
pub fn validate_update(value: &Value, old: Option<&Value>, schema: &Schema, at: &Path, errs: &mut ErrorList) {
    let old = Side { new: value, old: old.unwrap_or(&Value::Null), schema };
    ratcheted(schema, value, "", old).report(at, errs);
}

/// What is known of the value before.
#[derive(Clone, Copy)]
enum Old<'v> {
    /// Nothing: every fault counts.
    Unknown,
    /// It was this.
    Known(Side<'v>),
}

/// A value and what it was, with the schema that tells how their parts correspond.
#[derive(Clone, Copy)]
struct Side<'v> {
    new: &'v Value,
    old: &'v Value,
    schema: &'v Schema,
}

impl<'v> Side<'v> {
    fn field(self, name: &str) -> Option<Self> {
        let (new, old) = (self.new.as_object()?, self.old.as_object()?);
        let schema = self.schema.field(name)?;
        let (new, old) = (new.get(name), old.get(name));
        if new.is_none() && old.is_none() {
            return None;
        }
        Some(Self { new: new.unwrap_or(&Value::Null), old: old.unwrap_or(&Value::Null), schema })
    }

    /// The old items of a keyed list by their keys.
    fn by_key(self) -> Option<HashMap<String, &'v Value>> {
        if self.schema.list_type.as_deref() != Some("map") {
            return None;
        }
        let keys = &self.schema.list_map_keys;
        let items = self.old.as_array()?.iter();
        Some(items.map(|item| (key_of(item, keys).to_string(), item)).collect())
    }
}

fn ratcheted(schema: &Schema, value: &Value, path: &str, side: Side<'_>) -> Outcome {
    let mut outcome = check(schema, value, path, Old::Known(side));
    if !outcome.is_valid() && side.new == side.old {
        outcome.forgive();
    }
    outcome
}

fn field(schema: &Schema, name: &str, value: &Value, path: String, at: &str, old: Old<'_>) -> Outcome {
    let side = match old {
        Old::Known(_) if at.is_empty() && matches!(name, "kind" | "apiVersion") => None,
        Old::Known(side) => side.field(name),
        Old::Unknown => None,
    };
    match side {
        Some(side) => ratcheted(schema, value, &path, side),
        None => check(schema, value, &path, Old::Unknown),
    }
}

/// The JSON type and Go's format of a value.
fn kind_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// The types a schema allows; none means all.
fn types(schema: &Schema) -> Vec<&str> {
    match schema.kind.as_str() {
        _ if schema.int_or_string => vec!["integer", "string"],
        "" => Vec::new(),
        kind => vec![kind],
    }
}

fn check(schema: &Schema, value: &Value, path: &str, old: Old<'_>) -> Outcome {
    let mut out = Outcome::default();
    let types = types(schema);
    let checks = schema.checks();
    let format = formats::known(&checks.format, &types);
    if value.is_null() {
        out.merge(type_of(schema, value, path, &types, format));
        out.merge(values(checks, value, path));
        return out;
    }
    if !types.is_empty() || !format.is_empty() {
        out.step(type_of(schema, value, path, &types, format));
    }
    out.step(combined(checks, value, path, old));
    if let Value::String(text) = value {
        out.step(string(checks, text, path));
        if formats::is_registered(format) {
            out.step(of_format(format, text, path));
        }
    }
    if let Value::Number(number) = value {
        out.step(numbers::check(checks, number, &types, format, path));
    }
    if let Value::Array(items) = value {
        out.step(list(schema, items, path, old));
    }
    out.step(values(checks, value, path));
    if let Value::Object(map) = value {
        out.step(object(schema, map, path, old));
    }
    out.count();
    out
}

fn type_of(schema: &Schema, value: &Value, path: &str, types: &[&str], format: &str) -> Outcome {
    let mut out = Outcome::default();
    let (kind, own_format) = kind_of(value);
    let wrong = |wanted: &str, got: &str| Fault {
        message: format!("{path} in body must be of type {wanted}: {got:?}"),
        path: path.to_owned(),
        what: What::Type(got.into()),
    };
    if value.is_null() {
        if !types.is_empty() && !schema.nullable {
            return Outcome::of(wrong(&types.join(","), "null"));
        }
        out.count();
        return out;
    }
    let has = |kind: &str| types.contains(&kind);
    let whole = value.as_f64().is_some_and(numbers::is_whole);
    let float_as_int = kind == "number" && whole && has("integer");
    let int_as_float = kind == "integer" && has("number");
    let text = value.is_string() || value.is_array();
    let fits = has(kind) || float_as_int || int_as_float;
    if !(text || format.is_empty() || fits || own_format == format) {
        return Outcome::of(wrong(format, own_format));
    }
    if text && !(has("number") || has("integer") || format.is_empty()) {
        out.count();
        return out;
    }
    if !fits {
        return Outcome::of(wrong(&types.join(","), kind));
    }
    out.count();
    out
}

/// `anyOf`, `oneOf`, `allOf` and `not`.
fn combined(checks: &Checks, value: &Value, path: &str, old: Old<'_>) -> Outcome {
    let mut out = Outcome::default();
    let try_one = |schema: &Schema| check(schema, value, path, old);
    if !checks.any_of.is_empty() {
        let (mut best, mut fits) = (None::<Outcome>, None::<Outcome>);
        for schema in &checks.any_of {
            let one = try_one(schema);
            if one.is_valid() {
                fits = Some(one);
                break;
            }
            if best.as_ref().is_none_or(|b| one.matches() > b.matches()) {
                best = Some(one);
            }
        }
        if fits.is_none() {
            out.add(Fault::loose(format!("{path:?} must validate at least one schema (anyOf)")));
        }
        out.merge(fits.or(best).unwrap_or_default());
    }
    if !checks.one_of.is_empty() {
        let (mut best, mut fits, mut valid) = (None::<Outcome>, None::<Outcome>, 0);
        for schema in &checks.one_of {
            let one = try_one(schema);
            if one.is_valid() {
                (valid, best) = (valid + 1, None);
                fits.get_or_insert(one);
            } else if valid == 0 && best.as_ref().is_none_or(|b| one.matches() > b.matches()) {
                best = Some(one);
            }
        }
        if valid == 1 {
            out.merge(fits.unwrap_or_default());
        } else {
            let found = match valid {
                0 => "Found none valid".to_owned(),
                n => format!("Found {n} valid alternatives"),
            };
            let why = format!("{path:?} must validate one and only one schema (oneOf). {found}");
            out.add(Fault::loose(why));
            out.merge(best.unwrap_or_default());
        }
    }
    if !checks.all_of.is_empty() {
        let mut valid = 0;
        for schema in &checks.all_of {
            let one = try_one(schema);
            valid += usize::from(one.is_valid());
            out.merge(one);
        }
        if valid != checks.all_of.len() {
            let more = if valid == 0 { ". None validated" } else { "" };
            out.add(Fault::loose(format!("{path:?} must validate all the schemas (allOf){more}")));
        }
    }
    if checks.not.as_ref().is_some_and(|schema| try_one(schema).is_valid()) {
        out.add(Fault::loose(format!("{path:?} must not validate the schema (not)")));
    }
    out.count();
    out
}

fn string(checks: &Checks, text: &str, path: &str) -> Outcome {
    let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let fault = |why: String, what: What| {
        Outcome::of(Fault { message: format!("{path} in body {why}"), path: path.to_owned(), what })
    };
    if let Some(max) = checks.max_length.filter(|max| length() > *max) {
        return fault(format!("should be at most {max} chars long"), What::TooLong(max));
    }
    if let Some(min) = checks.min_length.filter(|min| length() < *min) {
        return fault(format!("should be at least {min} chars long"), What::Value(text.into()));
    }
    if checks.pattern.is_empty() {
        return Outcome::default();
    }
    let pattern = &checks.pattern;
    match pattern::compiled(pattern) {
        Ok(compiled) if compiled.is_match(text) => Outcome::default(),
        Ok(_) => fault(format!("should match '{pattern}'"), What::Value(text.into())),
        Err(why) => fault(
            format!("should match '{pattern}, but pattern is invalid: {why}'"),
            What::Value(text.into()),
        ),
    }
}

fn of_format(format: &str, text: &str, path: &str) -> Outcome {
    if formats::fits(format, text) {
        return Outcome::default();
    }
    let message = format!("{path} in body must be of type {format}: {}", formats::go_quote(text));
    Outcome::of(Fault { message, path: path.to_owned(), what: What::Type(text.into()) })
}

fn list(schema: &Schema, items: &[Value], path: &str, old: Old<'_>) -> Outcome {
    let mut out = Outcome::default();
    let checks = schema.checks();
    if let Some(of_items) = &schema.items {
        let before = match old {
            Old::Known(side) => side.by_key().zip(side.schema.items.as_deref()).map(|found| (found, side)),
            Old::Unknown => None,
        };
        for (i, item) in items.iter().enumerate() {
            let at = format!("{path}[{i}]");
            let side = before.as_ref().and_then(|((by_key, schema), side)| {
                let old = by_key.get(&key_of(item, &side.schema.list_map_keys).to_string())?;
                Some(Side { new: item, old, schema })
            });
            out.merge(match side {
                Some(side) => ratcheted(of_items, item, &at, side),
                None => check(of_items, item, &at, Old::Unknown),
            });
        }
    }
    let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let mut fault = |why: String, what: What| {
        out.add(Fault { message: format!("{path} in body {why}"), path: path.to_owned(), what });
    };
    if let Some(min) = checks.min_items.filter(|min| size < *min) {
        fault(format!("should have at least {min} items"), What::Value(size.into()));
    }
    if let Some(max) = checks.max_items.filter(|max| size > *max) {
        fault(format!("should have at most {max} items"), What::TooMany(size, max));
    }
    if checks.unique_items && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
        fault("shouldn't contain duplicates".into(), What::Value("".into()));
    }
    out.count();
    out
}

/// `enum`.
fn values(checks: &Checks, value: &Value, path: &str) -> Outcome {
    let allowed = &checks.one_of_values;
    let same = |other: &Value| {
        other == value || value.as_f64().zip(other.as_f64()).is_some_and(|(a, b)| a.total_cmp(&b).is_eq())
    };
    if allowed.is_empty() || allowed.iter().any(same) {
        return Outcome::default();
    }
    let message = format!("{path} in body should be one of {}", Value::from(allowed.clone()));
    let what = What::Enum(value.clone(), allowed.clone());
    Outcome::of(Fault { message, path: path.to_owned(), what })
}

fn object(schema: &Schema, map: &Map<String, Value>, path: &str, old: Old<'_>) -> Outcome {
    let mut out = Outcome::default();
    let checks = schema.checks();
    let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
    let fault = |why: String, what: What| Fault { message: why, path: path.to_owned(), what };
    if let Some(min) = checks.min_properties.filter(|min| size < *min) {
        let why = format!("{path} in body should have at least {min} properties");
        out.add(fault(why, What::Value(size.into())));
    }
    if let Some(max) = checks.max_properties.filter(|max| size > *max) {
        let why = format!("{path} in body should have at most {max} properties");
        out.add(fault(why, What::TooMany(size, max)));
    }
    for (name, value) in map.iter().filter(|(name, _)| !schema.properties.contains_key(*name)) {
        match &schema.additional {
            Some(Additional::Allowed(false)) => {
                let why = format!("{path}.{name} in body is a forbidden property");
                out.add(fault(why, What::Value(name.as_str().into())));
            }
            Some(Additional::Schema(rest)) => {
                out.merge(field(rest, name, value, format!("{path}.{name}"), path, old));
            }
            _ => {}
        }
    }
    for (name, property) in &schema.properties {
        let Some(value) = map.get(name) else { continue };
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        out.merge(field(property, name, value, below, path, old));
    }
    for name in checks.required.iter().filter(|name| !map.contains_key(*name)) {
        let path = format!("{path}.{name}");
        out.add(Fault { message: format!("{path} in body is required"), path, what: What::Required });
    }
    out
}

#[cfg(test)]
mod tests;
