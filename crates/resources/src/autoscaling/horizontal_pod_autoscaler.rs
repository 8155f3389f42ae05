//! HorizontalPodAutoscaler: keeps the number of pods in proportion to what metrics say.

mod metrics;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use coracle_meta::quantity::Quantity as Number;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricSpec, MetricTarget,
    ResourceMetricSource,
};
use serde_json::Value;

use crate::check::{NEGATIVE, NOT_POSITIVE, named, non_negative, one_of};
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Reference",
        "string",
        "",
        "scaleTargetRef points to the target resource to scale, and is used to the pods for \
         which metrics should be collected, as well as to actually change the replica count.",
    ),
    column(
        "Targets",
        "string",
        "",
        "metrics contains the specifications for which to use to calculate the desired replica \
         count (the maximum replica count across all metrics will be used).  The desired replica \
         count is calculated multiplying the ratio between the target value and the current \
         value by the current number of pods.  Ergo, metrics used must decrease as the pod count \
         is increased, and vice-versa.  See the individual metric source types for more \
         information about how each type of metric must respond. If not set, the default metric \
         will be set to 80% average CPU utilization.",
    ),
    column(
        "MinPods",
        "string",
        "",
        "minReplicas is the lower limit for the number of replicas to which the autoscaler can \
         scale down.  It defaults to 1 pod.  minReplicas is allowed to be 0 if the alpha feature \
         gate HPAScaleToZero is enabled and at least one Object or External metric is \
         configured.  Scaling is active as long as at least one metric value is available.",
    ),
    column(
        "MaxPods",
        "string",
        "",
        "maxReplicas is the upper limit for the number of replicas to which the autoscaler can \
         scale up. It cannot be less that minReplicas.",
    ),
    column(
        "Replicas",
        "string",
        "",
        "currentReplicas is current number of replicas of pods managed by this autoscaler, as \
         last seen by the autoscaler.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<HorizontalPodAutoscaler>(
        "horizontalpodautoscaler",
        &Typed::<HorizontalPodAutoscaler, _>::new(Autoscalers),
    )
};

struct Autoscalers;

