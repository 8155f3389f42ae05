//! Lists that are sets or maps have no doubles.

use std::collections::HashMap;

use coracle_meta::field::{ErrorList, Path};
use serde_json::{Map, Value};

use crate::schema::Schema;

/// Checks all lists of a value.
pub fn validate(value: &Value, schema: &Schema, at: &Path, errs: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(schema) = schema.additional_schema() {
                    validate(value, schema, &at.key(name), errs);
                }
                if let Some(schema) = schema.properties.get(name) {
                    validate(value, schema, &at.child(name), errs);
                }
            }
        }
        Value::Array(items) => {
            match schema.list_type.as_deref() {
                Some("set") => {
                    for i in doubles(items.iter()) {
                        errs.duplicate(at.index(i), items[i].clone());
                    }
                }
                Some("map") => keyed(items, schema, at, errs),
                _ => {}
            }
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    validate(item, schema, &at.index(i), errs);
                }
            }
        }
        _ => {}
    }
}

fn keyed(items: &[Value], schema: &Schema, at: &Path, errs: &mut ErrorList) {
    if let Some((i, item)) = items.iter().enumerate().find(|(_, item)| !item.is_object() && !item.is_null()) {
        errs.invalid(at.index(i), item.clone(), "must be an object for an array of list-type map");
        return;
    }
    let keys: Vec<Value> = items.iter().map(|item| key_of(item, &schema.list_map_keys)).collect();
    for i in doubles(keys.iter()) {
        errs.duplicate(at.index(i), keys[i].clone());
    }
}

/// The identifying fields of an item.
pub(crate) fn key_of(item: &Value, keys: &[String]) -> Value {
    let mut out = Map::new();
    for key in keys {
        if let Some(value) = item.get(key) {
            out.insert(key.clone(), value.clone());
        }
    }
    Value::Object(out)
}

/// The second place of each value that occurs more than once.
fn doubles<'v>(items: impl Iterator<Item = &'v Value>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut out = Vec::new();
    for (i, item) in items.enumerate() {
        let times = seen.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            out.push(i);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn doubles_are_told_once_with_their_keys() {
        let schema = schema(json!({ "type": "object", "properties": {
            "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
            "map": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                     "items": { "type": "object" } } } }));
        let value = json!({ "set": ["a", "b", "a", "a"], "map": [{ "k": 1, "v": 1 }, { "k": 1 }, {}] });
        let mut errs = ErrorList::new();
        validate(&value, &schema, &Path::new(""), &mut errs);
        let found: Vec<String> = errs.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["map[1]: Duplicate value: {\"k\":1}", "set[2]: Duplicate value: \"a\""]);
    }
}
