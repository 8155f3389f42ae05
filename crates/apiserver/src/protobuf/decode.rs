//! Reads protobuf into the JSON form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_resources::def::ResourceDef;
use serde_json::{Map, Value};

use super::{Field, Form, MAGIC, MAX_DEPTH, MESSAGES, Malformed, Mark, form, message_name};

/// Reads a body that is meant to be of `def`'s kind (or of `kind`, for subresources).
///
/// # Errors
/// [`Malformed`].
pub(crate) fn decode(body: &[u8], def: &ResourceDef, kind: &str) -> Result<Value, Malformed> {
    let mut input = Reader(body.strip_prefix(MAGIC).ok_or(Malformed::Prefix)?);
    let (mut api_version, mut named, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = input.tag()? {
        match number {
            1 => {
                let mut meta = Reader(input.bytes(wire, number)?);
                while let Some((number, wire)) = meta.tag()? {
                    match number {
                        1 => api_version = meta.text(wire, number)?,
                        2 => named = meta.text(wire, number)?,
                        _ => meta.skip(wire)?,
                    }
                }
            }
            2 => raw = input.bytes(wire, number)?,
            _ => input.skip(wire)?,
        }
    }
    let (group, version) = match kind {
        "Scale" => ("autoscaling", "v1"),
        "Eviction" => ("policy", "v1"),
        "TokenRequest" => ("authentication.k8s.io", "v1"),
        "DeleteOptions" => ("meta", "v1"),
        _ => (def.group, def.version),
    };
    let message = message_name(group, version, kind);
    let fields = MESSAGES.get(message.as_str()).ok_or_else(|| Malformed::Unknown(kind.to_owned()))?;
    let mut value = object(raw, fields, 0)?;
    if let Value::Object(map) = &mut value {
        if !api_version.is_empty() {
            map.insert("apiVersion".into(), api_version.into());
        }
        if !named.is_empty() {
            map.insert("kind".into(), named.into());
        }
    }
    Ok(value)
}

fn object(bytes: &[u8], fields: &[Field], depth: usize) -> Result<Value, Malformed> {
    let mut out = Map::new();
    read_into(bytes, fields, depth, &mut out)?;
    Ok(Value::Object(out))
}

fn read_into(
    bytes: &[u8],
    fields: &[Field],
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed::Eof);
    }
    let mut input = Reader(bytes);
    while let Some((number, wire)) = input.tag()? {
        let Some(field) = fields.iter().find(|f| f.number == number) else {
            input.skip(wire)?;
            continue;
        };
        match field.mark {
            Mark::Inline => {
                let inner = input.bytes(wire, number)?;
                if let Some(fields) = MESSAGES.get(field.kind) {
                    read_into(inner, fields, depth + 1, out)?;
                }
            }
            Mark::Repeated => {
                let item = value(&mut input, wire, field, depth)?;
                match out.entry(field.name).or_insert_with(|| Value::Array(Vec::new())) {
                    Value::Array(items) => items.push(item),
                    _ => return Err(Malformed::WireType(wire, number)),
                }
            }
            Mark::Map => {
                let (key, item) = entry(input.bytes(wire, number)?, field, depth)?;
                if let Value::Object(map) = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()))
                {
                    map.insert(key, item);
                }
            }
            Mark::One => {
                let item = value(&mut input, wire, field, depth)?;
                if field.pointer || !is_zero(&item) {
                    out.insert(field.name.to_owned(), item);
                }
            }
        }
    }
    Ok(())
}

/// An unset field of Go's struct, which is written all the same.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(_) => false,
    }
}

fn entry(bytes: &[u8], field: &Field, depth: usize) -> Result<(String, Value), Malformed> {
    let mut input = Reader(bytes);
    let (mut key, mut item) = (String::new(), None);
    while let Some((number, wire)) = input.tag()? {
        match number {
            1 => key = input.text(wire, number)?,
            2 => item = Some(value(&mut input, wire, field, depth)?),
            _ => input.skip(wire)?,
        }
    }
    let empty = || if matches!(field.kind, "s" | "y") { Value::String(String::new()) } else { Value::Null };
    Ok((key, item.unwrap_or_else(empty)))
}

