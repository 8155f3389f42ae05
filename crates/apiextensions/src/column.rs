//! Printer columns: what of an object a table shows.

use serde_json::Value;

use crate::json_path::JsonPath;

/// A column of a custom resource's table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Header.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// OpenAPI format.
    pub format: String,
    /// Help text.
    pub description: String,
    /// 0 is always shown.
    pub priority: i32,
    /// Where the value is; `None` when the path cannot be read.
    pub path: Option<JsonPath>,
}

impl Column {
    /// The cell of an object, given its whole JSON. `age` tells how long ago a time was.
    pub fn cell(&self, object: &Value, age: &dyn Fn(&str) -> Value) -> Value {
        let Some(value) = self.path.as_ref().and_then(|path| path.find(object).into_iter().next()) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "string" => text(value),
            "integer" => match value.as_i64().or_else(|| whole(value.as_f64()?)) {
                Some(n) => n.into(),
                None => Value::Null,
            },
            "number" => value.as_f64().map_or(Value::Null, number),
            "boolean" => value.as_bool().map_or(Value::Null, Value::from),
            "date" => value.as_str().map_or(Value::Null, age),
            _ => Value::Null,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "as upstream: the whole part")]
fn whole(f: f64) -> Option<i64> {
    f.is_finite().then_some(f as i64)
}

/// Whole floats are written without a fraction.
fn number(f: f64) -> Value {
    match whole(f) {
        #[expect(clippy::cast_precision_loss, reason = "compared with what it came from")]
        Some(n) if n as f64 == f => n.into(),
        _ => f.into(),
    }
}

/// A value in a column of text.
fn text(value: &Value) -> Value {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Null => "<nil>".into(),
        other => other.to_string().into(),
    }
}
