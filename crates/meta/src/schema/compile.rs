//! From JSON-schema definitions to the node table.

use serde_json::{Map, Value};

use super::facts::{self, Facts};
use super::{Field, ListKey, ListKind, Node, NodeId, Schemas, Struct, Zero};
use crate::go::{self, Unset};

struct Compiler<'a> {
    definitions: &'a Map<String, Value>,
    out: Schemas,
}

/// Compiles all definitions; references to absent ones become [`Node::Any`].
pub(super) fn compile(definitions: &Map<String, Value>) -> Schemas {
    let mut compiler = Compiler { definitions, out: Schemas::default() };
    // Index 0 is "anything"; then a slot per definition, so that references resolve before compilation.
    compiler.push(Node::Any);
    for name in definitions.keys() {
        let id = compiler.push(Node::Any);
        compiler.out.names.insert(name.clone(), id);
    }
    for (name, schema) in definitions {
        let node = compiler.definition(name, schema);
        compiler.set(name, node);
    }
    compiler.out
}

fn extension<'v>(schema: &'v Value, facts: Option<&'v Facts>, key: &str) -> Option<&'v Value> {
    let known = facts.and_then(|f| f.extensions.iter().find(|(name, _)| *name == key)).map(|(_, v)| v);
    known.or_else(|| schema.get(key))
}

fn is(schema: &Value, facts: Option<&Facts>, key: &str, value: &str) -> bool {
    extension(schema, facts, key).and_then(Value::as_str) == Some(value)
}

/// The name a schema refers to, directly or through `allOf` with one element.
fn reference(schema: &Value) -> Option<&str> {
    let target = match schema.get("$ref") {
        Some(target) => target,
        None => match schema.get("allOf")?.as_array()?.as_slice() {
            [only] => only.get("$ref")?,
            _ => return None,
        },
    };
    target.as_str()?.rsplit('/').next()
}

