//! `format`: which names count for which types, and what texts fit them.

use std::net::IpAddr;
use std::sync::LazyLock;

use base64::Engine as _;

use crate::pattern;

/// Formats of strings, without dashes.
const TEXTS: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

/// The format if it means something for the types, else the empty text.
pub(crate) fn known<'f>(format: &'f str, types: &[&str]) -> &'f str {
    let counts = match types {
        ["integer"] => matches!(format, "int32" | "int64"),
        ["number"] => matches!(format, "float" | "double"),
        ["string"] | [] | [_, _, ..] => is_registered(format),
        [_] => false,
    };
    if counts { format } else { "" }
}

/// Whether a format means nothing for a type (empty: any), so that whoever writes it is warned.
pub fn is_unrecognized(format: &str, kind: &str) -> bool {
    let types: &[&str] = if kind.is_empty() { &[] } else { &[kind] };
    !format.is_empty() && known(format, types).is_empty()
}

/// Whether texts are checked for the format.
pub(crate) fn is_registered(format: &str) -> bool {
    !format.is_empty() && TEXTS.contains(&format.replace('-', "").as_str())
}

macro_rules! patterns {
    ($($name:ident = $text:expr;)*) => {
        $(static $name: LazyLock<Option<std::sync::Arc<regex::Regex>>> =
            LazyLock::new(|| pattern::compiled($text).ok());)*
    };
}

patterns! {
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    HEX_COLOR = "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    TIME = "^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$";
    DURATION = r"(\d+)\s*([A-Za-zµ]+)";
    SHORT_NAME = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
    LONG_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
    EMAIL = r"^([^<>@]* <)?[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9\p{L}.\[\]:-]+>?$";
}

fn matches(pattern: &LazyLock<Option<std::sync::Arc<regex::Regex>>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|p| p.is_match(text))
}

/// Whether a text fits a registered format.
pub fn fits(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "uri" => is_request_uri(text),
        "email" => matches(&EMAIL, text),
        "hostname" => is_hostname(text),
        "ipv4" => text.contains('.') && parse_ip(text).is_some(),
        "ipv6" => text.contains(':') && text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => matches(&UUID, text),
        "uuid3" => matches(&UUID3, text),
        "uuid4" => matches(&UUID4, text),
        "uuid5" => matches(&UUID5, text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_card(text),
        "ssn" => text.len() == 11 && matches(&SSN, text),
        "hexcolor" => matches(&HEX_COLOR, text),
        "rgbcolor" => matches(&RGB_COLOR, text),
        "byte" => !text.is_empty() && base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "password" => true,
        "date" => is_date(text),
        "duration" => is_duration(text),
        "datetime" => is_datetime(text),
        "k8sshortname" => text.len() <= 63 && matches(&SHORT_NAME, text),
        "k8slongname" => text.len() <= 253 && matches(&LONG_NAME, text),
        _ => true,
    }
}

/// Labels of letters, digits and symbols with dashes within; several of them end in one of letters.
fn is_hostname(text: &str) -> bool {
    let edge =
        |c: char| c.is_alphanumeric() || "$+<=>^`|~".contains(c) || (!c.is_ascii() && !c.is_whitespace());
    let labels: Vec<&str> = text.split('.').collect();
    if text.len() > 255 || labels.iter().any(|label| label.len() > 63) {
        return false;
    }
    let [only] = labels.as_slice() else {
        let (last, others) = labels.split_last().unwrap_or((&"", &[]));
        return last.chars().count() >= 2
            && last.chars().all(char::is_alphabetic)
            && others.iter().all(|label| {
                label.starts_with(edge) && label.ends_with(edge) && label.chars().all(|c| c == '-' || edge(c))
            });
    };
    // One label alone may have one dash, behind its first character.
    let mut chars = only.chars();
    let first = chars.next().is_some_and(edge);
    let rest = chars.as_str();
    first && rest.strip_prefix('-').unwrap_or(rest).chars().all(edge)
}

/// Go's `url.ParseRequestURI`: absolute, or a rooted path.
fn is_request_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return false;
    }
    if text == "*" {
        return true;
    }
    let scheme = text.split_once(':').filter(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    let rest = match scheme {
        Some((_, rest)) => rest,
        None if text.starts_with('/') => text,
        None => return false,
    };
    let authority = rest.strip_prefix("//").filter(|_| scheme.is_some());
    let authority = authority.map_or("", |a| a.split(['/', '?']).next().unwrap_or(""));
    let port = authority.rsplit_once(':').map_or("", |(_, port)| if port.contains(']') { "" } else { port });
    let path = rest.split('?').next().unwrap_or("");
    !authority.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}'])
        && port.bytes().all(|b| b.is_ascii_digit())
        && escapes_are_whole(path)
}

