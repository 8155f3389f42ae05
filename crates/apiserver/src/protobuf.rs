//! Kubernetes' protobuf encoding of objects, both ways, by way of their JSON form. The shape of the messages is a
//! table in `protobuf/messages.txt`, made by `tools/protobuf.py`.

mod decode;
mod encode;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::LazyLock;

use coracle_resources::def::ResourceDef;

pub(crate) use decode::decode;
pub(crate) use encode::{encode, watch_frame};

/// What every object begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting read.
const MAX_DEPTH: usize = 256;

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

/// `core.v1.Pod`, `rbac.v1.Role`: the package is the first word of the group.
fn message_name(group: &str, version: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{package}.{version}.{kind}")
}

/// Whether objects of a resource have a protobuf form. Custom resources have none.
pub(crate) fn knows(def: &ResourceDef) -> bool {
    let built_in = |d: &&&ResourceDef| (d.group, d.version, d.kind) == (def.group, def.version, def.kind);
    coracle_resources::all().iter().any(|d| built_in(&d))
        && MESSAGES.contains_key(message_name(def.group, def.version, def.kind).as_str())
}

/// How a message without a JSON object of its own looks in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An object with the message's fields.
    Plain,
    /// A time in seconds, or microseconds.
    Time { micro: bool },
    /// A text such as `1h0m0s`.
    Duration,
    /// JSON as it is, carried as bytes.
    Raw,
    /// The text of an amount.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// The list that is the message's only field.
    List,
    /// A schema, or a boolean.
    SchemaOrBool,
    /// A schema, or a list of schemas.
    SchemaOrArray,
    /// A schema, or a list of texts.
    SchemaOrTexts,
}

fn form(message: &str) -> Form {
    match message {
        "meta.v1.Time" => Form::Time { micro: false },
        "meta.v1.MicroTime" => Form::Time { micro: true },
        "meta.v1.Duration" => Form::Duration,
        "meta.v1.FieldsV1" | "runtime.RawExtension" | "apiextensions.v1.JSON" => Form::Raw,
        "resource.Quantity" => Form::Quantity,
        "intstr.IntOrString" => Form::IntOrString,
        "meta.v1.Verbs" => Form::List,
        "apiextensions.v1.JSONSchemaPropsOrBool" => Form::SchemaOrBool,
        "apiextensions.v1.JSONSchemaPropsOrArray" => Form::SchemaOrArray,
        "apiextensions.v1.JSONSchemaPropsOrStringArray" => Form::SchemaOrTexts,
        name if name.ends_with(".ExtraValue") => Form::List,
        _ => Form::Plain,
    }
}
