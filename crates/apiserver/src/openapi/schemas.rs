//! The definitions: the types crate's schemas, upstream's list and merge facts, group-version-kinds.

use coracle_meta::schema::facts;
use coracle_resources::def::{ResourceDef, Storage, Subresource};
use k8s_openapi::api::{authentication, autoscaling, core, policy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::version;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::render::Flavour;

/// Where the types of `meta/v1` live.
pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The definition of a resource's kind, e.g. `io.k8s.api.apps.v1.Deployment`.
pub fn type_name(def: &ResourceDef) -> String {
    definition_name(def.group, def.version, def.kind)
}

/// The definition of a built-in kind by its group, version and kind.
pub(super) fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned(),
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_owned(),
        "internal.apiserver.k8s.io" => "io.k8s.api.apiserverinternal".to_owned(),
        // autoscaling, rbac.authorization.k8s.io, flowcontrol.apiserver.k8s.io: the first word names the
        // package.
        other => format!("io.k8s.api.{}", other.split('.').next().unwrap_or(other)),
    };
    format!("{package}.{version}.{kind}")
}

/// The definition of the list of a kind.
pub(super) fn list_name(def: &ResourceDef) -> String {
    format!("{}List", type_name(def))
}

/// The definitions of the kinds and of all they refer to, as the types crate gives them.
pub(super) fn raw(defs: &[&ResourceDef]) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for def in defs {
        def.strategy.schema(&mut generator);
    }
    let has = |subresource| defs.iter().any(|def| def.has(subresource));
    if has(Subresource::Scale) {
        generator.subschema_for::<autoscaling::v1::Scale>();
    }
    if has(Subresource::Binding) {
        generator.subschema_for::<core::v1::Binding>();
    }
    if has(Subresource::Eviction) {
        generator.subschema_for::<policy::v1::Eviction>();
    }
    if has(Subresource::Token) {
        generator.subschema_for::<authentication::v1::TokenRequest>();
    }
    generator.subschema_for::<meta::ObjectMeta>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::APIResourceList>();
    generator.subschema_for::<RawExtension>();
    generator.take_definitions(true)
}

/// The definitions of discovery itself, for the documents beside those of group versions.
pub(super) fn of_discovery() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<meta::APIVersions>();
    generator.subschema_for::<meta::APIGroupList>();
    generator.subschema_for::<version::Info>();
    let mut out = generator.take_definitions(true);
    facts::annotate(&mut out);
    for (name, definition) in &mut out {
        shape(definition, Flavour::V3);
        facts::annotate_defaults(name, definition);
        facts::amend_required(name, definition);
        let kind = name
            .strip_prefix(META)
            .filter(|kind| matches!(*kind, "APIVersions" | "APIGroup" | "APIGroupList"));
        if let Some(kind) = kind {
            definition["x-kubernetes-group-version-kind"] =
                json!([{ "group": "", "version": "v1", "kind": kind }]);
        }
    }
    out
}

/// Keeps the definitions that `paths` refer to, directly or through others.
pub(super) fn reachable(mut definitions: Map<String, Value>, paths: &Value) -> Map<String, Value> {
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                let target = map.get("$ref").and_then(Value::as_str);
                out.extend(target.and_then(|t| t.rsplit('/').next()).map(str::to_owned));
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }
    let (mut wanted, mut out) = (Vec::new(), Map::new());
    references(paths, &mut wanted);
    while let Some(name) = wanted.pop() {
        if let Some(definition) = definitions.remove(&name) {
            references(&definition, &mut wanted);
            out.insert(name, definition);
        }
    }
    out
}

