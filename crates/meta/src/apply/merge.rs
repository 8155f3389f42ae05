//! Merging an applied configuration into the live object, taking out what is no longer applied, and checking
//! a configuration against its type.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::compare::item_key;
use super::fields::{self, Fields};
use crate::patch::go_fmt::{go, go_syntax, go_type};
use crate::schema::{ListKind, Node, NodeId, Schemas, Struct};

/// Merges `config` into `live` by the type's merge rules; what the configuration states wins.
pub(super) fn merge(schemas: &Schemas, id: NodeId, live: &mut Value, config: &Value) {
    match (schemas.node(id), live, config) {
        (Node::Struct(structure), Value::Object(live), Value::Object(config)) if !structure.atomic => {
            merge_maps(schemas, live, config, |name| structure.field(name).map_or(0, |f| f.node));
        }
        (Node::Map { element, atomic: false }, Value::Object(live), Value::Object(config)) => {
            merge_maps(schemas, live, config, |_| *element);
        }
        (Node::Any, Value::Object(live), Value::Object(config)) => merge_maps(schemas, live, config, |_| 0),
        (
            Node::List { element, kind: kind @ (ListKind::Set | ListKind::Map(_)) },
            live,
            Value::Array(config),
        ) => {
            let old = match live.take() {
                Value::Array(items) => items,
                _ => Vec::new(),
            };
            *live = Value::Array(merge_lists(schemas, *element, kind, old, config));
        }
        // Nothing said of a collection's members leaves them, unless it has none.
        (node, live, Value::Null) if is_merged(node, live) => {}
        (_, live, config) => *live = config.clone(),
    }
}

/// Whether a value has members that are merged one by one.
fn is_merged(node: &Node, value: &Value) -> bool {
    match (node, value) {
        (Node::Struct(structure), Value::Object(map)) => !structure.atomic && !map.is_empty(),
        (Node::Map { atomic, .. }, Value::Object(map)) => !atomic && !map.is_empty(),
        (Node::Any, Value::Object(map)) => !map.is_empty(),
        (Node::List { kind: ListKind::Set | ListKind::Map(_), .. }, Value::Array(items)) => !items.is_empty(),
        _ => false,
    }
}

fn merge_maps(
    schemas: &Schemas,
    live: &mut Map<String, Value>,
    config: &Map<String, Value>,
    node: impl Fn(&str) -> NodeId,
) {
    for (name, value) in config {
        match live.get_mut(name) {
            Some(old) => merge(schemas, node(name), old, value),
            None => drop(live.insert(name.clone(), value.clone())),
        }
    }
}

