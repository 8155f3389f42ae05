//! Upstream validates an internal form, in which what all versions share stands above them; paths and dumps in
//! messages show it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinitionSpec, CustomResourceSubresources,
    CustomResourceValidation, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    JSONSchemaPropsOrStringArray, SelectableField, ValidationRule,
};
use serde_json::{Value, json};

/// Schema, subresources, columns and selectable fields, of one version or of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts<'c> {
    pub(super) schema: Option<&'c CustomResourceValidation>,
    pub(super) subresources: Option<&'c CustomResourceSubresources>,
    pub(super) columns: &'c [CustomResourceColumnDefinition],
    pub(super) selectable: &'c [SelectableField],
}

/// What all versions share, and what each has for itself.
pub(super) struct Internal<'c> {
    pub(super) shared: Parts<'c>,
    pub(super) own: Vec<Parts<'c>>,
}

impl<'c> Internal<'c> {
    pub(super) fn new(spec: &'c CustomResourceDefinitionSpec) -> Self {
        let parts: Vec<Parts<'c>> = spec
            .versions
            .iter()
            .map(|v| Parts {
                schema: v.schema.as_ref(),
                subresources: v.subresources.as_ref(),
                columns: v.additional_printer_columns.as_deref().unwrap_or_default(),
                selectable: v.selectable_fields.as_deref().unwrap_or_default(),
            })
            .collect();
        let Some(first) = parts.first().copied() else {
            return Self { shared: Parts::default(), own: parts };
        };
        let mut internal = Self { shared: Parts::default(), own: parts };
        macro_rules! lift {
            ($field:ident, $none:expr) => {
                if internal.own.iter().all(|p| p.$field == first.$field) {
                    internal.shared.$field = first.$field;
                    internal.own.iter_mut().for_each(|p| p.$field = $none);
                }
            };
        }
        lift!(schema, None);
        lift!(subresources, None);
        lift!(columns, &[]);
        lift!(selectable, &[]);
        internal
    }

    /// The versions as messages show them.
    pub(super) fn dump(&self, spec: &CustomResourceDefinitionSpec) -> String {
        // Without a spec there is no list either.
        if spec.versions.is_empty() && spec.group.is_empty() {
            return "null".into();
        }
        let versions = spec.versions.iter().zip(&self.own).map(|(v, own)| {
            let columns = own.columns.iter().map(|c| {
                fields(&[
                    ("Name", c.name.as_str().into()),
                    ("Type", c.type_.as_str().into()),
                    ("Format", text(&c.format)),
                    ("Description", text(&c.description)),
                    ("Priority", c.priority.unwrap_or(0).into()),
                    ("JSONPath", c.json_path.as_str().into()),
                ])
            });
            let selectable =
                own.selectable.iter().map(|f| fields(&[("JSONPath", f.json_path.as_str().into())]));
            let schema = own.schema.map_or_else(null, |schema| {
                let inner = schema.open_api_v3_schema.as_ref().map_or_else(null, dump_schema);
                format!("{{\"OpenAPIV3Schema\":{inner}}}")
            });
            let parts = [
                ("Name", Value::from(v.name.as_str()).to_string()),
                ("Served", v.served.to_string()),
                ("Storage", v.storage.to_string()),
                ("Deprecated", v.deprecated.unwrap_or(false).to_string()),
                ("DeprecationWarning", json!(v.deprecation_warning).to_string()),
                ("Schema", schema),
                ("Subresources", own.subresources.map_or_else(null, dump_subresources)),
                ("AdditionalPrinterColumns", list(columns.collect())),
                ("SelectableFields", list(selectable.collect())),
            ];
            joined(&parts)
        });
        format!("[{}]", versions.collect::<Vec<_>>().join(","))
    }
}

fn null() -> String {
    "null".into()
}

fn text(value: &Option<String>) -> Value {
    value.as_deref().unwrap_or("").into()
}

fn fields(parts: &[(&str, Value)]) -> String {
    joined(&parts.iter().map(|(name, value)| (*name, value.to_string())).collect::<Vec<_>>())
}

fn joined(parts: &[(&str, String)]) -> String {
    let parts: Vec<String> = parts.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", parts.join(","))
}

fn list(items: Vec<String>) -> String {
    if items.is_empty() { null() } else { format!("[{}]", items.join(",")) }
}

fn dump_subresources(sub: &CustomResourceSubresources) -> String {
    let scale = sub.scale.as_ref().map_or_else(null, |scale| {
        fields(&[
            ("SpecReplicasPath", scale.spec_replicas_path.as_str().into()),
            ("StatusReplicasPath", scale.status_replicas_path.as_str().into()),
            ("LabelSelectorPath", json!(scale.label_selector_path)),
        ])
    });
    let status = if sub.status.is_some() { "{}".to_owned() } else { null() };
    joined(&[("Status", status), ("Scale", scale)])
}

/// A float as Go writes it.
fn number(value: Option<f64>) -> Value {
    match value {
        #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
        Some(f) if f.fract() == 0.0 && f.abs() < 1e15 => (f as i64).into(),
        other => json!(other),
    }
}

/// A rule as messages show it.
pub(super) fn dump_rule(rule: &ValidationRule) -> String {
    let parts = [
        ("Rule", html(&json!(rule.rule))),
        ("Message", html(&text(&rule.message))),
        ("MessageExpression", html(&text(&rule.message_expression))),
        ("Reason", html(&json!(rule.reason))),
        ("FieldPath", html(&text(&rule.field_path))),
        ("OptionalOldSelf", json!(rule.optional_old_self).to_string()),
    ];
    joined(&parts)
}

