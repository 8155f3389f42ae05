//! Declared types: what an OpenAPI or structural schema says of the fields, and how large values can get.
//!
//! Schemas are JSON objects in the form of `openAPIV3Schema`.

mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub use self::value::to_value;
use crate::escape::escape;
use crate::types::Type;

/// Bytes of the largest request.
pub(crate) const MAX_REQUEST: i64 = 3 * 1024 * 1024;

/// A type with its fields, and bounds of the size of its values.
#[derive(Clone, Debug)]
pub struct DeclType {
    pub(crate) name: Arc<str>,
    /// Fields of a record, by identifier.
    pub(crate) fields: Option<BTreeMap<String, Arc<DeclType>>>,
    /// Of a map.
    pub(crate) key: Option<Arc<DeclType>>,
    /// Of a list or map.
    pub(crate) element: Option<Arc<DeclType>>,
    /// Characters, elements or entries, at most.
    pub(crate) max: i64,
    /// Bytes of the smallest value as JSON.
    pub(crate) min_size: i64,
    simple: Type,
}

impl DeclType {
    /// A type without parts.
    pub fn simple(of: Type) -> Arc<Self> {
        let min_size = match of {
            Type::Bool | Type::Null => 4,
            Type::String | Type::Bytes => 2,
            Type::Duration => 3,
            Type::Timestamp => 12,
            _ => 1,
        };
        Self::sized(of, 0, min_size)
    }

    /// A type without parts whose values have at most `max` characters or elements.
    pub fn bounded(of: Type, max: i64) -> Arc<Self> {
        let plain = Self::simple(of);
        Arc::new(Self { max, ..(*plain).clone() })
    }

    fn sized(of: Type, max: i64, min_size: i64) -> Arc<Self> {
        let name = of.type_name().into();
        Arc::new(Self { name, fields: None, key: None, element: None, max, min_size, simple: of })
    }

    /// A list of at most `max` elements; -1 for no bound.
    pub fn list(element: Arc<Self>, max: i64) -> Arc<Self> {
        let list = Self::sized(Type::list(element.cel_type()), max, 2);
        Arc::new(Self { element: Some(element), ..(*list).clone() })
    }

    /// A map of at most `max` entries; -1 for no bound.
    pub fn map(key: Arc<Self>, element: Arc<Self>, max: i64) -> Arc<Self> {
        let map = Self::sized(Type::map(key.cel_type(), element.cel_type()), max, 2);
        Arc::new(Self { key: Some(key), element: Some(element), ..(*map).clone() })
    }

    /// A record.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Arc<Self>)>) -> Arc<Self> {
        let fields = fields.into_iter().map(|(name, of)| (name.to_owned(), of)).collect();
        Self::record(name, fields, 2)
    }

    /// The record `variables` of a policy.
    pub(crate) fn of_variables(variables: &BTreeMap<String, Arc<Self>>) -> Arc<Self> {
        Self::record("kubernetes.variables", variables.clone(), 2)
    }

    fn record(name: &str, fields: BTreeMap<String, Arc<Self>>, min_size: i64) -> Arc<Self> {
        let record = Self::sized(Type::object(name), 0, min_size);
        Arc::new(Self { fields: Some(fields), ..(*record).clone() })
    }

    /// The type that expressions see.
    pub fn cel_type(&self) -> Type {
        self.simple.clone()
    }

    /// What a schema declares. `None` where expressions cannot see it, such as preserved unknown fields. `root`
    /// says that it is a whole resource, which has `kind`, `apiVersion` and some of `metadata`.
    pub fn from_schema(schema: &Json, root: bool) -> Option<Arc<Self>> {
        let empty = Map::new();
        let of = schema.as_object().unwrap_or(&empty);
        if flag(of, "x-kubernetes-int-or-string") {
            let max = max_length(of).map_or(MAX_REQUEST - 2, |max| max.saturating_mul(4));
            return Some(Self::sized(Type::Dyn, max, 1));
        }
        match text(of, "type") {
            "array" => {
                let items = of.get("items")?;
                let element = Self::from_schema(items, embedded(items))?;
                let max = bound(of, "maxItems").unwrap_or((MAX_REQUEST - 2) / (element.min_size + 1));
                Some(Self::list(element, max))
            }
            "object" => match of.get("additionalProperties").filter(|schema| schema.is_object()) {
                Some(entries) => {
                    let element = Self::from_schema(entries, embedded(entries))?;
                    let max =
                        bound(of, "maxProperties").unwrap_or((MAX_REQUEST - 2) / (element.min_size + 6));
                    Some(Self::map(Self::simple(Type::String), element, max))
                }
                None => Some(Self::from_properties(of, root)),
            },
            "string" => Some(Self::from_string(of)),
            "boolean" => Some(Self::simple(Type::Bool)),
            "number" => Some(Self::simple(Type::Double)),
            "integer" => Some(Self::simple(Type::Int)),
            _ => None,
        }
    }

    fn from_properties(of: &Map<String, Json>, root: bool) -> Arc<Self> {
        let rooted = root.then(|| with_type_and_object_meta(of));
        let of = rooted.as_ref().unwrap_or(of);
        let required: Vec<&str> = of
            .get("required")
            .and_then(Json::as_array)
            .map(|names| names.iter().filter_map(Json::as_str).collect())
            .unwrap_or_default();
        let (mut fields, mut min_size) = (BTreeMap::new(), 2);
        for (name, property) in of.get("properties").and_then(Json::as_object).into_iter().flatten() {
            let Some(field) = Self::from_schema(property, embedded(property)) else { continue };
            let defaulted = property.get("default").is_some_and(|default| !default.is_null());
            if required.contains(&name.as_str()) && !defaulted {
                min_size += i64::try_from(name.len()).unwrap_or(0) + field.min_size + 4;
            }
            if let Some(identifier) = escape(name) {
                fields.insert(identifier, field);
            }
        }
        Self::record("object", fields, min_size)
    }

    fn from_string(of: &Map<String, Json>) -> Arc<Self> {
        let any = MAX_REQUEST - 2;
        match text(of, "format") {
            "byte" => Self::sized(Type::Bytes, max_length(of).unwrap_or(any), 2),
            "duration" => Self::sized(Type::Duration, 32, 3),
            "date" => Self::sized(Type::Timestamp, 12, 12),
            "date-time" => Self::sized(Type::Timestamp, 32, 21),
            _ => {
                let longest = |values: &Vec<Json>| {
                    let lengths = values.iter().filter_map(Json::as_str).map(str::len);
                    lengths.max().and_then(|len| i64::try_from(len).ok()).unwrap_or(0)
                };
                let words = of.get("enum").and_then(Json::as_array).filter(|values| !values.is_empty());
                let max = match (max_length(of), words) {
                    (Some(max), _) => max.saturating_mul(4),
                    (None, Some(values)) => longest(values),
                    (None, None) => any,
                };
                Self::sized(Type::String, max, 2)
            }
        }
    }

    /// The same type with a name for each record below it, derived from `name` and where it is.
    pub fn named(self: &Arc<Self>, name: &str) -> Arc<Self> {
        if let Some(fields) = &self.fields {
            let name = if &*self.name == "object" { name } else { &self.name };
            let fields = fields
                .iter()
                .map(|(field, of)| (field.clone(), of.named(&format!("{name}.{field}"))))
                .collect();
            return Self::record(name, fields, self.min_size);
        }
        match (&self.key, &self.element) {
            (Some(key), Some(element)) => {
                Self::map(key.clone(), element.named(&format!("{name}.@elem")), self.max)
            }
            (None, Some(element)) => Self::list(element.named(&format!("{name}.@idx")), self.max),
            _ => self.clone(),
        }
    }

    /// How often values of this type fit into a request.
    pub(crate) fn max_cardinality(&self) -> u64 {
        u64::try_from(MAX_REQUEST / (self.min_size + 1)).unwrap_or(0)
    }
}

