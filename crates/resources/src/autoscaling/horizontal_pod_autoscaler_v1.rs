//! HorizontalPodAutoscaler as autoscaling/v1 shows it: one CPU target; what else there is stands in annotations.

mod annotations;

use coracle_meta::object_meta::Recheck;
use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::{v1, v2};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::horizontal_pod_autoscaler::{self as stored, COLUMNS, cpu_utilization, drop_round_trip};
use crate::def::{ResourceDef, Subresource};
use crate::version::{Conversion, ServedVersion};

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<v1::HorizontalPodAutoscaler>(
        "horizontalpodautoscaler",
        &ServedVersion::new(Autoscalers),
    )
};

struct Autoscalers;

impl Conversion for Autoscalers {
    type Served = v1::HorizontalPodAutoscaler;
    type Stored = v2::HorizontalPodAutoscaler;

    fn stored(&self) -> &'static ResourceDef {
        &stored::DEF
    }

    fn default(&self, obj: &mut v1::HorizontalPodAutoscaler) {
        obj.spec.min_replicas.get_or_insert(1);
    }

    fn to_stored(&self, obj: v1::HorizontalPodAutoscaler) -> v2::HorizontalPodAutoscaler {
        let target = obj.spec.scale_target_ref;
        let cpu = obj.spec.target_cpu_utilization_percentage.map(cpu_utilization);
        let mut spec = v2::HorizontalPodAutoscalerSpec {
            behavior: None,
            max_replicas: obj.spec.max_replicas,
            metrics: cpu.map(|metric| vec![metric]),
            min_replicas: obj.spec.min_replicas,
            scale_target_ref: v2::CrossVersionObjectReference {
                api_version: target.api_version,
                kind: target.kind,
                name: target.name,
            },
        };
        let mut status = obj.status.map(status_to_stored).unwrap_or_default();
        let mut metadata = obj.metadata;
        annotations::read(metadata.annotations.as_ref(), &mut spec, &mut status);
        if spec.metrics.as_ref().is_none_or(Vec::is_empty) {
            spec.metrics = Some(vec![cpu_utilization(80)]);
        }
        drop_annotations(&mut metadata);
        v2::HorizontalPodAutoscaler { metadata, spec, status: Some(status) }
    }

    fn to_served(&self, obj: &v2::HorizontalPodAutoscaler) -> v1::HorizontalPodAutoscaler {
        let (spec, target) = (&obj.spec, &obj.spec.scale_target_ref);
        let mut metadata = obj.metadata.clone();
        drop_annotations(&mut metadata);
        let added = annotations::write(obj);
        if !added.is_empty() {
            metadata.annotations.get_or_insert_default().extend(added);
        }
        v1::HorizontalPodAutoscaler {
            metadata,
            spec: v1::HorizontalPodAutoscalerSpec {
                max_replicas: spec.max_replicas,
                min_replicas: spec.min_replicas,
                scale_target_ref: v1::CrossVersionObjectReference {
                    api_version: target.api_version.clone(),
                    kind: target.kind.clone(),
                    name: target.name.clone(),
                },
                target_cpu_utilization_percentage: spec.metrics.iter().flatten().find_map(cpu_target),
            },
            status: obj.status.as_ref().map(status_from_stored),
        }
    }
}

fn drop_annotations(metadata: &mut ObjectMeta) {
    drop_round_trip(&mut metadata.annotations);
    if metadata.annotations.as_ref().is_some_and(BTreeMap::is_empty) {
        metadata.annotations = None;
    }
}

/// The CPU target that a metric is, if it is one.
fn cpu_target(metric: &v2::MetricSpec) -> Option<i32> {
    let resource = metric.resource.as_ref().filter(|r| metric.type_ == "Resource" && r.name == "cpu")?;
    resource.target.average_utilization
}

fn status_to_stored(status: v1::HorizontalPodAutoscalerStatus) -> v2::HorizontalPodAutoscalerStatus {
    let cpu = status.current_cpu_utilization_percentage.map(|percent| v2::MetricStatus {
        type_: "Resource".to_owned(),
        resource: Some(v2::ResourceMetricStatus {
            name: "cpu".to_owned(),
            current: v2::MetricValueStatus {
                average_utilization: Some(percent),
                ..v2::MetricValueStatus::default()
            },
        }),
        ..v2::MetricStatus::default()
    });
    v2::HorizontalPodAutoscalerStatus {
        conditions: None,
        current_metrics: cpu.map(|metric| vec![metric]),
        current_replicas: Some(status.current_replicas),
        desired_replicas: status.desired_replicas,
        last_scale_time: status.last_scale_time,
        observed_generation: status.observed_generation,
    }
}

fn status_from_stored(status: &v2::HorizontalPodAutoscalerStatus) -> v1::HorizontalPodAutoscalerStatus {
    let cpu = |metric: &v2::MetricStatus| {
        let resource = metric.resource.as_ref().filter(|r| metric.type_ == "Resource" && r.name == "cpu")?;
        resource.current.average_utilization
    };
    v1::HorizontalPodAutoscalerStatus {
        current_cpu_utilization_percentage: status
            .current_metrics
            .iter()
            .flatten()
            .filter_map(cpu)
            .next_back(),
        current_replicas: status.current_replicas.unwrap_or(0),
        desired_replicas: status.desired_replicas,
        last_scale_time: status.last_scale_time.clone(),
        observed_generation: status.observed_generation,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored() -> v2::HorizontalPodAutoscaler {
        serde_json::from_value(json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "h" },
            "spec": {
                "maxReplicas": 5, "minReplicas": 1, "scaleTargetRef": { "kind": "Deployment", "name": "d" },
                "metrics": [
                    { "type": "Pods", "pods": { "metric": { "name": "rps" },
                      "target": { "type": "AverageValue", "averageValue": "1k" } } },
                    { "type": "Resource", "resource": { "name": "cpu",
                      "target": { "type": "Utilization", "averageUtilization": 60 } } }],
                "behavior": { "scaleUp": { "selectPolicy": "Min", "stabilizationWindowSeconds": 30,
                    "policies": [{ "type": "Pods", "value": 4, "periodSeconds": 15 }] } } },
            "status": { "currentReplicas": 2, "desiredReplicas": 3,
                "conditions": [{ "type": "AbleToScale", "status": "True" }],
                "currentMetrics": [{ "type": "Resource", "resource": { "name": "cpu",
                    "current": { "averageUtilization": 10, "averageValue": "5m" } } }] } }))
        .expect("an autoscaler")
    }

    #[test]
    fn what_v1_cannot_say_survives_in_annotations() {
        let served = Autoscalers.to_served(&stored());
        assert_eq!(served.spec.target_cpu_utilization_percentage, Some(60));
        let annotations = served.metadata.annotations.clone().expect("annotations");
        assert_eq!(
            annotations["autoscaling.alpha.kubernetes.io/metrics"],
            "[{\"type\":\"Pods\",\"pods\":{\"metricName\":\"rps\",\"targetAverageValue\":\"1k\"}}]"
        );
        assert_eq!(Autoscalers.to_stored(served), stored());
    }

    #[test]
    fn an_autoscaler_without_metrics_aims_at_cpu() {
        let served = v1::HorizontalPodAutoscaler::default();
        let stored = Autoscalers.to_stored(served);
        assert_eq!(stored.spec.metrics, Some(vec![cpu_utilization(80)]));
    }
}
