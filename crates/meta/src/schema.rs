//! Structural schemas, compiled from JSON-schema definitions: what the types crate knows of each field, plus
//! the merge and list facts that only upstream's OpenAPI document has (`facts.txt`).
//!
//! One compiled table serves unknown-field detection, strategic merge, server-side apply and normalization.

mod compile;
pub mod facts;
pub(crate) mod normalize;
mod strict;

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Index of a type in [`Schemas`].
pub type NodeId = u32;

/// What a value of a type looks like.
#[derive(Clone, Debug)]
pub enum Node {
    /// String, number, boolean, or either (null): not descended into. The value is the Go zero value.
    Scalar(Value),
    /// Of any form, changed and owned as a whole.
    Opaque,
    /// A `resource.Quantity`.
    Quantity,
    /// An integer or a text.
    IntOrString,
    /// No declared shape: maps merge by key, lists are atomic.
    Any,
    /// Declared fields.
    Struct(Box<Struct>),
    /// Free keys, values of one type.
    Map {
        /// Type of the values.
        element: NodeId,
        /// Changed and owned as a whole.
        atomic: bool,
    },
    /// A list.
    List {
        /// Type of the items.
        element: NodeId,
        /// How items are told apart.
        kind: ListKind,
    },
}

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Debug)]
pub enum ListKind {
    /// Changed and owned as a whole.
    Atomic,
    /// Items are scalars, each at most once.
    Set,
    /// Items are objects, identified by these keys (sorted by name).
    Map(Box<[ListKey]>),
}

/// One identifying field of a list's items.
#[derive(Clone, Debug)]
pub struct ListKey {
    /// Field name.
    pub name: String,
    /// Value where the item omits the field.
    pub default: Option<Value>,
}

/// The declared fields of an object.
#[derive(Clone, Debug, Default)]
pub struct Struct {
    /// Definition name; empty for inline objects.
    pub name: String,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Changed and owned as a whole.
    pub atomic: bool,
    /// Other fields than the declared ones are allowed.
    pub open: bool,
}

/// What an unset field is encoded as, following Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Left out.
    Omit,
    /// `null`.
    Null,
    /// The zero value of its type: `{}`, `0`, `""`.
    Value,
}

/// One field of a [`Struct`].
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in JSON.
    pub name: String,
    /// `f:` and the name: the key in a field set.
    pub path_key: String,
    /// Its type.
    pub node: NodeId,
    /// Listed as required.
    pub required: bool,
    /// How Go encodes it when unset.
    pub zero: Zero,
    /// A scalar that Go leaves out also when it is set to its zero value (no pointer, `omitempty`).
    pub drop_zero: bool,
    /// Strategic merge: `patchStrategy` contains `merge`.
    pub merge: bool,
    /// Strategic merge: `patchStrategy` contains `replace`.
    pub replace: bool,
    /// Strategic merge: `patchStrategy` contains `retainKeys`.
    pub retain_keys: bool,
    /// Strategic merge: the merge key of a list of objects.
    pub merge_key: Option<String>,
}

impl Struct {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.as_str().cmp(name)).ok().map(|i| &self.fields[i])
    }
}

/// Compiled types, by definition name (`io.k8s.api.core.v1.Pod`).
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    nodes: Vec<Node>,
    names: HashMap<String, NodeId>,
}

impl Schemas {
    /// Compiles definitions (`name` → JSON schema, with `$ref`s whose last segment is a name). Facts known of
    /// upstream's types are added; `x-kubernetes-*` marks in the schemas themselves count too.
    pub fn compile(definitions: &Map<String, Value>) -> Self {
        compile::compile(definitions)
    }

    /// The index of a definition.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// A type. An index that is not of this table yields [`Node::Any`].
    pub fn node(&self, id: NodeId) -> &Node {
        usize::try_from(id).ok().and_then(|i| self.nodes.get(i)).unwrap_or(&Node::Any)
    }

    /// The definition as a struct, if it is one.
    pub fn structure(&self, name: &str) -> Option<&Struct> {
        match self.node(self.find(name)?) {
            Node::Struct(structure) => Some(structure),
            _ => None,
        }
    }

