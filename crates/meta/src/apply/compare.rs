//! Which fields an object has, and which ones a change adds, modifies and removes.
//!
//! Follows `sigs.k8s.io/structured-merge-diff/typed`: atomic lists and maps count as one field, an empty map
//! or list is a field of its own, and a value that appears makes its whole subtree appear.

use serde_json::map::Entry;
use serde_json::{Map, Value};

use super::fields::{Fields, leaf, member};
use crate::field::escaped;
use crate::schema::normalize::is_dropped;
use crate::schema::{Field, ListKind, Node, NodeId, Schemas, Zero};

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

/// Kinds through whose status nothing of the metadata can be written.
const STATUS_ONLY: &[&str] = &[
    "APIService",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "ResourceClaim",
    "ServiceCIDR",
    "ValidatingAdmissionPolicy",
    "VolumeAttachment",
];

/// What of a root object takes part: not its type, and not the part that the endpoint ignores.
pub(super) struct Scope {
    ignored: &'static [&'static str],
    /// Metadata that the endpoint sets back.
    ignored_meta: &'static [&'static str],
}

impl Scope {
    /// For a subresource ("" is the main resource): the main resource ignores `status`, `status` ignores
    /// `spec`. The spec of a CertificateSigningRequest is its creator's and never changes: nobody owns it.
    pub(super) fn of(type_name: &str, subresource: &str) -> Self {
        let kind = type_name.rsplit('.').next().unwrap_or("");
        let ignored: &[&str] = match subresource {
            // Custom resources: only where there is a subresource, status is apart.
            "status" if kind == "custom-status" => &["spec", "metadata"],
            _ if kind == "custom" => &[],
            "status" if STATUS_ONLY.contains(&kind) => &["spec", "metadata"],
            "status" | "approval" => &["spec"],
            "resize" => &[],
            _ if type_name.ends_with(".CertificateSigningRequest") => &["spec", "status"],
            _ => &["status"],
        };
        let ignored_meta: &[&str] = match (subresource, type_name) {
            ("status", "io.k8s.api.apps.v1.Deployment") => &["labels"],
            ("status", "io.k8s.api.core.v1.Pod") => &["deletionTimestamp", "ownerReferences"],
            _ => &[],
        };
        Self { ignored, ignored_meta }
    }

    fn meta(&self, name: &str) -> bool {
        !UNOWNED_META.contains(&name) && !self.ignored_meta.contains(&name)
    }

    fn root(&self, name: &str) -> bool {
        !matches!(name, "apiVersion" | "kind") && !self.ignored.contains(&name)
    }
}

/// The key of a list item in a field set; `None` for items of atomic lists and malformed ones.
pub(super) fn item_key(kind: &ListKind, item: &Value) -> Option<String> {
    match (kind, item) {
        (ListKind::Atomic, _) => None,
        (ListKind::Set, item) => {
            let mut out = String::with_capacity(32);
            out.push_str("v:");
            push_json(&mut out, item);
            Some(out)
        }
        (ListKind::Map(keys), Value::Object(fields)) => {
            let mut out = String::with_capacity(48);
            out.push_str("k:{");
            for key in keys {
                let Some(value) = fields.get(&key.name).or(key.default.as_ref()) else { continue };
                if out.len() > 3 {
                    out.push(',');
                }
                out.push('"');
                out.push_str(&key.name);
                out.push_str("\":");
                push_json(&mut out, value);
            }
            out.push('}');
            (out.len() > 4).then_some(out)
        }
        _ => None,
    }
}

/// Appends compact JSON; the plain string, the common case, without the encoder.
fn push_json(out: &mut String, value: &Value) {
    match value {
        Value::String(text) if text.bytes().all(is_plain) => {
            out.push('"');
            out.push_str(text);
            out.push('"');
        }
        other => out.push_str(&escaped(&other.to_string())),
    }
}

/// Whether a character stands for itself in JSON that Go writes.
fn is_plain(c: u8) -> bool {
    (0x20..0x7f).contains(&c) && !matches!(c, b'"' | b'\\' | b'<' | b'>' | b'&')
}

/// The key of a field that is not declared.
fn free_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 2);
    key.push_str("f:");
    key.push_str(name);
    key
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

/// A key of an object: its type, its key in a set, and the declared field, if there is one.
struct Child<'s> {
    node: &'s Node,
    key: String,
    field: Option<&'s Field>,
}

