//! Tests of value validation.

use serde_json::json;

use super::*;
use crate::schema::tests::schema;

#[track_caller]
fn check_new(of: Value, value: Value, expected: &[&str]) {
    let schema = schema(json!({ "type": "object", "properties": { "f": of } }));
    let mut errs = ErrorList::new();
    validate(&json!({ "f": value }), &schema, &Path::new(""), &mut errs);
    let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[test]
fn faults_have_the_words_of_kube_openapi() {
    let text = json!({ "type": "string", "enum": ["a", "b"] });
    check_new(
        text,
        json!(5),
        &[
            "f: Invalid value: \"integer\": f in body must be of type string: \"integer\"",
            "f: Unsupported value: 5: supported values: \"a\", \"b\"",
        ],
    );
    let number = json!({ "type": "integer", "minimum": 5, "multipleOf": 2 });
    check_new(
        number,
        json!(3),
        &[
            "f: Invalid value: 3: f in body should be a multiple of 2",
            "f: Invalid value: 3: f in body should be greater than or equal to 5",
        ],
    );
    let list = json!({ "type": "array", "maxItems": 1, "items": { "type": "object", "required": ["x"] } });
    check_new(
        list,
        json!([{ "x": 1 }, {}]),
        &["f[1].x: Required value", "f: Too many: 2: must have at most 1 item"],
    );
    check_new(
        json!({ "type": "string", "pattern": "^a+$" }),
        json!("b"),
        &["f: Invalid value: \"b\": f in body should match '^a+$'"],
    );
    let one_of = json!({ "x-kubernetes-preserve-unknown-fields": true, "oneOf": [
        { "required": ["a"] }, { "required": ["b"] }] });
    check_new(
        one_of,
        json!({}),
        &[
            "<nil>: Invalid value: \"\": \"f\" must validate one and only one schema (oneOf). Found none valid",
            "f.a: Required value",
        ],
    );
    check_new(
        json!({ "type": "integer", "format": "int32" }),
        json!(3_000_000_000_i64),
        &["<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in f"],
    );
}

#[test]
fn null_is_a_value_only_where_it_is_said() {
    check_new(json!({ "type": "string", "nullable": true }), json!(null), &[]);
    check_new(
        json!({ "type": "string" }),
        json!(null),
        &["f: Invalid value: \"null\": f in body must be of type string: \"null\""],
    );
}

#[test]
fn unchanged_parts_are_not_blamed_on_update() {
    let schema = schema(json!({ "type": "object", "properties": {
        "a": { "type": "string", "maxLength": 1 }, "b": { "type": "string", "maxLength": 1 },
        "l": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
               "items": { "type": "object", "properties": {
                   "k": { "type": "string" }, "v": { "type": "integer", "minimum": 5 } } } } } }));
    let old = json!({ "a": "long", "b": "long", "l": [{ "k": "x", "v": 1 }, { "k": "y", "v": 1 }] });
    let new = json!({ "a": "long", "b": "other", "l": [{ "k": "y", "v": 2 }, { "k": "x", "v": 1 }] });
    let mut errs = ErrorList::new();
    validate_update(&new, Some(&old), &schema, &Path::new(""), &mut errs);
    let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "b: Too long: may not be more than 1 bytes",
            "l[0].v: Invalid value: 2: l[0].v in body should be greater than or equal to 5",
        ]
    );
}

#[test]
fn a_factor_counts_by_its_whole_part_for_whole_numbers() {
    let number = json!({ "type": "number", "multipleOf": 0.5 });
    check_new(number.clone(), json!(1.5), &[]);
    let told = "f: Invalid value: 0: factor MultipleOf declared for f must be positive: 0";
    check_new(number, json!(3), &[told]);
}