fn escapes_are_whole(path: &str) -> bool {
    path.split('%').skip(1).all(|part| part.len() >= 2 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

/// An address, whose decimal parts may have leading zeros.
fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let parts: Vec<u8> = text
        .split('.')
        .map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse().ok() } else { None }
        })
        .collect::<Option<_>>()?;
    let four: [u8; 4] = parts.try_into().ok()?;
    Some(IpAddr::from(four))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Some(address) = parse_ip(address) else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.len() <= 3
        && bits.bytes().all(|b| b.is_ascii_digit())
        && bits.parse::<u32>().is_ok_and(|n| n <= most)
}

/// Go's `net.ParseMAC`: 6, 8 or 20 bytes.
fn is_mac(text: &str) -> bool {
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    let of = |separator: char, digits: usize, counts: &[usize]| {
        counts.contains(&text.split(separator).count()) && text.split(separator).all(|part| hex(part, digits))
    };
    of(':', 2, &[6, 8, 20]) || of('-', 2, &[6, 8, 20]) || of('.', 4, &[3, 4, 10])
}

fn digits_of(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'-').collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits_of(text);
    let shape = digits.len() == 10
        && digits[..9].iter().all(u8::is_ascii_digit)
        && (digits[9].is_ascii_digit() || digits[9] == b'X');
    let value = |b: u8| if b == b'X' { 10 } else { u32::from(b - b'0') };
    shape && (1_u32..).zip(&digits).map(|(i, b)| i * value(*b)).sum::<u32>().is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits_of(text);
    if digits.len() != 13 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let weighed =
        digits.iter().enumerate().map(|(i, b)| u32::from(b - b'0') * if i % 2 == 0 { 1 } else { 3 });
    weighed.sum::<u32>().is_multiple_of(10)
}

fn is_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !matches(&CARD, &digits) {
        return false;
    }
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(i, b)| {
            let n = u32::from(b - b'0') * if i % 2 == 1 { 2 } else { 1 };
            if n >= 10 { n % 10 + 1 } else { n }
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_date(text: &str) -> bool {
    let shape = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
    shape && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_datetime(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((date, rest)) = lower.split_once('t') else { return false };
    let time = rest.split('t').next().unwrap_or("");
    let Some(found) = TIME.as_ref().and_then(|p| p.captures(time)) else { return false };
    let part = |i: usize, most: &str| found.get(i).is_some_and(|m| m.as_str() <= most);
    text.len() >= 4 && is_date(date) && part(1, "23") && part(2, "59") && part(3, "59")
}

fn is_duration(text: &str) -> bool {
    if is_go_duration(text) {
        return true;
    }
    const UNITS: &[&[&str]] = &[
        &["ns", "nano"],
        &["us", "µs", "micro"],
        &["ms", "milli"],
        &["s", "sec"],
        &["m", "min"],
        &["h", "hr", "hour"],
        &["d", "day"],
        &["w", "wk", "week"],
    ];
    let Some(pattern) = DURATION.as_ref() else { return false };
    let known = |unit: &str| {
        UNITS.iter().any(|variants| {
            variants.contains(&unit) || variants.last().is_some_and(|last| unit.starts_with(last))
        })
    };
    let mut any = false;
    for found in pattern.captures_iter(text) {
        let number = found.get(1).is_some_and(|n| n.as_str().parse::<i64>().is_ok());
        if !number {
            return false;
        }
        any |= found.get(2).is_some_and(|unit| known(&unit.as_str().to_lowercase()));
    }
    any
}

/// Go's `time.ParseDuration`.
fn is_go_duration(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    if text == "0" {
        return true;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return false;
        }
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].iter().find(|unit| {
            tail.starts_with(**unit)
                && !tail[unit.len()..].starts_with(|c: char| !c.is_ascii_digit() && c != '.')
        }) else {
            return false;
        };
        rest = &tail[unit.len()..];
    }
    !text.is_empty()
}

/// A text as Go's `%q` shows it.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_as_upstream_has_it() {
        for (format, good, bad) in [
            ("date", "2020-01-01", "2020-13-01"),
            ("date-time", "2020-01-01T00:00:00Z", "2020-01-01"),
            ("duration", "5 days", "x"),
            ("duration", "1h30m", ""),
            ("ipv4", "01.2.3.4", "::1"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("uri", "/a", "x y"),
            ("uri", "http://x", "http://x y"),
            ("mac", "01:02:03:04:05:06", "01:02"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("hostname", "a.example.com", "-a"),
            ("byte", "YQ==", "a"),
            ("k8s-short-name", "abc", "A_b"),
            ("email", "a@b.c", "a"),
            ("creditcard", "4111111111111111", "4111111111111112"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
    }

    #[test]
    fn formats_count_only_for_their_types() {
        assert_eq!(known("int32", &["string"]), "");
        assert_eq!(known("int32", &["integer"]), "int32");
        assert!(is_unrecognized("bogus", "string") && !is_unrecognized("date-time", "string"));
    }
}
