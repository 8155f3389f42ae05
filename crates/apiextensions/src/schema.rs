//! [`Schema`]: the `openAPIV3Schema` of a version, in the form that all other modules walk.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use serde_json::Value;

/// What a schema says of one value. Nested schemas of `allOf`, `anyOf`, `oneOf` and `not` have the same type;
/// [`crate::structure`] checks that they say only what they may.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// `string`, `object` …; empty when not given.
    pub kind: String,
    /// Words for people.
    pub description: String,
    /// A title.
    pub title: String,
    /// `null` is a value.
    pub nullable: bool,
    /// What an absent field is set to.
    pub default: Option<Value>,
    /// An example.
    pub example: Option<Value>,
    /// Description and URL of documentation elsewhere.
    pub external_docs: Option<(String, String)>,
    /// Of the items of a list.
    pub items: Option<Box<Schema>>,
    /// Of the declared fields.
    pub properties: BTreeMap<String, Schema>,
    /// Of the other fields.
    pub additional: Option<Additional>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`.
    pub list_type: Option<String>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type`.
    pub map_type: Option<String>,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
    /// What values must satisfy beyond their type; most schemas have none.
    pub checks: Option<Box<Checks>>,
}

/// Fields beside the declared ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Additional {
    /// Allowed or not, of any shape.
    Allowed(bool),
    /// Of this shape.
    Schema(Box<Schema>),
}

/// A rule in CEL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What to say when it fails.
    pub message: String,
    /// An expression for what to say.
    pub message_expression: String,
    /// `FieldValueInvalid` …
    pub reason: Option<String>,
    /// Which field to blame.
    pub field_path: String,
    /// `oldSelf` is an optional.
    pub optional_old_self: Option<bool>,
}

