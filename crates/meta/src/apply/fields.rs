//! Field sets in their wire form (FieldsV1): a trie whose keys are `f:name`, `k:{"name":"x"}`, `v:value`, and
//! whose key `.` says that the node itself is a member. A node without entries is a member without children.

use serde_json::{Map, Value};

/// A set of field paths.
pub type Fields = Map<String, Value>;

const SELF: &str = ".";

/// The node of a member without children.
pub(super) fn leaf() -> Value {
    Value::Object(Map::new())
}

/// The node of a member with children.
pub(super) fn member(mut children: Fields) -> Value {
    if !children.is_empty() {
        children.insert(SELF.to_owned(), leaf());
    }
    Value::Object(children)
}

fn is_leaf(node: &Value) -> bool {
    node.as_object().is_none_or(Map::is_empty)
}

/// Whether the node itself belongs to the set.
pub(super) fn is_member(node: &Value) -> bool {
    is_leaf(node) || node.get(SELF).is_some()
}

/// Removes from `set` what is in `other`.
pub(super) fn subtract(set: &mut Fields, other: &Fields) {
    for (key, theirs) in other {
        if key == SELF {
            continue;
        }
        let Some(mine) = set.get_mut(key) else { continue };
        let stays = is_member(mine) && !is_member(theirs);
        let had_children = !is_leaf(mine);
        if let (Value::Object(mine), Value::Object(theirs)) = (&mut *mine, theirs) {
            subtract(mine, theirs);
            mine.remove(SELF);
        }
        let childless = is_leaf(mine);
        if childless && !stays {
            set.remove(key);
        } else if stays
            && had_children
            && !childless
            && let Value::Object(mine) = mine
        {
            mine.insert(SELF.to_owned(), leaf());
        }
    }
}

/// Adds to `set` what is in `other`.
pub(super) fn unite(set: &mut Fields, other: Fields) {
    for (key, theirs) in other {
        if key == SELF {
            continue;
        }
        let Some(mine) = set.get_mut(&key) else {
            set.insert(key, theirs);
            continue;
        };
        let belongs = is_member(mine) || is_member(&theirs);
        if let (Value::Object(mine), Value::Object(theirs)) = (mine, theirs) {
            unite(mine, theirs);
            if belongs && !mine.is_empty() {
                mine.insert(SELF.to_owned(), leaf());
            }
        }
    }
}

/// What both sets have.
pub(super) fn intersect(a: &Fields, b: &Fields) -> Fields {
    let mut out = Fields::new();
    for (key, mine) in a.iter().filter(|(key, _)| *key != SELF) {
        let Some(theirs) = b.get(key) else { continue };
        let belongs = is_member(mine) && is_member(theirs);
        let children = match (mine, theirs) {
            (Value::Object(mine), Value::Object(theirs)) => intersect(mine, theirs),
            _ => Fields::new(),
        };
        if belongs {
            out.insert(key.clone(), member(children));
        } else if !children.is_empty() {
            out.insert(key.clone(), Value::Object(children));
        }
    }
    out
}

/// The paths of the set as upstream prints them, members of a node before deeper ones:
/// `.spec.containers[name="c"].image`.
pub(super) fn paths(set: &Fields) -> Vec<String> {
    let mut out = Vec::new();
    collect(set, "", &mut out);
    out
}

fn collect(set: &Fields, prefix: &str, out: &mut Vec<String>) {
    let entries = || set.iter().filter(|(key, _)| *key != SELF);
    for (key, _) in entries().filter(|(_, node)| is_member(node)) {
        out.push(format!("{prefix}{}", element(key)));
    }
    for (key, node) in entries().filter(|(_, node)| !is_leaf(node)) {
        if let Value::Object(children) = node {
            collect(children, &format!("{prefix}{}", element(key)), out);
        }
    }
}

/// One path element for people.
pub(super) fn element(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let mut pairs: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            pairs.sort();
            format!("[{}]", pairs.join(","))
        }
        _ => key.to_owned(),
    }
}
