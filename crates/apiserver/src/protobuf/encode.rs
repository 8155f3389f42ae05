//! Writes the JSON form of an object as protobuf, field for field as upstream's generated code does: fields that are
//! no pointers in Go are written also when they are zero.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::wire::{bytes, double, integer, nested, text};
use super::{Field, Form, MAGIC, MESSAGES, Mark, form, message_name};

/// The object with its envelope; `None` when its kind has no protobuf form.
pub(crate) fn encode(value: &Value) -> Option<Vec<u8>> {
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
    let kind = value.get("kind").and_then(Value::as_str)?;
    let fields = Shape::of(api_version, kind)?;
    let mut out = MAGIC.to_vec();
    nested(&mut out, 1, |out| {
        text(out, 1, api_version);
        text(out, 2, kind);
    });
    nested(&mut out, 2, |out| fields.write(out, value));
    text(&mut out, 3, "");
    text(&mut out, 4, "");
    Some(out)
}

/// A frame of a watch stream: its length in four bytes, then the event around the encoded object.
pub(crate) fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    text(&mut out, 1, kind);
    nested(&mut out, 2, |out| bytes(out, 1, object));
    let size = u32::try_from(out.len() - 4).unwrap_or(0);
    out[..4].copy_from_slice(&size.to_be_bytes());
    out
}

/// The fields of what an object's type names.
enum Shape {
    /// One object.
    Object(&'static [Field]),
    /// Its metadata, then items.
    List(&'static [Field]),
}

impl Shape {
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let find = |kind: &str| {
            let own = MESSAGES.get(message_name(group, version, kind).as_str());
            own.map(Vec::as_slice)
        };
        if let Some(fields) = find(kind) {
            return Some(Self::Object(fields));
        }
        if matches!(group, "" | "meta.k8s.io")
            && let Some(fields) = MESSAGES.get(format!("meta.v1.{kind}").as_str())
        {
            return Some(Self::Object(fields));
        }
        find(kind.strip_suffix("List")?).map(Self::List)
    }

    fn write(&self, out: &mut Vec<u8>, value: &Value) {
        match self {
            Self::Object(fields) => message(out, fields, value),
            Self::List(fields) => {
                let meta = value.get("metadata").unwrap_or(&Value::Null);
                nested(out, 1, |out| content(out, "meta.v1.ListMeta", meta));
                for item in value.get("items").and_then(Value::as_array).into_iter().flatten() {
                    nested(out, 2, |out| message(out, fields, item));
                }
            }
        }
    }
}

fn message(out: &mut Vec<u8>, fields: &[Field], value: &Value) {
    for field in fields {
        let given = match field.mark {
            Mark::Inline => Some(value),
            _ => value.get(field.name).filter(|v| !v.is_null()),
        };
        match (field.mark, given) {
            (Mark::Repeated, Some(Value::Array(items))) => {
                items.iter().for_each(|item| single(out, field.number, field.kind, item));
            }
            (Mark::Map, Some(Value::Object(map))) => {
                for (key, item) in map {
                    nested(out, field.number, |out| {
                        text(out, 1, key);
                        single(out, 2, field.kind, item);
                    });
                }
            }
            (Mark::Repeated | Mark::Map, _) => {}
            (Mark::One | Mark::Inline, Some(value)) => single(out, field.number, field.kind, value),
            // Absent bytes are nil, and nil pointers are not written.
            (_, None) if field.pointer || field.kind == "y" => {}
            (_, None) => single(out, field.number, field.kind, &Value::Null),
        }
    }
}

/// One field; null stands for the zero value.
fn single(out: &mut Vec<u8>, number: u32, kind: &str, value: &Value) {
    match kind {
        "s" => text(out, number, value.as_str().unwrap_or("")),
        "y" => bytes(out, number, &STANDARD.decode(value.as_str().unwrap_or("")).unwrap_or_default()),
        "b" => integer(out, number, i64::from(value.as_bool().unwrap_or(false))),
        "i" => integer(out, number, value.as_i64().unwrap_or(0)),
        "f" => double(out, number, value.as_f64().unwrap_or(0.0)),
        kind => nested(out, number, |out| content(out, kind, value)),
    }
}

/// What is in a nested message.
fn content(out: &mut Vec<u8>, kind: &str, value: &Value) {
    match form(kind) {
        Form::Plain => {
            if let Some(fields) = MESSAGES.get(kind) {
                message(out, fields, value);
            }
        }
        Form::Time { micro } => time(out, value, micro),
        Form::Duration => integer(out, 1, nanoseconds(value.as_str().unwrap_or(""))),
        Form::Raw if value.is_null() => {}
        Form::Raw => bytes(out, 1, value.to_string().as_bytes()),
        Form::Quantity => match value {
            Value::String(amount) => text(out, 1, amount),
            Value::Null => text(out, 1, "0"),
            other => text(out, 1, &other.to_string()),
        },
        Form::IntOrString => {
            integer(out, 1, i64::from(value.is_string()));
            integer(out, 2, value.as_i64().unwrap_or(0));
            text(out, 3, value.as_str().unwrap_or(""));
        }
        Form::List => {
            value.as_array().into_iter().flatten().for_each(|item| single(out, 1, "s", item));
        }
        Form::SchemaOrBool => {
            integer(out, 1, i64::from(value.as_bool().unwrap_or(true)));
            schema(out, 2, value);
        }
        Form::SchemaOrArray => {
            schema(out, 1, value);
            let all = value.as_array().into_iter().flatten();
            all.for_each(|item| single(out, 2, "apiextensions.v1.JSONSchemaProps", item));
        }
        Form::SchemaOrTexts => {
            schema(out, 1, value);
            value.as_array().into_iter().flatten().for_each(|item| single(out, 2, "s", item));
        }
    }
}

/// The schema among the forms that a value can have; it is a pointer.
fn schema(out: &mut Vec<u8>, number: u32, value: &Value) {
    if value.is_object() {
        single(out, number, "apiextensions.v1.JSONSchemaProps", value);
    }
}

fn time(out: &mut Vec<u8>, value: &Value, micro: bool) {
    let Some(at) = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) else { return };
    integer(out, 1, at.as_second());
    integer(out, 2, if micro { i64::from(at.subsec_nanosecond() / 1000 * 1000) } else { 0 });
}

/// The length of a Go duration such as `1h2m0.5s`.
fn nanoseconds(text: &str) -> i64 {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map_or(0.0, |(_, factor)| *factor);
        sum += number.parse::<f64>().unwrap_or(0.0) * factor;
        rest = behind;
    }
    #[expect(clippy::cast_possible_truncation, reason = "durations of the API are far below 2^63 ns")]
    let whole = (sign * sum) as i64;
    whole
}
