//! Values from JSON and back.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value as Json, json};

use super::{Key, Map, Value};
use crate::time;

impl Value {
    /// JSON as a value: objects become maps, whole numbers `int`, others `double`.
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => from_number(number),
            Json::String(text) => Self::string(text),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            Json::Object(entries) => {
                let entries = entries.iter();
                let map: Map = entries
                    .map(|(key, value)| (Key::String(key.as_str().into()), Self::from_json(value)))
                    .collect();
                Self::Map(Arc::new(map))
            }
        }
    }

    /// The value as JSON, as far as it has a form there: durations and timestamps are strings, bytes base64.
    ///
    /// # Errors
    /// A message for values without such a form.
    pub fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => json!(value),
            Self::Int(value) => json!(value),
            Self::Uint(value) => json!(value),
            Self::Double(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::String(text) => json!(&**text),
            Self::Bytes(bytes) => json!(STANDARD.encode(bytes)),
            Self::Duration(nanos) => json!(time::show_duration(*nanos)),
            Self::Timestamp(nanos) => json!(time::show_timestamp(*nanos)),
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect::<Result<_, _>>()?),
            Self::Map(map) => {
                let mut object = serde_json::Map::new();
                for (key, value) in &**map {
                    let Key::String(key) = key else {
                        return Err(format!("map key {} is not a string", key.value()));
                    };
                    object.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Record(record) => {
                let mut object = serde_json::Map::new();
                for (name, value) in &record.fields {
                    object.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Optional(Some(value)) => value.to_json()?,
            Self::Optional(None) => Json::Null,
            Self::Quantity(quantity) => json!(quantity.to_string()),
            Self::Ip(ip) => json!(ip.to_string()),
            other => return Err(format!("unable to convert {} to JSON", other.type_of())),
        })
    }
}

fn from_number(number: &Number) -> Value {
    if let Some(whole) = number.as_i64() {
        return Value::Int(whole);
    }
    Value::Double(number.as_f64().unwrap_or(f64::NAN))
}