/// Value checks.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "named as in the schema")]
pub struct Checks {
    pub format: String,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: String,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub multiple_of: Option<f64>,
    pub one_of_values: Vec<Value>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<String>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

static NO_CHECKS: Checks = Checks {
    format: String::new(),
    maximum: None,
    exclusive_maximum: false,
    minimum: None,
    exclusive_minimum: false,
    max_length: None,
    min_length: None,
    pattern: String::new(),
    max_items: None,
    min_items: None,
    unique_items: false,
    multiple_of: None,
    one_of_values: Vec::new(),
    max_properties: None,
    min_properties: None,
    required: Vec::new(),
    all_of: Vec::new(),
    any_of: Vec::new(),
    one_of: Vec::new(),
    not: None,
};

impl Schema {
    /// From the API's form.
    ///
    /// # Errors
    /// Upstream's text for what no structural schema may say.
    pub fn new(props: &JSONSchemaProps) -> Result<Self, String> {
        refuse_unsupported(props)?;
        let preserve = props.x_kubernetes_preserve_unknown_fields;
        if preserve == Some(false) {
            return Err(
                "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into()
            );
        }
        let items = match &props.items {
            None => None,
            Some(JSONSchemaPropsOrArray::Schema(one)) => Some(Box::new(Self::new(one)?)),
            Some(JSONSchemaPropsOrArray::Schemas(many)) if many.is_empty() => None,
            Some(JSONSchemaPropsOrArray::Schemas(_)) => {
                return Err("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
            }
        };
        let additional = match &props.additional_properties {
            None => None,
            Some(JSONSchemaPropsOrBool::Schema(one)) => Some(Additional::Schema(Box::new(Self::new(one)?))),
            Some(JSONSchemaPropsOrBool::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
        };
        let properties = props.properties.iter().flatten();
        let properties =
            properties.map(|(k, v)| Ok((k.clone(), Self::new(v)?))).collect::<Result<_, String>>()?;
        let checks = Checks::new(props)?;
        let docs = props.external_docs.as_ref();
        Ok(Self {
            kind: props.type_.clone().unwrap_or_default(),
            description: props.description.clone().unwrap_or_default(),
            title: props.title.clone().unwrap_or_default(),
            nullable: props.nullable == Some(true),
            default: props.default.as_ref().map(|d| d.0.clone()).filter(|d| !d.is_null()),
            example: props.example.as_ref().map(|d| d.0.clone()).filter(|d| !d.is_null()),
            external_docs: docs
                .map(|d| (d.description.clone().unwrap_or_default(), d.url.clone().unwrap_or_default())),
            items,
            properties,
            additional,
            preserve: preserve == Some(true),
            embedded: props.x_kubernetes_embedded_resource == Some(true),
            int_or_string: props.x_kubernetes_int_or_string == Some(true),
            list_type: props.x_kubernetes_list_type.clone(),
            list_map_keys: props.x_kubernetes_list_map_keys.clone().unwrap_or_default(),
            map_type: props.x_kubernetes_map_type.clone(),
            rules: props.x_kubernetes_validations.iter().flatten().map(Rule::new).collect(),
            checks: (checks != NO_CHECKS).then(|| Box::new(checks)),
        })
    }

    /// The value checks.
    pub fn checks(&self) -> &Checks {
        self.checks.as_deref().unwrap_or(&NO_CHECKS)
    }

    /// The schema of a field: declared, or that of the other fields.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The schema of fields that are not declared, if they have one.
    pub fn additional_schema(&self) -> Option<&Self> {
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// Calls `visit` with this schema and all below it, until it returns true.
    pub fn any(&self, visit: &mut dyn FnMut(&Self) -> bool) -> bool {
        if visit(self) {
            return true;
        }
        let checks = self.checks();
        let nested = checks.all_of.iter().chain(&checks.any_of).chain(&checks.one_of);
        let below = self.items.as_deref().into_iter().chain(self.properties.values());
        let below = below.chain(self.additional_schema()).chain(nested).chain(checks.not.as_deref());
        below.into_iter().any(|schema| schema.any(visit))
    }
}

impl Rule {
    fn new(rule: &ValidationRule) -> Self {
        Self {
            rule: rule.rule.clone(),
            message: rule.message.clone().unwrap_or_default(),
            message_expression: rule.message_expression.clone().unwrap_or_default(),
            reason: rule.reason.clone(),
            field_path: rule.field_path.clone().unwrap_or_default(),
            optional_old_self: rule.optional_old_self,
        }
    }
}

impl Checks {
    fn new(props: &JSONSchemaProps) -> Result<Self, String> {
        let all = |schemas: &Option<Vec<JSONSchemaProps>>| {
            schemas.iter().flatten().map(Schema::new).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            format: props.format.clone().unwrap_or_default(),
            maximum: props.maximum,
            exclusive_maximum: props.exclusive_maximum == Some(true),
            minimum: props.minimum,
            exclusive_minimum: props.exclusive_minimum == Some(true),
            max_length: props.max_length,
            min_length: props.min_length,
            pattern: props.pattern.clone().unwrap_or_default(),
            max_items: props.max_items,
            min_items: props.min_items,
            unique_items: props.unique_items == Some(true),
            multiple_of: props.multiple_of,
            one_of_values: props.enum_.iter().flatten().map(|v| v.0.clone()).collect(),
            max_properties: props.max_properties,
            min_properties: props.min_properties,
            required: props.required.clone().unwrap_or_default(),
            all_of: all(&props.all_of)?,
            any_of: all(&props.any_of)?,
            one_of: all(&props.one_of)?,
            not: props.not.as_deref().map(Schema::new).transpose()?.map(Box::new),
        })
    }
}

fn refuse_unsupported(props: &JSONSchemaProps) -> Result<(), String> {
    let some = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    let refused = if some(&props.id) {
        "id"
    } else if some(&props.schema) {
        "schema"
    } else if some(&props.ref_path) {
        "$ref"
    } else if props.pattern_properties.as_ref().is_some_and(|m| !m.is_empty()) {
        "patternProperties"
    } else if props.dependencies.as_ref().is_some_and(|m| !m.is_empty()) {
        "dependencies"
    } else if props.additional_items.is_some() {
        "additionalItems"
    } else if props.definitions.as_ref().is_some_and(|m| !m.is_empty()) {
        "definitions"
    } else {
        return Ok(());
    };
    Err(format!("OpenAPIV3Schema '{refused}' is not supported"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A schema from its JSON form.
    #[track_caller]
    pub(crate) fn schema(value: Value) -> Schema {
        let props: JSONSchemaProps = serde_json::from_value(value).expect("a schema");
        Schema::new(&props).expect("structural")
    }

    #[test]
    fn what_no_structural_schema_may_say_is_refused_by_name() {
        let props: JSONSchemaProps =
            serde_json::from_value(serde_json::json!({ "type": "object", "$ref": "#/x" })).expect("props");
        assert_eq!(Schema::new(&props), Err("OpenAPIV3Schema '$ref' is not supported".into()));
    }
}
