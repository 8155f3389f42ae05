//! What calls cost when they run.

use super::formats;
use crate::cost::{LIST_COST, REGEX_FACTOR, STRING_FACTOR, is_comparing, is_unit, scale, selector_cost};
use crate::value::{Key, Value};

/// The cost of a call with these arguments and this result. `overload` is given where only one was meant.
pub(crate) fn cost(function: &str, overload: Option<&str>, args: &[Value], result: &Value) -> u64 {
    lists(overload, args, result)
        .or_else(|| library(function, overload, args, result))
        .unwrap_or_else(|| standard(overload, args))
}

fn text(value: &Value, factor: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "one or two")]
    scale(value.size(), factor as f64 * STRING_FACTOR)
}

fn regex(value: &Value, pattern: u64) -> u64 {
    let traversal = scale(value.size() + 1, STRING_FACTOR);
    traversal.saturating_mul(scale(pattern, REGEX_FACTOR))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as upstream"
)]
fn allocated(factor: f64, size: u64) -> u64 {
    ((size as f64 * factor) as u64).saturating_add(1 + LIST_COST)
}

fn compared(list: &Value) -> u64 {
    let Value::List(items) = list else { return allocated(2.0, 1) };
    let texts = matches!(items.get(0), Some(Value::String(_) | Value::Bytes(_)));
    let factor = if texts { 2.0 + STRING_FACTOR } else { 2.0 };
    allocated(factor, items.len().saturating_mul(items.len()))
}

fn lists(overload: Option<&str>, args: &[Value], result: &Value) -> Option<u64> {
    Some(match (overload?, args) {
        ("list_slice" | "lists_range" | "list_reverse", _) => allocated(1.0, result.size()),
        ("list_flatten", [list]) => allocated(1.0, list.size()),
        #[expect(clippy::cast_precision_loss, reason = "as upstream")]
        ("list_flatten_int", [list, Value::Int(depth)]) => allocated(*depth as f64, list.size()),
        ("list_distinct", [list]) => compared(list),
        (id, [list]) if id.starts_with("list_") && id.ends_with("_sort") => compared(list),
        (id, [_, keys]) if id.ends_with("_sortByAssociatedKeys") => compared(keys),
        ("list_sets_contains_list" | "list_sets_intersects_list", [a, b]) => {
            a.size().saturating_mul(b.size()).saturating_add(1)
        }
        ("list_sets_equivalent_list", [a, b]) => {
            a.size().saturating_mul(b.size()).saturating_mul(2).saturating_add(1)
        }
        _ => return None,
    })
}

fn library(function: &str, overload: Option<&str>, args: &[Value], result: &Value) -> Option<u64> {
    Some(match (function, args) {
        ("check", _) => 350_000,
        (function, _) if is_unit(function) => 1,
        ("fieldSelector" | "labelSelector", [_, selector, ..]) => selector_cost(selector.size()),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", [list, ..]) => traversal(list),
        ("url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey", [arg, ..]) => {
            text(arg, 1)
        }
        ("replace" | "split", [arg, ..]) => text(arg, 2),
        ("join", [_, ..]) => text(result, 2),
        ("find" | "findAll", [arg, pattern, ..]) => regex(arg, pattern.size()),
        ("ip", [_]) if overload == Some("cidr_ip") => 1,
        (
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver",
            [arg, ..],
        ) => text(arg, 1),
        ("ip.isCanonical", [arg]) => text(arg, 2),
        ("containsIP" | "containsCIDR", [net, other]) => {
            let size = net.size();
            let mut cost = scale(size * 2, STRING_FACTOR);
            if function == "containsCIDR" {
                cost += scale(size, STRING_FACTOR) + 1;
            }
            if overload.is_some_and(|id| id.ends_with("_string")) {
                cost += text(other, 1);
            }
            cost
        }
        ("validate", [Value::Format(name), arg]) => regex(arg, formats::pattern_size(name)),
        (
            "_==_",
            [
                Value::Quantity(_)
                | Value::Ip(_)
                | Value::Cidr(_)
                | Value::Format(_)
                | Value::Url(_)
                | Value::Semver(_)
                | Value::Access(_)
                | Value::Decision(_),
                _,
            ],
        ) => 1,
        _ => return None,
    })
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as upstream"
)]
fn traversal(value: &Value) -> u64 {
    let bytes = |len: usize| (len as f64 * STRING_FACTOR) as u64;
    match value {
        Value::String(text) => bytes(text.len()),
        Value::Bytes(data) => bytes(data.len()),
        Value::List(list) => list.iter().map(traversal).fold(0, u64::saturating_add),
        Value::Map(map) => map
            .iter()
            .map(|(key, value)| {
                let key = match key {
                    Key::String(text) => bytes(text.len()),
                    _ => 1,
                };
                key.saturating_add(traversal(value))
            })
            .fold(0, u64::saturating_add),
        _ => 1,
    }
}

fn standard(overload: Option<&str>, args: &[Value]) -> u64 {
    match (overload.unwrap_or(""), args) {
        (
            "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
            | "strings_quote" | "string_format",
            [arg, ..],
        ) => text(arg, 1),
        ("in_list", [_, list]) => list.size(),
        (overload, [a, b]) if is_comparing(overload) => scale(a.size().min(b.size()), STRING_FACTOR),
        ("add_string" | "add_bytes", [a, b]) => scale(a.size() + b.size(), STRING_FACTOR),
        ("matches_string", [arg, pattern]) => regex(arg, pattern.size()),
        ("contains_string", [a, b]) => text(a, 1).saturating_mul(text(b, 1)),
        _ => 1,
    }
}
