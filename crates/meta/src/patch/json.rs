//! JSON Patch as upstream's library applies it: negative indices count from the end, `replace` of an absent
//! key adds it, `test` of an absent path against null passes.

use serde_json::{Value, json};

use crate::status::{Reason, Status};

const MAX_OPERATIONS: usize = 10_000;

/// Applies an RFC 6902 patch.
///
/// # Errors
/// 400 when it is no list, 413 when it is too long, 422 when an operation does not apply. `target` is then
/// half changed.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Array(operations) = patch else {
        let kind = match patch {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            // Go decodes null into an empty list.
            Value::Null | Value::Array(_) => return Ok(()),
        };
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::too_large(format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, \
                got {}",
            operations.len()
        )));
    }
    if matches!(json_patch_operations(target, operations), Ok(true)) {
        return Ok(());
    }
    let message = "the server rejected our request due to an error in our request";
    Err(Status::new(422, Reason::Invalid, message, Some(json!({}))))
}

/// Applies the operations of an RFC 6902 patch; false when a `test` found something else than it wanted.
/// `target` is then half changed.
///
/// # Errors
/// Why an operation does not apply, in the words of upstream's library.
pub fn json_patch_operations(target: &mut Value, operations: &[Value]) -> Result<bool, String> {
    for operation in operations {
        if apply(target, operation).is_none() {
            let text = |key: &str| operation.get(key).and_then(Value::as_str).unwrap_or("");
            return if text("op") == "test" {
                Ok(false)
            } else {
                Err(misfit(target, text("op"), text("path")))
            };
        }
    }
    Ok(true)
}

/// Why an operation does not apply.
fn misfit(target: &Value, op: &str, path: &str) -> String {
    if !matches!(op, "add" | "remove" | "replace" | "move" | "copy") {
        return format!("Unexpected kind: {op}");
    }
    let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
    match find(target, above) {
        Some(Value::Object(_)) if op == "remove" => {
            let key = unescape(last);
            format!(
                "error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"
            )
        }
        Some(Value::Array(_)) if matches!(op, "add" | "remove") => {
            let why = "invalid index referenced";
            format!("error in {op} for path: '{path}': Unable to access invalid index: {last}: {why}")
        }
        _ => format!("{op} operation does not apply: doc is missing path: \"{path}\": missing value"),
    }
}

fn apply(root: &mut Value, operation: &Value) -> Option<()> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let path = text("path")?;
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match text("op")? {
        "add" => add(root, path, value()),
        "remove" => remove(root, path).map(drop),
        "replace" => replace(root, path, value()),
        "move" => {
            let moved = remove(root, text("from")?)?;
            add(root, path, moved)
        }
        "copy" => {
            let from = text("from")?;
            // What an object does not have is copied as null.
            let above = from.rsplit_once('/').and_then(|(above, _)| find(root, above));
            let missing = || above.is_some_and(Value::is_object).then_some(&Value::Null);
            let copied = find(root, from).or_else(missing)?.clone();
            add(root, path, copied)
        }
        "test" => {
            let expected = operation.get("value").unwrap_or(&Value::Null);
            (find(root, path).unwrap_or(&Value::Null) == expected).then_some(())
        }
        _ => None,
    }
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// Index of an existing item; negative ones count from the end.
fn position(token: &str, length: usize) -> Option<usize> {
    let index: i64 = token.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index + length } else { index };
    (0..length).contains(&index).then(|| usize::try_from(index).ok()).flatten()
}

fn step<'v>(value: &'v mut Value, token: &str) -> Option<&'v mut Value> {
    match value {
        Value::Object(map) => map.get_mut(&unescape(token)),
        Value::Array(items) => {
            let at = position(token, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    }
}

fn find<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    if path.is_empty() {
        return Some(root);
    }
    path.split_once('/')?.1.split('/').try_fold(root, |value, token| match value {
        Value::Object(map) => map.get(&unescape(token)),
        Value::Array(items) => items.get(position(token, items.len())?),
        _ => None,
    })
}

/// The container of the last token, and that token.
fn parent<'v, 'p>(root: &'v mut Value, path: &'p str) -> Option<(&'v mut Value, &'p str)> {
    // What stands before the first slash is not looked at.
    let (_, below) = path.split_once('/')?;
    let (prefix, last) = below.rsplit_once('/').unwrap_or(("", below));
    let mut value = root;
    if below.contains('/') {
        for token in prefix.split('/') {
            value = step(value, token)?;
        }
    }
    Some((value, last))
}

fn add(root: &mut Value, path: &str, value: Value) -> Option<()> {
    let (container, last) = parent(root, path)?;
    match container {
        Value::Object(map) => {
            map.insert(unescape(last), value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            // One past the end is a valid place, also when counting from the end.
            let at = position(last, items.len() + 1)?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(root: &mut Value, path: &str) -> Option<Value> {
    let (container, last) = parent(root, path)?;
    match container {
        Value::Object(map) => map.remove(&unescape(last)),
        Value::Array(items) => {
            let at = position(last, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

fn replace(root: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *root = value;
        return Some(());
    }
    let (container, last) = parent(root, path)?;
    match container {
        Value::Object(map) => {
            map.insert(unescape(last), value);
        }
        Value::Array(items) => {
            let at = position(last, items.len())?;
            *items.get_mut(at)? = value;
        }
        _ => return None,
    }
    Some(())
}
