//! Claims as Go prints them in messages: the fields of its internal types, in their order.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    DeviceClaimConfiguration, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceSubRequest,
    DeviceToleration, ExactDeviceRequest, OpaqueDeviceConfiguration, ResourceClaimSpec,
    ResourceClaimTemplateSpec,
};
use serde_json::{Value, json};

use crate::common::text;

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn list<T>(items: Option<&Vec<T>>, one: impl Fn(&T) -> String) -> String {
    match items {
        Some(items) if !items.is_empty() => {
            format!("[{}]", items.iter().map(one).collect::<Vec<_>>().join(","))
        }
        _ => "null".to_owned(),
    }
}

fn option<T>(value: Option<&T>, one: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| "null".to_owned(), one)
}

fn word(value: impl Into<Value>) -> String {
    value.into().to_string()
}

/// Go escapes what HTML gives a meaning.
fn escaped(text: &str) -> String {
    text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn capacity(capacity: Option<&k8s_openapi::api::resource::v1::CapacityRequirements>) -> String {
    option(capacity, |c| object(&[("Requests", word(json!(c.requests)))]))
}

fn selectors(selectors: Option<&Vec<DeviceSelector>>) -> String {
    list(selectors, |s| {
        object(&[("CEL", option(s.cel.as_ref(), |c| object(&[("Expression", word(c.expression.as_str()))])))])
    })
}

fn tolerations(tolerations: Option<&Vec<DeviceToleration>>) -> String {
    list(tolerations, |t| {
        object(&[
            ("Key", word(text(t.key.as_ref()))),
            ("Operator", word(text(t.operator.as_ref()))),
            ("Value", word(text(t.value.as_ref()))),
            ("Effect", word(text(t.effect.as_ref()))),
            ("TolerationSeconds", word(json!(t.toleration_seconds))),
        ])
    })
}

/// The terms of a node selector.
pub(super) fn node_selector_terms(selector: &NodeSelector) -> String {
    let requirements = |rows: Option<&Vec<NodeSelectorRequirement>>| {
        list(rows, |r| {
            object(&[
                ("Key", word(r.key.as_str())),
                ("Operator", word(r.operator.as_str())),
                ("Values", word(json!(r.values))),
            ])
        })
    };
    let term = |t: &NodeSelectorTerm| {
        object(&[
            ("MatchExpressions", requirements(t.match_expressions.as_ref())),
            ("MatchFields", requirements(t.match_fields.as_ref())),
        ])
    };
    list(Some(&selector.node_selector_terms), term)
}

fn exactly(request: &ExactDeviceRequest) -> String {
    object(&[
        ("DeviceClassName", word(request.device_class_name.as_str())),
        ("Selectors", selectors(request.selectors.as_ref())),
        ("AllocationMode", word(text(request.allocation_mode.as_ref()))),
        ("Count", word(request.count.unwrap_or(0))),
        ("AdminAccess", word(json!(request.admin_access))),
        ("Tolerations", tolerations(request.tolerations.as_ref())),
        ("Capacity", capacity(request.capacity.as_ref())),
    ])
}

fn alternative(request: &DeviceSubRequest) -> String {
    object(&[
        ("Name", word(request.name.as_str())),
        ("DeviceClassName", word(request.device_class_name.as_str())),
        ("Selectors", selectors(request.selectors.as_ref())),
        ("AllocationMode", word(text(request.allocation_mode.as_ref()))),
        ("Count", word(request.count.unwrap_or(0))),
        ("Tolerations", tolerations(request.tolerations.as_ref())),
        ("Capacity", capacity(request.capacity.as_ref())),
    ])
}

fn request(request: &DeviceRequest) -> String {
    object(&[
        ("Name", word(request.name.as_str())),
        ("Exactly", option(request.exactly.as_ref(), exactly)),
        ("FirstAvailable", list(request.first_available.as_ref(), alternative)),
    ])
}

fn constraint(constraint: &DeviceConstraint) -> String {
    object(&[
        ("Requests", list(constraint.requests.as_ref(), |r| word(r.as_str()))),
        ("MatchAttribute", word(json!(constraint.match_attribute))),
        ("DistinctAttribute", word(json!(constraint.distinct_attribute))),
    ])
}

fn config(config: &DeviceClaimConfiguration) -> String {
    let opaque = |o: &OpaqueDeviceConfiguration| {
        object(&[("Driver", word(o.driver.as_str())), ("Parameters", o.parameters.0.to_string())])
    };
    object(&[
        ("Requests", list(config.requests.as_ref(), |r| word(r.as_str()))),
        ("Opaque", option(config.opaque.as_ref(), opaque)),
    ])
}

fn plain_spec(spec: &ResourceClaimSpec) -> String {
    let devices = spec.devices.clone().unwrap_or_default();
    let devices = object(&[
        ("Requests", list(devices.requests.as_ref(), request)),
        ("Constraints", list(devices.constraints.as_ref(), constraint)),
        ("Config", list(devices.config.as_ref(), config)),
    ]);
    object(&[("Devices", devices)])
}

/// The spec of a claim.
pub(super) fn spec(spec: &ResourceClaimSpec) -> String {
    escaped(&plain_spec(spec))
}

/// The spec of a template, with the metadata of its claims.
pub(super) fn template_spec(spec: &ResourceClaimTemplateSpec) -> String {
    let mut fields = Vec::new();
    if let Some(meta) = &spec.metadata {
        for (name, map) in [("labels", &meta.labels), ("annotations", &meta.annotations)] {
            fields.extend(map.as_ref().filter(|map| !map.is_empty()).map(|map| (name, word(json!(map)))));
        }
    }
    fields.push(("Spec", plain_spec(&spec.spec)));
    escaped(&object(&fields))
}
