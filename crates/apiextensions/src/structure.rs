//! Whether a schema is structural: every value has exactly one place where its type is told, and value checks
//! only refer to what is told there.

use coracle_meta::field::{ErrorList, Path};

use crate::pattern;
use crate::schema::{Additional, Checks, Schema};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// The faults of a schema, sorted by text. `at` is where the schema stands.
pub fn faults(schema: &Schema, at: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    invariants(schema, Level::Root, at, &mut errs);
    completeness(schema.checks(), Some(schema), at, at, &mut errs);
    let mut sorted: Vec<_> = errs.iter().cloned().collect();
    sorted.sort_by_cached_key(ToString::to_string);
    let mut out = ErrorList::new();
    sorted.into_iter().for_each(|e| out.push(e));
    out
}

fn invariants(schema: &Schema, level: Level, at: &Path, errs: &mut ErrorList) {
    if schema.kind == "array" && schema.items.is_none() {
        errs.required(at.child("items"), "must be specified");
    }
    if let Some(items) = &schema.items {
        invariants(items, Level::Item, &at.child("items"), errs);
    }
    for (name, property) in &schema.properties {
        invariants(property, Level::Field, &at.child("properties").key(name), errs);
    }
    if let Some(additional) = &schema.additional {
        if level == Level::Root {
            errs.forbidden(at.child("additionalProperties"), "must not be used at the root");
        }
        if let Additional::Schema(additional) = additional {
            invariants(additional, Level::Field, &at.child("additionalProperties"), errs);
        }
    }
    extensions(schema, at, errs);
    let skip_first =
        schema.checks().all_of.first().is_some_and(|first| is_int_or_string(&first.checks().any_of));
    values(schema.checks(), is_int_or_string(&schema.checks().any_of), skip_first, at, errs);
    types(schema, level, at, errs);
    metadata(schema, level, at, errs);
    if schema.embedded && !schema.preserve && schema.properties.is_empty() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                   x-kubernetes-preserve-unknown-fields";
        errs.required(at.child("properties"), why);
    }
}

fn extensions(schema: &Schema, at: &Path, errs: &mut ErrorList) {
    if schema.int_or_string && schema.preserve {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errs.invalid(at.child("x-kubernetes-preserve-unknown-fields"), true, why);
    }
    if schema.int_or_string && schema.embedded {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errs.invalid(at.child("x-kubernetes-embedded-resource"), true, why);
    }
}

fn types(schema: &Schema, level: Level, at: &Path, errs: &mut ErrorList) {
    let kind = schema.kind.as_str();
    if schema.embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        match kind {
            "" => errs.required(at.child("type"), why),
            kind => errs.invalid(at.child("type"), kind, why),
        }
    } else if kind.is_empty() && !schema.int_or_string && !schema.preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errs.required(at.child("type"), why);
    }
    if schema.embedded && schema.additional.is_some() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errs.forbidden(at.child("additionalProperties"), why);
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errs.invalid(at.child("type"), kind, "must be object at the root");
    }
}

