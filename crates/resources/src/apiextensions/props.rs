//! Walks schemas in their API form, which may say more than a structural schema can.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    JSONSchemaPropsOrStringArray,
};

/// The schemas directly below one.
pub(super) fn below(props: &JSONSchemaProps) -> Vec<&JSONSchemaProps> {
    let mut out: Vec<&JSONSchemaProps> = Vec::new();
    match &props.items {
        Some(JSONSchemaPropsOrArray::Schema(one)) => out.push(one),
        Some(JSONSchemaPropsOrArray::Schemas(many)) => out.extend(many),
        None => {}
    }
    for list in [&props.all_of, &props.any_of, &props.one_of] {
        out.extend(list.iter().flatten());
    }
    out.extend(props.not.as_deref());
    out.extend(props.properties.iter().flat_map(|map| map.values()));
    for rest in [&props.additional_properties, &props.additional_items] {
        if let Some(JSONSchemaPropsOrBool::Schema(one)) = rest {
            out.push(one);
        }
    }
    for map in [&props.pattern_properties, &props.definitions] {
        out.extend(map.iter().flat_map(|map| map.values()));
    }
    for dependency in props.dependencies.iter().flat_map(|map| map.values()) {
        if let JSONSchemaPropsOrStringArray::Schema(one) = dependency {
            out.push(one);
        }
    }
    out
}

/// Whether a schema or one below it is so.
pub(super) fn any(props: &JSONSchemaProps, is: &dyn Fn(&JSONSchemaProps) -> bool) -> bool {
    is(props) || below(props).into_iter().any(|inner| any(inner, is))
}

/// The schemas of all versions.
pub(super) fn of(crd: &CustomResourceDefinition) -> impl Iterator<Item = &JSONSchemaProps> {
    let schemas = crd.spec.versions.iter().filter_map(|version| version.schema.as_ref());
    schemas.filter_map(|schema| schema.open_api_v3_schema.as_ref())
}

/// The one schema of the items, if it is one.
pub(super) fn items(props: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &props.items {
        Some(JSONSchemaPropsOrArray::Schema(one)) => Some(one),
        _ => None,
    }
}

/// `type`, empty when absent.
pub(super) fn kind(props: &JSONSchemaProps) -> &str {
    props.type_.as_deref().unwrap_or("")
}