/// Items both sides have keep the configuration's relative order; the live object's own keep theirs.
fn merge_lists(
    schemas: &Schemas,
    element: NodeId,
    kind: &ListKind,
    live: Vec<Value>,
    config: &[Value],
) -> Vec<Value> {
    let key = |item: &Value| item_key(kind, item).unwrap_or_default();
    let live_keys: Vec<String> = live.iter().map(key).collect();
    let config_keys: Vec<String> = config.iter().map(key).collect();
    let applied: HashSet<&String> = config_keys.iter().collect();
    let present: HashSet<&String> = live_keys.iter().collect();
    let mut shared = config_keys.iter().filter(|k| present.contains(k));
    let mut next_shared = shared.next();
    let mut taken: HashSet<&String> = HashSet::new();
    // The first live item of a key is the one merged with; others of that key go.
    let mut live_items: Vec<Option<Value>> = live.into_iter().map(Some).collect();
    let mut place: HashMap<&String, usize> = HashMap::new();
    for (i, k) in live_keys.iter().enumerate() {
        place.entry(k).or_insert(i);
    }
    let mut out = Vec::with_capacity(live_items.len().max(config.len()));
    let (mut l, mut r) = (0, 0);
    while l < live_keys.len() || r < config_keys.len() {
        if l < live_keys.len() {
            let mine = &live_keys[l];
            let both = r < config_keys.len();
            let matches = both && *mine == config_keys[r];
            if both && !matches && applied.contains(mine) && next_shared.is_some_and(|next| next != mine) {
                l += 1;
                continue;
            }
            if !matches && !applied.contains(mine) {
                out.extend(live_items[l].take());
                l += 1;
                continue;
            }
            if matches || taken.contains(mine) {
                l += 1;
            }
        }
        if let (Some(name), Some(item)) = (config_keys.get(r), config.get(r)) {
            taken.insert(name);
            let old = place.get(name).and_then(|i| live_items[*i].take());
            out.push(match old {
                Some(mut old) => {
                    merge(schemas, element, &mut old, item);
                    old
                }
                None => item.clone(),
            });
            r += 1;
            if next_shared == Some(name) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// Removes from `value` what `last` has and no set of `managed` has.
pub(super) fn prune(schemas: &Schemas, id: NodeId, value: &mut Value, last: &Fields, managed: &[&Fields]) {
    let node = schemas.node(id);
    let is_owned = |key: &str, named: bool| {
        managed.iter().any(|set| set.get(key).is_some_and(|node| named || fields::is_member(node)))
    };
    // `Some` means: stays, and this is what to look into.
    let inside = |key: &str, named: bool| -> Option<Option<&Fields>> {
        let Some(before) = last.get(key) else { return Some(None) };
        let was = named || fields::is_member(before);
        if was && !is_owned(key, named) { None } else { Some(before.as_object()) }
    };
    let below = |key: &str| -> Vec<&Fields> {
        managed.iter().filter_map(|set| set.get(key)).filter_map(Value::as_object).collect()
    };
    match (node, value) {
        (Node::Struct(structure), Value::Object(map)) if !structure.atomic => map.retain(|name, value| {
            let field = structure.field(name);
            let key = format!("f:{name}");
            let Some(before) = inside(&key, field.is_some()) else { return false };
            if let Some(before) = before {
                prune(schemas, field.map_or(0, |f| f.node), value, before, &below(&key));
            }
            true
        }),
        (Node::Map { atomic: false, .. } | Node::Any, Value::Object(map)) => {
            let element = match node {
                Node::Map { element, .. } => *element,
                _ => 0,
            };
            map.retain(|name, value| {
                let key = format!("f:{name}");
                let Some(before) = inside(&key, false) else { return false };
                if let Some(before) = before {
                    prune(schemas, element, value, before, &below(&key));
                }
                true
            });
        }
        (Node::List { element, kind: kind @ (ListKind::Set | ListKind::Map(_)) }, Value::Array(items)) => {
            items.retain_mut(|item| {
                let Some(key) = item_key(kind, item) else { return true };
                let Some(before) = inside(&key, false) else { return false };
                if let Some(before) = before {
                    prune(schemas, *element, item, before, &below(&key));
                }
                true
            });
        }
        _ => {}
    }
}

/// Checks a configuration against its type; the messages are structured-merge-diff's.
pub(super) fn check(schemas: &Schemas, id: NodeId, value: &Value, path: &str, errs: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let at = |what: String| format!("{}: {what}", if path.is_empty() { "." } else { path });
    match (schemas.node(id), value) {
        (Node::Struct(structure), Value::Object(map)) => {
            for (name, value) in map {
                let inner = format!("{path}.{name}");
                match structure.field(name) {
                    Some(field) => check(schemas, field.node, value, &inner, errs),
                    None if structure.open => {}
                    None => {
                        // Upstream looks no further then.
                        errs.push(format!("{inner}: field not declared in schema"));
                        break;
                    }
                }
            }
        }
        (Node::Map { element, .. }, Value::Object(map)) => {
            for (name, value) in map {
                check(schemas, *element, value, &format!("{path}.{name}"), errs);
            }
        }
        (Node::Struct(structure), _) if stands_for_schema(structure, path) => {}
        (Node::Struct(_) | Node::Map { .. }, other) => {
            errs.push(at(format!("expected map, got &{{{}}}", go(other))));
        }
        (Node::List { element, kind }, Value::Array(items)) => {
            let mut seen = HashSet::new();
            for (i, item) in items.iter().enumerate() {
                if let Some(why) = keyless(kind, item) {
                    // What is wrong behind it is not told.
                    return errs.push(at(format!("element {i}: {why}")));
                }
                let inner = match item_key(kind, item) {
                    Some(key) => {
                        let shown = fields::element(&key);
                        if !seen.insert(key) {
                            errs.push(at(format!("duplicate entries for key {shown}")));
                        }
                        format!("{path}{shown}")
                    }
                    None => format!("{path}[{i}]"),
                };
                check(schemas, *element, item, &inner, errs);
            }
        }
        (Node::List { .. }, other) => errs.push(at(format!("expected list, got &{{{}}}", go(other)))),
        (Node::Scalar(Value::String(_)), other) if !other.is_string() => {
            let shown = go_syntax(other);
            errs.push(at(format!("expected string, got &value.valueUnstructured{{Value:{shown}}}")));
        }
        (Node::Scalar(Value::Number(_)), other) if !other.is_number() => {
            errs.push(at(format!("expected numeric (int or float), got {}", go_type(other))));
        }
        (Node::Scalar(Value::Bool(_)), other) if !other.is_boolean() => {
            errs.push(at(format!("expected boolean, got &{{{}}}", go(other))));
        }
        (
            Node::Quantity | Node::IntOrString | Node::Scalar(Value::Null),
            other @ (Value::Object(_) | Value::Array(_)),
        ) => {
            errs.push(at(format!("expected any scalar, got &{{{}}}", go(other))));
        }
        _ => {}
    }
}

/// Whether something else than a schema may stand in the place of one.
fn stands_for_schema(structure: &Struct, path: &str) -> bool {
    const PLACES: [&str; 3] = [".additionalProperties", ".additionalItems", ".items"];
    structure.name.ends_with(".JSONSchemaProps")
        && (PLACES.iter().any(|place| path.ends_with(place)) || path.contains(".dependencies."))
}

/// Why an item of a list that tells its items apart cannot be told apart.
fn keyless(kind: &ListKind, item: &Value) -> Option<String> {
    let why = match (kind, item) {
        (ListKind::Map(_), Value::Null) => "associative list with keys may not have a null element",
        (ListKind::Map(keys), Value::Object(_)) => {
            let names: Vec<String> = keys.iter().map(|key| format!("{:?}", key.name)).collect();
            return item_key(kind, item).is_none().then(|| {
                format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have \
                     default values for any key fields)",
                    names.join(" ")
                )
            });
        }
        (ListKind::Map(_), _) => "associative list with keys may not have non-map elements",
        (ListKind::Set, Value::Object(_)) => "associative list without keys has an element that's a map type",
        (ListKind::Set, Value::Array(_)) => "not supported: associative list with lists as elements",
        (ListKind::Set, Value::Null) => {
            "associative list without keys has an element that's an explicit null"
        }
        _ => return None,
    };
    Some(why.to_owned())
}

/// Paths in `value` whose types are changed as a whole.
pub(super) fn atomics(schemas: &Schemas, id: NodeId, value: &Value, path: &str, found: &mut Vec<String>) {
    match (schemas.node(id), value) {
        (Node::Struct(structure), Value::Object(map)) => {
            if structure.atomic {
                found.push(path.to_owned());
            }
            for (name, value) in map {
                let Some(field) = structure.field(name) else { continue };
                atomics(schemas, field.node, value, &format!("{path}.{name}"), found);
            }
        }
        (Node::Map { atomic: true, .. }, Value::Object(_)) => found.push(path.to_owned()),
        (Node::List { element, kind }, Value::Array(items)) => {
            if matches!(kind, ListKind::Atomic) {
                found.push(path.to_owned());
            }
            for (i, item) in items.iter().enumerate() {
                atomics(schemas, *element, item, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}
