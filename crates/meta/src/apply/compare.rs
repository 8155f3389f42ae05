//! Which fields an object has, and which ones a change adds, modifies and removes.
//!
//! Follows `sigs.k8s.io/structured-merge-diff/typed`: atomic lists and maps count as one field, an empty map
//! or list is a field of its own, and a value that appears makes its whole subtree appear.

use serde_json::{Map, Value};

use super::fields::{Fields, leaf, member};
use crate::schema::{Field, ListKind, Node, NodeId, Schemas, Struct, Zero};

/// What a change did.
#[derive(Default)]
pub(super) struct Comparison {
    /// Fields added or modified.
    pub(super) taken: Fields,
    /// Fields removed.
    pub(super) removed: Fields,
}

/// Metadata that nobody owns.
const UNOWNED_META: [&str; 9] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

/// What of a root object takes part: not its type, and not the part that the endpoint ignores.
pub(super) struct Scope {
    ignored: &'static str,
}

impl Scope {
    /// For a subresource ("" is the main resource): the main resource ignores `status`, `status` ignores `spec`.
    pub(super) fn of(subresource: &str) -> Self {
        Self { ignored: if subresource == "status" { "spec" } else { "status" } }
    }

    fn root(&self, name: &str) -> bool {
        !matches!(name, "apiVersion" | "kind") && name != self.ignored
    }
}

fn owned_meta(name: &str) -> bool {
    !UNOWNED_META.contains(&name)
}

