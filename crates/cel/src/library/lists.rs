//! Functions of lists and sets.

use std::cmp::Ordering;

use super::{Host, Outcome};
use crate::value::{Fault, List, Value, compare, equal};

pub(super) fn call(function: &str, args: &[Value], host: &Host<'_>) -> Option<Outcome> {
    Some(match (function, args) {
        ("slice", [Value::List(list), Value::Int(start), Value::Int(end)]) => slice(list, *start, *end),
        ("flatten", [Value::List(list)]) => flat(list, 1, host),
        ("flatten", [Value::List(list), Value::Int(depth)]) => flat(list, *depth, host),
        ("sort", [Value::List(list)]) => sort(list, list, host),
        ("@sortByAssociatedKeys", [Value::List(list), Value::List(keys)]) => sort(list, keys, host),
        ("lists.range", [Value::Int(len)]) => {
            if u64::try_from(*len).is_ok_and(|len| len > host.left) {
                return Some(Err(Fault::OverBudget));
            }
            Ok(Value::list((0..*len).map(Value::Int).collect()))
        }
        ("reverse", [Value::List(list)]) => all(list, host).map(|mut items| {
            items.reverse();
            Value::list(items)
        }),
        ("distinct", [Value::List(list)]) => distinct(list, host),
        ("isSorted", [Value::List(list)]) => sorted(list, host),
        ("sum", [Value::List(list)]) => sum(list, host),
        ("max", [Value::List(list)]) => extreme(list, "max", Ordering::Less, host),
        ("min", [Value::List(list)]) => extreme(list, "min", Ordering::Greater, host),
        ("indexOf", [Value::List(list), value]) => position(list, value, false, host),
        ("lastIndexOf", [Value::List(list), value]) => position(list, value, true, host),
        ("includes", [Value::List(list), value]) => {
            position(list, value, false, host).map(|at| Value::Bool(!matches!(at, Value::Int(-1))))
        }
        ("includes", [one, value]) => equal(one, value, host.fuel).map(Value::Bool),
        ("sets.contains", [Value::List(list), Value::List(part)]) => within(part, list, host),
        ("sets.equivalent", [Value::List(a), Value::List(b)]) => {
            match (within(b, a, host), within(a, b, host)) {
                (Ok(Value::Bool(first)), Ok(Value::Bool(second))) => Ok(Value::Bool(first && second)),
                (Err(fault), _) | (_, Err(fault)) => Err(fault),
                _ => Ok(Value::Bool(false)),
            }
        }
        ("sets.intersects", [Value::List(a), Value::List(b)]) => intersects(a, b, host),
        _ => return None,
    })
}

/// The elements, as far as the budget reaches.
fn all(list: &List, host: &Host<'_>) -> Result<Vec<Value>, Fault> {
    if list.len() > host.left {
        return Err(Fault::OverBudget);
    }
    Ok(list.iter().cloned().collect())
}

fn slice(list: &List, start: i64, end: i64) -> Outcome {
    let wrong = |why: String| Err(Fault::new(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (u64::try_from(start), u64::try_from(end)) else {
        return wrong("negative indexes not supported".to_owned());
    };
    if start > end {
        return wrong("start index must be less than or equal to end index".to_owned());
    }
    if list.len() < to {
        return wrong(format!("list is length {}", list.len()));
    }
    let len = usize::try_from(to - from).unwrap_or(usize::MAX);
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    Ok(Value::list(list.iter().skip(skip).take(len).cloned().collect()))
}

fn flat(list: &List, depth: i64, host: &Host<'_>) -> Outcome {
    if depth < 0 {
        return Err(Fault::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten(list, depth, host, &mut out)?;
    Ok(Value::list(out))
}

fn flatten(list: &List, depth: i64, host: &Host<'_>, out: &mut Vec<Value>) -> Result<(), Fault> {
    for value in list {
        host.fuel.take(1)?;
        match value {
            Value::List(inner) if depth > 0 => flatten(inner, depth - 1, host, out)?,
            other => out.push(other.clone()),
        }
    }
    Ok(())
}

fn sort(list: &List, keys: &List, host: &Host<'_>) -> Outcome {
    if list.len() != keys.len() {
        return Err(Fault::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} \
             and {} elements respectively",
            list.len(),
            keys.len()
        )));
    }
    let items = all(list, host)?;
    let Some(first) = keys.get(0) else { return Ok(Value::List(list.clone())) };
    let comparable = matches!(
        first,
        Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::Duration(_)
            | Value::Timestamp(_)
    );
    if !comparable {
        return Err(Fault::new("list elements must be comparable"));
    }
    let of = first.type_of();
    if keys.iter().any(|key| key.type_of() != of) {
        return Err(Fault::new("list elements must have the same type"));
    }
    let mut pairs: Vec<(&Value, Value)> = keys.iter().zip(items).collect();
    pairs.sort_by(|(a, _), (b, _)| compare(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, value)| value).collect()))
}

fn distinct(list: &List, host: &Host<'_>) -> Outcome {
    let mut unique: Vec<Value> = Vec::new();
    for value in all(list, host)? {
        let mut seen = false;
        for other in &unique {
            seen = equal(&value, other, host.fuel)?;
            if seen {
                break;
            }
        }
        if !seen {
            unique.push(value);
        }
    }
    Ok(Value::list(unique))
}

fn sorted(list: &List, host: &Host<'_>) -> Outcome {
    let items = all(list, host)?;
    for pair in items.windows(2) {
        if compare(&pair[0], &pair[1])? == Ordering::Greater {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(list: &List, host: &Host<'_>) -> Outcome {
    let mut total = match list.get(0) {
        Some(Value::Uint(_)) => Value::Uint(0),
        Some(Value::Double(_)) => Value::Double(0.0),
        Some(Value::Duration(_)) => Value::Duration(0),
        _ => Value::Int(0),
    };
    for value in all(list, host)? {
        total = super::call("_+_", &[total, value], None, host)?;
    }
    Ok(total)
}

fn extreme(list: &List, name: &str, replaced: Ordering, host: &Host<'_>) -> Outcome {
    let mut best: Option<Value> = None;
    for value in all(list, host)? {
        let better = match &best {
            None => true,
            Some(best) => compare(best, &value)? == replaced,
        };
        if better {
            best = Some(value);
        }
    }
    best.ok_or_else(|| Fault::new(format!("{name} called on empty list")))
}

fn position(list: &List, wanted: &Value, last: bool, host: &Host<'_>) -> Outcome {
    let mut found = -1;
    for (i, value) in list.iter().enumerate() {
        if equal(value, wanted, host.fuel)? {
            found = i64::try_from(i).unwrap_or(i64::MAX);
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

fn has(list: &List, wanted: &Value, host: &Host<'_>) -> Result<bool, Fault> {
    for value in list {
        if equal(value, wanted, host.fuel)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether every element of `part` is in `list`.
fn within(part: &List, list: &List, host: &Host<'_>) -> Outcome {
    for value in part {
        if !has(list, value, host)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn intersects(a: &List, b: &List, host: &Host<'_>) -> Outcome {
    for value in a {
        if has(b, value, host)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
