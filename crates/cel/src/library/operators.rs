//! Operators, conversions, sizes, optionals: what the language itself declares.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Host, Outcome};
use crate::time;
use crate::types::Type;
use crate::value::{Fault, Map, Value, compare, convert, equal, find};

pub(super) fn call(function: &str, args: &[Value], host: &Host<'_>) -> Option<Outcome> {
    Some(match (function, args) {
        ("!_", [Value::Bool(value)]) | ("@not_strictly_false", [Value::Bool(value)]) => {
            Ok(Value::Bool(*value != (function == "!_")))
        }
        ("@not_strictly_false", [_]) => Ok(Value::Bool(true)),
        ("_+_", [left, right]) => add(left, right, host)?,
        ("_-_", [left, right]) => subtract(left, right)?,
        ("_*_", [left, right]) => multiply(left, right)?,
        ("_/_", [left, right]) => divide(left, right)?,
        ("_%_", [left, right]) => modulo(left, right)?,
        ("-_", [value]) => match value {
            Value::Int(n) => n.checked_neg().map(Value::Int).ok_or_else(int_overflow),
            Value::Double(n) => Ok(Value::Double(-n)),
            _ => return None,
        },
        ("_<_", [a, b]) => compare(a, b).map(|order| Value::Bool(order == Ordering::Less)),
        ("_<=_", [a, b]) => compare(a, b).map(|order| Value::Bool(order != Ordering::Greater)),
        ("_>_", [a, b]) => compare(a, b).map(|order| Value::Bool(order == Ordering::Greater)),
        ("_>=_", [a, b]) => compare(a, b).map(|order| Value::Bool(order != Ordering::Less)),
        ("@in", [value, list]) => contains(value, list, host)?,
        ("size", [value]) => match value {
            Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
                Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
            }
            _ => return None,
        },
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_of())),
        ("bool", [value]) => convert(value, &Type::Bool),
        ("bytes", [value]) => convert(value, &Type::Bytes),
        ("double", [value]) => convert(value, &Type::Double),
        ("duration", [value]) => convert(value, &Type::Duration),
        ("int", [value]) => convert(value, &Type::Int),
        ("string", [value]) => convert(value, &Type::String),
        ("timestamp", [value]) => convert(value, &Type::Timestamp),
        ("uint", [value]) => convert(value, &Type::Uint),
        ("cel.@mapInsert", [Value::Map(map), rest @ ..]) => insert(map.clone(), rest),
        _ => return optional(function, args),
    })
}

fn int_overflow() -> Fault {
    Fault::new("integer overflow")
}
fn uint_overflow() -> Fault {
    Fault::new("unsigned integer overflow")
}
fn duration_overflow() -> Fault {
    Fault::new("duration overflow")
}

fn add(left: &Value, right: &Value, host: &Host<'_>) -> Option<Outcome> {
    Some(match (left, right) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint).ok_or_else(uint_overflow),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => Ok(Value::string(format!("{a}{b}"))),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) => a.join(b, host.fuel).map(Value::List),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(duration_overflow)
        }
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            time::in_range(at + i128::from(*by)).map(Value::Timestamp)
        }
        _ => return None,
    })
}

fn subtract(left: &Value, right: &Value) -> Option<Outcome> {
    Some(match (left, right) {
        (Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => a.checked_sub(*b).map(Value::Uint).ok_or_else(uint_overflow),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(duration_overflow)
        }
        (Value::Timestamp(at), Value::Duration(by)) => {
            time::in_range(at - i128::from(*by)).map(Value::Timestamp)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            i64::try_from(a - b).map(Value::Duration).map_err(|_| duration_overflow())
        }
        _ => return None,
    })
}

fn multiply(left: &Value, right: &Value) -> Option<Outcome> {
    Some(match (left, right) {
        (Value::Int(a), Value::Int(b)) => a.checked_mul(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => a.checked_mul(*b).map(Value::Uint).ok_or_else(uint_overflow),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        _ => return None,
    })
}

fn divide(left: &Value, right: &Value) -> Option<Outcome> {
    let by_zero = || Fault::new("division by zero");
    Some(match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => a.checked_div(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a / b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        _ => return None,
    })
}

fn modulo(left: &Value, right: &Value) -> Option<Outcome> {
    let by_zero = || Fault::new("modulus by zero");
    Some(match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => a.checked_rem(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a % b)),
        _ => return None,
    })
}

fn contains(value: &Value, within: &Value, host: &Host<'_>) -> Option<Outcome> {
    Some(match within {
        Value::Map(map) => Ok(Value::Bool(find(map, value).is_some())),
        Value::List(list) => {
            if list.len() > host.left {
                return Some(Err(Fault::OverBudget));
            }
            for element in list {
                match equal(element, value, host.fuel) {
                    Ok(true) => return Some(Ok(Value::Bool(true))),
                    Ok(false) => {}
                    Err(fault) => return Some(Err(fault)),
                }
            }
            Ok(Value::Bool(false))
        }
        _ => Err(Fault::no_overload()),
    })
}

/// A map with entries more, in place where nobody else has it: a key and a value, or a map of them.
///
/// # Errors
/// Keys that are there already, or cannot be keys.
pub(crate) fn insert(mut map: Arc<Map>, entries: &[Value]) -> Outcome {
    let result = Arc::make_mut(&mut map);
    let mut put = |key: &Value, value: &Value| -> Result<(), Fault> {
        let Some(slot) = key.as_key() else {
            let name = key.type_of();
            return Err(Fault::new(format!("unsupported key type: {}", name.type_name())));
        };
        if find(result, key).is_some() {
            return Err(Fault::new(format!("insert failed: key {key} already exists")));
        }
        result.insert(slot, value.clone());
        Ok(())
    };
    match entries {
        [key, value] => put(key, value)?,
        [Value::Map(more)] => more.iter().try_for_each(|(key, value)| put(&key.value(), value))?,
        _ => return Err(Fault::no_overload()),
    }
    Ok(Value::Map(map))
}

fn optional(function: &str, args: &[Value]) -> Option<Outcome> {
    Some(Ok(match (function, args) {
        ("optional.of", [value]) => Value::some(value.clone()),
        ("optional.ofNonZeroValue", [value]) if value.is_zero() => Value::Optional(None),
        ("optional.ofNonZeroValue", [value]) => Value::some(value.clone()),
        ("optional.none", []) => Value::Optional(None),
        ("value", [Value::Optional(Some(value))]) => (**value).clone(),
        ("value", [Value::Optional(None)]) => return Some(Err(Fault::new("optional.none() dereference"))),
        ("hasValue", [Value::Optional(value)]) => Value::Bool(value.is_some()),
        ("first", [Value::List(list)]) => list.get(0).cloned().map_or(Value::Optional(None), Value::some),
        ("last", [Value::List(list)]) => {
            let last = list.len().checked_sub(1).and_then(|at| list.get(at));
            last.cloned().map_or(Value::Optional(None), Value::some)
        }
        ("optional.unwrap" | "unwrapOpt", [Value::List(list)]) => {
            let mut present = Vec::new();
            for value in list {
                match value {
                    Value::Optional(Some(value)) => present.push((**value).clone()),
                    Value::Optional(None) => {}
                    other => return Some(Err(Fault::new(format!("value {other} is not optional")))),
                }
            }
            Value::list(present)
        }
        _ => return None,
    }))
}