/// Go escapes what HTML would misread.
fn html(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A schema as messages show it.
pub(super) fn dump_schema(props: &JSONSchemaProps) -> String {
    let all =
        |schemas: &Option<Vec<JSONSchemaProps>>| list(schemas.iter().flatten().map(dump_schema).collect());
    let or_bool = |value: &Option<JSONSchemaPropsOrBool>| match value {
        None => null(),
        Some(JSONSchemaPropsOrBool::Bool(allows)) => {
            joined(&[("Allows", allows.to_string()), ("Schema", null())])
        }
        Some(JSONSchemaPropsOrBool::Schema(one)) => {
            joined(&[("Allows", "true".into()), ("Schema", dump_schema(one))])
        }
    };
    let map = |schemas: &Option<std::collections::BTreeMap<String, JSONSchemaProps>>| match schemas {
        Some(schemas) if !schemas.is_empty() => {
            let parts: Vec<(&str, String)> =
                schemas.iter().map(|(k, v)| (k.as_str(), dump_schema(v))).collect();
            joined(&parts)
        }
        _ => null(),
    };
    let items = match &props.items {
        None => null(),
        Some(JSONSchemaPropsOrArray::Schema(one)) => {
            joined(&[("Schema", dump_schema(one)), ("JSONSchemas", null())])
        }
        Some(JSONSchemaPropsOrArray::Schemas(many)) => {
            joined(&[("Schema", null()), ("JSONSchemas", list(many.iter().map(dump_schema).collect()))])
        }
    };
    let dependencies: Vec<(&str, String)> = props
        .dependencies
        .iter()
        .flatten()
        .map(|(name, dependency)| match dependency {
            JSONSchemaPropsOrStringArray::Schema(one) => {
                (name.as_str(), joined(&[("Schema", dump_schema(one)), ("Property", null())]))
            }
            JSONSchemaPropsOrStringArray::Strings(names) => {
                (name.as_str(), joined(&[("Schema", null()), ("Property", json!(names).to_string())]))
            }
        })
        .collect();
    let docs = props.external_docs.as_ref().map_or_else(null, |docs| {
        fields(&[("Description", text(&docs.description)), ("URL", text(&docs.url))])
    });
    let show = |value: Value| html(&value);
    let flag = |value: Option<bool>| (value == Some(true)).to_string();
    let values = props.enum_.as_ref().map(|values| values.iter().map(|v| v.0.clone()).collect::<Vec<_>>());
    let parts = [
        ("ID", show(text(&props.id))),
        ("Schema", show(text(&props.schema))),
        ("Ref", show(json!(props.ref_path))),
        ("Description", show(text(&props.description))),
        ("Type", show(text(&props.type_))),
        ("Nullable", flag(props.nullable)),
        ("Format", show(text(&props.format))),
        ("Title", show(text(&props.title))),
        ("Default", show(json!(props.default.as_ref().map(|d| &d.0)))),
        ("Maximum", show(number(props.maximum))),
        ("ExclusiveMaximum", flag(props.exclusive_maximum)),
        ("Minimum", show(number(props.minimum))),
        ("ExclusiveMinimum", flag(props.exclusive_minimum)),
        ("MaxLength", show(json!(props.max_length))),
        ("MinLength", show(json!(props.min_length))),
        ("Pattern", show(text(&props.pattern))),
        ("MaxItems", show(json!(props.max_items))),
        ("MinItems", show(json!(props.min_items))),
        ("UniqueItems", flag(props.unique_items)),
        ("MultipleOf", show(number(props.multiple_of))),
        ("Enum", show(json!(values))),
        ("MaxProperties", show(json!(props.max_properties))),
        ("MinProperties", show(json!(props.min_properties))),
        ("Required", show(json!(props.required))),
        ("Items", items),
        ("AllOf", all(&props.all_of)),
        ("OneOf", all(&props.one_of)),
        ("AnyOf", all(&props.any_of)),
        ("Not", props.not.as_deref().map_or_else(null, dump_schema)),
        ("Properties", map(&props.properties)),
        ("AdditionalProperties", or_bool(&props.additional_properties)),
        ("PatternProperties", map(&props.pattern_properties)),
        ("Dependencies", if dependencies.is_empty() { null() } else { joined(&dependencies) }),
        ("AdditionalItems", or_bool(&props.additional_items)),
        ("Definitions", map(&props.definitions)),
        ("ExternalDocs", docs),
        ("Example", show(json!(props.example.as_ref().map(|d| &d.0)))),
        ("XPreserveUnknownFields", json!(props.x_kubernetes_preserve_unknown_fields).to_string()),
        ("XEmbeddedResource", flag(props.x_kubernetes_embedded_resource)),
        ("XIntOrString", flag(props.x_kubernetes_int_or_string)),
        ("XListMapKeys", show(json!(props.x_kubernetes_list_map_keys))),
        ("XListType", show(json!(props.x_kubernetes_list_type))),
        ("XMapType", show(json!(props.x_kubernetes_map_type))),
        ("XValidations", list(props.x_kubernetes_validations.iter().flatten().map(dump_rule).collect())),
    ];
    joined(&parts)
}
