//! Schemas as the OpenAPI documents have them.

use serde_json::{Map, Value, json};

use crate::schema::{Additional, Schema};

/// The schema in OpenAPI v3, int-or-string fields spelled out.
pub fn v3(schema: &Schema) -> Value {
    value(&unfolded(schema))
}

/// The schema in OpenAPI v2, which clients of old validate with: what v2 cannot say is left out.
pub fn v2(schema: &Schema) -> Value {
    value(&simplified(&unfolded(schema)))
}

/// Makes the types of int-or-string fields explicit.
fn unfolded(schema: &Schema) -> Schema {
    let mut out = map_below(schema, &unfolded);
    let bare = |kind: &str| Schema { kind: kind.to_owned(), ..Schema::default() };
    let pattern = vec![bare("integer"), bare("string")];
    if out.int_or_string {
        let mut checks = out.checks().clone();
        if checks.any_of.is_empty() {
            checks.any_of = pattern;
        } else if checks.any_of != pattern
            && checks.all_of.first().is_none_or(|f| f.checks().any_of != pattern)
        {
            let mut first = Schema::default();
            let of_first = crate::schema::Checks { any_of: pattern, ..Default::default() };
            first.checks = Some(Box::new(of_first));
            checks.all_of.insert(0, first);
        }
        out.checks = Some(Box::new(checks));
    }
    out
}

fn simplified(schema: &Schema) -> Schema {
    let mut out = schema.clone();
    if let Some(checks) = &mut out.checks {
        checks.all_of.clear();
        checks.any_of.clear();
        checks.one_of.clear();
        checks.not = None;
    }
    if out.nullable {
        out.kind.clear();
        out.nullable = false;
        (out.items, out.properties) = (None, Default::default());
    }
    if out.preserve {
        (out.items, out.properties) = (None, Default::default());
        if out.kind == "object" {
            out.kind.clear();
        }
    }
    if out.items.is_none() && out.kind == "array" {
        out.kind.clear();
    }
    let nullable = |out: &Schema, name: &str| out.properties.get(name).is_some_and(|p| p.nullable);
    let loose = out.additional_schema().is_some_and(|rest| rest.nullable);
    let keep: Vec<String> =
        out.checks().required.iter().filter(|name| !loose && !nullable(&out, name)).cloned().collect();
    if let Some(checks) = &mut out.checks {
        checks.required = keep;
    }
    map_below(&out, &simplified)
}

/// The schema with its items, fields and other fields changed; value checks stay.
pub fn map_below(schema: &Schema, change: &dyn Fn(&Schema) -> Schema) -> Schema {
    let mut out = schema.clone();
    out.items = schema.items.as_deref().map(|items| Box::new(change(items)));
    out.properties = schema.properties.iter().map(|(k, v)| (k.clone(), change(v))).collect();
    if let Some(Additional::Schema(rest)) = &schema.additional {
        out.additional = Some(Additional::Schema(Box::new(change(rest))));
    }
    out
}

/// A float as Go writes it: whole ones without a fraction.
fn number(f: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "compared with the original"
    )]
    if f.fract() == 0.0 && f.abs() < 1e15 && (f as i64) as f64 == f { (f as i64).into() } else { f.into() }
}

