//! Defaults: set where a field is absent, and checked when a schema is accepted.

use coracle_meta::field::{ErrorList, Path};
use serde_json::{Map, Value, json};

use crate::object_meta;
use crate::prune::prune;
use crate::schema::{Additional, Schema};
use crate::validate::validate;

/// Sets the defaults of all absent fields, also of those that are null and may not be.
pub fn apply(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                if map.get(name).is_none_or(|v| v.is_null() && !property.nullable) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name) {
                    apply(value, property);
                } else if let Some(rest) = schema.additional_schema() {
                    set_null(value, rest);
                    apply(value, rest);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for item in items {
                set_null(item, schema);
                apply(item, schema);
            }
        }
        _ => {}
    }
}

/// A null that may not be one becomes the default, if there is one.
fn set_null(value: &mut Value, schema: &Schema) {
    if value.is_null()
        && !schema.nullable
        && let Some(default) = &schema.default
    {
        *value = default.clone();
    }
}

/// Removes nulls of fields that may not be null and have no default.
pub fn drop_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let schema = schema.and_then(|s| s.field(name));
            if value.is_null() && schema.is_some_and(|s| !s.nullable && s.default.is_none()) {
                return false;
            }
            drop_nulls(value, schema);
            true
        }),
        Value::Array(items) => {
            let schema = schema.and_then(|s| s.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, schema));
        }
        _ => {}
    }
}

/// Checks every default of a schema against the schema itself. `pruned`: defaults may not have fields that
/// would be pruned.
pub fn validate_defaults(schema: &Schema, at: &Path, pruned: bool, errs: &mut ErrorList) {
    let root = Schema { embedded: true, ..schema.clone() };
    let mut check = Check { pruned, errs };
    check.walk(&root, at, &root, &mut Vec::new(), false);
}

struct Check<'e> {
    pruned: bool,
    errs: &'e mut ErrorList,
}

/// A step from a whole object to a value in it.
#[derive(Clone)]
enum Step {
    Field(String),
    Item,
}

impl Check<'_> {
    /// `steps` lead from `root`, the schema of the nearest whole object, to `schema`.
    fn walk(&mut self, schema: &Schema, at: &Path, root: &Schema, steps: &mut Vec<Step>, in_meta: bool) {
        let (root, in_meta, mut own) =
            if schema.embedded { (schema, false, Vec::new()) } else { (root, in_meta, Vec::new()) };
        let steps = if schema.embedded { &mut own } else { steps };
        if let Some(default) = &schema.default {
            let at = at.child("default");
            if in_meta {
                self.of_meta(default, schema, &at, root, steps);
            } else {
                self.plain(default, schema, &at);
            }
        }
        if let Some(items) = &schema.items {
            steps.push(Step::Item);
            self.walk(items, &at.child("items"), root, steps, in_meta);
            steps.pop();
        }
        for (name, property) in &schema.properties {
            let meta =
                in_meta || (schema.embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
            steps.push(Step::Field(name.clone()));
            self.walk(property, &at.child("properties").key(name), root, steps, meta);
            steps.pop();
        }
    }

    fn plain(&mut self, default: &Value, schema: &Schema, at: &Path) {
        if self.pruned {
            let mut kept = default.clone();
            prune(&mut kept, schema, schema.embedded);
            if kept != *default {
                self.errs.invalid(at, default.clone(), "must not have unknown fields");
            }
        }
        let mut found = ErrorList::new();
        object_meta::check_shape(default, schema, at, schema.embedded, &mut found);
        if found.is_empty() {
            object_meta::validate(default, schema, at, schema.embedded, &mut found);
        }
        if found.is_empty() {
            validate(default, &untyped(schema), at, &mut found);
        }
        self.errs.extend(found);
    }

    /// A default within metadata counts by the metadata that it results in.
    fn of_meta(&mut self, default: &Value, schema: &Schema, at: &Path, root: &Schema, steps: &[Step]) {
        let mut object = default.clone();
        for step in steps.iter().rev() {
            object = match step {
                Step::Field(name) => Value::Object(Map::from_iter([(name.clone(), object)])),
                Step::Item => json!([object]),
            };
        }
        if let Value::Object(map) = &mut object {
            map.entry("kind").or_insert_with(|| "Validation".into());
            map.entry("apiVersion").or_insert_with(|| "validation/v1".into());
        }
        let none = Path::new("");
        let mut found = ErrorList::new();
        object_meta::check_shape(&object, root, &none, true, &mut found);
        if found.is_empty() {
            object_meta::validate(&object, root, &none, true, &mut found);
        }
        if !found.is_empty() {
            let why = format!("must result in valid metadata: {}", found.aggregate());
            self.errs.invalid(at, default.clone(), why);
            return;
        }
        validate(default, &untyped(schema), at, self.errs);
    }
}

/// The schema as defaults are checked against it: what may be an integer or a string may there be anything.
fn untyped(schema: &Schema) -> Schema {
    Schema {
        int_or_string: false,
        items: schema.items.as_deref().map(untyped).map(Box::new),
        properties: schema.properties.iter().map(|(name, of)| (name.clone(), untyped(of))).collect(),
        additional: match &schema.additional {
            Some(Additional::Schema(of)) => Some(Additional::Schema(Box::new(untyped(of)))),
            other => other.clone(),
        },
        ..schema.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn absent_fields_are_set_and_nulls_only_where_they_may_not_be() {
        let schema = schema(json!({ "type": "object", "properties": {
            "a": { "type": "string", "default": "A" },
            "n": { "type": "string", "default": "N", "nullable": true },
            "o": { "type": "object", "default": {}, "properties": { "x": { "type": "integer", "default": 1 } } },
            "l": { "type": "array", "items": { "type": "object",
                   "properties": { "p": { "type": "string", "default": "P" } } } },
            "q": { "type": "string" } } }));
        let mut value = json!({ "a": null, "n": null, "l": [{}, { "p": "own" }], "q": null });
        drop_nulls(&mut value, Some(&schema));
        apply(&mut value, &schema);
        let expected = json!({ "a": "A", "n": null, "o": { "x": 1 }, "l": [{ "p": "P" }, { "p": "own" }] });
        assert_eq!(value, expected);
    }

    #[test]
    fn defaults_must_fit_their_own_schema() {
        let schema =
            schema(json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "a": { "type": "integer", "minimum": 5, "default": 1 },
            "b": { "type": "object", "default": { "unknown": 1 } },
            "c": { "type": "array", "items": { "type": "string" }, "default": [1] },
            "d": { "x-kubernetes-int-or-string": true, "default": true } } } } }));
        let mut errs = ErrorList::new();
        validate_defaults(&schema, &Path::new("s"), true, &mut errs);
        let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
        let at = "s.properties[spec].properties";
        let expected = [
            format!("{at}[a].default: Invalid value: 1:  in body should be greater than or equal to 5"),
            format!("{at}[b].default: Invalid value: {{\"unknown\":1}}: must not have unknown fields"),
            format!(
                "{at}[c].default.[0]: Invalid value: \"integer\": [0] in body must be of type string: \"integer\""
            ),
        ];
        assert_eq!(found, expected);
    }
}
