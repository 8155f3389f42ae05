//! Custom resources in the documents: their paths, and their schemas with what every object has.

use std::collections::BTreeMap;

use coracle_apiextensions::publish;
use coracle_meta::GroupVersionKind;
use coracle_resources::custom::CustomVersion;
use coracle_resources::def::{ResourceDef, Scope, Subresource};
use serde_json::{Map, Value, json};

use super::operations::{CREATED, DELETED, OK, Operation, PathItem, WRITTEN, camel, share_params, tag};
use super::params::{self, Param};
use super::render::{self, Flavour};
use super::schemas::{self, META};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
    convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
    this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More \
    info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// Built-in and custom definitions apart.
pub(super) fn split<'d>(defs: &[&'d ResourceDef]) -> (Vec<&'d ResourceDef>, Vec<&'d ResourceDef>) {
    defs.iter().copied().partition(|def| def.strategy.custom().is_none())
}

/// `com.example.v1.Thing` for a kind of `example.com`.
fn model_name(def: &ResourceDef, kind: &str) -> String {
    let group: Vec<&str> = def.group.split('.').rev().collect();
    format!("{}.{}.{kind}", group.join("."), def.version)
}

/// The v3 document of a group version of custom resources.
pub(super) fn document(defs: &[&ResourceDef]) -> Value {
    let group_versions: Vec<(&str, &str)> = defs.iter().map(|d| (d.group, d.version)).collect();
    let mut definitions = schemas::published(&[], &group_versions, Flavour::V3);
    if defs.iter().any(|def| def.has(Subresource::Scale)) {
        definitions.extend(schemas::scale(Flavour::V3));
    }
    let mut items = BTreeMap::new();
    for def in defs {
        items.extend(paths(def));
        definitions.extend(self::definitions(def, Flavour::V3));
    }
    let paths = render::paths(&items, Flavour::V3);
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes CRD Swagger", "version": "v0.1.0" },
        "components": { "schemas": schemas::reachable(definitions, &paths) },
        "paths": paths,
    })
}

/// The schemas of a kind and of its list.
pub(super) fn definitions(def: &ResourceDef, flavour: Flavour) -> Map<String, Value> {
    let mut out = Map::new();
    let Some(version) = def.strategy.custom().map(|c| c.current()) else { return out };
    let name = model_name(def, def.kind);
    out.insert(name.clone(), own(&version, flavour));
    let items = json!({ "$ref": format!("{}{name}", flavour.definitions()) });
    let doc = format!(
        "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        def.plural
    );
    let mut list = json!({
        "description": format!("{} is a list of {}", version.list_kind, def.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "description": API_VERSION, "type": "string" },
            "kind": { "description": KIND, "type": "string" },
            "items": { "description": doc, "type": "array", "items": items },
            "metadata": reference("ListMeta", LIST_METADATA, flavour),
        },
    });
    mark(&mut list, &version, &version.list_kind);
    out.insert(model_name(def, &version.list_kind), list);
    out
}

/// A reference to a type of `meta/v1` with words of its own.
fn reference(name: &str, description: &str, flavour: Flavour) -> Value {
    let target = format!("{}{META}{name}", flavour.definitions());
    match flavour {
        Flavour::V2 => json!({ "description": description, "$ref": target }),
        Flavour::V3 => json!({ "description": description, "allOf": [{ "$ref": target }] }),
    }
}

fn mark(schema: &mut Value, version: &CustomVersion, kind: &str) {
    schema["x-kubernetes-group-version-kind"] =
        json!([{ "group": version.group, "version": version.version, "kind": kind }]);
    if !version.selectable.is_empty() {
        let fields = version.selectable.iter().map(|(name, _)| json!({ "fieldPath": name }));
        schema["x-kubernetes-selectable-fields"] = fields.collect::<Vec<_>>().into();
    }
}

fn own(version: &CustomVersion, flavour: Flavour) -> Value {
    let mut out = match version.described() {
        Some(schema) if flavour == Flavour::V3 => publish::v3(&schema),
        Some(schema) if !schema.preserve && !version.preserve => publish::v2(&schema),
        _ => {
            let mut bare = json!({ "type": "object" });
            mark(&mut bare, version, &version.kind);
            return bare;
        }
    };
    out["properties"]["apiVersion"] = json!({ "description": API_VERSION, "type": "string" });
    out["properties"]["kind"] = json!({ "description": KIND, "type": "string" });
    out["properties"]["metadata"] = reference("ObjectMeta", METADATA, flavour);
    if let Some(properties) = out["properties"].as_object_mut() {
        properties.values_mut().for_each(|property| embed(property, flavour));
    }
    mark(&mut out, version, &version.kind);
    out
}