/// The key of a list item in a field set; `None` for items of atomic lists and malformed ones.
pub(super) fn item_key(kind: &ListKind, item: &Value) -> Option<String> {
    match (kind, item) {
        (ListKind::Atomic, _) => None,
        (ListKind::Set, item) => Some(format!("v:{item}")),
        (ListKind::Map(keys), Value::Object(fields)) => {
            let mut out = String::from("k:{");
            for key in keys {
                let Some(value) = fields.get(&key.name).or(key.default.as_ref()) else { continue };
                if out.len() > 3 {
                    out.push(',');
                }
                out.push_str(&format!("\"{}\":{value}", key.name));
            }
            out.push('}');
            (out.len() > 4).then_some(out)
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

static ANY: Node = Node::Any;

/// The type of a key of an object, and its key in a set.
fn child<'s>(schemas: &'s Schemas, node: &'s Node, name: &str) -> (&'s Node, String) {
    match node {
        Node::Struct(structure) => match structure.field(name) {
            Some(field) => (schemas.node(field.node), field.path_key.clone()),
            None => (&ANY, format!("f:{name}")),
        },
        Node::Map { element, .. } => (schemas.node(*element), format!("f:{name}")),
        _ => (&ANY, format!("f:{name}")),
    }
}

fn is_atomic(node: &Node) -> bool {
    match node {
        Node::Scalar(_) | Node::Quantity => true,
        Node::Struct(structure) => structure.atomic,
        Node::Map { atomic, .. } => *atomic,
        Node::List { kind, .. } => matches!(kind, ListKind::Atomic),
        Node::Any => false,
    }
}

pub(super) struct Walker<'s> {
    pub(super) schemas: &'s Schemas,
}

impl Walker<'_> {
    fn element(&self, node: &Node) -> &Node {
        match node {
            Node::List { element, .. } => self.schemas.node(*element),
            _ => &ANY,
        }
    }

    /// The node of a value that was not there before (or is there no more): all its fields and itself.
    fn whole(&self, node: &Node, value: &Value) -> Value {
        if is_atomic(node) || is_empty(value) {
            return leaf();
        }
        match (node, value) {
            (_, Value::Object(map)) => {
                let mut out = Fields::new();
                for (name, value) in map {
                    let (kind, key) = child(self.schemas, node, name);
                    out.insert(key, self.whole(kind, value));
                }
                member(out)
            }
            (Node::List { kind, .. }, Value::Array(items)) => {
                let mut out = Fields::new();
                for item in items {
                    if let Some(key) = item_key(kind, item) {
                        out.insert(key, self.whole(self.element(node), item));
                    }
                }
                member(out)
            }
            _ => leaf(),
        }
    }

    /// Compares two values that are both there: the nodes of what is taken and of what is removed.
    fn both(&self, node: &Node, old: &Value, new: &Value) -> (Option<Value>, Option<Value>) {
        let modified = |changed: bool| (changed.then(leaf), None);
        if is_atomic(node) || (is_empty(old) && is_empty(new)) {
            return modified(old != new);
        }
        let nothing = Map::new();
        let as_map = |value| match value {
            &Value::Object(ref map) => Some(map),
            Value::Null => Some(&nothing),
            _ => None,
        };
        match node {
            Node::List { kind, .. } => match (as_list(old), as_list(new)) {
                (Some(old), Some(new)) => self.lists(node, kind, old, new),
                _ => modified(old != new),
            },
            _ => match (as_map(old), as_map(new)) {
                (Some(old), Some(new)) if old.len() + new.len() > 0 => {
                    let mut out = Comparison::default();
                    for (name, old, new) in pairs(old, new) {
                        let (kind, key) = child(self.schemas, node, name);
                        self.either(kind, key, old, new, &mut out);
                    }
                    out.nodes()
                }
                _ => modified(old != new),
            },
        }
    }

    fn either(
        &self,
        node: &Node,
        key: String,
        old: Option<&Value>,
        new: Option<&Value>,
        out: &mut Comparison,
    ) {
        match (old, new) {
            (Some(old), Some(new)) => {
                let (taken, removed) = self.both(node, old, new);
                match (taken, removed) {
                    (None, None) => {}
                    (Some(taken), None) => drop(out.taken.insert(key, taken)),
                    (None, Some(removed)) => drop(out.removed.insert(key, removed)),
                    (Some(taken), Some(removed)) => {
                        out.taken.insert(key.clone(), taken);
                        out.removed.insert(key, removed);
                    }
                }
            }
            (None, Some(new)) => drop(out.taken.insert(key, self.whole(node, new))),
            (Some(old), None) => drop(out.removed.insert(key, self.whole(node, old))),
            (None, None) => {}
        }
    }

    fn lists(
        &self,
        node: &Node,
        kind: &ListKind,
        old: &[Value],
        new: &[Value],
    ) -> (Option<Value>, Option<Value>) {
        if old == new {
            return (None, None);
        }
        let element = self.element(node);
        let mut before = index(kind, old);
        let mut out = Comparison::default();
        for (key, items) in index(kind, new) {
            let previous = before.remove(&key).unwrap_or_default();
            match (previous.as_slice(), items.as_slice()) {
                ([old], [new]) => self.either(element, key, Some(old), Some(new), &mut out),
                ([], [new, ..]) => self.either(element, key, None, Some(new), &mut out),
                (old, new) if old == new => {}
                // Duplicates are compared as one.
                _ => drop(out.taken.insert(key, leaf())),
            }
        }
        for (key, items) in before {
            self.either(element, key, items.first().copied(), None, &mut out);
        }
        out.nodes()
    }

    /// Compares two objects.
    pub(super) fn objects(&self, root: NodeId, scope: &Scope, old: &Value, new: &Value) -> Comparison {
        let (node, nothing) = (self.schemas.node(root), Map::new());
        let old = old.as_object().unwrap_or(&nothing);
        let new = new.as_object().unwrap_or(&nothing);
        let mut out = Comparison::default();
        for (name, old, new) in pairs(old, new).filter(|(name, ..)| scope.root(name)) {
            let (kind, key) = child(self.schemas, node, name);
            if name != "metadata" {
                self.either(kind, key, old, new, &mut out);
                continue;
            }
            let old = old.and_then(Value::as_object).unwrap_or(&nothing);
            let new = new.and_then(Value::as_object).unwrap_or(&nothing);
            let mut inner = Comparison::default();
            for (name, old, new) in pairs(old, new).filter(|(name, ..)| owned_meta(name)) {
                let (kind, key) = child(self.schemas, kind, name);
                self.either(kind, key, old, new, &mut inner);
            }
            inner.put(key, &mut out);
        }
        out
    }

    /// The fields that a new object takes: all but what Go's empty object has already.
    pub(super) fn created(&self, root: NodeId, scope: &Scope, new: &Value) -> Fields {
        let mut out = Fields::new();
        let Value::Object(map) = new else { return out };
        let node = self.schemas.node(root);
        for (name, value) in map.iter().filter(|(name, _)| scope.root(name)) {
            let (kind, key) = child(self.schemas, node, name);
            if name == "metadata" {
                let Value::Object(meta) = value else { continue };
                let mut inner = Fields::new();
                for (name, value) in meta.iter().filter(|(name, _)| owned_meta(name)) {
                    let (kind, key) = child(self.schemas, kind, name);
                    inner.insert(key, self.whole(kind, value));
                }
                if !inner.is_empty() {
                    out.insert(key, Value::Object(inner));
                }
                continue;
            }
            let field = match node {
                Node::Struct(structure) => structure.field(name),
                _ => None,
            };
            self.over_zero(field, kind, key, value, &mut out);
        }
        out
    }

    fn over_zero(&self, field: Option<&Field>, kind: &Node, key: String, value: &Value, out: &mut Fields) {
        let Some(field) = field.filter(|f| f.zero != Zero::Omit) else {
            out.insert(key, self.whole(kind, value));
            return;
        };
        match (kind, value) {
            (Node::Struct(structure), Value::Object(map)) if !structure.atomic => {
                let inner = self.struct_over_zero(structure, map);
                if !inner.is_empty() {
                    out.insert(key, Value::Object(inner));
                }
            }
            (Node::Scalar(_) | Node::Quantity | Node::Struct(_), value) => {
                let zero = if field.zero == Zero::Null { Value::Null } else { self.schemas.zero(field.node) };
                if *value != zero && !value.is_null() {
                    out.insert(key, leaf());
                }
            }
            (_, Value::Null) => {}
            (kind, value) => {
                // The empty object has a null here: the field itself is not new, its content is.
                let (taken, _) = self.both(kind, &Value::Null, value);
                out.extend(taken.map(|node| (key, node)));
            }
        }
    }

    fn struct_over_zero(&self, structure: &Struct, map: &Map<String, Value>) -> Fields {
        let mut out = Fields::new();
        for (name, value) in map {
            match structure.field(name) {
                Some(field) => {
                    let kind = self.schemas.node(field.node);
                    self.over_zero(Some(field), kind, field.path_key.clone(), value, &mut out);
                }
                None => drop(out.insert(format!("f:{name}"), self.whole(&ANY, value))),
            }
        }
        out
    }

    /// The set of an applied configuration.
    pub(super) fn applied(&self, root: NodeId, scope: &Scope, config: &Value) -> Fields {
        let mut out = Fields::new();
        let Value::Object(map) = config else { return out };
        let node = self.schemas.node(root);
        for (name, value) in map.iter().filter(|(name, _)| scope.root(name)) {
            if name != "metadata" {
                self.applied_entry(node, name, value, &mut out);
                continue;
            }
            let (kind, key) = child(self.schemas, node, name);
            let mut inner = Fields::new();
            for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| owned_meta(name))
            {
                self.applied_entry(kind, name, value, &mut inner);
            }
            if !inner.is_empty() {
                out.insert(key, Value::Object(inner));
            }
        }
        out
    }

    fn applied_entry(&self, parent: &Node, name: &str, value: &Value, out: &mut Fields) {
        let (kind, key) = child(self.schemas, parent, name);
        let declared = matches!(parent, Node::Struct(structure) if structure.field(name).is_some());
        let empty_map = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        if is_atomic(kind) || empty_map {
            out.insert(key, leaf());
            return;
        }
        match self.applied_children(kind, value) {
            // A scalar, or a list without declared type.
            None => drop(out.insert(key, leaf())),
            Some(children) if !declared => drop(out.insert(key, member(children))),
            Some(children) if children.is_empty() => {}
            Some(children) => drop(out.insert(key, Value::Object(children))),
        }
    }

    fn applied_children(&self, node: &Node, value: &Value) -> Option<Fields> {
        let mut out = Fields::new();
        match (node, value) {
            (_, Value::Object(map)) => {
                for (name, value) in map {
                    self.applied_entry(node, name, value, &mut out);
                }
            }
            (Node::List { kind, .. }, Value::Array(items)) => {
                let element = self.element(node);
                for item in items {
                    let Some(key) = item_key(kind, item) else { continue };
                    let children = match is_atomic(element) {
                        true => Fields::new(),
                        false => self.applied_children(element, item).unwrap_or_default(),
                    };
                    out.insert(key, member(children));
                }
            }
            _ => return None,
        }
        Some(out)
    }
}

