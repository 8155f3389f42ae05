//! Conversions between types: `int(x)`, `string(x)` and so on, exact or an error.

use std::fmt::Write as _;

use super::{Fault, Value};
use crate::time;
use crate::types::Type;

/// `value` as a value of the type `to`.
///
/// # Errors
/// Upstream's messages: overflow, or no such conversion.
pub(crate) fn convert(value: &Value, to: &Type) -> Result<Value, Fault> {
    let none = || {
        let from = value.type_of();
        Fault::new(format!("type conversion error from '{}' to '{}'", from.type_name(), to.type_name()))
    };
    Ok(match (value, to) {
        (Value::Bool(_), Type::Bool)
        | (Value::Int(_), Type::Int)
        | (Value::Uint(_), Type::Uint)
        | (Value::Double(_), Type::Double)
        | (Value::String(_), Type::String)
        | (Value::Bytes(_), Type::Bytes)
        | (Value::Duration(_), Type::Duration)
        | (Value::Timestamp(_), Type::Timestamp) => value.clone(),
        (Value::String(text), _) => return from_string(text, to).ok_or_else(none)?,
        (_, Type::String) => Value::string(to_string(value)?.ok_or_else(none)?),
        (Value::Int(n), Type::Uint) => {
            Value::Uint(u64::try_from(*n).map_err(|_| Fault::new("unsigned integer overflow"))?)
        }
        (Value::Int(n), Type::Double) => Value::Double(*n as f64),
        (Value::Int(n), Type::Duration) => Value::Duration(*n),
        (Value::Int(n), Type::Timestamp) => Value::Timestamp(time::from_seconds(*n)?),
        (Value::Uint(n), Type::Int) => {
            Value::Int(i64::try_from(*n).map_err(|_| Fault::new("integer overflow"))?)
        }
        (Value::Uint(n), Type::Double) => Value::Double(*n as f64),
        (Value::Double(n), Type::Int) => Value::Int(double_to_int(*n)?),
        (Value::Double(n), Type::Uint) => Value::Uint(double_to_uint(*n)?),
        (Value::Duration(nanos), Type::Int) => Value::Int(*nanos),
        (Value::Timestamp(nanos), Type::Int) => Value::Int(time::seconds(*nanos)),
        _ => return Err(none()),
    })
}

fn from_string(text: &str, to: &Type) -> Option<Result<Value, Fault>> {
    Some(Ok(match to {
        Type::Int => Value::Int(text.parse().ok()?),
        Type::Uint if !text.starts_with('+') => Value::Uint(text.parse().ok()?),
        Type::Double => Value::Double(parse_double(text)?),
        Type::Bool => Value::Bool(match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            _ => return None,
        }),
        Type::Bytes => Value::Bytes(text.as_bytes().into()),
        Type::Duration => Value::Duration(time::parse_duration(text)?),
        Type::Timestamp => match time::parse_timestamp(text) {
            Ok(nanos) => Value::Timestamp(nanos),
            Err(Some(fault)) => return Some(Err(fault)),
            Err(None) => return None,
        },
        _ => return None,
    }))
}

fn to_string(value: &Value) -> Result<Option<String>, Fault> {
    Ok(Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => go_general(*value, 6),
        Value::Bytes(bytes) => std::str::from_utf8(bytes)
            .map_err(|_| Fault::new("invalid UTF-8 in bytes, cannot convert to string"))?
            .to_owned(),
        Value::Duration(nanos) => time::show_duration(*nanos),
        Value::Timestamp(nanos) => time::show_timestamp(*nanos),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => format!("{}/{}", cidr.address, cidr.bits),
        Value::Type(of) => of.type_name().to_owned(),
        Value::Null => "null".to_owned(),
        _ => return Ok(None),
    }))
}

fn parse_double(text: &str) -> Option<f64> {
    let plain = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let special = matches!(plain.as_str(), "inf" | "infinity" | "nan");
    let value: f64 = text.parse().ok()?;
    (special || value.is_finite()).then_some(value)
}

#[expect(clippy::cast_possible_truncation, reason = "bounded before")]
fn double_to_int(value: f64) -> Result<i64, Fault> {
    let inside = value > -9_223_372_036_854_775_808.0 && value < 9_223_372_036_854_775_808.0;
    if inside { Ok(value as i64) } else { Err(Fault::new("integer overflow")) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
fn double_to_uint(value: f64) -> Result<u64, Fault> {
    let inside = (0.0..18_446_744_073_709_551_616.0).contains(&value);
    if inside { Ok(value as u64) } else { Err(Fault::new("unsigned integer overflow")) }
}

/// The integer that a double is, if it is one.
pub(super) fn lossless_int(value: f64) -> Option<i64> {
    double_to_int(value).ok().filter(|whole| *whole as f64 == value)
}

/// The unsigned integer that a double is, if it is one.
pub(super) fn lossless_uint(value: f64) -> Option<u64> {
    double_to_uint(value).ok().filter(|whole| *whole as f64 == value)
}

/// A double as Go prints it: shortest digits, an exponent below -4 and from `exponent_from` (6 for `%g`, 21 for `%v`).
pub(crate) fn go_general(value: f64, exponent_from: i32) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..exponent_from).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A string as Go's `%q` prints it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
