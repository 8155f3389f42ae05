//! The shape Go encodes: what it leaves out, and what it always writes.

use serde_json::{Map, Value};

use super::{Field, Node, NodeId, Schemas, Struct, Zero};
use crate::quantity::Quantity;

/// See [`Schemas::normalize`].
pub(super) fn normalize(schemas: &Schemas, id: NodeId, value: &mut Value) -> Result<(), String> {
    match (schemas.node(id), value) {
        (Node::Quantity, value) => quantity(value),
        (Node::Struct(structure), Value::Object(map)) => object(schemas, structure, map),
        (Node::Map { element, .. }, Value::Object(map)) => {
            // Go decodes null into the zero value of a map's element type.
            let zero = match schemas.node(*element) {
                Node::Scalar(zero) => Some(zero),
                Node::Opaque => Some(&Value::Null),
                _ => None,
            };
            map.values_mut().try_for_each(|value| match zero {
                Some(zero) if value.is_null() => {
                    *value = zero.clone();
                    Ok(())
                }
                _ => normalize(schemas, *element, value),
            })
        }
        (Node::List { element, .. }, Value::Array(items)) => {
            items.iter_mut().try_for_each(|value| normalize(schemas, *element, value))
        }
        _ => Ok(()),
    }
}

fn quantity(value: &mut Value) -> Result<(), String> {
    let text = match &*value {
        Value::String(text) => Quantity::parse(text.trim())?.to_string(),
        Value::Number(number) => Quantity::parse(&number.to_string())?.to_string(),
        _ => return Ok(()),
    };
    if value.as_str() != Some(&text) {
        *value = Value::String(text);
    }
    Ok(())
}

fn object(schemas: &Schemas, structure: &Struct, map: &mut Map<String, Value>) -> Result<(), String> {
    let mut drop: Vec<String> = Vec::new();
    for (name, value) in map.iter_mut() {
        let Some(field) = structure.field(name) else { continue };
        match value {
            Value::Null if field.zero != Zero::Null && !field.required => drop.push(name.clone()),
            Value::Null => {}
            value if is_dropped(schemas, field, value) => drop.push(name.clone()),
            value => {
                normalize(schemas, field.node, value)?;
                let empty = match schemas.node(field.node) {
                    Node::List { .. } => value.as_array().is_some_and(Vec::is_empty),
                    Node::Map { .. } => value.as_object().is_some_and(Map::is_empty),
                    _ => false,
                };
                match (empty, field.required || field.zero == Zero::Null) {
                    (true, true) => *value = Value::Null,
                    (true, false) => drop.push(name.clone()),
                    _ => {}
                }
            }
        }
    }
    for name in &drop {
        map.remove(name);
    }
    for field in &structure.fields {
        match field.zero {
            Zero::Value if !field.required && !map.contains_key(&field.name) => {
                map.insert(field.name.clone(), zero(schemas, field.node));
            }
            Zero::Null if !map.contains_key(&field.name) => {
                map.insert(field.name.clone(), Value::Null);
            }
            // The typed encoding leaves out required lists without items.
            Zero::Value if matches!(schemas.node(field.node), Node::List { .. }) => {
                map.entry(field.name.clone()).or_insert(Value::Null);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether Go leaves the field out although it is set.
pub(crate) fn is_dropped(schemas: &Schemas, field: &Field, value: &Value) -> bool {
    field.drop_zero
        && match value {
            Value::String(text) => text.is_empty(),
            Value::Bool(set) => !set,
            Value::Number(number) => {
                number.as_i64() == Some(0)
                    && matches!(schemas.node(field.node), Node::Scalar(Value::Number(_)) | Node::IntOrString)
            }
            _ => false,
        }
}

/// See [`Schemas::zero`].
pub(super) fn zero(schemas: &Schemas, id: NodeId) -> Value {
    match schemas.node(id) {
        Node::Scalar(zero) => zero.clone(),
        Node::Quantity => "0".into(),
        Node::IntOrString => 0.into(),
        Node::Struct(structure) => {
            let fields = structure.fields.iter().filter(|f| f.zero != Zero::Omit);
            fields
                .map(|f| {
                    (f.name.clone(), if f.zero == Zero::Null { Value::Null } else { zero(schemas, f.node) })
                })
                .collect::<Map<_, _>>()
                .into()
        }
        Node::Any | Node::Opaque | Node::Map { .. } | Node::List { .. } => Value::Null,
    }
}