impl Compiler<'_> {
    fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId::try_from(self.out.nodes.len()).unwrap_or(0);
        self.out.nodes.push(node);
        id
    }

    fn set(&mut self, name: &str, node: Node) {
        let slot = self.out.names.get(name).and_then(|id| usize::try_from(*id).ok());
        if let Some(slot) = slot.and_then(|i| self.out.nodes.get_mut(i)) {
            *slot = node;
        }
    }

    fn definition(&mut self, name: &str, schema: &Value) -> Node {
        match name.rsplit('.').next() {
            Some("Quantity") => Node::Quantity,
            Some("RawExtension") => Node::Opaque,
            Some("JSON" | "FieldsV1") => Node::Any,
            Some("CustomResourceSubresourceStatus") => {
                let name = name.to_owned();
                Node::Struct(Box::new(Struct { name, fields: Vec::new(), atomic: false, open: false }))
            }
            // An object among the alternatives is a schema.
            Some("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray") => {
                let props = name.split("Or").next().unwrap_or(name);
                self.definitions.get(props).map_or(Node::Any, |schema| self.shape(props, schema, None))
            }
            _ => self.shape(name, schema, facts::of(name, "-")),
        }
    }

    /// The node of a schema that is not a bare reference.
    fn shape(&mut self, name: &str, schema: &Value, facts: Option<&Facts>) -> Node {
        let kind = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("")
            }
            _ if schema.get("properties").is_some() => "object",
            _ => "",
        };
        match kind {
            // A format makes it a scalar of any kind to structured merging.
            "string" if !matches!(schema.get("format").and_then(Value::as_str), None | Some("" | "byte")) => {
                Node::Scalar(Value::Null)
            }
            "string" => Node::Scalar("".into()),
            "integer" | "number" => Node::Scalar(0.into()),
            "boolean" => Node::Scalar(false.into()),
            "array" => self.list(schema, facts),
            "object" => self.object(name, schema, facts),
            _ if schema.get("x-kubernetes-int-or-string").is_some() => Node::IntOrString,
            _ => Node::Any,
        }
    }

    fn object(&mut self, name: &str, schema: &Value, facts: Option<&Facts>) -> Node {
        let atomic = is(schema, facts, "x-kubernetes-map-type", "atomic");
        let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        if let Some(Value::Object(properties)) = schema.get("properties") {
            let required: Vec<&str> = schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let mut fields: Vec<Field> = properties
                .iter()
                .map(|(field, property)| {
                    self.field(name, field, property, required.contains(&field.as_str()))
                })
                .collect();
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            return Node::Struct(Box::new(Struct { name: name.to_owned(), fields, atomic, open }));
        }
        match schema.get("additionalProperties") {
            Some(element @ Value::Object(_)) => Node::Map { element: self.id(element, None), atomic },
            _ if atomic => Node::Map { element: 0, atomic },
            _ => Node::Any,
        }
    }

    fn field(&mut self, owner: &str, name: &str, schema: &Value, required: bool) -> Field {
        let facts = facts::of(owner, name);
        let strategy =
            extension(schema, facts, "x-kubernetes-patch-strategy").and_then(Value::as_str).unwrap_or("");
        let has = |word: &str| strategy.split(',').any(|s| s == word);
        let merge_key = extension(schema, facts, "x-kubernetes-patch-merge-key").and_then(Value::as_str);
        let node = self.id(schema, facts);
        // Whatever the types crate requires: what Go leaves out is not required in an encoding.
        let required = required && go::unset(owner, name) != Some(Unset::Omitted);
        let zero = match (facts.and_then(|f| f.zero), go::unset(owner, name)) {
            (Some(zero), _) => zero,
            (None, Some(Unset::Omitted)) => Zero::Omit,
            (None, Some(Unset::Null)) if !required => Zero::Null,
            (None, Some(Unset::Zero)) => Zero::Value,
            (None, _) if required => Zero::Value,
            (None, _) => Zero::Omit,
        };
        Field {
            name: name.to_owned(),
            path_key: format!("f:{name}"),
            node,
            required,
            zero,
            drop_zero: facts.is_some_and(|f| f.drop_zero) && !required,
            merge: has("merge"),
            replace: has("replace"),
            retain_keys: has("retainKeys"),
            merge_key: merge_key.map(str::to_owned),
        }
    }

    /// The index for a field's or element's schema; references share the definition's node unless the field
    /// itself says that the map is atomic.
    fn id(&mut self, schema: &Value, facts: Option<&Facts>) -> NodeId {
        let Some(target) = reference(schema) else {
            let node = self.shape("", schema, facts);
            return self.push(node);
        };
        let definitions = self.definitions;
        let definition = definitions.get(target);
        if let Some(kind) = extension(schema, facts, "x-kubernetes-map-type").and_then(Value::as_str)
            && let Some(definition) = definition
        {
            let mut node = self.definition(target, definition);
            if let Node::Struct(structure) = &mut node {
                structure.atomic = kind == "atomic";
            }
            return self.push(node);
        }
        self.out.names.get(target).copied().unwrap_or(0)
    }

    fn list(&mut self, schema: &Value, facts: Option<&Facts>) -> Node {
        let items = schema.get("items").unwrap_or(&Value::Null);
        let kind = match extension(schema, facts, "x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListKind::Set,
            Some("map") => {
                let names = extension(schema, facts, "x-kubernetes-list-map-keys").and_then(Value::as_array);
                let mut keys: Vec<ListKey> = names
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(|key| ListKey { name: key.to_owned(), default: self.default_of(items, key) })
                    .collect();
                keys.sort_by(|a, b| a.name.cmp(&b.name));
                ListKind::Map(keys.into())
            }
            _ => ListKind::Atomic,
        };
        Node::List { element: self.id(items, None), kind }
    }

    fn default_of(&self, items: &Value, key: &str) -> Option<Value> {
        let (name, schema) = match reference(items) {
            Some(name) => (name, self.definitions.get(name)?),
            None => ("", items),
        };
        let known = facts::of(name, key).and_then(|f| f.default.clone());
        let property = || schema.get("properties")?.get(key);
        known.or_else(|| property()?.get("default").cloned()).or_else(|| {
            // What Go always writes has its zero value for a default.
            (go::unset(name, key) == Some(Unset::Zero)).then_some(())?;
            match property()?.get("type")?.as_str()? {
                "string" => Some("".into()),
                "integer" => Some(0.into()),
                _ => None,
            }
        })
    }
}