/// Says of embedded objects what every object has.
fn embed(schema: &mut Value, flavour: Flavour) {
    let Some(map) = schema.as_object_mut() else { return };
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| embed(property, flavour));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            embed(inner, flavour);
        }
    }
    let has = |map: &Map<String, Value>, key: &str| map.get(key) == Some(&Value::Bool(true));
    if has(map, "x-kubernetes-preserve-unknown-fields") && flavour == Flavour::V2 {
        return;
    }
    if !has(map, "x-kubernetes-embedded-resource") {
        return;
    }
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    properties["apiVersion"] = json!({ "description": EMBEDDED_API_VERSION, "type": "string" });
    properties["kind"] = json!({ "description": EMBEDDED_KIND, "type": "string" });
    properties["metadata"] = reference("ObjectMeta", METADATA, flavour);
    let mut required = map.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|r| r == name) {
            required.push(name.into());
        }
    }
    map.insert("required".into(), required.into());
}

/// The paths of a custom resource.
pub(super) fn paths(def: &ResourceDef) -> BTreeMap<String, PathItem> {
    let builder = Builder {
        def,
        list: def.strategy.custom().map(|c| c.current().list_kind.clone()).unwrap_or_default(),
    };
    let mut out = builder.paths();
    out.values_mut().for_each(share_params);
    out
}

struct Builder<'d> {
    def: &'d ResourceDef,
    list: String,
}

impl Builder<'_> {
    fn namespaced(&self) -> bool {
        self.def.scope == Scope::Namespaced
    }

    fn paths(&self) -> BTreeMap<String, PathItem> {
        let def = self.def;
        let root = format!("/apis/{}/{}", def.group, def.version);
        let mut out = BTreeMap::new();
        let item = |own: &[Param], operations: Vec<Operation>| {
            let place: &[Param] = if self.namespaced() { &[params::NAMESPACE] } else { &[] };
            PathItem { params: [own, place, &[params::PRETTY]].concat(), operations }
        };
        let mut collection = format!("{root}/{}", def.plural);
        if self.namespaced() {
            let mut list = self.operation("get", "list", "list", "");
            list.id = format!("list{}{}ForAllNamespaces", camel(def.group, def.version), def.kind);
            out.insert(collection, PathItem { params: vec![params::PRETTY], operations: vec![list] });
            collection = format!("{root}/namespaces/{{namespace}}/{}", def.plural);
        }
        let operations = vec![
            self.operation("get", "list", "list", ""),
            self.operation("post", "post", "create", ""),
            self.operation("delete", "deletecollection", "deletecollection", ""),
        ];
        out.insert(collection.clone(), item(&[], operations));
        let one = format!("{collection}/{{name}}");
        let change = |sub: &str| {
            vec![
                self.operation("get", "get", "read", sub),
                self.operation("put", "put", "replace", sub),
                self.operation("patch", "patch", "patch", sub),
            ]
        };
        let mut operations = change("");
        operations.push(self.operation("delete", "delete", "delete", ""));
        out.insert(one.clone(), item(&[params::NAME], operations));
        for sub in def.subresources {
            out.insert(format!("{one}/{}", sub.path()), item(&[params::NAME], change(sub.path())));
        }
        out
    }

    fn operation(&self, method: &'static str, action: &'static str, verb: &str, sub: &str) -> Operation {
        let def = self.def;
        let (params, codes) = match action {
            "list" | "deletecollection" => (params::LIST, OK),
            "get" => (params::READ, OK),
            "post" => (params::WRITE, CREATED),
            "put" => (params::WRITE, WRITTEN),
            "patch" => (params::PATCH, OK),
            _ => (params::DELETE, DELETED),
        };
        let scale = sub == "scale";
        let own = if scale { SCALE.to_owned() } else { model_name(def, def.kind) };
        let answer = match action {
            "list" => model_name(def, &self.list),
            "delete" | "deletecollection" => format!("{META}Status"),
            _ => own.clone(),
        };
        let body = match action {
            "post" | "put" => Some((own, true)),
            "patch" => Some((format!("{META}Patch"), true)),
            "delete" => Some((format!("{META}DeleteOptions"), false)),
            _ => None,
        };
        let word = if self.namespaced() { "Namespaced" } else { "" };
        let (first, collection) =
            if verb == "deletecollection" { ("delete", "Collection") } else { (verb, "") };
        let mut title = sub.to_owned();
        if let Some(initial) = title.get_mut(..1) {
            initial.make_ascii_uppercase();
        }
        Operation {
            method,
            action: Some(action),
            id: format!("{first}{}{collection}{word}{}{title}", camel(def.group, def.version), def.kind),
            description: describe(verb, sub, def.kind),
            tag: tag(def.group, def.version),
            gvk: Some(GroupVersionKind::new(def.group, def.version, def.kind)),
            params: params.to_vec(),
            body,
            answer: Some(answer),
            codes,
            custom: true,
        }
    }
}

fn describe(verb: &str, sub: &str, kind: &str) -> String {
    let of = if sub.is_empty() { String::new() } else { format!(" {sub} of") };
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { " an " } else { " a " };
    match verb {
        "list" => format!("list objects of kind {kind}"),
        "patch" => format!("partially update{of} the specified {kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        "create" | "delete" => format!("{verb}{article}{kind}"),
        _ => format!("{verb}{of} the specified {kind}"),
    }
}
