//! Parts of timestamps and durations.

use jiff::Zoned;

use super::Outcome;
use crate::time;
use crate::value::Value;

const NANOS: i64 = 1_000_000_000;

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    match args {
        [Value::Duration(nanos)] => duration(function, *nanos).map(|value| Ok(Value::Int(value))),
        [Value::Timestamp(nanos)] => timestamp(function, *nanos, None),
        [Value::Timestamp(nanos), Value::String(zone)] => timestamp(function, *nanos, Some(zone)),
        _ => None,
    }
}

fn duration(function: &str, nanos: i64) -> Option<i64> {
    Some(match function {
        "getHours" => nanos / (3600 * NANOS),
        "getMinutes" => nanos / (60 * NANOS),
        "getSeconds" => nanos / NANOS,
        "getMilliseconds" => nanos / 1_000_000,
        _ => return None,
    })
}

fn timestamp(function: &str, nanos: i128, zone: Option<&str>) -> Option<Outcome> {
    let part = part(function)?;
    Some(time::in_zone(nanos, zone).map(|at| Value::Int(part(&at))))
}

fn part(function: &str) -> Option<fn(&Zoned) -> i64> {
    Some(match function {
        "getFullYear" => |at| at.year().into(),
        "getMonth" => |at| i64::from(at.month()) - 1,
        "getDayOfYear" => |at| i64::from(at.day_of_year()) - 1,
        "getDayOfMonth" => |at| i64::from(at.day()) - 1,
        "getDate" => |at| at.day().into(),
        "getDayOfWeek" => |at| at.weekday().to_sunday_zero_offset().into(),
        "getHours" => |at| at.hour().into(),
        "getMinutes" => |at| at.minute().into(),
        "getSeconds" => |at| at.second().into(),
        "getMilliseconds" => |at| at.millisecond().into(),
        _ => return None,
    })
}