/// The JSON form of a schema.
pub fn value(schema: &Schema) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(key.to_owned(), value);
        }
    };
    let text = |text: &str| (!text.is_empty()).then(|| Value::from(text));
    let flag = |set: bool| set.then_some(Value::Bool(true));
    let all = |schemas: &[Schema]| {
        (!schemas.is_empty()).then(|| schemas.iter().map(value).collect::<Vec<_>>().into())
    };
    let checks = schema.checks();
    put("type", text(&schema.kind));
    put("description", text(&schema.description));
    put("title", text(&schema.title));
    put("nullable", flag(schema.nullable));
    put("default", schema.default.clone());
    put("example", schema.example.clone());
    if let Some((description, url)) = &schema.external_docs {
        let mut docs = Map::new();
        docs.extend(text(description).map(|d| ("description".to_owned(), d)));
        docs.extend(text(url).map(|u| ("url".to_owned(), u)));
        put("externalDocs", Some(docs.into()));
    }
    put("items", schema.items.as_deref().map(value));
    let properties: Map<String, Value> =
        schema.properties.iter().map(|(k, v)| (k.clone(), value(v))).collect();
    put("properties", (!properties.is_empty()).then(|| properties.into()));
    put(
        "additionalProperties",
        schema.additional.as_ref().map(|additional| match additional {
            Additional::Allowed(allowed) => Value::Bool(*allowed),
            Additional::Schema(rest) => value(rest),
        }),
    );
    put("x-kubernetes-preserve-unknown-fields", flag(schema.preserve));
    put("x-kubernetes-embedded-resource", flag(schema.embedded));
    put("x-kubernetes-int-or-string", flag(schema.int_or_string));
    put("x-kubernetes-list-type", schema.list_type.as_deref().map(Value::from));
    let keys = &schema.list_map_keys;
    put("x-kubernetes-list-map-keys", (!keys.is_empty()).then(|| json!(keys)));
    put("x-kubernetes-map-type", schema.map_type.as_deref().map(Value::from));
    let rules: Vec<Value> = schema.rules.iter().map(rule).collect();
    put("x-kubernetes-validations", (!rules.is_empty()).then(|| rules.into()));
    put("format", text(&checks.format));
    put("maximum", checks.maximum.map(number));
    put("exclusiveMaximum", flag(checks.exclusive_maximum));
    put("minimum", checks.minimum.map(number));
    put("exclusiveMinimum", flag(checks.exclusive_minimum));
    put("maxLength", checks.max_length.map(Value::from));
    put("minLength", checks.min_length.map(Value::from));
    put("pattern", text(&checks.pattern));
    put("maxItems", checks.max_items.map(Value::from));
    put("minItems", checks.min_items.map(Value::from));
    put("uniqueItems", flag(checks.unique_items));
    put("multipleOf", checks.multiple_of.map(number));
    put("enum", (!checks.one_of_values.is_empty()).then(|| checks.one_of_values.clone().into()));
    put("maxProperties", checks.max_properties.map(Value::from));
    put("minProperties", checks.min_properties.map(Value::from));
    put("required", (!checks.required.is_empty()).then(|| json!(checks.required)));
    put("allOf", all(&checks.all_of));
    put("anyOf", all(&checks.any_of));
    put("oneOf", all(&checks.one_of));
    put("not", checks.not.as_deref().map(value));
    out.into()
}

fn rule(rule: &crate::schema::Rule) -> Value {
    let mut out = json!({ "rule": rule.rule });
    for (key, text) in [
        ("message", &rule.message),
        ("messageExpression", &rule.message_expression),
        ("fieldPath", &rule.field_path),
    ] {
        if !text.is_empty() {
            out[key] = text.as_str().into();
        }
    }
    if let Some(reason) = &rule.reason {
        out["reason"] = reason.as_str().into();
    }
    if let Some(optional) = rule.optional_old_self {
        out["optionalOldSelf"] = optional.into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn v2_leaves_out_what_it_cannot_say() {
        let schema = schema(json!({ "type": "object", "required": ["n", "a"], "properties": {
            "n": { "type": "string", "nullable": true }, "a": { "type": "integer", "maximum": 5.0 },
            "ios": { "x-kubernetes-int-or-string": true },
            "p": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }));
        let expected = json!({ "type": "object", "required": ["a"], "properties": {
            "n": {}, "a": { "type": "integer", "maximum": 5 }, "ios": { "x-kubernetes-int-or-string": true },
            "p": { "x-kubernetes-preserve-unknown-fields": true } } });
        assert_eq!(v2(&schema), expected);
        let any_of = json!([{ "type": "integer" }, { "type": "string" }]);
        assert_eq!(v3(&schema)["properties"]["ios"]["anyOf"], any_of);
    }
}