fn child<'s>(schemas: &'s Schemas, node: &'s Node, name: &str) -> Child<'s> {
    let plain = |node| Child { node, key: free_key(name), field: None };
    match node {
        Node::Struct(structure) => match structure.field(name) {
            Some(field) => {
                Child { node: schemas.node(field.node), key: field.path_key.clone(), field: Some(field) }
            }
            None => plain(&ANY),
        },
        Node::Map { element, .. } => plain(schemas.node(*element)),
        _ => plain(&ANY),
    }
}

impl Child<'_> {
    /// Go writes the field always: its absence means its zero value.
    fn zero(&self) -> Option<&Field> {
        self.field.filter(|field| field.zero != Zero::Omit)
    }

    fn is_dropped(&self, schemas: &Schemas, value: &Value) -> bool {
        self.field.is_some_and(|field| is_dropped(schemas, field, value))
    }
}

fn is_atomic(node: &Node) -> bool {
    match node {
        Node::Scalar(_) | Node::Opaque | Node::Quantity | Node::IntOrString => true,
        Node::Struct(structure) => structure.atomic,
        Node::Map { atomic, .. } => *atomic,
        Node::List { kind, .. } => matches!(kind, ListKind::Atomic),
        Node::Any => false,
    }
}

pub(super) struct Walker<'s> {
    pub(super) schemas: &'s Schemas,
    /// Values that Go leaves out count: an applied configuration states them.
    pub(super) exact: bool,
}

