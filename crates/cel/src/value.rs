//! Values: what expressions are given and what they yield.

mod compare;
mod convert;
mod json;
mod list;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) use self::compare::{compare, equal};
pub(crate) use self::convert::{convert, quoted};
pub use self::list::List;
pub(crate) use self::list::ListKind;
use crate::library::authz::{Access, Decision};
use crate::library::semver::Semver;
use crate::library::url::Url;
use crate::types::Type;
use coracle_meta::quantity::Quantity;

/// A key of a map. Numbers of different types that are equal are the same key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are CEL's")]
#[derive(Hash)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// The entries of a map.
pub type Map = BTreeMap<Key, Value>;

/// A record made in an expression: `Object.spec{…}`, `JSONPatch{…}`.
#[derive(Clone, Debug)]
pub struct Record {
    /// The name of its type.
    pub name: Arc<str>,
    /// What was set.
    pub fields: BTreeMap<Arc<str>, Value>,
}

/// A value that finds its fields when asked, such as the variables of a policy.
pub trait Lookup: Send + Sync {
    /// The field `name`: `None` if there is none, an error's text if it has no value.
    fn get(&self, name: &str) -> Option<Result<Value, String>>;
}

/// A network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address as written, not masked.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub bits: u8,
}

/// A value. Cheap to clone.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names are CEL's")]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    /// Nanoseconds since the epoch.
    Timestamp(i128),
    List(List),
    Map(Arc<Map>),
    Optional(Option<Arc<Value>>),
    Type(Type),
    Record(Arc<Record>),
    Lookup(Arc<dyn Lookup>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(Cidr),
    Quantity(Quantity),
    Semver(Arc<Semver>),
    /// A named format, by its function's name.
    Format(&'static str),
    /// The authorizer, or a check under construction.
    Access(Arc<Access>),
    Decision(Arc<Decision>),
    /// Data that does not fit its schema: an error once it is looked at.
    Invalid(Arc<str>),
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error, which `||` and `&&` may absorb.
    Error(String),
    /// The cost limit was hit; nothing absorbs that.
    OverBudget,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Error(message.into())
    }

    pub(crate) fn no_overload() -> Self {
        Self::new("no such overload")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(message) => f.write_str(message),
            Self::OverBudget => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for Fault {}

/// What a computation may still look at. Bounds work that costs do not, such as comparing nested lists.
#[derive(Debug)]
pub(crate) struct Fuel(std::cell::Cell<u64>);

impl Fuel {
    pub(crate) fn new(elements: u64) -> Self {
        Self(std::cell::Cell::new(elements))
    }

    /// Takes `elements`.
    ///
    /// # Errors
    /// `OverBudget` when nothing is left.
    pub(crate) fn take(&self, elements: u64) -> Result<(), Fault> {
        let left = self.0.get().checked_sub(elements).ok_or(Fault::OverBudget)?;
        self.0.set(left);
        Ok(())
    }
}

impl Value {
    /// A string.
    pub fn string(text: impl AsRef<str>) -> Self {
        Self::String(text.as_ref().into())
    }

    /// A list.
    pub fn list(items: Vec<Value>) -> Self {
        Self::List(List::new(items))
    }

    /// An optional with a value.
    pub(crate) fn some(value: Value) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as the key of a map.
    pub(crate) fn as_key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(value) => Key::Int(*value),
            Self::Uint(value) => Key::Uint(*value),
            Self::String(text) => Key::String(text.clone()),
            _ => return None,
        })
    }

    /// The run-time type, without parameters.
    pub fn type_of(&self) -> Type {
        let record = |name: &str| Type::object(name);
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Type(_) => Type::Type(None),
            Self::Record(value) => record(&value.name),
            Self::Lookup(_) => record("kubernetes.variables"),
            Self::Url(_) => record("kubernetes.URL"),
            Self::Ip(_) => Type::opaque("net.IP"),
            Self::Cidr(_) => Type::opaque("net.CIDR"),
            Self::Quantity(_) => record("kubernetes.Quantity"),
            Self::Semver(_) => record("kubernetes.Semver"),
            Self::Format(_) => record("kubernetes.NamedFormat"),
            Self::Access(access) => record(access.type_name()),
            Self::Decision(_) => record("kubernetes.authorization.Decision"),
            Self::Invalid(_) => Type::Error,
        }
    }

    /// The size that costs are counted by.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len(),
            Self::Map(map) => map.len() as u64,
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            Self::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            Self::Optional(Some(value)) => value.size(),
            _ => 1,
        }
    }

    /// Whether it is what `optional.ofNonZeroValue` takes for nothing.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Double(value) => *value == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Duration(nanos) => *nanos == 0,
            Self::Timestamp(nanos) => *nanos == crate::time::ZERO,
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Record(record) => record.fields.is_empty(),
            _ => false,
        }
    }

    /// The value itself, or the error it stands for.
    pub(crate) fn valid(self) -> Result<Value, Fault> {
        match self {
            Self::Invalid(why) => Err(Fault::new(&*why)),
            value => Ok(value),
        }
    }
}

impl Key {
    /// The key as a value.
    pub fn value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

/// The entry of a map for a value, which may be a number of another type than the key.
pub(crate) fn find<'m>(map: &'m Map, key: &Value) -> Option<&'m Value> {
    if let Some(found) = key.as_key().and_then(|key| map.get(&key)) {
        return Some(found);
    }
    let (int, uint) = match key {
        Value::Int(value) => (None, u64::try_from(*value).ok()),
        Value::Uint(value) => (i64::try_from(*value).ok(), None),
        Value::Double(value) => (convert::lossless_int(*value), convert::lossless_uint(*value)),
        _ => return None,
    };
    int.and_then(|i| map.get(&Key::Int(i))).or_else(|| uint.and_then(|u| map.get(&Key::Uint(u))))
}

/// In the form of messages, such as `no such key: a`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Uint(value) => write!(f, "{value}"),
            Self::Double(value) => f.write_str(&convert::go_general(*value, 21)),
            Self::String(text) => f.write_str(text),
            Self::Type(of) => write!(f, "{of}"),
            Self::Optional(None) => f.write_str("optional.none()"),
            Self::Optional(Some(value)) => write!(f, "optional({value})"),
            Self::Duration(nanos) => f.write_str(&crate::time::show_duration(*nanos)),
            Self::Timestamp(nanos) => f.write_str(&crate::time::show_timestamp(*nanos)),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, item) in list.iter().take(100).enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Invalid(why) => f.write_str(why),
            other => f.write_str(other.type_of().type_name()),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => write!(f, "{text:?}"),
            Self::Bytes(bytes) => write!(f, "b{bytes:?}"),
            Self::Uint(value) => write!(f, "{value}u"),
            Self::Map(map) => f.debug_map().entries(map.iter()).finish(),
            Self::List(list) => f.debug_list().entries(list.iter().take(100)).finish(),
            Self::Record(record) => write!(f, "{}{:?}", record.name, record.fields),
            Self::Quantity(quantity) => write!(f, "quantity({quantity})"),
            other => write!(f, "{other}"),
        }
    }
}
