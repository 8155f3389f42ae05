//! Strategic merge. Follows `k8s.io/apimachinery/pkg/util/strategicpatch` as to results, order of list items
//! and messages.

use serde_json::{Map, Value};

use super::{go_fmt, without_nulls};
use crate::go;
use crate::schema::{Field, Node, NodeId, Schemas};
use crate::status::{Reason, Status};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Applies `patch`; see [`super::strategic_merge_patch`].
pub(super) fn apply(target: &mut Value, patch: &Value, schemas: &Schemas, name: &str) -> Result<(), Status> {
    let none = Object::new();
    let patch = match patch {
        Value::Object(patch) => patch,
        // Go decodes null into a map without entries.
        Value::Null => &none,
        _ => {
            return Err(Status::bad_request(
                "error decoding patch: json: cannot unmarshal value into Go value of type \
                map[string]interface {}",
            ));
        }
    };
    let Value::Object(target) = target else {
        return Err(failure("the object to patch is no map".to_owned()));
    };
    Merger { schemas }.map(target, patch, schemas.find(name).unwrap_or(0))
}

/// What is left of `patch` once it has been applied to `target`: upstream's merge takes directives and nulls out of
/// it on the way, and messages show the rest.
pub(super) fn left(target: &Value, patch: &Value, schemas: &Schemas, name: &str) -> Value {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            Value::Object(Merger { schemas }.left(target, patch, schemas.find(name).unwrap_or(0)))
        }
        _ => patch.clone(),
    }
}

fn failure(message: String) -> Status {
    Status::new(500, Reason::Unknown, message, None)
}

fn no_merge_key(item: &Object, key: &str) -> Status {
    let shown = go_fmt::go(&Value::Object(item.clone()));
    failure(format!("map: {shown} does not contain declared merge key: {key}"))
}

fn bad_directive(directive: &Value, item: &Object) -> Status {
    let shown = go_fmt::go(&Value::Object(item.clone()));
    failure(format!("unknown patch type: {} in map: {shown}", go_fmt::go(directive)))
}

struct Merger<'s> {
    schemas: &'s Schemas,
}

/// How a field merges: its type, and its list facts.
struct Meta<'s> {
    node: NodeId,
    merge: bool,
    replace: bool,
    key: Option<&'s str>,
}

impl<'s> Meta<'s> {
    fn of(field: &'s Field) -> Self {
        Self { node: field.node, merge: field.merge, replace: field.replace, key: field.merge_key.as_deref() }
    }
}

