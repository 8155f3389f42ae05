//! Cron schedules as CronJobs write them: five fields, names, steps, descriptors, `@every`. The texts of faults
//! are those of `robfig/cron`, which clients see.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};

/// A field's bounds and names.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Says that a field was written as `*`.
const STAR: u64 = 1 << 63;

/// When something is due.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// At the times that the fields name.
    Fields(Fields),
    /// Again and again after this time, at least a second.
    Every(Duration),
}

/// The five fields as bit sets, and the time zone if the text names one.
#[derive(Clone, Debug)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    zone: Option<TimeZone>,
}

/// The time zone of that name; `None` if there is none. Names are case-sensitive. The zones are those of the
/// database in the program: what a schedule means does not depend on the machine.
pub fn zone(name: &str) -> Option<TimeZone> {
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let zone = ZONES.get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

impl Schedule {
    /// Parses a schedule.
    ///
    /// # Errors
    /// Upstream's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let (zone, rest) = named_zone(text)?;
        if rest.starts_with('@') {
            return descriptor(rest, zone);
        }
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            let (count, shown) = (fields.len(), fields.join(" "));
            return Err(format!("expected exactly 5 fields, found {count}: [{shown}]"));
        };
        Ok(Self::Fields(Fields {
            minute: field(minute, &MINUTES)?,
            hour: field(hour, &HOURS)?,
            day: field(day, &DAYS)?,
            month: field(month, &MONTHS)?,
            weekday: field(weekday, &WEEKDAYS)?,
            zone,
        }))
    }

    /// The first time after `after`; the fields mean times in `zone` unless the schedule names its own. `None`
    /// when there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                let seconds = i64::try_from(period.as_secs().max(1)).ok()?;
                Timestamp::from_second(after.as_second().checked_add(seconds)?).ok()
            }
            Self::Fields(fields) => fields.next(after, fields.zone.as_ref().unwrap_or(zone)),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at = after.to_zoned(zone.clone()).datetime();
        at = at.with().second(0).subsec_nanosecond(0).build().ok()?.checked_add(1.minute()).ok()?;
        let last = at.year() + 5;
        while at.year() <= last {
            if !has(self.month, at.month()) {
                let next = at.date().first_of_month().checked_add(1.month()).ok()?;
                at = next.at(0, 0, 0, 0);
            } else if !self.has_day(at) {
                at = at.date().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !has(self.hour, at.hour()) {
                at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if !has(self.minute, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                // A time that clocks skip is due when they go on.
                let found = at.to_zoned(zone.clone()).ok()?.timestamp();
                if found > after {
                    return Some(found);
                }
                at = at.checked_add(1.minute()).ok()?;
            }
        }
        None
    }

    /// Day of month and day of week both count unless one of them is `*`; then the other one does.
    fn has_day(&self, at: DateTime) -> bool {
        let day = has(self.day, at.day());
        let weekday = has(self.weekday, at.weekday().to_sunday_zero_offset());
        if self.day & STAR != 0 || self.weekday & STAR != 0 { day && weekday } else { day || weekday }
    }
}

fn has(set: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| set & (1 << value) != 0)
}

/// The zone that a schedule begins with, and what is behind it.
fn named_zone(text: &str) -> Result<(Option<TimeZone>, &str), String> {
    let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
        return Ok((None, text));
    };
    let Some((name, rest)) = rest.split_once(' ') else {
        return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
    };
    match zone(name) {
        Some(zone) => Ok((Some(zone), rest.trim())),
        None => Err(format!("provided bad location {name}: unknown time zone {name}")),
    }
}

