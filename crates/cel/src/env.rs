//! What an expression may name: variables, the records of their types, and which extras are on.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checker::{self, Checked};
use crate::issues::Issues;
use crate::parse;
use crate::schema::DeclType;
use crate::types::Type;

/// The declarations that an expression is compiled against. Cheap to clone.
///
/// All function libraries of Kubernetes 1.36 are in every environment; [`Env::with_patch_types`] and
/// [`Env::with_bindings`] add what only some expressions have.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: HashMap<String, Type>,
    /// Records by name.
    records: HashMap<Arc<str>, Arc<DeclType>>,
    pub(crate) patch_types: bool,
    pub(crate) bindings: bool,
    pub(crate) includes: bool,
}

impl Env {
    /// An environment without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variable of a plain type.
    #[must_use]
    pub fn with_variable(mut self, name: &str, of: Type) -> Self {
        self.variables.insert(name.to_owned(), of);
        self
    }

    /// Adds a variable whose type is declared, with all records below it.
    #[must_use]
    pub fn with_declared(mut self, name: &str, of: &Arc<DeclType>) -> Self {
        self.variables.insert(name.to_owned(), of.cel_type());
        self.with_records(of)
    }

    /// Adds the records of a declared type, without a variable.
    #[must_use]
    pub fn with_records(mut self, of: &Arc<DeclType>) -> Self {
        self.add_records(of);
        self
    }

    fn add_records(&mut self, of: &Arc<DeclType>) {
        if let Some(key) = &of.key {
            self.add_records(key);
        }
        if let Some(element) = &of.element {
            self.add_records(element);
        }
        if let Some(fields) = &of.fields {
            fields.values().for_each(|field| self.add_records(field));
            self.records.insert(of.name.clone(), of.clone());
        }
    }

    /// Adds `Object{…}`, `JSONPatch{…}` and `jsonpatch.escapeKey`.
    #[must_use]
    pub fn with_patch_types(mut self) -> Self {
        self.patch_types = true;
        self
    }

    /// Adds `cel.bind(name, value, expression)`.
    #[must_use]
    pub fn with_bindings(mut self) -> Self {
        self.bindings = true;
        self
    }

    /// Adds `x.includes(y)`, which takes lists and single values.
    #[must_use]
    pub fn with_includes(mut self) -> Self {
        self.includes = true;
        self
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// What is wrong with it, as upstream words it.
    pub fn compile(&self, expression: &str) -> Result<Checked, Issues> {
        let parsed = parse::parse(expression, self.bindings)?;
        checker::check(parsed, self)
    }

    /// The type of an identifier; names of types have the type of their type.
    pub(crate) fn ident(&self, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some(found) = self.variables.get(name) {
            return Some(found.clone());
        }
        type_by_name(name).or_else(|| self.record_type(name)).map(|of| Type::Type(Some(Arc::new(of))))
    }

    /// The record `name`, if declared.
    pub(crate) fn record_type(&self, name: &str) -> Option<Type> {
        let dynamic =
            self.patch_types && (name == "Object" || name == "JSONPatch" || name.starts_with("Object."));
        if dynamic {
            return Some(Type::object(name));
        }
        if self.records.is_empty() {
            return None;
        }
        match name {
            "duration" => Some(Type::Duration),
            "timestamp" => Some(Type::Timestamp),
            _ => self.records.get(name).map(|of| of.cel_type()),
        }
    }

    /// The type of a field: `None` if the record is not declared, `Some(None)` if it has no such field.
    pub(crate) fn field(&self, record: &str, field: &str) -> Option<Option<Type>> {
        if self.patch_types && record == "JSONPatch" {
            return Some(Some(match field {
                "op" | "path" | "from" => Type::String,
                "value" => Type::Dyn,
                _ => Type::object(""),
            }));
        }
        if self.patch_types && (record == "Object" || record.starts_with("Object.")) {
            return Some(Some(Type::Dyn));
        }
        let fields = self.records.get(record)?.fields.as_ref()?;
        let found = fields.get(field).or_else(|| {
            let reserved = crate::escape::is_reserved(field);
            fields.get(format!("__{field}__").as_str()).filter(|_| reserved)
        });
        Some(found.map(|of| of.cel_type()))
    }

    /// Whether a function of the table is in this environment.
    pub(crate) fn has_function(&self, name: &str) -> bool {
        match name {
            "jsonpatch.escapeKey" => self.patch_types,
            "includes" => self.includes,
            _ => true,
        }
    }
}

/// Types that have a name of their own.
pub(crate) fn type_by_name(name: &str) -> Option<Type> {
    let param = |name: &str| Type::Param(name.into());
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "int" => Type::Int,
        "list" => Type::list(param("A")),
        "map" => Type::map(param("A"), param("B")),
        "null_type" => Type::Null,
        "string" => Type::String,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        "optional_type" => Type::optional(param("V")),
        "net.IP" | "net.CIDR" => Type::opaque(name),
        _ => return None,
    })
}