impl<'s> Merger<'s> {
    fn meta(&self, parent: NodeId, field: &str) -> Meta<'s> {
        let plain = |node| Meta { node, merge: false, replace: false, key: None };
        match self.schemas.node(parent) {
            Node::Struct(structure) => structure.field(field).map_or_else(|| plain(0), Meta::of),
            Node::Map { element, .. } => plain(*element),
            _ => plain(0),
        }
    }

    fn element(&self, list: NodeId) -> NodeId {
        match self.schemas.node(list) {
            Node::List { element, .. } => *element,
            _ => 0,
        }
    }

    fn map(&self, target: &mut Object, patch: &Object, node: NodeId) -> Result<(), Status> {
        if let Some(directive) = patch.get(DIRECTIVE) {
            match directive.as_str() {
                Some("replace") => {
                    *target = patch
                        .iter()
                        .filter(|(k, _)| *k != DIRECTIVE)
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect();
                }
                Some("delete") => target.clear(),
                _ => return Err(bad_directive(directive, patch)),
            }
            return Ok(());
        }
        retain_keys(target, patch)?;
        for (key, order) in patch {
            match (key.strip_prefix(ORDER), order) {
                (Some(field), Value::Array(order)) => self.ordered_list(target, patch, node, field, order)?,
                (Some(_), other) => {
                    let got = if other.is_null() { "<nil>" } else { go::kind(other) };
                    let why = format!("expected a []interface {{}}, but received a {got}");
                    return Err(failure(why));
                }
                (None, _) => {}
            }
        }
        for (key, value) in patch {
            if key.starts_with(ORDER) || key == RETAIN_KEYS || patch.contains_key(&format!("{ORDER}{key}")) {
                continue;
            }
            if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
                delete_primitives(target, field, value);
            } else {
                self.entry(target, key, value, node)?;
            }
        }
        Ok(())
    }

    fn entry(&self, target: &mut Object, key: &str, value: &Value, node: NodeId) -> Result<(), Status> {
        if value.is_null() {
            target.remove(key);
            return Ok(());
        }
        let Some(slot) = target.get_mut(key) else {
            target.insert(key.to_owned(), without_directives(value));
            return Ok(());
        };
        let meta = self.meta(node, key);
        match (&mut *slot, value) {
            (Value::Object(_), Value::Object(_)) if meta.replace => *slot = value.clone(),
            (Value::Object(old), Value::Object(new)) => self.map(old, new, meta.node)?,
            (Value::Array(old), Value::Array(new)) if meta.merge => {
                let merged = self.list(std::mem::take(old), new, &meta)?;
                *slot = Value::Array(merged);
            }
            _ => *slot = without_directives(value),
        }
        Ok(())
    }

    fn left(&self, target: &Object, patch: &Object, node: NodeId) -> Object {
        let kept = patch
            .iter()
            .filter(|(key, _)| *key != DIRECTIVE && *key != RETAIN_KEYS && !key.starts_with(ORDER));
        let mut out: Object = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        if patch.contains_key(DIRECTIVE) {
            return out;
        }
        for (key, value) in out.iter_mut().filter(|(key, _)| !key.starts_with(DELETE_PRIMITIVES)) {
            let meta = self.meta(node, key);
            let left = match (target.get(key), &*value) {
                (_, Value::Null) => continue,
                (Some(Value::Object(old)), Value::Object(new)) if !meta.replace => {
                    self.left(old, new, meta.node).into()
                }
                (Some(Value::Array(old)), Value::Array(new)) if meta.merge => {
                    new.iter().map(|item| self.left_item(old, item, &meta)).collect()
                }
                (Some(old), new) if std::mem::discriminant(old) == std::mem::discriminant(new) => continue,
                (_, new) => without_nulls(new),
            };
            *value = left;
        }
        out
    }

    fn left_item(&self, old: &[Value], item: &Value, meta: &Meta<'_>) -> Value {
        let id = meta.key.and_then(|key| item.get(key).map(|id| (key, id)));
        let same = id.and_then(|(key, id)| old.iter().find(|existing| existing.get(key) == Some(id)));
        match (same, item) {
            (Some(Value::Object(existing)), Value::Object(fields)) => {
                self.left(existing, fields, self.element(meta.node)).into()
            }
            _ => item.clone(),
        }
    }

    fn list(&self, old: Vec<Value>, patch: &[Value], meta: &Meta<'_>) -> Result<Vec<Value>, Status> {
        if old.is_empty() && patch.is_empty() {
            return Ok(old);
        }
        let maps = old.iter().chain(patch).filter(|item| item.is_object()).count();
        if maps != 0 && maps != old.len() + patch.len() {
            let shown = [go_fmt::list(&old), go_fmt::list(patch)].join(" ");
            return Err(failure(format!("list element types are not identical: [{shown}]")));
        }
        let server_order = old.clone();
        if maps == 0 {
            let mut merged = old;
            for item in patch {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            return Ok(enforce_order(merged, patch, &server_order, None));
        }
        let Some(key) = meta.key else {
            return Err(failure("cannot merge lists without merge key".to_owned()));
        };
        let (mut merged, patch, replaced) = special_elements(old, patch, key)?;
        if replaced {
            return Ok(patch.iter().map(without_directives).collect());
        }
        for item in &patch {
            let Value::Object(fields) = item else { continue };
            let Some(id) = fields.get(key) else { return Err(no_merge_key(fields, key)) };
            match merged.iter_mut().find(|m| m.get(key) == Some(id)) {
                Some(Value::Object(existing)) => self.map(existing, fields, self.element(meta.node))?,
                _ => merged.push(without_directives(item)),
            }
        }
        Ok(enforce_order(merged, &patch, &server_order, Some(key)))
    }

    /// Merges a list that comes with `$setElementOrder`, and puts its items in that order.
    fn ordered_list(
        &self,
        target: &mut Object,
        patch: &Object,
        node: NodeId,
        field: &str,
        order: &[Value],
    ) -> Result<(), Status> {
        let meta = self.meta(node, field);
        let patch_list = match patch.get(field) {
            Some(Value::Array(items)) => Some(items.as_slice()),
            Some(Value::Null) => {
                target.remove(field);
                return Ok(());
            }
            _ => None,
        };
        if let Some(items) = patch_list {
            check_order(items, order, meta.key)?;
        }
        let old = match target.remove(field) {
            Some(Value::Array(items)) => Some(items),
            _ => None,
        };
        let server_order = old.clone().unwrap_or_default();
        let merged = match (old, patch_list) {
            (Some(old), Some(items)) => self.list(old, items, &meta)?,
            (None, Some(items)) => items.iter().map(without_directives).collect(),
            (Some(old), None) => old,
            (None, None) => return Ok(()),
        };
        target.insert(field.to_owned(), Value::Array(enforce_order(merged, order, &server_order, meta.key)));
        Ok(())
    }
}

