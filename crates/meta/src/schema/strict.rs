//! Unknown and duplicate fields, with the paths upstream prints.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Node, NodeId, Schemas};

/// Walks a value beside its type; `path` is restored on return.
pub(super) fn unknown(
    schemas: &Schemas,
    id: NodeId,
    value: &Value,
    path: &mut String,
    out: &mut Vec<String>,
) {
    let length = path.len();
    match (schemas.node(id), value) {
        (Node::Struct(structure), Value::Object(map)) => {
            for (name, value) in map {
                push_name(path, name);
                match structure.field(name) {
                    Some(field) => unknown(schemas, field.node, value, path, out),
                    None if structure.open => {}
                    None => out.push(format!("unknown field \"{path}\"")),
                }
                path.truncate(length);
            }
        }
        (Node::Map { element, .. }, Value::Object(map)) => {
            for (name, value) in map {
                push_name(path, name);
                unknown(schemas, *element, value, path, out);
                path.truncate(length);
            }
        }
        (Node::List { element, .. }, Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                unknown(schemas, *element, value, path, out);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn push_name(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

type Typed<'s> = Option<(&'s Schemas, Option<NodeId>)>;

/// Reads a document once, for duplicates and (with schemas) for unknown fields.
pub(super) fn check(types: Typed<'_>, json: &[u8]) -> Vec<String> {
    let mut walk = Walk { path: String::new(), out: Vec::new() };
    let mut reader = serde_json::Deserializer::from_slice(json);
    // A syntax error ends the walk; the decoder proper reports it.
    let _ = Seed { walk: &mut walk, types }.deserialize(&mut reader);
    let mut told = HashSet::new();
    walk.out.retain(|message| told.insert(message.clone()));
    walk.out
}

struct Walk {
    path: String,
    out: Vec<String>,
}

/// The keys of one object so far; few are searched in order, many by hash.
#[derive(Default)]
struct Seen {
    few: Vec<String>,
    many: HashSet<String>,
}

impl Seen {
    /// Whether the key is new.
    fn insert(&mut self, key: String) -> bool {
        if self.few.len() < 16 {
            let new = !self.few.contains(&key);
            self.few.push(key);
            return new;
        }
        !self.few.contains(&key) && self.many.insert(key)
    }
}

struct Seed<'w, 's> {
    walk: &'w mut Walk,
    types: Typed<'s>,
}

impl<'s> Seed<'_, 's> {
    fn node(&self) -> Option<&'s Node> {
        let (schemas, id) = self.types?;
        Some(schemas.node(id?))
    }

    fn typed(&self, id: NodeId) -> Typed<'s> {
        self.types.map(|(schemas, _)| (schemas, Some(id)))
    }

    fn untyped(&self) -> Typed<'s> {
        self.types.map(|(schemas, _)| (schemas, None))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // Go takes these as they are written, and does not look into them.
        if let Some(Node::Any | Node::Opaque) = self.node() {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|_| ());
        }
        deserializer.deserialize_any(self)
    }
}

macro_rules! ignore {
    ($($name:ident: $kind:ty),*) => {$(
        fn $name<E>(self, _: $kind) -> Result<(), E> {
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    ignore!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let types = match self.node() {
            Some(Node::List { element, .. }) => self.typed(*element),
            _ => self.untyped(),
        };
        let length = self.walk.path.len();
        for i in 0.. {
            self.walk.path.push_str(&format!("[{i}]"));
            let more = items.next_element_seed(Seed { walk: &mut *self.walk, types })?;
            self.walk.path.truncate(length);
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let length = self.walk.path.len();
        let mut seen = Seen::default();
        while let Some(name) = entries.next_key::<String>()? {
            push_name(&mut self.walk.path, &name);
            let types = match self.node() {
                Some(Node::Struct(structure)) => match structure.field(&name) {
                    Some(field) => self.typed(field.node),
                    None if structure.open => self.untyped(),
                    None => {
                        self.walk.out.push(format!("unknown field \"{}\"", self.walk.path));
                        self.walk.path.truncate(length);
                        entries.next_value::<IgnoredAny>()?;
                        continue;
                    }
                },
                Some(Node::Map { element, .. }) => self.typed(*element),
                _ => self.untyped(),
            };
            if !seen.insert(name) {
                self.walk.out.push(format!("duplicate field \"{}\"", self.walk.path));
            }
            entries.next_value_seed(Seed { walk: &mut *self.walk, types })?;
            self.walk.path.truncate(length);
        }
        Ok(())
    }
}
