//! Facts about upstream's types that the types crate does not carry: list types, merge keys, strategies.
//!
//! `facts.txt` is written by `tools/facts.py`; its lines are `type field fact=value …`.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::Zero;
use crate::go::{self, Unset};

static TEXT: &str = include_str!("../facts.txt");

/// What is known of one field, or (field `-`) of a type.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) extensions: Vec<(&'static str, Value)>,
    pub(super) zero: Option<Zero>,
    pub(super) drop_zero: bool,
    pub(super) default: Option<Value>,
    /// The default that the v3 document states, against the rule; inside, `None` for none.
    shown: Option<Option<Value>>,
    /// Whether the documents call the field required, against the types crate.
    required: Option<bool>,
    /// What the values of a map can be.
    values: Vec<&'static str>,
}

static TABLE: LazyLock<HashMap<&'static str, HashMap<&'static str, Facts>>> = LazyLock::new(|| {
    let mut table: HashMap<_, HashMap<_, _>> = HashMap::new();
    for ((name, field), facts) in TEXT.lines().filter_map(parse) {
        table.entry(name).or_default().insert(field, facts);
    }
    table
});

fn parse(line: &'static str) -> Option<((&'static str, &'static str), Facts)> {
    let mut words = line.split(' ');
    let (name, field) = (words.next()?, words.next()?);
    let mut facts = Facts::default();
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "map" => facts.extensions.push(("x-kubernetes-map-type", value.into())),
            "unions" => {
                if let Ok(unions) = serde_json::from_str(value) {
                    facts.extensions.push(("x-kubernetes-unions", unions));
                }
            }
            "list" => facts.extensions.push(("x-kubernetes-list-type", value.into())),
            "keys" => {
                let keys: Vec<&str> = value.split(',').collect();
                facts.extensions.push(("x-kubernetes-list-map-keys", json!(keys)));
            }
            "merge" => facts.extensions.push(("x-kubernetes-patch-merge-key", value.into())),
            "strategy" => facts.extensions.push(("x-kubernetes-patch-strategy", value.into())),
            "zero" if value == "drop" => facts.drop_zero = true,
            "zero" => {
                facts.zero = Some(match value {
                    "null" => Zero::Null,
                    "omit" => Zero::Omit,
                    _ => Zero::Value,
                });
            }
            "default" => facts.default = serde_json::from_str(value).ok(),
            "shown" => facts.shown = Some(serde_json::from_str(value).ok()),
            "required" => facts.required = Some(value == "yes"),
            "values" => facts.values = value.split(',').collect(),
            _ => {}
        }
    }
    Some(((name, field), facts))
}

/// The facts of a field; `-` names the type itself.
pub(super) fn of(type_name: &str, field: &str) -> Option<&'static Facts> {
    TABLE.get(type_name.strip_prefix("io.k8s.api.").unwrap_or(type_name))?.get(field)
}

/// Adds the `x-kubernetes-*` marks to definitions, for publication as OpenAPI.
pub fn annotate(definitions: &mut Map<String, Value>) {
    for (name, definition) in definitions.iter_mut() {
        let Some(definition) = definition.as_object_mut() else { continue };
        if let Some(facts) = of(name, "-") {
            add(definition, facts);
        }
        let Some(Value::Object(properties)) = definition.get_mut("properties") else { continue };
        for (field, property) in properties.iter_mut() {
            let Some(property) = property.as_object_mut() else { continue };
            if let Some(facts) = of(name, field) {
                add(property, facts);
            }
            if let Some(values) = go::enumeration(name, field) {
                let place = match property.get_mut("items").and_then(Value::as_object_mut) {
                    Some(items) => items,
                    None => property,
                };
                place.insert("enum".to_owned(), json!(values));
            }
        }
    }
}

fn add(target: &mut Map<String, Value>, facts: &Facts) {
    for (key, value) in &facts.extensions {
        target.insert((*key).to_owned(), value.clone());
    }
}

/// Makes `required` name the fields that the documents do, in the order of Go's fields.
pub fn amend_required(name: &str, definition: &mut Value) {
    let Some(definition) = definition.as_object_mut() else { return };
    let mut required: Vec<Value> = match definition.remove("required") {
        Some(Value::Array(required)) => required,
        _ => Vec::new(),
    };
    let known = |field: &Value| field.as_str().and_then(|f| of(name, f)).and_then(|facts| facts.required);
    required.retain(|field| known(field) != Some(false));
    if let Some(Value::Object(properties)) = definition.get("properties") {
        let more = properties.keys().map(|field| json!(field)).filter(|field| known(field) == Some(true));
        let more: Vec<Value> = more.filter(|field| !required.contains(field)).collect();
        required.extend(more);
    }
    required.sort_by_key(|field| go::place(name, field.as_str().unwrap_or("")));
    if !required.is_empty() {
        definition.insert("required".to_owned(), required.into());
    }
}

/// Adds the `default`s that OpenAPI v3 states: `{}` and zero values of fields that Go always encodes.
pub fn annotate_defaults(name: &str, definition: &mut Value) {
    let required: Vec<String> = definition
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let Some(Value::Object(properties)) = definition.get_mut("properties") else { return };
    for (field, property) in properties.iter_mut() {
        let Some(property) = property.as_object_mut() else { continue };
        if let Some(default) = of(name, field).and_then(|facts| facts.default.clone()) {
            property.insert("default".to_owned(), default);
        }
        let values = of(name, field).map(|facts| facts.values.as_slice()).unwrap_or_default();
        if let Some(Value::Object(inner)) = property.get_mut("additionalProperties")
            && !values.is_empty()
        {
            inner.insert("enum".to_owned(), json!(values));
        }
        match of(name, field).and_then(|facts| facts.shown.as_ref()) {
            Some(Some(default)) => {
                if let Some(target) = property.remove("$ref") {
                    property.insert("allOf".to_owned(), json!([{ "$ref": target }]));
                }
                property.insert("default".to_owned(), default.clone());
            }
            Some(None) => continue,
            None => {}
        }
        let unset = go::unset(name, field);
        let always =
            of(name, field).is_some_and(|f| f.zero == Some(Zero::Value)) || unset == Some(Unset::Zero);
        let required = required.contains(field) && unset != Some(Unset::Omitted);
        let always_there = always || go::is_plain_struct(name, field);
        let default = match property.get("type").and_then(Value::as_str) {
            None if always_there && property.contains_key("allOf") => json!({}),
            Some("string") if always || required => "".into(),
            Some("integer" | "number") if always || required => 0.into(),
            Some("boolean") if always || required => false.into(),
            _ => continue,
        };
        property.entry("default").or_insert(default);
    }
}