/// Longest period of a scaling policy, in seconds.
const MAX_PERIOD: i32 = 1800;
/// Longest stabilization window, in seconds.
const MAX_WINDOW: i32 = 3600;
/// Annotations that carry what autoscaling/v1 has no fields for.
pub(super) const ROUND_TRIP: [&str; 6] = [
    "autoscaling.alpha.kubernetes.io/metrics",
    "autoscaling.alpha.kubernetes.io/current-metrics",
    "autoscaling.alpha.kubernetes.io/conditions",
    "autoscaling.alpha.kubernetes.io/behavior",
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

/// Drops the annotations that only autoscaling/v1 has.
pub(super) fn drop_round_trip(annotations: &mut Option<std::collections::BTreeMap<String, String>>) {
    if let Some(map) = annotations {
        map.retain(|key, _| !ROUND_TRIP.contains(&key.as_str()));
    }
}

impl Strategy<HorizontalPodAutoscaler> for Autoscalers {
    fn default(&self, obj: &mut HorizontalPodAutoscaler) {
        drop_round_trip(&mut obj.metadata.annotations);
        let spec = &mut obj.spec;
        spec.min_replicas.get_or_insert(1);
        let list = spec.metrics.get_or_insert_default();
        if list.is_empty() {
            list.push(cpu_utilization(80));
        }
        list.iter_mut().for_each(metrics::canonical);
        if let Some(behavior) = &mut spec.behavior {
            fill_in(behavior.scale_up.get_or_insert_default(), Some(0), &[("Pods", 4), ("Percent", 100)]);
            fill_in(behavior.scale_down.get_or_insert_default(), None, &[("Percent", 100)]);
        }
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut HorizontalPodAutoscaler) {
        obj.status = Some(HorizontalPodAutoscalerStatus::default());
    }

    fn prepare_update(
        &self,
        _: Context<'_>,
        new: &mut HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscaler,
    ) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscaler,
    ) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &HorizontalPodAutoscaler, errs: &mut ErrorList) {
        let version = if obj.spec.scale_target_ref.kind == "ReplicationController" {
            ApiVersion::Any
        } else {
            ApiVersion::WithGroup
        };
        validate_spec(&obj.spec, &Options { low: 1, target: version, described: ApiVersion::Any }, errs);
    }

    fn validate_update(
        &self,
        new: &HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscaler,
        errs: &mut ErrorList,
    ) {
        let (is, was) = (&new.spec.scale_target_ref, &old.spec.scale_target_ref);
        let target = if (&is.api_version, &is.kind) == (&was.api_version, &was.kind) {
            ApiVersion::Unchecked
        } else if is.kind == "ReplicationController" {
            ApiVersion::Any
        } else {
            ApiVersion::WithGroup
        };
        let low = if old.spec.min_replicas == Some(0) { 0 } else { 1 };
        let objects = old.spec.metrics.iter().flatten().filter(|m| m.type_ == "Object");
        let mut described = objects.filter_map(|m| Some(&m.object.as_ref()?.described_object));
        let faulty = described.any(|r| api_version_fault(r, ApiVersion::Any).is_some());
        let described = if faulty { ApiVersion::Unchecked } else { ApiVersion::Any };
        validate_spec(&new.spec, &Options { low, target, described }, errs);
    }

    fn validate_status_update(
        &self,
        new: &HorizontalPodAutoscaler,
        _: &HorizontalPodAutoscaler,
        errs: &mut ErrorList,
    ) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        non_negative(errs, &path.child("currentReplicas"), i64::from(status.current_replicas.unwrap_or(0)));
        non_negative(errs, &path.child("desiredReplicas"), i64::from(status.desired_replicas));
    }

    fn row(&self, obj: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj.spec, obj.status.as_ref());
        let target = &spec.scale_target_ref;
        let current = status.and_then(|s| s.current_metrics.as_deref()).unwrap_or_default();
        vec![
            obj.metadata.name.clone().into(),
            format!("{}/{}", target.kind, target.name).into(),
            metrics::cell(spec.metrics.as_deref().unwrap_or_default(), current).into(),
            spec.min_replicas.map_or("<unset>".to_owned(), |n| n.to_string()).into(),
            spec.max_replicas.into(),
            status.and_then(|s| s.current_replicas).unwrap_or(0).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// A metric for the mean use of CPU in percent of what pods request.
pub(super) fn cpu_utilization(percent: i32) -> MetricSpec {
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

/// Fills in what scaling rules leave open.
fn fill_in(rules: &mut HPAScalingRules, window: Option<i32>, policies: &[(&str, i32)]) {
    const PERIOD: i32 = 15;
    rules.select_policy.get_or_insert_with(|| "Max".to_owned());
    if rules.stabilization_window_seconds.is_none() {
        rules.stabilization_window_seconds = window;
    }
    let policy = |(kind, value): &(&str, i32)| HPAScalingPolicy {
        type_: (*kind).to_owned(),
        value: *value,
        period_seconds: PERIOD,
    };
    rules.policies.get_or_insert_with(|| policies.iter().map(policy).collect());
    if let Some(tolerance) = &mut rules.tolerance {
        crate::podspec::defaults::canonical(tolerance);
    }
}

/// How an `apiVersion` is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ApiVersion {
    Unchecked,
    Any,
    WithGroup,
}

struct Options {
    low: i32,
    target: ApiVersion,
    described: ApiVersion,
}

fn api_version_fault(reference: &CrossVersionObjectReference, how: ApiVersion) -> Option<String> {
    let version = text(reference.api_version.as_ref());
    match (how, version.matches('/').count()) {
        (ApiVersion::Unchecked, _) => None,
        (_, 2..) => Some(format!("unexpected GroupVersion string: {version}")),
        (ApiVersion::WithGroup, 0) => Some("apiVersion must specify API group".to_owned()),
        (ApiVersion::WithGroup, _) if version.starts_with('/') => {
            Some("apiVersion must specify API group".to_owned())
        }
        _ => None,
    }
}

fn validate_reference(
    reference: &CrossVersionObjectReference,
    how: ApiVersion,
    path: &Path,
    errs: &mut ErrorList,
) {
    for (field, value) in [("kind", &reference.kind), ("name", &reference.name)] {
        match value.as_str() {
            "" => errs.required(path.child(field), ""),
            value => named(errs, &path.child(field), value, names::path_segment),
        }
    }
    if let Some(why) = api_version_fault(reference, how) {
        errs.invalid(path.child("apiVersion"), text(reference.api_version.as_ref()), why);
    }
}

fn validate_spec(spec: &HorizontalPodAutoscalerSpec, options: &Options, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (min_at, max_at) = (path.child("minReplicas"), path.child("maxReplicas"));
    let max = spec.max_replicas;
    if let Some(min) = spec.min_replicas.filter(|min| *min < options.low) {
        errs.invalid(min_at, min, format!("must be greater than or equal to {}", options.low));
    }
    match max {
        0 => errs.required(&max_at, "must be set and greater than 0"),
        ..0 => errs.invalid(&max_at, max, "must be greater than or equal to 1"),
        _ => {}
    }
    if spec.min_replicas.is_some_and(|min| max < min) {
        errs.invalid(max_at, max, "must be greater than or equal to `minReplicas`");
    }
    validate_reference(&spec.scale_target_ref, options.target, &path.child("scaleTargetRef"), errs);
    let list = spec.metrics.as_deref().unwrap_or_default();
    for (i, metric) in list.iter().enumerate() {
        metrics::validate(metric, options.described, &path.child("metrics").index(i), errs);
    }
    let outside = list.iter().any(|metric| matches!(metric.type_.as_str(), "Object" | "External"));
    if spec.min_replicas == Some(0) && !outside {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errs.forbidden(path.child("metrics"), why);
    }
    if let Some(behavior) = &spec.behavior {
        let at = path.child("behavior");
        validate_rules(behavior.scale_up.as_ref(), &at.child("scaleUp"), errs);
        validate_rules(behavior.scale_down.as_ref(), &at.child("scaleDown"), errs);
    }
}

fn validate_rules(rules: Option<&HPAScalingRules>, path: &Path, errs: &mut ErrorList) {
    let Some(rules) = rules else { return };
    let at = path.child("stabilizationWindowSeconds");
    match rules.stabilization_window_seconds {
        Some(seconds) if seconds < 0 => {
            errs.invalid(at, seconds, "must be greater than or equal to zero");
        }
        Some(seconds) if seconds > MAX_WINDOW => {
            errs.invalid(at, seconds, format!("must be less than or equal to {MAX_WINDOW}"));
        }
        _ => {}
    }
    if let Some(policy) = &rules.select_policy {
        one_of(errs, &path.child("selectPolicy"), policy, &["Disabled", "Max", "Min"]);
    }
    let policies = rules.policies.as_deref().unwrap_or_default();
    let at = path.child("policies");
    if policies.is_empty() {
        errs.required(&at, "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = at.index(i);
        one_of(errs, &path.child("type"), &policy.type_, &["Percent", "Pods"]);
        if policy.value <= 0 {
            errs.invalid(path.child("value"), policy.value, NOT_POSITIVE);
        }
        let (at, seconds) = (path.child("periodSeconds"), policy.period_seconds);
        if seconds <= 0 {
            errs.invalid(at, seconds, NOT_POSITIVE);
        } else if seconds > MAX_PERIOD {
            errs.invalid(at, seconds, format!("must be less than or equal to {MAX_PERIOD}"));
        }
    }
    if let Some(tolerance) = rules.tolerance.as_ref().filter(|t| Number::from_api(t).sign() < 0) {
        errs.invalid(path.child("tolerance"), tolerance.0.as_str(), NEGATIVE);
    }
}