fn descriptor(text: &str, zone: Option<TimeZone>) -> Result<Schedule, String> {
    let all = |bounds: &Bounds| bits(bounds.min, bounds.max, 1) | STAR;
    let one = |bounds: &Bounds| 1 << bounds.min;
    let every = (all(&HOURS), all(&DAYS), all(&MONTHS), all(&WEEKDAYS));
    let (hour, day, month, weekday) = match text {
        "@yearly" | "@annually" => (one(&HOURS), one(&DAYS), one(&MONTHS), every.3),
        "@monthly" => (one(&HOURS), one(&DAYS), every.2, every.3),
        "@weekly" => (one(&HOURS), every.1, every.2, one(&WEEKDAYS)),
        "@daily" | "@midnight" => (one(&HOURS), every.1, every.2, every.3),
        "@hourly" => every,
        _ => {
            let Some(period) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            return match duration(period) {
                Ok(period) => Ok(Schedule::Every(period)),
                Err(why) => Err(format!("failed to parse duration {text}: {why}")),
            };
        }
    };
    Ok(Schedule::Fields(Fields { minute: one(&MINUTES), hour, day, month, weekday, zone }))
}

/// Go's `time.ParseDuration`; negative ones count as none.
///
/// # Errors
/// Go's text.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let amount: f64 = number.parse().map_err(|_| invalid())?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        total += amount * seconds;
        rest = after;
    }
    let length = Duration::try_from_secs_f64(total).map_err(|_| invalid())?;
    Ok(if negative { Duration::ZERO } else { length })
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let mut set = 0;
    for part in text.split(',').filter(|part| !part.is_empty()) {
        set |= range(part, bounds)?;
    }
    Ok(set)
}

/// `number`, or `low-high`, either with `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let mut star = 0;
    let (start, mut end) = match ends.as_slice() {
        ["*" | "?", ..] => {
            star = STAR;
            (bounds.min, bounds.max)
        }
        [low] => {
            let low = number_or_name(low, bounds)?;
            (low, low)
        }
        [low, high] => (number_or_name(low, bounds)?, number_or_name(high, bounds)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if ends.len() == 1 {
                end = bounds.max;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(bits(start, end, step) | star)
}

fn bits(start: u32, end: u32, step: u32) -> u64 {
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    (start..=end).step_by(step).fold(0, |set, i| set | 1 << i)
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().zip(bounds.min..).find(|(name, _)| **name == lower) {
        Some((_, value)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let fail = |why: &str| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}");
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fail("invalid syntax"));
    }
    let value: i64 = text.parse().map_err(|_| fail("value out of range"))?;
    if value < 0 {
        return Err(format!("negative number ({value}) not allowed: {text}"));
    }
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_next(schedule: &str, after: &str, zone: &str, expected: &str) {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let zone = TimeZone::get(zone).expect("a zone");
        let next = schedule.next(after.parse().expect("a time"), &zone).expect("a next time");
        assert_eq!(next.to_string(), expected);
    }

    #[test]
    fn next_times_follow_the_fields() {
        check_next("*/15 * * * *", "2024-01-01T00:01:00Z", "UTC", "2024-01-01T00:15:00Z");
        check_next("0 0 1 1 *", "2024-01-01T00:00:00Z", "UTC", "2025-01-01T00:00:00Z");
        check_next("30 4 * * mon-fri", "2024-01-05T05:00:00Z", "UTC", "2024-01-08T04:30:00Z");
        check_next("0 0 13 * FRI", "2024-01-01T00:00:00Z", "UTC", "2024-01-05T00:00:00Z");
        check_next("0 12 29 2 *", "2024-03-01T00:00:00Z", "UTC", "2028-02-29T12:00:00Z");
        check_next("@every 90s", "2024-01-01T00:00:00.5Z", "UTC", "2024-01-01T00:01:30Z");
        check_next("@daily", "2024-06-01T12:00:00Z", "Europe/Berlin", "2024-06-01T22:00:00Z");
    }

    #[test]
    fn impossible_days_have_no_next_time() {
        let schedule = Schedule::parse("0 0 31 2 *").expect("a schedule");
        assert_eq!(schedule.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn faults_have_upstreams_texts() {
        let fault = |text: &str| Schedule::parse(text).expect_err("a fault");
        assert_eq!(fault("* * * *"), "expected exactly 5 fields, found 4: [* * * *]");
        assert_eq!(fault("60 * * * *"), "end of range (60) above maximum (59): 60");
        assert_eq!(fault("@never"), "unrecognized descriptor: @never");
        assert_eq!(
            fault("x * * * *"),
            "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"
        );
    }
}