/// What a schema may say of the metadata of a whole object.
fn metadata(schema: &Schema, level: Level, at: &Path, errs: &mut ErrorList) {
    let whole = level == Level::Root || schema.embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = schema.properties.get(name).filter(|p| whole && p.kind != "string") {
            let at = at.child("properties").key(name).child("type");
            errs.invalid(at, property.kind.as_str(), "must be string");
        }
    }
    let Some(meta) = schema.properties.get("metadata") else { return };
    let at = at.child("properties").key("metadata");
    if whole && meta.kind != "object" {
        errs.invalid(at.child("type"), meta.kind.as_str(), "must be object");
    }
    if level == Level::Root {
        let known = |name: &String| name == "name" || name == "generateName";
        let mut rest = meta.clone();
        if rest.properties.len() <= 2 && rest.properties.keys().all(known) {
            rest.properties.clear();
        }
        rest.kind.clear();
        rest.default = None;
        if rest != Schema::default() {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly \
                       specified";
            errs.forbidden(at, why);
        }
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, which int-or-string fields may say.
fn is_int_or_string(any_of: &[Schema]) -> bool {
    let bare = |schema: &Schema, kind: &str| *schema == Schema { kind: kind.to_owned(), ..Schema::default() };
    matches!(any_of, [first, second] if bare(first, "integer") && bare(second, "string"))
}

fn values(checks: &Checks, skip_any: bool, skip_first: bool, at: &Path, errs: &mut ErrorList) {
    if !skip_any {
        for (i, schema) in checks.any_of.iter().enumerate() {
            nested(schema, false, &at.child("anyOf").index(i), errs);
        }
    }
    for (i, schema) in checks.all_of.iter().enumerate() {
        nested(schema, skip_first && i == 0, &at.child("allOf").index(i), errs);
    }
    for (i, schema) in checks.one_of.iter().enumerate() {
        nested(schema, false, &at.child("oneOf").index(i), errs);
    }
    if let Some(schema) = &checks.not {
        nested(schema, false, &at.child("not"), errs);
    }
    if let Err(why) = pattern::check(&checks.pattern) {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        errs.invalid(at.child("pattern"), checks.pattern.as_str(), why);
    }
}

fn nested(schema: &Schema, skip_any: bool, at: &Path, errs: &mut ErrorList) {
    values(schema.checks(), skip_any, false, at, errs);
    if let Some(items) = &schema.items {
        nested(items, false, &at.child("items"), errs);
    }
    for (name, property) in &schema.properties {
        nested(property, false, &at.child("properties").key(name), errs);
    }
    let mut must = |bad: bool, name: &str, how: &str| {
        if bad {
            errs.forbidden(at.child(name), format!("must be {how} to be structural"));
        }
    };
    must(!schema.kind.is_empty(), "type", "empty");
    let additional = !matches!(schema.additional, None | Some(Additional::Allowed(false)));
    must(additional, "additionalProperties", "undefined");
    must(schema.default.is_some(), "default", "undefined");
    must(!schema.title.is_empty(), "title", "empty");
    must(!schema.description.is_empty(), "description", "empty");
    must(schema.nullable, "nullable", "false");
    must(schema.preserve, "x-kubernetes-preserve-unknown-fields", "false");
    must(schema.embedded, "x-kubernetes-embedded-resource", "false");
    must(schema.int_or_string, "x-kubernetes-int-or-string", "false");
    must(!schema.list_map_keys.is_empty(), "x-kubernetes-list-map-keys", "empty");
    must(schema.list_type.is_some(), "x-kubernetes-list-type", "undefined");
    must(schema.map_type.is_some(), "x-kubernetes-map-type", "undefined");
    must(!schema.rules.is_empty(), "x-kubernetes-validations", "empty");
    if schema.properties.contains_key("metadata") {
        let at = at.child("properties").key("metadata");
        errs.forbidden(at, "must not be specified in a nested context");
    }
}

/// Whatever a value check refers to must be declared outside of it.
fn completeness(checks: &Checks, schema: Option<&Schema>, told: &Path, at: &Path, errs: &mut ErrorList) {
    if let Some(not) = &checks.not {
        nested_completeness(not, schema, told, &at.child("not"), errs);
    }
    for (word, schemas) in [("allOf", &checks.all_of), ("anyOf", &checks.any_of), ("oneOf", &checks.one_of)] {
        for (i, inner) in schemas.iter().enumerate() {
            nested_completeness(inner, schema, told, &at.child(word).index(i), errs);
        }
    }
}

fn nested_completeness(
    inner: &Schema,
    schema: Option<&Schema>,
    told: &Path,
    at: &Path,
    errs: &mut ErrorList,
) {
    let Some(schema) = schema else {
        errs.required(told, format!("because it is defined in {at}"));
        return;
    };
    completeness(inner.checks(), Some(schema), told, at, errs);
    if let Some(items) = &inner.items {
        let (told, at) = (told.child("items"), at.child("items"));
        nested_completeness(items, schema.items.as_deref(), &told, &at, errs);
    }
    for (name, property) in &inner.properties {
        let (told, at) = (told.child("properties").key(name), at.child("properties").key(name));
        nested_completeness(property, schema.properties.get(name), &told, &at, errs);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::tests::schema;

    #[track_caller]
    fn check(value: serde_json::Value, expected: &[&str]) {
        let found: Vec<String> =
            faults(&schema(value), &Path::new("s")).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn types_must_be_told_once_and_outside_of_value_checks() {
        check(
            json!({ "type": "object", "properties": { "a": {}, "b": { "type": "array" } } }),
            &[
                "s.properties[a].type: Required value: must not be empty for specified object fields",
                "s.properties[b].items: Required value: must be specified",
            ],
        );
        check(
            json!({ "type": "object", "anyOf": [{ "type": "object", "properties": { "x": { "minimum": 1 } } }] }),
            &[
                "s.anyOf[0].type: Forbidden: must be empty to be structural",
                "s.properties[x]: Required value: because it is defined in s.anyOf[0].properties[x]",
            ],
        );
    }

    #[test]
    fn int_or_string_may_name_its_two_types() {
        let pattern = json!([{ "type": "integer" }, { "type": "string" }]);
        let property = json!({ "x-kubernetes-int-or-string": true, "anyOf": pattern });
        check(json!({ "type": "object", "properties": { "a": property } }), &[]);
    }

    #[test]
    fn only_names_may_be_restricted_in_metadata() {
        let with = |meta: serde_json::Value| json!({ "type": "object", "properties": { "metadata": meta } });
        let name =
            json!({ "type": "object", "properties": { "name": { "type": "string", "pattern": "^a" } } });
        check(with(name), &[]);
        let labels = json!({ "type": "object", "properties": { "labels": { "type": "object" } } });
        let why = "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, \
                   but metadata is implicitly specified";
        check(with(labels), &[why]);
    }
}
