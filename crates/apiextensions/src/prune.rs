//! Pruning: fields that a schema does not declare go away, and are named for whoever wants to know.

use serde_json::{Map, Value};

use crate::schema::{Additional, Schema};

/// Fields that every whole object has.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what `schema` does not declare. `whole`: the value is an object with kind and metadata of its own.
/// Yields the paths of what went, sorted: `spec.containers[0].foo`.
pub fn prune(value: &mut Value, schema: &Schema, whole: bool) -> Vec<String> {
    let mut pruner = Pruner { path: String::new(), gone: Vec::new() };
    pruner.value(value, Some(schema), whole || schema.embedded, false);
    pruner.gone.sort();
    pruner.gone
}

struct Pruner {
    path: String,
    gone: Vec<String>,
}

/// What becomes of a field.
enum Fate<'s> {
    Keep,
    Inside(Option<&'s Schema>),
    Goes,
}

impl Pruner {
    /// `inherited`: what is not declared stays, because the list around says so.
    fn value(&mut self, value: &mut Value, schema: Option<&Schema>, whole: bool, inherited: bool) {
        let preserve = inherited || schema.is_some_and(|s| s.preserve);
        match value {
            Value::Object(map) => self.object(map, schema, whole, preserve),
            Value::Array(items) => {
                let of_items = schema.and_then(|s| s.items.as_deref());
                if preserve && of_items.is_none() {
                    return;
                }
                let length = self.path.len();
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push_str(&format!("[{i}]"));
                    self.value(item, of_items, of_items.is_some_and(|s| s.embedded), preserve);
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, schema: Option<&Schema>, whole: bool, preserve: bool) {
        let length = self.path.len();
        map.retain(|name, value| {
            let fate = match schema {
                None => Fate::Goes,
                Some(_) if whole && META.contains(&name.as_str()) => Fate::Keep,
                Some(schema) => match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => Fate::Inside(Some(property)),
                    (None, Some(Additional::Schema(rest))) => Fate::Inside(Some(rest)),
                    (None, Some(Additional::Allowed(_))) => Fate::Inside(None),
                    (None, _) if preserve => Fate::Keep,
                    _ => Fate::Goes,
                },
            };
            let top = length == 0;
            self.step(name);
            let stays = match fate {
                Fate::Keep => true,
                Fate::Inside(schema) => {
                    self.value(value, schema, schema.is_some_and(|s| s.embedded), false);
                    true
                }
                Fate::Goes => {
                    if !top || !META.contains(&name.as_str()) {
                        self.gone.push(self.path.clone());
                    }
                    false
                }
            };
            self.path.truncate(length);
            stays
        });
    }

    fn step(&mut self, name: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::tests::schema;

    #[test]
    fn undeclared_fields_go_and_are_named() {
        let schema =
            schema(json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "a": { "type": "string" },
            "any": { "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                     "properties": { "known": { "type": "object", "properties": {} } } },
            "map": { "type": "object", "additionalProperties": { "type": "object" } },
            "list": { "type": "array", "items": { "type": "object" } },
        } } } }));
        let mut value = json!({ "apiVersion": "g/v1", "kind": "K", "metadata": { "name": "x" }, "top": 1,
            "spec": { "a": "b", "z": 1, "any": { "free": { "x": 1 }, "known": { "q": 1 } },
                      "map": { "k": { "p": 1 } }, "list": [{ "i": 1 }] } });
        let gone = prune(&mut value, &schema, true);
        assert_eq!(gone, ["spec.any.known.q", "spec.list[0].i", "spec.map.k.p", "spec.z", "top"]);
        let kept = json!({ "apiVersion": "g/v1", "kind": "K", "metadata": { "name": "x" },
            "spec": { "a": "b", "any": { "free": { "x": 1 }, "known": {} }, "map": { "k": {} }, "list": [{}] } });
        assert_eq!(value, kept);
    }
}
