//! The annotations in which autoscaling/v1 keeps other metrics, conditions and scaling rules, in upstream's forms.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cpu_target;
use crate::go_dump;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const STATUSES: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// A metric, or its status: the names of the amounts differ.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metric {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<Source>,
}

/// All that sources of metrics say; each says a part of it, in this order.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_utilization: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_utilization: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_value: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_value: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_value: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

fn zero() -> Quantity {
    Quantity("0".to_owned())
}

/// The annotations for a stored autoscaler.
pub(super) fn write(obj: &v2::HorizontalPodAutoscaler) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut put = |key: &str, value: String| drop(out.insert(key.to_owned(), value));
    let text = |list: &[Metric]| serde_json::to_string(list).unwrap_or_default();
    let others: Vec<Metric> =
        obj.spec.metrics.iter().flatten().filter(|m| cpu_target(m).is_none()).map(metric).collect();
    if !others.is_empty() {
        put(METRICS, text(&others));
    }
    let status = obj.status.as_ref();
    let current: Vec<Metric> =
        status.iter().flat_map(|s| s.current_metrics.iter().flatten()).map(current).collect();
    if !current.is_empty() {
        put(STATUSES, text(&current));
    }
    if let Some(behavior) = &obj.spec.behavior {
        put(BEHAVIOR, go_dump::show("autoscaling.HorizontalPodAutoscalerBehavior", Some(behavior)));
    }
    let conditions: Vec<Condition> =
        status.iter().flat_map(|s| s.conditions.iter().flatten()).map(condition).collect();
    if !conditions.is_empty() {
        put(CONDITIONS, serde_json::to_string(&conditions).unwrap_or_default());
    }
    out
}

/// Adds what annotations say. Those that cannot be read count for nothing.
pub(super) fn read(
    annotations: Option<&BTreeMap<String, String>>,
    spec: &mut v2::HorizontalPodAutoscalerSpec,
    status: &mut v2::HorizontalPodAutoscalerStatus,
) {
    let get = |key: &str| annotations.and_then(|a| a.get(key));
    let list = |key: &str| -> Option<Vec<Metric>> { serde_json::from_str(get(key)?).ok() };
    if let Some(others) = list(METRICS) {
        let cpu = spec.metrics.take().unwrap_or_default();
        spec.metrics = Some(others.into_iter().map(metric_of).chain(cpu).collect());
    }
    if let Some(current) = list(STATUSES) {
        status.current_metrics = Some(current.into_iter().map(status_of).collect());
    }
    let behavior = get(BEHAVIOR).and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(behavior) = behavior.and_then(|value| serde_json::from_value(lower_keys(value)).ok())
        && behavior != v2::HorizontalPodAutoscalerBehavior::default()
    {
        spec.behavior = Some(behavior);
    }
    let conditions = get(CONDITIONS).and_then(|text| serde_json::from_str::<Vec<Condition>>(text).ok());
    if let Some(conditions) = conditions {
        status.conditions = Some(conditions.into_iter().map(condition_of).collect());
    }
}

/// Keys as the API writes them: `ScaleUp` is `scaleUp` there; what is null goes.
fn lower_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| {
                let mut letters = key.chars();
                let first = letters.next().map(|c| c.to_ascii_lowercase());
                (first.into_iter().chain(letters).collect::<String>(), lower_keys(value))
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(lower_keys).collect(),
        other => other,
    }
}

fn reference(from: &v2::CrossVersionObjectReference) -> Reference {
    Reference { kind: from.kind.clone(), name: from.name.clone(), api_version: from.api_version.clone() }
}

fn reference_of(from: Option<Reference>) -> v2::CrossVersionObjectReference {
    let from = from.unwrap_or_default();
    v2::CrossVersionObjectReference { api_version: from.api_version, kind: from.kind, name: from.name }
}

fn metric(from: &v2::MetricSpec) -> Metric {
    let resource = |name: &str, target: &v2::MetricTarget, container: Option<&String>| Source {
        name: Some(name.to_owned()),
        target_average_utilization: target.average_utilization,
        target_average_value: target.average_value.clone(),
        container: container.cloned(),
        ..Source::default()
    };
    Metric {
        kind: from.type_.clone(),
        object: from.object.as_ref().map(|s| Source {
            target: Some(reference(&s.described_object)),
            metric_name: Some(s.metric.name.clone()),
            target_value: Some(s.target.value.clone().unwrap_or_else(zero)),
            selector: s.metric.selector.clone(),
            average_value: s.target.average_value.clone(),
            ..Source::default()
        }),
        pods: from.pods.as_ref().map(|s| Source {
            metric_name: Some(s.metric.name.clone()),
            target_average_value: Some(s.target.average_value.clone().unwrap_or_else(zero)),
            selector: s.metric.selector.clone(),
            ..Source::default()
        }),
        resource: from.resource.as_ref().map(|s| resource(&s.name, &s.target, None)),
        container_resource: from
            .container_resource
            .as_ref()
            .map(|s| resource(&s.name, &s.target, Some(&s.container))),
        external: from.external.as_ref().map(|s| Source {
            metric_name: Some(s.metric.name.clone()),
            metric_selector: s.metric.selector.clone(),
            target_value: s.target.value.clone(),
            target_average_value: s.target.average_value.clone(),
            ..Source::default()
        }),
    }
}

fn target(
    kind: &str,
    value: Option<Quantity>,
    average: Option<Quantity>,
    use_: Option<i32>,
) -> v2::MetricTarget {
    v2::MetricTarget { type_: kind.to_owned(), value, average_value: average, average_utilization: use_ }
}

