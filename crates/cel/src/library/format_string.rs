//! `'%s is %d'.format([a, b])`.

use std::fmt::Write as _;

use crate::ast::{Id, Literal};
use crate::types::Type;
use crate::value::{Fault, Fuel, Key, List, Value, convert, quoted};

/// Digits after the point where none are asked for.
const DEFAULT_PRECISION: usize = 6;
/// Digits after the point that are printed at most.
const MAX_PRECISION: usize = 1000;
/// Bytes of the result.
const MAX_BYTES: usize = 16 << 20;

/// One piece of a format.
enum Piece<'f> {
    Text(&'f str),
    Clause { verb: char, precision: Option<usize> },
}

/// The next piece of a format and what is left; `None` at the end.
fn next(format: &str) -> Result<Option<(Piece<'_>, &str)>, String> {
    let wrap = |why: String| format!("could not parse formatting clause: {why}");
    let Some(rest) = format.strip_prefix('%') else {
        if format.is_empty() {
            return Ok(None);
        }
        let end = format.find('%').unwrap_or(format.len());
        return Ok(Some((Piece::Text(&format[..end]), &format[end..])));
    };
    if let Some(after) = rest.strip_prefix('%') {
        return Ok(Some((Piece::Text("%"), after)));
    }
    if rest.is_empty() {
        return Err("unexpected end of string".to_owned());
    }
    let (precision, rest) = match rest.strip_prefix('.') {
        None => (None, rest),
        Some(digits) => {
            let parse = |why: &str| wrap(format!("error while parsing precision: {why}"));
            let end = digits
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(|| parse("could not find end of precision specifier"))?;
            let shown = &digits[..end];
            let reason = if shown.is_empty() { "invalid syntax" } else { "value out of range" };
            let value = shown.parse::<usize>().map_err(|_| {
                parse(&format!(
                    "error while converting precision to integer: strconv.Atoi: parsing {}: {reason}",
                    quoted(shown)
                ))
            })?;
            (Some(value), &digits[end..])
        }
    };
    let verb = rest.chars().next().unwrap_or(' ');
    if !"sdfebxXo".contains(verb) {
        return Err(wrap(format!("unrecognized formatting clause \"{verb}\"")));
    }
    Ok(Some((Piece::Clause { verb, precision }, &rest[1..])))
}

/// Fills in a format.
///
/// # Errors
/// Clauses and arguments that do not fit.
pub(super) fn format(format: &str, args: &List, fuel: &Fuel) -> Result<String, Fault> {
    let (mut out, mut rest, mut used) = (String::new(), format, 0);
    while let Some(percent) = rest.find('%') {
        // An argument that is not there is noticed before the clause is read.
        if !rest[percent + 1..].starts_with('%') && args.get(used).is_none() {
            return Err(Fault::new(format!("index {used} out of range")));
        }
        let Some((piece, after)) = next(rest).map_err(Fault::new)? else { break };
        rest = after;
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause { verb, precision } => {
                let Some(arg) = args.get(used) else { break };
                let shown = clause(verb, precision, arg, fuel).map_err(|fault| match fault {
                    Fault::Error(why) => Fault::new(format!("error during formatting: {why}")),
                    Fault::OverBudget => Fault::OverBudget,
                })?;
                out.push_str(&shown);
                used += 1;
            }
        }
        if out.len() > MAX_BYTES {
            return Err(Fault::OverBudget);
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn clause(verb: char, precision: Option<usize>, arg: &Value, fuel: &Fuel) -> Result<String, Fault> {
    let of = arg.type_of();
    let refuse = || Fault::new(refusal(verb, of.type_name()));
    Ok(match (verb, arg) {
        ('s', _) => text(arg, fuel)?.ok_or_else(refuse)?,
        ('d' | 'o' | 'b' | 'x' | 'X', Value::Int(n)) => {
            let digits = radix(verb, n.unsigned_abs());
            if *n < 0 { format!("-{digits}") } else { digits }
        }
        ('d' | 'o' | 'b' | 'x' | 'X', Value::Uint(n)) => radix(verb, *n),
        ('b', Value::Bool(value)) => u8::from(*value).to_string(),
        ('x' | 'X', Value::String(text)) => hex(verb, text.as_bytes()),
        ('x' | 'X', Value::Bytes(bytes)) => hex(verb, bytes),
        ('f' | 'e', Value::Double(n)) => float(verb, precision, *n),
        ('f' | 'e', Value::String(text)) => match &**text {
            "NaN" => float(verb, precision, f64::NAN),
            "Infinity" => float(verb, precision, f64::INFINITY),
            "-Infinity" => float(verb, precision, f64::NEG_INFINITY),
            _ => return Err(refuse()),
        },
        _ => return Err(refuse()),
    })
}

fn refusal(verb: char, of: &str) -> String {
    match verb {
        's' => format!(
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
             durations, and timestamps, was given {of}"
        ),
        'd' => format!("decimal clause can only be used on integers, was given {of}"),
        'o' => format!("octal clause can only be used on integers, was given {of}"),
        'b' => format!("binary clause can only be used on integers and bools, was given {of}"),
        'f' => format!("fixed-point clause can only be used on doubles, was given {of}"),
        'e' => format!("scientific clause can only be used on doubles, was given {of}"),
        _ => format!(
            "hexadecimal clause can only be used on integers, byte buffers, and strings, was given {of}"
        ),
    }
}

fn radix(verb: char, n: u64) -> String {
    match verb {
        'o' => format!("{n:o}"),
        'b' => format!("{n:b}"),
        'x' => format!("{n:x}"),
        'X' => format!("{n:X}"),
        _ => n.to_string(),
    }
}

fn hex(verb: char, bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = if verb == 'x' { write!(out, "{b:02x}") } else { write!(out, "{b:02X}") };
        out
    })
}