/// The definitions as published: lists, facts, group-version-kinds; references in the document's form.
pub(super) fn published(
    defs: &[&ResourceDef],
    group_versions: &[(&str, &str)],
    flavour: Flavour,
) -> Map<String, Value> {
    let mut out = raw(defs);
    out.insert(format!("{META}WatchEvent"), watch_event());
    facts::annotate(&mut out);
    for (name, definition) in &mut out {
        shape(definition, flavour);
        special(name, definition, flavour);
        if flavour == Flavour::V3 {
            facts::annotate_defaults(name, definition);
        }
    }
    let mark = |definition: &mut Value, kinds: Vec<Value>| {
        // The types crate needs it to be there; clients may leave it out.
        if let Some(Value::Array(required)) = definition.get_mut("required") {
            required.retain(|name| name != "metadata");
            if required.is_empty()
                && let Some(definition) = definition.as_object_mut()
            {
                definition.remove("required");
            }
        }
        definition["x-kubernetes-group-version-kind"] = kinds.into();
    };
    let gvk =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    for def in defs {
        if def.storage != Storage::Virtual {
            let mut list = list(def, flavour);
            mark(&mut list, vec![gvk(def.group, def.version, &format!("{}List", def.kind))]);
            out.insert(list_name(def), list);
        }
    }
    // Kinds of other groups too, where types refer to them.
    for def in coracle_resources::all() {
        if let Some(definition) = out.get_mut(&type_name(def)) {
            mark(definition, vec![gvk(def.group, def.version, def.kind)]);
        }
    }
    for (group, version, kind) in [
        ("autoscaling", "v1", "Scale"),
        ("", "v1", "Binding"),
        ("policy", "v1", "Eviction"),
        ("authentication.k8s.io", "v1", "TokenRequest"),
    ] {
        if let Some(definition) = out.get_mut(&definition_name(group, version, kind)) {
            mark(definition, vec![gvk(group, version, kind)]);
        }
    }
    for kind in ["DeleteOptions", "WatchEvent"] {
        let mut kinds: Vec<Value> = vec![gvk("", "v1", kind)];
        let others = group_versions.iter().filter(|gv| **gv != ("", "v1"));
        kinds.extend(others.map(|(group, version)| gvk(group, version, kind)));
        if let Some(definition) = out.get_mut(&format!("{META}{kind}")) {
            mark(definition, kinds);
        }
    }
    for kind in ["Status", "APIResourceList"] {
        if let Some(definition) = out.get_mut(&format!("{META}{kind}")) {
            mark(definition, vec![gvk("", "v1", kind)]);
        }
    }
    out.iter_mut().for_each(|(name, definition)| facts::amend_required(name, definition));
    out
}

/// The definition of Scale and what it refers to.
pub(super) fn scale(flavour: Flavour) -> Map<String, Value> {
    let find = |def: &&&'static ResourceDef| def.has(Subresource::Scale);
    let with_scale: Vec<&ResourceDef> =
        coracle_resources::all().iter().filter(find).take(1).copied().collect();
    let wanted = |name: &str| name.starts_with("io.k8s.api.autoscaling.v1.Scale");
    published(&with_scale, &[], flavour).into_iter().filter(|(name, _)| wanted(name)).collect()
}

fn watch_event() -> Value {
    let raw = "io.k8s.apimachinery.pkg.runtime.RawExtension";
    json!({
        "description": "Event represents a single event to a watched resource.",
        "type": "object",
        "required": ["type", "object"],
        "properties": {
            "object": { "allOf": [{ "$ref": format!("{}{raw}", Flavour::V3.definitions()) }] },
            "type": { "type": "string" },
        },
    })
}

fn list(def: &ResourceDef, flavour: Flavour) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("{}{name}", flavour.definitions()) });
    let metadata = match flavour {
        Flavour::V2 => reference(&format!("{META}ListMeta")),
        Flavour::V3 => json!({ "allOf": [reference(&format!("{META}ListMeta"))], "default": {} }),
    };
    json!({
        "description": format!("{0}List is a list of {0} objects.", def.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string", "description": "Version of the schema of this object." },
            "kind": { "type": "string", "description": "Kind of this object." },
            "items": { "type": "array", "items": reference(&type_name(def)), "description": "The objects." },
            "metadata": metadata,
        },
    })
}

/// Rewrites references: beside other keys v3 wraps them in `allOf`, v2 writes them plainly.
fn shape(schema: &mut Value, flavour: Flavour) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(|value| shape(value, flavour));
            if flavour == Flavour::V2
                && let Some(Value::Array(parts)) = map.get("allOf")
                && let [only] = parts.as_slice()
                && let Some(target) = only.get("$ref").cloned()
            {
                map.remove("allOf");
                map.insert("$ref".into(), target);
            }
            let Some(Value::String(target)) = map.get_mut("$ref") else { return };
            let name = target.rsplit('/').next().unwrap_or_default();
            *target = format!("{}{name}", flavour.definitions());
        }
        Value::Array(items) => items.iter_mut().for_each(|value| shape(value, flavour)),
        _ => {}
    }
}

/// Types that upstream describes in its own way.
fn special(name: &str, definition: &mut Value, flavour: Flavour) {
    let short = name.rsplit('.').next().unwrap_or_default();
    let Some(map) = definition.as_object_mut() else { return };
    let mut replace = |keys: &[(&str, Value)]| {
        map.retain(|key, _| key == "description");
        map.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    };
    match (short, flavour) {
        ("Quantity", Flavour::V2) => replace(&[("type", "string".into())]),
        ("Quantity", Flavour::V3) => {
            replace(&[("oneOf", json!([{ "type": "string" }, { "type": "number" }]))])
        }
        ("IntOrString", Flavour::V2) => {
            replace(&[("type", "string".into()), ("format", "int-or-string".into())])
        }
        ("IntOrString", Flavour::V3) => replace(&[
            ("oneOf", json!([{ "type": "integer" }, { "type": "string" }])),
            ("format", "int-or-string".into()),
        ]),
        ("JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray", _) => {
            replace(&[]);
        }
        ("RawExtension" | "FieldsV1" | "Patch", _) => replace(&[("type", "object".into())]),
        _ => {}
    }
}