fn identifier(name: Option<String>, selector: Option<LabelSelector>) -> v2::MetricIdentifier {
    v2::MetricIdentifier { name: name.unwrap_or_default(), selector }
}

fn metric_of(from: Metric) -> v2::MetricSpec {
    let use_target = |s: &Source| {
        let kind = if s.target_average_utilization.is_some() { "Utilization" } else { "AverageValue" };
        target(kind, None, s.target_average_value.clone(), s.target_average_utilization)
    };
    v2::MetricSpec {
        type_: from.kind,
        object: from.object.map(|s| {
            // The old form cannot leave the value out and says 0 instead.
            let value = s.target_value.filter(|v| s.average_value.is_none() || v.0 != "0");
            let kind = if s.average_value.is_some() { "AverageValue" } else { "Value" };
            v2::ObjectMetricSource {
                described_object: reference_of(s.target),
                metric: identifier(s.metric_name, s.selector),
                target: target(kind, value, s.average_value, None),
            }
        }),
        pods: from.pods.map(|s| v2::PodsMetricSource {
            metric: identifier(s.metric_name, s.selector),
            target: target("AverageValue", None, s.target_average_value, None),
        }),
        resource: from
            .resource
            .map(|s| v2::ResourceMetricSource { target: use_target(&s), name: s.name.unwrap_or_default() }),
        container_resource: from.container_resource.map(|s| v2::ContainerResourceMetricSource {
            target: use_target(&s),
            name: s.name.unwrap_or_default(),
            container: s.container.unwrap_or_default(),
        }),
        external: from.external.map(|s| {
            let kind = if s.target_value.is_some() { "Value" } else { "AverageValue" };
            v2::ExternalMetricSource {
                metric: identifier(s.metric_name, s.metric_selector),
                target: target(kind, s.target_value, s.target_average_value, None),
            }
        }),
    }
}

fn current(from: &v2::MetricStatus) -> Metric {
    let resource = |name: &str, now: &v2::MetricValueStatus, container: Option<&String>| Source {
        name: Some(name.to_owned()),
        current_average_utilization: now.average_utilization,
        current_average_value: Some(now.average_value.clone().unwrap_or_else(zero)),
        container: container.cloned(),
        ..Source::default()
    };
    Metric {
        kind: from.type_.clone(),
        object: from.object.as_ref().map(|s| Source {
            target: Some(reference(&s.described_object)),
            metric_name: Some(s.metric.name.clone()),
            current_value: Some(s.current.value.clone().unwrap_or_else(zero)),
            selector: s.metric.selector.clone(),
            average_value: s.current.average_value.clone(),
            ..Source::default()
        }),
        pods: from.pods.as_ref().map(|s| Source {
            metric_name: Some(s.metric.name.clone()),
            current_average_value: Some(s.current.average_value.clone().unwrap_or_else(zero)),
            selector: s.metric.selector.clone(),
            ..Source::default()
        }),
        resource: from.resource.as_ref().map(|s| resource(&s.name, &s.current, None)),
        container_resource: from
            .container_resource
            .as_ref()
            .map(|s| resource(&s.name, &s.current, Some(&s.container))),
        external: from.external.as_ref().map(|s| Source {
            metric_name: Some(s.metric.name.clone()),
            metric_selector: s.metric.selector.clone(),
            current_value: Some(s.current.value.clone().unwrap_or_else(zero)),
            current_average_value: s.current.average_value.clone(),
            ..Source::default()
        }),
    }
}

fn status_of(from: Metric) -> v2::MetricStatus {
    let now = |value: Option<Quantity>, average: Option<Quantity>, use_: Option<i32>| v2::MetricValueStatus {
        value,
        average_value: average,
        average_utilization: use_,
    };
    v2::MetricStatus {
        type_: from.kind,
        object: from.object.map(|s| v2::ObjectMetricStatus {
            current: now(s.current_value, s.average_value, None),
            described_object: reference_of(s.target),
            metric: identifier(s.metric_name, s.selector),
        }),
        pods: from.pods.map(|s| v2::PodsMetricStatus {
            current: now(None, s.current_average_value, None),
            metric: identifier(s.metric_name, s.selector),
        }),
        resource: from.resource.map(|s| v2::ResourceMetricStatus {
            current: now(None, s.current_average_value, s.current_average_utilization),
            name: s.name.unwrap_or_default(),
        }),
        container_resource: from.container_resource.map(|s| v2::ContainerResourceMetricStatus {
            current: now(None, s.current_average_value, s.current_average_utilization),
            name: s.name.unwrap_or_default(),
            container: s.container.unwrap_or_default(),
        }),
        external: from.external.map(|s| v2::ExternalMetricStatus {
            current: now(s.current_value, s.current_average_value, None),
            metric: identifier(s.metric_name, s.metric_selector),
        }),
    }
}

fn condition(from: &v2::HorizontalPodAutoscalerCondition) -> Condition {
    Condition {
        kind: from.type_.clone(),
        status: from.status.clone(),
        last_transition_time: from.last_transition_time.clone(),
        reason: from.reason.clone(),
        message: from.message.clone(),
    }
}

fn condition_of(from: Condition) -> v2::HorizontalPodAutoscalerCondition {
    v2::HorizontalPodAutoscalerCondition {
        type_: from.kind,
        status: from.status,
        last_transition_time: from.last_transition_time,
        reason: from.reason,
        message: from.message,
    }
}
