//! Durations and timestamps as Go reads and prints them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::value::Fault;

const NANOS: i128 = 1_000_000_000;
const MIN_SECONDS: i64 = -62_135_596_800;
const MAX_SECONDS: i64 = 253_402_300_799;
/// The zero time of Go, the first instant of the year 1.
pub(crate) const ZERO: i128 = MIN_SECONDS as i128 * NANOS;

fn overflow() -> Fault {
    Fault::new("timestamp overflow")
}

/// A timestamp, if it is in range.
///
/// # Errors
/// `timestamp overflow`.
pub(crate) fn in_range(nanos: i128) -> Result<i128, Fault> {
    let seconds = nanos.div_euclid(NANOS);
    if seconds < i128::from(MIN_SECONDS) || seconds > i128::from(MAX_SECONDS) {
        return Err(overflow());
    }
    Ok(nanos)
}

/// Seconds since the epoch as a timestamp.
///
/// # Errors
/// `timestamp overflow`.
pub(crate) fn from_seconds(seconds: i64) -> Result<i128, Fault> {
    in_range(i128::from(seconds) * NANOS)
}

/// Whole seconds since the epoch.
pub(crate) fn seconds(nanos: i128) -> i64 {
    i64::try_from(nanos.div_euclid(NANOS)).unwrap_or(i64::MAX)
}

/// Go's `time.ParseDuration`.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(whole_end);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return None;
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS,
            "m" => 60 * NANOS,
            "h" => 3600 * NANOS,
            _ => return None,
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let digits = &fraction[..fraction.len().min(18)];
        let part = match digits.parse::<i128>() {
            Ok(part) => part * scale / 10_i128.pow(u32::try_from(digits.len()).ok()?),
            Err(_) => 0,
        };
        total += whole * scale + part;
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Go's `time.ParseDuration`, in nanoseconds.
///
/// # Errors
/// Go's words, without the `time: ` in front.
pub fn go_duration(text: &str) -> Result<i64, String> {
    let shown = quoted(text);
    let invalid = || format!("invalid duration {shown}");
    if let Some(nanos) = parse_duration(text) {
        return Ok(nanos);
    }
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let digits = &rest[..rest.len() - number.len()];
        if digits.is_empty()
            || digits.matches('.').count() > 1
            || !digits.contains(|c: char| c.is_ascii_digit())
        {
            return Err(invalid());
        }
        let end = number.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(number.len());
        match &number[..end] {
            "" => return Err(format!("missing unit in duration {shown}")),
            "ns" | "us" | "\u{b5}s" | "\u{3bc}s" | "ms" | "s" | "m" | "h" => rest = &number[end..],
            unit => return Err(format!("unknown unit {} in duration {shown}", quoted(unit))),
        }
    }
    Err(invalid())
}

/// A text as Go's package `time` quotes it: every byte that is not plain ASCII by its number.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' | 0x7f => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out + "\""
}

/// A duration as `string(d)`: seconds with as many digits as needed.
pub(crate) fn show_duration(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let fraction = nanos % 1_000_000_000;
    #[expect(clippy::cast_precision_loss, reason = "as Go's Duration.Seconds")]
    let value = seconds as f64 + fraction as f64 / 1e9;
    format!("{value}s")
}

/// RFC 3339 as Go reads it.
///
/// # Errors
/// `None` for a text of another form, an overflow otherwise.
pub(crate) fn parse_timestamp(text: &str) -> Result<i128, Option<Fault>> {
    let bytes = text.as_bytes();
    let shaped = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && bytes[10] == b'T'
        && bytes[13] == b':'
        && bytes[16] == b':'
        && (text.ends_with('Z') || matches!(bytes[bytes.len() - 6], b'+' | b'-'));
    if !shaped || !text.is_ascii() || &bytes[17..19] == b"60" {
        return Err(None);
    }
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().map_err(|_| None);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let last = jiff::civil::Date::new(1, 1, 1).ok().and_then(|date| {
        let year = i16::try_from(year).ok()?.max(1);
        date.with().year(year).month(i8::try_from(month).ok()?).build().ok()
    });
    let leap = year == 0 && month == 2 && day == 29;
    let days = i64::from(last.ok_or(None)?.days_in_month());
    if day < 1 || day > days && !leap || hour > 23 || minute > 59 || second > 59 {
        return Err(None);
    }
    let zone_at = if text.ends_with('Z') { text.len() - 1 } else { text.len() - 6 };
    let fraction = match &text[19..zone_at] {
        "" => 0,
        digits => nanos_of(digits).ok_or(None)?,
    };
    let offset = match &text[zone_at..] {
        "Z" => 0,
        zone => {
            let part =
                |at: usize| zone[at..at + 2].parse::<i64>().ok().filter(|_| zone.as_bytes()[3] == b':');
            let (hours, minutes) = (part(1).ok_or(None)?, part(4).ok_or(None)?);
            let seconds = hours * 3600 + minutes * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    let seconds = days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset;
    in_range(i128::from(seconds) * NANOS + i128::from(fraction)).map_err(Some)
}

/// `.123` in nanoseconds.
fn nanos_of(digits: &str) -> Option<i64> {
    let digits =
        digits.strip_prefix('.').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
    let kept = &digits[..digits.len().min(9)];
    Some(kept.parse::<i64>().ok()? * 10_i64.pow(9 - u32::try_from(kept.len()).ok()?))
}

/// Days since 1970-01-01 in the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, shifted) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, (shifted + 2) % 12 + 1);
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// A timestamp as RFC 3339 in UTC, with as many digits of the second as needed.
pub(crate) fn show_timestamp(nanos: i128) -> String {
    let (total, fraction) = (seconds(nanos), nanos.rem_euclid(NANOS));
    let (year, month, day) = civil_from_days(total.div_euclid(86400));
    let of_day = total.rem_euclid(86400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let digits = format!(".{fraction:09}");
    let shown = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{shown}Z")
}

/// A timestamp in a zone: a name, `+01:00` and the like, or UTC.
///
/// # Errors
/// Go's message for an unknown zone.
pub(crate) fn in_zone(nanos: i128, zone: Option<&str>) -> Result<Zoned, Fault> {
    let at = Timestamp::from_nanosecond(nanos).map_err(|_| overflow())?;
    let zone = match zone {
        None | Some("" | "UTC") => TimeZone::UTC,
        Some(text) if text.contains(':') => offset(text)?,
        Some(name) => TimeZone::get(name).map_err(|_| Fault::new(format!("unknown time zone {name}")))?,
    };
    Ok(at.to_zoned(zone))
}

fn offset(text: &str) -> Result<TimeZone, Fault> {
    let (hours, minutes) = text.split_once(':').unwrap_or((text, ""));
    let number = |digits: &str| -> Result<i32, Fault> {
        let syntax = || Fault::new(format!("strconv.Atoi: parsing \"{digits}\": invalid syntax"));
        digits.parse().map_err(|_| syntax())
    };
    let (hours_value, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if hours.starts_with('-') { -minutes } else { minutes };
    let offset = jiff::tz::Offset::from_seconds(hours_value * 3600 + minutes * 60)
        .map_err(|_| Fault::new(format!("unknown time zone {text}")))?;
    Ok(TimeZone::fixed(offset))
}
