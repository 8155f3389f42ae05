//! Numbers: ranges, multiples, and whether a number fits its type at all.

use serde_json::{Number, Value};

use super::outcome::{Fault, Outcome, What};
use crate::schema::Checks;

/// Two to the power of 63: what 64 bits do not hold any more.
const WORD: f64 = 9_223_372_036_854_775_808.0;

/// Whether a float is a whole number, with upstream's tolerance.
pub(super) fn is_whole(f: f64) -> bool {
    if !(-9_007_199_254_740_991.0..=9_007_199_254_740_991.0).contains(&f) {
        return false;
    }
    let (difference, whole) = ((f - f.trunc()).abs(), f.trunc().abs());
    f == f.trunc() || difference < 1e-9 * whole.min(f.abs()) || (f == 0.0 && whole == 0.0)
}

/// A number as Go's `%v` prints it.
fn go_number(f: f64) -> Value {
    serde_json::from_str(&show(f)).unwrap_or_else(|_| f.into())
}

/// A float as Go's `%v` prints it.
pub(super) fn show(f: f64) -> String {
    if f == 0.0 {
        return "0".into();
    }
    let exponent = f.abs().log10().floor();
    if !(-4.0..21.0).contains(&exponent) {
        let text = format!("{f:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{f}")
}

/// The range and multiple checks of one number.
pub(super) fn check(checks: &Checks, number: &Number, types: &[&str], format: &str, path: &str) -> Outcome {
    let (kind, format) = match types {
        ["integer"] => ("integer", if matches!(format, "int32" | "int64") { format } else { "" }),
        ["number"] => ("number", if matches!(format, "float" | "double") { format } else { "" }),
        _ => ("", ""),
    };
    let data = number.as_f64().unwrap_or(0.0);
    let whole = number.as_i64();
    let mut out = Outcome::default();
    let range = |out: &mut Outcome, value: f64, int: Option<i64>, prefix: &str| -> bool {
        let fits = fits(value, int, kind, format);
        if !fits {
            let of = match format {
                "" => format!("{kind} (default format)"),
                format => format!("{kind} with format {format}"),
            };
            out.add(Fault::loose(format!("{prefix} value must be of type {of} in {path}")));
        }
        fits
    };
    range(&mut out, data, whole, "Checked");
    let value = || What::Value(Value::Number(number.clone()));
    let fault = |out: &mut Outcome, why: String| {
        out.add(Fault { message: format!("{path} in body {why}"), path: path.to_owned(), what: value() });
    };
    if let Some(factor) = checks.multiple_of {
        let native = range(&mut out, factor, None, "MultipleOf");
        // To whole numbers, upstream takes the whole part of the factor.
        let (factor, multiple) = match whole.filter(|_| native) {
            Some(n) => {
                #[expect(clippy::cast_possible_truncation, reason = "as upstream")]
                let whole = factor as i64;
                (factor.trunc(), (whole > 0).then(|| n % whole == 0))
            }
            None => {
                let of = || is_whole(if factor < 1.0 { 1.0 / factor * data } else { data / factor });
                (factor, (factor > 0.0).then(of))
            }
        };
        match multiple {
            Some(true) => {}
            Some(false) => fault(&mut out, format!("should be a multiple of {}", show(factor))),
            None => {
                let why = format!("factor MultipleOf declared for {path} must be positive: {}", show(factor));
                out.add(Fault { message: why, path: path.to_owned(), what: What::Value(go_number(factor)) });
            }
        }
    }
    if let Some(min) = checks.minimum {
        let native = range(&mut out, min, None, "Minimum boundary");
        let exclusive = checks.exclusive_minimum;
        if compare(whole.filter(|_| native), data, min).is_some_and(|o| o.is_lt() || (exclusive && o.is_eq()))
        {
            let how = if exclusive { "greater than" } else { "greater than or equal to" };
            fault(&mut out, format!("should be {how} {}", show(min)));
        }
    }
    if let Some(max) = checks.maximum {
        let native = range(&mut out, max, None, "Maximum boundary");
        let exclusive = checks.exclusive_maximum;
        if compare(whole.filter(|_| native), data, max).is_some_and(|o| o.is_gt() || (exclusive && o.is_eq()))
        {
            let how = if exclusive { "less than" } else { "less than or equal to" };
            fault(&mut out, format!("should be {how} {}", show(max)));
        }
    }
    out.count();
    out
}

/// Whole numbers are compared with the boundary cut to a whole number, as upstream does.
fn compare(whole: Option<i64>, data: f64, boundary: f64) -> Option<std::cmp::Ordering> {
    match whole {
        #[expect(clippy::cast_possible_truncation, reason = "as upstream")]
        Some(n) => Some(n.cmp(&(boundary as i64))),
        None => data.partial_cmp(&boundary),
    }
}

fn fits(value: f64, int: Option<i64>, kind: &str, format: &str) -> bool {
    match (kind, format) {
        ("integer", "int32") => match int {
            Some(n) => i32::try_from(n).is_ok(),
            None => value.fract() == 0.0 && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value),
        },
        ("integer", _) => int.is_some() || (value.fract() == 0.0 && value.abs() < WORD),
        (_, "float") => value.abs() <= f64::from(f32::MAX),
        _ => true,
    }
}