/// A number as upstream's locale prints it: grouped digits, `×10` for exponents, `∞`.
fn float(verb: char, precision: Option<usize>, n: f64) -> String {
    let precision = precision.unwrap_or(DEFAULT_PRECISION).min(MAX_PRECISION);
    if n.is_nan() {
        return "NaN".to_owned();
    }
    if n.is_infinite() {
        return if n > 0.0 { "∞" } else { "-∞" }.to_owned();
    }
    if verb == 'f' {
        let plain = format!("{n:.precision$}");
        let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), ""), |parts| parts);
        let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
        let mut grouped = String::new();
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i) % 3 == 0 {
                grouped.push(',');
            }
            grouped.push(c);
        }
        let point = if fraction.is_empty() { "" } else { "." };
        return format!("{sign}{grouped}{point}{fraction}");
    }
    let shown = format!("{n:.precision$e}");
    let (digits, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |rest| ("⁻", rest));
    let raised: String = format!("{exponent:0>2}")
        .chars()
        .filter_map(|c| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(c.to_digit(10)? as usize))
        .collect();
    format!("{digits}×10{sign}{raised}")
}

/// A value for `%s`; `None` for types it does not take.
fn text(arg: &Value, fuel: &Fuel) -> Result<Option<String>, Fault> {
    fuel.take(1)?;
    Ok(Some(match arg {
        Value::List(list) => {
            let mut parts = Vec::new();
            for value in list {
                parts.push(element(value, fuel)?);
            }
            format!("[{}]", parts.join(", "))
        }
        Value::Map(map) => {
            let mut parts = Vec::new();
            for (key, value) in &**map {
                let key = match key {
                    Key::String(text) => quoted(text),
                    other => other.value().to_string(),
                };
                parts.push((key, element(value, fuel)?));
            }
            parts.sort();
            let parts: Vec<String> = parts.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("{{{}}}", parts.join(", "))
        }
        Value::Null => "null".to_owned(),
        Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::String(_)
        | Value::Bytes(_)
        | Value::Duration(_)
        | Value::Timestamp(_)
        | Value::Type(_) => match convert(arg, &Type::String)? {
            Value::String(text) => text.to_string(),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

/// A value inside a list or map.
fn element(value: &Value, fuel: &Fuel) -> Result<String, Fault> {
    let shown = text(value, fuel)?.unwrap_or_default();
    Ok(match value {
        Value::String(_) => quoted(&shown),
        Value::Bytes(_) => format!("b{}", quoted(&shown)),
        Value::Timestamp(_) => format!("timestamp({})", quoted(&shown)),
        Value::Duration(_) => format!("duration({})", quoted(&shown)),
        Value::Double(n) if n.is_finite() => format!("{n:.6}"),
        Value::Double(_) => quoted(&shown),
        other => match text(other, fuel)? {
            Some(shown) => shown,
            None => {
                let of = other.type_of();
                return Err(Fault::new(format!("no formatting function for {}", of.type_name())));
            }
        },
    })
}

/// What is wrong with a constant format and the arguments that are listed with it; the id says where, if elsewhere.
///
/// # Errors
/// The message.
pub(crate) fn check(
    format: &str,
    args: &[(Id, &Type, Option<&Literal>)],
) -> Result<(), (Option<Id>, String)> {
    let plain = |why: String| (None, why);
    let (mut rest, mut used) = (format, 0);
    while !rest.is_empty() {
        if rest.starts_with('%') && !rest.starts_with("%%") && rest.len() > 1 && used >= args.len() {
            return Err(plain(format!("index {used} out of range")));
        }
        let Some((piece, after)) = next(rest).map_err(plain)? else { break };
        rest = after;
        let Piece::Clause { verb, .. } = piece else { continue };
        let (id, of, _) = args[used];
        if !takes(verb, of) {
            return Err((Some(id), format!("error during formatting: {}", refusal(verb, of.type_name()))));
        }
        used += 1;
    }
    if args.len() > used {
        let message =
            format!("too many arguments supplied to string.format (expected {used}, got {})", args.len());
        return Err(plain(message));
    }
    Ok(())
}

fn takes(verb: char, of: &Type) -> bool {
    if *of == Type::Dyn {
        return true;
    }
    match verb {
        's' => !matches!(of, Type::Object(_) | Type::Opaque(..) | Type::Error),
        'd' | 'o' => matches!(of, Type::Int | Type::Uint),
        'b' => matches!(of, Type::Int | Type::Uint | Type::Bool),
        'f' | 'e' => matches!(of, Type::Double | Type::String),
        _ => matches!(of, Type::Int | Type::Uint | Type::String | Type::Bytes),
    }
}
