//! Equality and order, across numeric types without loss.

use std::cmp::Ordering;

use super::{Fault, Fuel, Map, Value, find};

/// Whether two values are equal. Values of different types are not, numbers aside.
///
/// # Errors
/// `OverBudget` for values nested beyond measure; some types refuse to be compared with others.
pub(crate) fn equal(first: &Value, second: &Value, fuel: &Fuel) -> Result<bool, Fault> {
    fuel.take(1)?;
    Ok(match (first, second) {
        (Value::Invalid(why), _) | (_, Value::Invalid(why)) => return Err(Fault::new(&**why)),
        (Value::Null, Value::Null) => true,
        (Value::Null, _) | (_, Value::Null) => false,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::List(a), Value::List(b)) => return a.equals(b, fuel),
        (Value::Map(a), Value::Map(b)) => return maps(a, b, fuel),
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => return equal(a, b, fuel),
        (Value::Type(a), Value::Type(b)) => a.type_name() == b.type_name(),
        (Value::Record(a), Value::Record(b)) => {
            if a.name != b.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                match b.fields.get(name) {
                    Some(other) if equal(value, other, fuel)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Url(a), Value::Url(b)) => a.text == b.text,
        (Value::Ip(a), Value::Ip(b)) => a == b,
        (Value::Cidr(a), Value::Cidr(b)) => a == b,
        (Value::Quantity(a), Value::Quantity(b)) => a.cmp(b) == Ordering::Equal,
        (Value::Semver(a), Value::Semver(b)) => a.compare(b) == Ordering::Equal,
        (Value::Format(a), Value::Format(b)) => a == b,
        (Value::Url(_) | Value::Ip(_) | Value::Cidr(_), _)
        | (Value::Quantity(_) | Value::Semver(_) | Value::Format(_), _)
        | (Value::Access(_) | Value::Decision(_), _) => return Err(Fault::no_overload()),
        _ => numbers(first, second) == Some(Some(Ordering::Equal)),
    })
}

fn maps(first: &Map, second: &Map, fuel: &Fuel) -> Result<bool, Fault> {
    if first.len() != second.len() {
        return Ok(false);
    }
    for (key, value) in first {
        match find(second, &key.value()) {
            Some(other) if equal(value, other, fuel)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The order of two values.
///
/// # Errors
/// Values that have none, NaN among them.
pub(crate) fn compare(first: &Value, second: &Value) -> Result<Ordering, Fault> {
    match (first, second) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Ok(a.as_bytes().cmp(b.as_bytes())),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.cmp(b)),
        _ => numbers(first, second)
            .ok_or_else(Fault::no_overload)?
            .ok_or_else(|| Fault::new("NaN values cannot be ordered")),
    }
}

/// The order of two numbers: `None` if one is none, `Some(None)` for NaN.
fn numbers(first: &Value, second: &Value) -> Option<Option<Ordering>> {
    Some(match (first, second) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => double(*a, i128::from(*b)),
        (Value::Double(a), Value::Uint(b)) => double(*a, i128::from(*b)),
        (Value::Int(a), Value::Double(b)) => double(*b, i128::from(*a)).map(Ordering::reverse),
        (Value::Uint(a), Value::Double(b)) => double(*b, i128::from(*a)).map(Ordering::reverse),
        _ => return None,
    })
}

#[expect(clippy::cast_possible_truncation, reason = "bounded before")]
fn double(value: f64, whole: i128) -> Option<Ordering> {
    if value.is_nan() {
        return None;
    }
    if value.abs() >= 1e30 {
        return Some(if value > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let floor = value.floor();
    let order = (floor as i128).cmp(&whole);
    Some(if order == Ordering::Equal && value > floor { Ordering::Greater } else { order })
}