    /// Paths of fields the type does not declare, as messages: `unknown field "spec.containers[0].foo"`.
    /// Document order is that of the value's maps. Types that are not known yield none.
    pub fn unknown_fields(&self, type_name: &str, value: &Value) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(id) = self.find(type_name) {
            strict::unknown(self, id, value, &mut String::new(), &mut out);
        }
        out
    }

    /// Unknown and duplicate fields of a JSON document in document order, as upstream's strict decoder words
    /// them: `unknown field "spec.foo"`, `duplicate field "metadata.labels.a"`. Malformed JSON yields what
    /// was
    /// found before the fault.
    pub fn strict_errors(&self, type_name: &str, json: &[u8]) -> Vec<String> {
        strict::check(Some((self, self.find(type_name))), json)
    }

    /// Brings a decoded value into the shape upstream answers with: nulls and empty optional lists and maps
    /// go,
    /// fields that Go always encodes (`status: {}`, `resources: {}`, `lastProbeTime: null`) come, required
    /// lists without items are null, quantities become canonical.
    ///
    /// # Errors
    /// Upstream's message for a malformed quantity.
    pub fn normalize(&self, type_name: &str, value: &mut Value) -> Result<(), String> {
        match self.find(type_name) {
            Some(id) => normalize::normalize(self, id, value),
            None => Ok(()),
        }
    }

    /// The value Go encodes for an empty object of the type.
    pub fn zero(&self, id: NodeId) -> Value {
        normalize::zero(self, id)
    }
}

/// Fields that occur twice in a JSON document: `duplicate field "spec.foo"`, in document order.
pub fn duplicate_fields(json: &[u8]) -> Vec<String> {
    strict::check(None, json)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::{apps::v1::Deployment, core::v1 as core};
    use schemars::generate::SchemaSettings;
    use std::sync::LazyLock;

    /// Types for the tests of this crate.
    pub(crate) static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| {
        let mut generator = SchemaSettings::openapi3().into_generator();
        generator.subschema_for::<core::Pod>();
        generator.subschema_for::<core::ConfigMap>();
        generator.subschema_for::<core::Service>();
        generator.subschema_for::<core::ServiceAccount>();
        generator.subschema_for::<Deployment>();
        Schemas::compile(&generator.take_definitions(true))
    });

    pub(crate) const POD: &str = "io.k8s.api.core.v1.Pod";
    pub(crate) const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

    #[test]
    fn facts_reach_the_compiled_types() {
        let spec = SCHEMAS.structure("io.k8s.api.core.v1.PodSpec").expect("PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        let ports = SCHEMAS.structure("io.k8s.api.core.v1.Container").expect("Container").field("ports");
        let Node::List { kind: ListKind::Map(keys), .. } = SCHEMAS.node(ports.expect("ports").node) else {
            panic!("ports is no map list")
        };
        let keys: Vec<_> = keys.iter().map(|k| (k.name.as_str(), k.default.clone())).collect();
        assert_eq!(keys, [("containerPort", Some(0.into())), ("protocol", Some("TCP".into()))]);
    }

    #[test]
    fn unknown_and_duplicate_fields_have_upstream_paths() {
        let text = br#"{"kind":"Pod","foo":1,"metadata":{"labels":{"a":"b","a":"c"}},
            "spec":{"containers":[{"name":"x","imag":"y","name":"z"}],"nodeSelector":{"anything":"goes"}}}"#;
        let expected = [
            "unknown field \"foo\"",
            "duplicate field \"metadata.labels.a\"",
            "unknown field \"spec.containers[0].imag\"",
            "duplicate field \"spec.containers[0].name\"",
        ];
        assert_eq!(SCHEMAS.strict_errors(POD, text), expected);
        let value: Value = serde_json::from_slice(text).expect("json");
        assert_eq!(SCHEMAS.unknown_fields(POD, &value), [expected[0], expected[2]]);
        assert_eq!(duplicate_fields(text), [expected[1], expected[3]]);
    }

    #[test]
    fn normalization_gives_the_shape_go_encodes() {
        let mut value = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": {}, "uid": null },
            "spec": { "volumes": [], "containers": [
                { "name": "c", "resources": { "limits": { "cpu": "1000m" } } },
                { "name": "d" }] },
        });
        SCHEMAS.normalize(POD, &mut value).expect("valid");
        let expected = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "cpu": "1" } } },
                { "name": "d", "resources": {} }] },
            "status": {},
        });
        assert_eq!(value, expected);
    }
}
