//! What upstream's converter from unstructured values says of one that does not fit its Go type. Strategic
//! merge patches go through it.

use serde_json::Value;

use super::{Id, Shape, TABLE, Table, base64, decode};

/// The message for a value that does not fit the type: that of the first field in the order of declaration.
/// `None` when it fits or the type is not known.
pub fn conversion_error(type_name: &str, value: &Value) -> Option<String> {
    let table = &*TABLE;
    restore(table, *table.names.get(type_name)?, value).err()
}

/// Cuts whole numbers, floats among them, to the size of their fields, as upstream's converter does without a word.
pub fn narrow(type_name: &str, value: &mut Value) {
    if let Some(id) = TABLE.names.get(type_name) {
        narrow_to(&TABLE, *id, value);
    }
}

fn narrow_to(table: &Table, id: Id, value: &mut Value) {
    match (&table.get(id).shape, value) {
        (Shape::Struct(_), Value::Object(map)) => {
            for (name, value) in map {
                if let Some(field) = table.get(id).field(name) {
                    narrow_to(table, field.of, value);
                }
            }
        }
        (Shape::Map(element), Value::Object(map)) => {
            map.values_mut().for_each(|value| narrow_to(table, *element, value));
        }
        (Shape::List(element), Value::Array(items)) => {
            items.iter_mut().for_each(|value| narrow_to(table, *element, value));
        }
        (Shape::Int(bits), value @ Value::Number(_)) => {
            let Some(whole) = value.as_i64().or_else(|| value.as_f64().and_then(whole)) else { return };
            let [a, b, c, d, ..] = whole.to_le_bytes();
            let low = i64::from(i32::from_le_bytes([a, b, c, d]));
            *value = if *bits == 32 { low } else { whole }.into();
        }
        _ => {}
    }
}

/// A float that is a whole number, as Go's conversion makes an integer of it.
fn whole(float: f64) -> Option<i64> {
    const WORD: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 64 bits")]
    let int = if (-WORD..WORD).contains(&float) { float as i64 } else { i64::MIN };
    (float.fract() == 0.0).then_some(int)
}

fn restore(table: &Table, id: Id, value: &Value) -> Result<(), String> {
    let from = kind(value);
    match (&table.get(id).shape, value) {
        (_, Value::Null) | (Shape::Any, _) => Ok(()),
        (Shape::Struct(fields), Value::Object(map)) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|field| field.place);
            fields
                .into_iter()
                .filter_map(|field| map.get(field.name).map(|value| (field.of, value)))
                .try_for_each(|(of, value)| restore(table, of, value))
        }
        (Shape::Struct(_), _) => Err(format!("cannot restore struct from: {from}")),
        (Shape::Map(element), Value::Object(map)) => {
            map.values().try_for_each(|value| restore(table, *element, value))
        }
        (Shape::Map(_), _) => Err(format!("cannot restore map from {from}")),
        (Shape::List(element), Value::Array(items)) => {
            items.iter().try_for_each(|value| restore(table, *element, value))
        }
        (Shape::Bytes, Value::String(text)) => match base64::corrupt_at(text.as_bytes()) {
            Some(at) => Err(format!("error decoding from json: illegal base64 data at input byte {at}")),
            None => Ok(()),
        },
        (Shape::Bytes, Value::Array(items)) if !items.is_empty() => match &items[0] {
            Value::Number(_) => Ok(()),
            _ => Err("unrecognized type: uint8".to_owned()),
        },
        (Shape::List(_) | Shape::Bytes, _) => Err(format!("cannot restore slice from {from}")),
        (Shape::String, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Float, Value::Number(_)) => Ok(()),
        (Shape::Int(bits), Value::Number(number)) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() != 0.0 => {
                Err(format!("cannot convert float64 to int{bits}"))
            }
            _ => Ok(()),
        },
        // Go could make a text of a whole number, but not here.
        (Shape::String, Value::Number(number)) if !number.is_f64() => {
            Err(format!("cannot convert int64 to {}", table.get(id).display))
        }
        (Shape::String, _) => Err("unrecognized type: string".to_owned()),
        (Shape::Bool, _) => Err("unrecognized type: bool".to_owned()),
        (Shape::Int(bits), _) => Err(format!("unrecognized type: int{bits}")),
        (Shape::Float, _) => Err("unrecognized type: float64".to_owned()),
        (own @ (Shape::Quantity | Shape::Time | Shape::MicroTime | Shape::IntOrString), value) => {
            decode::own_error(own, &value.to_string()).map_or(Ok(()), Err)
        }
        (Shape::Schema(_), _) => match decode::alone(table, id, &value.to_string()) {
            Some(message) => Err(message),
            None => Ok(()),
        },
    }
}

/// Go's name of the kind of an unstructured value.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{conversion_error, narrow};

    #[test]
    fn numbers_that_are_too_large_lose_what_does_not_fit() {
        let mut value = json!({ "spec": { "replicas": 2_147_483_648_i64, "paused": true,
            "template": { "spec": { "activeDeadlineSeconds": 2_147_483_648_i64, "containers": [
                { "ports": [{ "containerPort": 4_294_967_297_i64 }, { "containerPort": 80 }] }] } } } });
        narrow("apps/v1.Deployment", &mut value);
        let wanted = json!({ "spec": { "replicas": -2_147_483_648_i64, "paused": true,
            "template": { "spec": { "activeDeadlineSeconds": 2_147_483_648_i64, "containers": [
                { "ports": [{ "containerPort": 1 }, { "containerPort": 80 }] }] } } } });
        assert_eq!(value, wanted);
        let mut value = json!({ "spec": { "replicas": 3.0, "minReadySeconds": 1.5 }, "metadata": { "generation": 1e19 } });
        narrow("apps/v1.Deployment", &mut value);
        let wanted = json!({ "spec": { "replicas": 3, "minReadySeconds": 1.5 }, "metadata": { "generation": i64::MIN } });
        assert_eq!(value, wanted);
    }

    #[test]
    fn the_first_field_that_does_not_fit_is_told() {
        let told = |spec| conversion_error("apps/v1.Deployment", &json!({ "spec": spec }));
        assert_eq!(told(json!({ "replicas": 1, "paused": null, "selector": { "matchLabels": {} } })), None);
        assert_eq!(
            told(json!({ "paused": {}, "replicas": "x" })).as_deref(),
            Some("unrecognized type: int32")
        );
        let said = "cannot convert int64 to v1.DeploymentStrategyType";
        assert_eq!(told(json!({ "strategy": { "type": 5 } })).as_deref(), Some(said));
        let said = "cannot convert float64 to int32";
        assert_eq!(told(json!({ "replicas": 1.5 })).as_deref(), Some(said));
        let time = json!({ "metadata": { "creationTimestamp": 5 } });
        let said = "json: cannot unmarshal number into Go value of type string";
        assert_eq!(conversion_error("core/v1.Pod", &time).as_deref(), Some(said));
        let secret = json!({ "data": { "a": "!" } });
        let said = "error decoding from json: illegal base64 data at input byte 0";
        assert_eq!(conversion_error("core/v1.Secret", &secret).as_deref(), Some(said));
        let wrong = json!({ "template": "x" });
        assert_eq!(told(wrong).as_deref(), Some("cannot restore struct from: string"));
        let wrong = json!({ "template": { "spec": { "containers": {} } } });
        assert_eq!(told(wrong).as_deref(), Some("cannot restore slice from map"));
    }
}
