//! Request bodies in Kubernetes' protobuf encoding, read into the JSON form. kubectl sends them for what it
//! makes itself (`create configmap`, `create deployment` …). The shape of the messages is a table in
//! `protobuf/messages.txt`, made by `tools/protobuf.py`.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_resources::def::ResourceDef;
use serde_json::{Map, Value};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting read.
const MAX_DEPTH: usize = 64;

/// A body that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    /// It does not begin as Kubernetes' protobuf does.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// It ends in the middle.
    #[error("unexpected EOF")]
    Eof,
    /// A field has another wire type than its declaration.
    #[error("proto: wrong wireType = {0} for field {1}")]
    WireType(u8, u32),
    /// The kind has no protobuf form here.
    #[error("kind {0:?} has no protobuf form")]
    Unknown(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    One,
    Repeated,
    Map,
    Inline,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    number: u32,
    name: &'static str,
    kind: &'static str,
    mark: Mark,
    /// The zero value counts.
    pointer: bool,
}

static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let lines = include_str!("protobuf/messages.txt").lines();
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(field).collect()))
        })
        .collect()
});

fn field(word: &'static str) -> Option<Field> {
    let mut parts = word.splitn(3, ':');
    let (number, name, mut kind) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (mut mark, mut pointer) = (Mark::One, false);
    if let Some(rest) = kind.strip_prefix('?') {
        (kind, pointer) = (rest, true);
    }
    for (sign, which) in [('*', Mark::Repeated), ('%', Mark::Map), ('=', Mark::Inline)] {
        if let Some(rest) = kind.strip_prefix(sign) {
            (kind, mark) = (rest, which);
        }
    }
    Some(Field { number, name, kind, mark, pointer })
}

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

/// `core.v1.Pod`, `rbac.v1.Role`: the package is the first word of the group.
fn message_name(group: &str, version: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{package}.{version}.{kind}")
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
    Ok(match kind {
        "meta.v1.Time" if bytes.is_empty() => Value::Null,
        "meta.v1.MicroTime" if bytes.is_empty() => Value::Null,
        "meta.v1.Time" => time(&plain, "%Y-%m-%dT%H:%M:%SZ"),
        "meta.v1.MicroTime" => time(&plain, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        "meta.v1.Duration" => format!("{}ns", get("duration").as_i64().unwrap_or(0)).into(),
        "meta.v1.FieldsV1" => raw(&get("Raw")),
        "runtime.RawExtension" => raw(&get("raw")),
        "resource.Quantity" => get("string"),
        "intstr.IntOrString" => match get("type").as_i64() {
            Some(1) => plain.get("strVal").cloned().unwrap_or_else(|| "".into()),
            _ => plain.get("intVal").cloned().unwrap_or_else(|| 0.into()),
        },
        kind if kind.ends_with(".ExtraValue") => get("items"),
        _ => plain,
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
fn raw(encoded: &Value) -> Value {
    let bytes = encoded.as_str().and_then(|text| STANDARD.decode(text).ok());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_of_another_format_is_refused() {
        let def = coracle_resources::find("", "configmaps").unwrap();
        assert!(matches!(decode(b"{}", def, "ConfigMap"), Err(Malformed::Prefix)));
        assert!(matches!(decode(b"k8s\0\x0a\xff", def, "ConfigMap"), Err(Malformed::Eof)));
    }

    #[test]
    fn config_map_is_read_with_its_map_and_type() {
        let mut body = b"k8s\0".to_vec();
        body.extend(b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap");
        let raw: &[u8] = b"\x0a\x05\x0a\x01a\x12\x00\x12\x06\x0a\x01k\x12\x01v";
        body.extend([0x12, u8::try_from(raw.len()).unwrap()]);
        body.extend(raw);
        let def = coracle_resources::find("", "configmaps").unwrap();
        let want = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" },
        });
        assert_eq!(decode(&body, def, "ConfigMap").unwrap(), want);
    }
}
