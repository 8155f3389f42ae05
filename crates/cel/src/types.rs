//! Types of expressions, their names in messages, and which may stand for which.

use std::fmt;
use std::sync::Arc;

/// A type of CEL. Objects are known by name; their fields are in the environment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are CEL's")]
pub enum Type {
    /// What an erroneous expression has; agrees with every type.
    Error,
    Dyn,
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// A record whose fields are declared, e.g. `kubernetes.UserInfo`.
    Object(Arc<str>),
    /// Other types with a name, e.g. `optional_type(T)`, `net.IP`.
    Opaque(Arc<str>, Arc<[Type]>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A parameter of a generic function, or a variable of the checker.
    Param(Arc<str>),
}

impl Type {
    /// `list(element)`.
    pub fn list(element: Self) -> Self {
        Self::List(Arc::new(element))
    }

    /// `map(key, value)`.
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    /// `optional_type(inner)`.
    pub fn optional(inner: Self) -> Self {
        Self::Opaque("optional_type".into(), Arc::new([inner]))
    }

    /// An object by its name.
    pub fn object(name: &str) -> Self {
        Self::Object(name.into())
    }

    /// A type with a name and no parameters.
    pub fn opaque(name: &str) -> Self {
        Self::Opaque(name.into(), Arc::new([]))
    }

    /// Whether values of any type may stand here.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Any)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Any | Self::Error)
    }

    /// What an optional type holds.
    pub(crate) fn optional_inner(&self) -> Option<&Self> {
        match self {
            Self::Opaque(name, params) if &**name == "optional_type" => params.first(),
            _ => None,
        }
    }

    /// The name without parameters, as messages of conversions and of dispatch show it.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Error => "error",
            Self::Dyn => "dyn",
            Self::Any => "google.protobuf.Any",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(..) => "map",
            Self::Object(name) | Self::Opaque(name, _) | Self::Param(name) => name,
            Self::Type(_) => "type",
        }
    }

    pub(crate) fn params(&self) -> Vec<&Self> {
        match self {
            Self::List(element) => vec![element],
            Self::Map(key, value) => vec![key, value],
            Self::Opaque(_, params) => params.iter().collect(),
            Self::Type(Some(inner)) => vec![inner],
            _ => Vec::new(),
        }
    }

    /// Whether two types agree when the names of parameters do not count.
    pub(crate) fn is_equivalent(&self, other: &Self) -> bool {
        if matches!((self, other), (Self::Param(_), Self::Param(_))) {
            return true;
        }
        let (ours, theirs) = (self.params(), other.params());
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && ours.len() == theirs.len()
            && self.type_name() == other.type_name()
            && ours.iter().zip(theirs).all(|(a, b)| a.is_equivalent(b))
    }

    /// As the type checker's messages show it (`timestamp`, `map(string, int)`).
    pub(crate) fn checker_name(&self) -> String {
        let simple = match self {
            Self::Any => "any",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::Null => "null",
            Self::Error => "!error!",
            _ => {
                let params = self.params();
                if params.is_empty() {
                    return self.type_name().to_owned();
                }
                let shown: Vec<String> = params.iter().map(|p| p.checker_name()).collect();
                return format!("{}({})", self.type_name(), shown.join(", "));
            }
        };
        simple.to_owned()
    }
}

/// The form of `must evaluate to bool but got list(string)`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Param(name) = self {
            return write!(f, "<{name}>");
        }
        f.write_str(self.type_name())?;
        let params = self.params();
        if params.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = params.iter().map(ToString::to_string).collect();
        write!(f, "({})", shown.join(", "))
    }
}
