//! Plain YAML scalars as Go's reader takes them: YAML 1.1, where `yes` is a boolean and `010` is eight.

use serde_json::Value;

/// What Go makes of a plain scalar that YAML 1.2 takes for text; `None` when it is text for Go, too.
pub(super) fn resolve(text: &str) -> Option<Value> {
    match text.as_bytes().first()? {
        b'y' | b'Y' | b'n' | b'N' | b'o' | b'O' => word(text),
        b'0'..=b'9' | b'+' | b'-' | b'.' => number(text),
        _ => None,
    }
}

fn word(text: &str) -> Option<Value> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true.into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false.into()),
        _ => None,
    }
}

fn number(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if let Some(size) = magnitude(digits) {
        return match negative {
            false => Some(size.into()),
            true => 0_i64.checked_sub_unsigned(size).map(Value::from),
        };
    }
    is_fraction(&plain).then(|| plain.parse::<f64>().ok()).flatten().map(Value::from)
}

/// An amount without sign, its base told by its first digits.
fn magnitude(digits: &str) -> Option<u64> {
    let lower = digits.to_ascii_lowercase();
    let based = |prefix: &str, base| Some((lower.strip_prefix(prefix)?, base));
    let octal = || Some((lower.strip_prefix('0').filter(|rest| !rest.is_empty())?, 8));
    let (digits, base) = based("0x", 16)
        .or_else(|| based("0o", 8))
        .or_else(|| based("0b", 2))
        .or_else(octal)
        .unwrap_or((lower.as_str(), 10));
    // Another sign would be taken here.
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, base).ok())?
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_fraction(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let some = |text: &str| !text.is_empty() && digits(text);
    let mantissa = match mantissa.split_once('.') {
        None => some(mantissa),
        Some(("", fraction)) => some(fraction),
        Some((whole, fraction)) => some(whole) && digits(fraction),
    };
    mantissa && exponent.is_none_or(|e| some(e.strip_prefix(['-', '+']).unwrap_or(e)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_and_numbers_of_yaml_1_1_are_told_from_text() {
        for (text, value) in [
            ("yes", json!(true)),
            ("ON", json!(true)),
            ("n", json!(false)),
            ("Off", json!(false)),
            ("010", json!(8)),
            ("-0o17", json!(-15)),
            ("1_000", json!(1000)),
            ("0b101", json!(5)),
            ("1_0.5", json!(10.5)),
            ("-9223372036854775808", json!(i64::MIN)),
        ] {
            assert_eq!(resolve(text), Some(value), "{text}");
        }
        for text in ["yEs", "nope", "1.2.3", "-", "+-1", "2001-01-01", "10:20", "0x", "1e", ".", "", "e1"] {
            assert_eq!(resolve(text), None, "{text}");
        }
    }
}