fn value(input: &mut Reader<'_>, wire: u8, field: &Field, depth: usize) -> Result<Value, Malformed> {
    let number = field.number;
    match field.kind {
        "s" => Ok(input.text(wire, number)?.into()),
        "y" => Ok(STANDARD.encode(input.bytes(wire, number)?).into()),
        "b" => Ok((input.varint(wire, number)? != 0).into()),
        "i" => Ok(input.varint(wire, number)?.cast_signed().into()),
        "f" => Ok(input.double(wire, number)?.into()),
        kind => message(kind, input.bytes(wire, number)?, depth + 1),
    }
}

/// A nested message; some have a JSON form of their own.
fn message(kind: &str, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let Some(fields) = MESSAGES.get(kind) else { return Ok(Value::Null) };
    let plain = object(bytes, fields, depth)?;
    let get = |key: &str| plain.get(key).cloned().unwrap_or(Value::Null);
    Ok(match form(kind) {
        Form::Time { .. } if bytes.is_empty() => Value::Null,
        Form::Time { micro: false } => time(&plain, "%Y-%m-%dT%H:%M:%SZ"),
        Form::Time { micro: true } => time(&plain, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        Form::Duration => format!("{}ns", get("duration").as_i64().unwrap_or(0)).into(),
        Form::Raw => raw(plain.as_object().and_then(|fields| fields.values().next())),
        Form::Quantity => get("string"),
        Form::IntOrString => match get("type").as_i64() {
            Some(1) => plain.get("strVal").cloned().unwrap_or_else(|| "".into()),
            _ => plain.get("intVal").cloned().unwrap_or_else(|| 0.into()),
        },
        Form::List => get("items"),
        Form::SchemaOrBool if get("schema").is_null() => (get("allows") == true).into(),
        Form::SchemaOrArray if get("schema").is_null() => get("jSONSchemas"),
        Form::SchemaOrTexts if get("schema").is_null() => get("property"),
        Form::SchemaOrBool | Form::SchemaOrArray | Form::SchemaOrTexts => get("schema"),
        Form::Plain => plain,
    })
}

fn time(parts: &Value, format: &str) -> Value {
    let part = |key: &str| parts.get(key).and_then(Value::as_i64).unwrap_or(0);
    let nanos = i32::try_from(part("nanos")).unwrap_or(0);
    match jiff::Timestamp::new(part("seconds"), nanos) {
        Ok(at) => at.strftime(format).to_string().into(),
        Err(_) => Value::Null,
    }
}

/// JSON carried as bytes.
fn raw(encoded: Option<&Value>) -> Value {
    let bytes = encoded.and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    bytes.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or(Value::Null)
}

/// Reads the wire format.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field's number and wire type; `None` at the end.
    fn tag(&mut self) -> Result<Option<(u32, u8)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.raw_varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed::Eof)?;
        Ok(Some((number, u8::try_from(tag & 7).unwrap_or(0))))
    }

    fn raw_varint(&mut self) -> Result<u64, Malformed> {
        let mut out = 0_u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed::Eof)?;
            self.0 = rest;
            out |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(Malformed::Eof)
    }

    fn varint(&mut self, wire: u8, number: u32) -> Result<u64, Malformed> {
        if wire == 0 { self.raw_varint() } else { Err(Malformed::WireType(wire, number)) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed::Eof)?;
        self.0 = rest;
        Ok(head)
    }

    fn bytes(&mut self, wire: u8, number: u32) -> Result<&'a [u8], Malformed> {
        if wire != 2 {
            return Err(Malformed::WireType(wire, number));
        }
        let n = usize::try_from(self.raw_varint()?).map_err(|_| Malformed::Eof)?;
        self.take(n)
    }

    fn text(&mut self, wire: u8, number: u32) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.bytes(wire, number)?).into_owned())
    }

    fn double(&mut self, wire: u8, number: u32) -> Result<f64, Malformed> {
        if wire != 1 {
            return Err(Malformed::WireType(wire, number));
        }
        let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| Malformed::Eof)?;
        Ok(f64::from_le_bytes(bytes))
    }

    fn skip(&mut self, wire: u8) -> Result<(), Malformed> {
        match wire {
            0 => self.raw_varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.bytes(wire, 0).map(drop),
            5 => self.take(4).map(drop),
            _ => Err(Malformed::WireType(wire, 0)),
        }
    }
}