impl Walker<'_> {
    fn is_dropped(&self, child: &Child<'_>, value: &Value) -> bool {
        !self.exact && child.is_dropped(self.schemas, value)
    }

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
                    let child = child(self.schemas, node, name);
                    if !self.is_dropped(&child, value) {
                        out.insert(child.key, self.whole(child.node, value));
                    }
                }
                if let Node::Struct(structure) = node {
                    let always = structure.fields.iter().filter(|f| f.zero != Zero::Omit);
                    for field in always.filter(|f| !map.contains_key(&f.name)) {
                        let zero = self.schemas.zero(field.node);
                        out.insert(field.path_key.clone(), self.whole(self.schemas.node(field.node), &zero));
                    }
                }
                member(out)
            }
            (Node::List { kind, .. }, Value::Array(items)) => {
                let mut out = Fields::new();
                for item in items {
                    let Some(key) = item_key(kind, item) else { continue };
                    match out.entry(key) {
                        Entry::Vacant(slot) => drop(slot.insert(self.whole(self.element(node), item))),
                        // Items that share a key count as one field.
                        Entry::Occupied(mut slot) => drop(slot.insert(leaf())),
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
        fn as_map<'v>(value: &'v Value, nothing: &'v Map<String, Value>) -> Option<&'v Map<String, Value>> {
            match value {
                Value::Object(map) => Some(map),
                Value::Null => Some(nothing),
                _ => None,
            }
        }
        match node {
            Node::List { kind, .. } => match (as_list(old), as_list(new)) {
                (Some(old), Some(new)) => self.lists(node, kind, old, new),
                _ => modified(old != new),
            },
            _ => match (as_map(old, &nothing), as_map(new, &nothing)) {
                (Some(old), Some(new)) if old.len() + new.len() > 0 => {
                    let mut out = Comparison::default();
                    for (name, old, new) in pairs(old, new) {
                        self.either(child(self.schemas, node, name), old, new, &mut out);
                    }
                    out.nodes()
                }
                _ => modified(old != new),
            },
        }
    }

    fn either(&self, child: Child<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) {
        let set = |value: &&Value| !self.is_dropped(&child, value);
        match (old.filter(set), new.filter(set)) {
            (Some(old), Some(new)) => Comparison::put(self.both(child.node, old, new), child.key, out),
            (None, Some(new)) => match child.zero() {
                Some(_) => self.over_zero(child, new, &mut out.taken),
                None => drop(out.taken.insert(child.key, self.whole(child.node, new))),
            },
            (Some(old), None) => match child.zero() {
                Some(_) => self.over_zero(child, old, &mut out.removed),
                None => drop(out.removed.insert(child.key, self.whole(child.node, old))),
            },
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
                ([old], [new]) => Comparison::put(self.both(element, old, new), key, &mut out),
                ([], [new]) => drop(out.taken.insert(key, self.whole(element, new))),
                (old, new) if old == new => {}
                // What was there twice is there once: it comes anew.
                ([_, _, ..], [new]) => drop(out.taken.insert(key, self.whole(element, new))),
                // Duplicates are compared as one.
                _ => drop(out.taken.insert(key, leaf())),
            }
        }
        for (key, items) in before {
            let node = items.first().map_or_else(leaf, |item| self.whole(element, item));
            out.removed.insert(key, node);
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
            let child = child(self.schemas, node, name);
            if name != "metadata" {
                self.either(child, old, new, &mut out);
                continue;
            }
            let old = old.and_then(Value::as_object).unwrap_or(&nothing);
            let new = new.and_then(Value::as_object).unwrap_or(&nothing);
            let mut inner = Comparison::default();
            for (name, old, new) in pairs(old, new).filter(|(name, ..)| scope.meta(name)) {
                self.either(self::child(self.schemas, child.node, name), old, new, &mut inner);
            }
            Comparison::put(inner.nodes(), child.key, &mut out);
        }
        out
    }

    /// The fields that a new object takes: all but what Go's empty object has already.
    pub(super) fn created(&self, root: NodeId, scope: &Scope, new: &Value) -> Fields {
        let mut out = Fields::new();
        let Value::Object(map) = new else { return out };
        let node = self.schemas.node(root);
        for (name, value) in map.iter().filter(|(name, _)| scope.root(name)) {
            let child = child(self.schemas, node, name);
            if name != "metadata" {
                self.over_zero(child, value, &mut out);
                continue;
            }
            let mut inner = Fields::new();
            let meta = value.as_object().into_iter().flatten();
            for (name, value) in meta.filter(|(name, value)| scope.meta(name) && !value.is_null()) {
                self.over_zero(self::child(self.schemas, child.node, name), value, &mut inner);
            }
            if !inner.is_empty() {
                out.insert(child.key, Value::Object(inner));
            }
        }
        out
    }

    /// The fields of a value beyond those of Go's zero value of the field.
    fn over_zero(&self, child: Child<'_>, value: &Value, out: &mut Fields) {
        if self.is_dropped(&child, value) {
            return;
        }
        let Some(field) = child.zero() else {
            out.insert(child.key, self.whole(child.node, value));
            return;
        };
        match (child.node, value) {
            (Node::Struct(structure), Value::Object(map)) if !structure.atomic => {
                let mut inner = Fields::new();
                for (name, value) in map {
                    self.over_zero(self::child(self.schemas, child.node, name), value, &mut inner);
                }
                if !inner.is_empty() {
                    out.insert(child.key, Value::Object(inner));
                }
            }
            (
                Node::Scalar(_) | Node::Opaque | Node::Quantity | Node::IntOrString | Node::Struct(_),
                value,
            ) => {
                let zero = if field.zero == Zero::Null { Value::Null } else { self.schemas.zero(field.node) };
                if *value != zero && !value.is_null() {
                    out.insert(child.key, leaf());
                }
            }
            (_, Value::Null) => {}
            (node, value) => {
                // The zero value is null: the field itself is not new, its content is.
                let (taken, _) = self.both(node, &Value::Null, value);
                out.extend(taken.map(|node| (child.key, node)));
            }
        }
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
            let child = child(self.schemas, node, name);
            let mut inner = Fields::new();
            for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| scope.meta(name))
            {
                self.applied_entry(child.node, name, value, &mut inner);
            }
            if !inner.is_empty() {
                out.insert(child.key, Value::Object(inner));
            }
        }
        out
    }

    fn applied_entry(&self, parent: &Node, name: &str, value: &Value, out: &mut Fields) {
        let Child { node: kind, key, field } = child(self.schemas, parent, name);
        let declared = field.is_some();
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

    fn put((taken, removed): (Option<Value>, Option<Value>), key: String, out: &mut Self) {
        match (taken, removed) {
            (Some(taken), Some(removed)) => {
                out.taken.insert(key.clone(), taken);
                out.removed.insert(key, removed);
            }
            (Some(taken), None) => drop(out.taken.insert(key, taken)),
            (None, Some(removed)) => drop(out.removed.insert(key, removed)),
            (None, None) => {}
        }
    }
}