fn as_list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        Value::Null => Some(&[]),
        _ => None,
    }
}

fn index<'v>(kind: &ListKind, items: &'v [Value]) -> std::collections::BTreeMap<String, Vec<&'v Value>> {
    let mut out: std::collections::BTreeMap<String, Vec<&Value>> = std::collections::BTreeMap::new();
    for item in items {
        if let Some(key) = item_key(kind, item) {
            out.entry(key).or_default().push(item);
        }
    }
    out
}

/// The entries of two maps side by side.
fn pairs<'v>(
    old: &'v Map<String, Value>,
    new: &'v Map<String, Value>,
) -> impl Iterator<Item = (&'v String, Option<&'v Value>, Option<&'v Value>)> {
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    new.iter()
        .map(|(name, value)| (name, old.get(name), Some(value)))
        .chain(gone.map(|(n, v)| (n, Some(v), None)))
}

impl Comparison {
    /// Whether nothing changed.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.removed.is_empty()
    }

    fn nodes(self) -> (Option<Value>, Option<Value>) {
        let node = |fields: Fields| (!fields.is_empty()).then_some(Value::Object(fields));
        (node(self.taken), node(self.removed))
    }

    fn put(self, key: String, out: &mut Self) {
        let (taken, removed) = self.nodes();
        out.removed.extend(removed.map(|node| (key.clone(), node)));
        out.taken.extend(taken.map(|node| (key, node)));
    }
}