/// Applies `$patch` items of a list: what remains of the list, the plain items, and whether all is replaced.
fn special_elements(
    mut old: Vec<Value>,
    patch: &[Value],
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>, bool), Status> {
    let (mut plain, mut replaced) = (Vec::with_capacity(patch.len()), false);
    for item in patch {
        let Value::Object(fields) = item else { continue };
        let Some(directive) = fields.get(DIRECTIVE) else {
            plain.push(item.clone());
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let Some(id) = fields.get(key) else { return Err(no_merge_key(fields, key)) };
                old.retain(|existing| existing.get(key) != Some(id));
            }
            Some("replace") => replaced = true,
            Some("merge") => {
                return Err(failure("merging lists cannot yet be specified in the patch".to_owned()));
            }
            _ => return Err(bad_directive(directive, fields)),
        }
    }
    Ok((old, plain, replaced))
}

fn retain_keys(target: &mut Object, patch: &Object) -> Result<(), Status> {
    let Some(retained) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let invalid = || failure("invalid patch format of retainKeys".to_owned());
    let retained: Vec<&str> =
        retained.as_array().ok_or_else(invalid)?.iter().filter_map(Value::as_str).collect();
    let covered = |(key, value): (&String, &Value)| {
        key.starts_with('$') || value.is_null() || retained.contains(&key.as_str())
    };
    if !patch.iter().all(covered) {
        return Err(invalid());
    }
    target.retain(|key, _| retained.contains(&key.as_str()));
    Ok(())
}

fn delete_primitives(target: &mut Object, field: &str, doomed: &Value) {
    if let (Some(Value::Array(items)), Value::Array(doomed)) = (target.get_mut(field), doomed) {
        items.retain(|item| !doomed.contains(item));
    }
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn index_in(order: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    order.iter().position(|other| same(other, item, key))
}

/// The items the patch names come in the patch's order, the server's own in the server's; the two are merged
/// by the server's order where it knows both.
fn enforce_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let size = merged.len();
    let (mut named, mut own): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| index_in(order, item, key).is_some());
    named.sort_by_key(|item| index_in(order, item, key));
    own.sort_by_key(|item| index_in(server, item, key));
    let mut out = Vec::with_capacity(size);
    let (mut named, mut own) = (named.into_iter().peekable(), own.into_iter().peekable());
    loop {
        let from_own = match (own.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => {
                let places = (index_in(server, left, key), index_in(server, right, key));
                matches!(places, (Some(left), Some(right)) if left < right)
            }
        };
        out.extend(if from_own { own.next() } else { named.next() });
    }
}

/// The items of a patch list must come in the order that `$setElementOrder` states.
fn check_order(items: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Status> {
    let mut rest = order.iter();
    let deleted = |item: &Value| item.get(DIRECTIVE).is_some();
    for item in items.iter().filter(|item| !deleted(item)) {
        if !rest.any(|other| same(other, item, key)) {
            return Err(failure(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_fmt::list(items),
                go_fmt::list(order)
            )));
        }
    }
    Ok(())
}

/// A patch value that becomes part of the object: without directives, and without the nulls that mean
/// removal.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") => {
            Value::Object(Object::new())
        }
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, value)| {
                let removal = value.is_null() || *key == DIRECTIVE || *key == RETAIN_KEYS;
                !(removal || key.starts_with(ORDER) || key.starts_with(DELETE_PRIMITIVES))
            });
            kept.map(|(key, value)| (key.clone(), without_directives(value))).collect::<Object>().into()
        }
        Value::Array(items) => {
            let special = |item: &&Value| item.get(DIRECTIVE).is_some();
            items.iter().filter(|item| !special(item)).map(without_directives).collect()
        }
        other => other.clone(),
    }
}