/// `schema` with the properties that every resource has.
fn with_type_and_object_meta(schema: &Map<String, Json>) -> Map<String, Json> {
    let kind_of = |path: &[&str]| {
        let mut at = schema.get("properties");
        for (i, name) in path.iter().enumerate() {
            at = at.and_then(|of| of.get(name));
            if i + 1 < path.len() {
                at = at.and_then(|of| of.get("properties"));
            }
        }
        at.and_then(|of| of.get("type")).and_then(Json::as_str)
    };
    let complete = kind_of(&["kind"]) == Some("string")
        && kind_of(&["apiVersion"]) == Some("string")
        && kind_of(&["metadata"]) == Some("object")
        && kind_of(&["metadata", "name"]) == Some("string")
        && kind_of(&["metadata", "generateName"]) == Some("string");
    let mut schema = schema.clone();
    if complete {
        return schema;
    }
    let word = serde_json::json!({"type": "string"});
    let metadata = serde_json::json!({
        "type": "object",
        "properties": {"name": word.clone(), "generateName": word.clone()},
    });
    let properties = schema.entry("properties").or_insert_with(|| Json::Object(Map::new()));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert("kind".to_owned(), word.clone());
        properties.insert("apiVersion".to_owned(), word);
        properties.insert("metadata".to_owned(), metadata);
    }
    schema
}

/// A resource's schema with the properties that every resource has, as rules at its root see it.
pub(crate) fn rooted(schema: &Json) -> Json {
    schema.as_object().map_or_else(|| schema.clone(), |of| Json::Object(with_type_and_object_meta(of)))
}

pub(crate) fn embedded(schema: &Json) -> bool {
    schema.as_object().is_some_and(|of| flag(of, "x-kubernetes-embedded-resource"))
}

pub(crate) fn flag(schema: &Map<String, Json>, name: &str) -> bool {
    schema.get(name).and_then(Json::as_bool).unwrap_or(false)
}

pub(crate) fn text<'s>(schema: &'s Map<String, Json>, name: &str) -> &'s str {
    schema.get(name).and_then(Json::as_str).unwrap_or("")
}

fn bound(schema: &Map<String, Json>, name: &str) -> Option<i64> {
    schema.get(name).and_then(Json::as_i64).map(|max| max.max(0))
}

fn max_length(schema: &Map<String, Json>) -> Option<i64> {
    bound(schema, "maxLength")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_length_beyond_all_requests_does_not_overflow() {
        for schema in [
            json!({"type": "string", "maxLength": i64::MAX}),
            json!({"x-kubernetes-int-or-string": true, "maxLength": i64::MAX / 2}),
        ] {
            let declared = DeclType::from_schema(&schema, false).expect("a type");
            assert_eq!(declared.max, i64::MAX, "{schema}");
        }
    }
}
