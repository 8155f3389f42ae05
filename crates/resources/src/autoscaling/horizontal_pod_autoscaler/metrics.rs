//! The metrics of an autoscaler: canonical amounts, checks, and the table cell.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::autoscaling::v2::{
    MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{ApiVersion, validate_reference};
use crate::check::named;
use crate::podspec::defaults;
use crate::podspec::requirements::container_resource_name;

const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

/// The target of whichever source the metric has.
fn targets(metric: &mut MetricSpec) -> Vec<&mut MetricTarget> {
    let mut out = Vec::new();
    out.extend(metric.object.as_mut().map(|s| &mut s.target));
    out.extend(metric.external.as_mut().map(|s| &mut s.target));
    out.extend(metric.pods.as_mut().map(|s| &mut s.target));
    out.extend(metric.resource.as_mut().map(|s| &mut s.target));
    out.extend(metric.container_resource.as_mut().map(|s| &mut s.target));
    out
}

/// Brings amounts into canonical form.
pub(super) fn canonical(metric: &mut MetricSpec) {
    for target in targets(metric) {
        target.value.iter_mut().chain(&mut target.average_value).for_each(defaults::canonical);
    }
}

/// Checks one metric.
pub(super) fn validate(metric: &MetricSpec, how: ApiVersion, path: &Path, errs: &mut ErrorList) {
    let kind = metric.type_.as_str();
    if kind.is_empty() {
        errs.required(path.child("type"), "must specify a metric source type");
    }
    if !TYPES.contains(&kind) {
        // Upstream says so twice.
        errs.not_supported(path.child("type"), kind, TYPES);
        errs.not_supported(path.child("type"), kind, TYPES);
    }
    let present: Vec<&str> = [
        ("object", metric.object.is_some()),
        ("external", metric.external.is_some()),
        ("pods", metric.pods.is_some()),
        ("resource", metric.resource.is_some()),
        ("containerResource", metric.container_resource.is_some()),
    ]
    .into_iter()
    .filter(|(_, set)| *set)
    .map(|(field, _)| field)
    .collect();
    if let Some(first) = present.first() {
        source(metric, first, how, &path.child(first), errs);
    }
    let expected = match kind {
        "Object" => "object",
        "External" => "external",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => "",
    };
    if !expected.is_empty() && !present.contains(&expected) {
        errs.required(path.child(expected), "must populate information for the given metric source");
    }
    if present.len() > 1 {
        for other in present.into_iter().filter(|field| *field != expected) {
            errs.forbidden(path.child(other), "must populate the given metric source only");
        }
    }
}

fn source(metric: &MetricSpec, field: &str, how: ApiVersion, path: &Path, errs: &mut ErrorList) {
    let at = path.child("target");
    if let ("object", Some(object)) = (field, &metric.object) {
        validate_reference(&object.described_object, how, &path.child("describedObject"), errs);
        identifier(&object.metric, path, errs);
        target(&object.target, &at, errs);
        if object.target.value.is_none() && object.target.average_value.is_none() {
            errs.required(at.child("averageValue"), "must set either a target value or averageValue");
        }
    } else if let ("external", Some(external)) = (field, &metric.external) {
        identifier(&external.metric, path, errs);
        target(&external.target, &at, errs);
        match (&external.target.value, &external.target.average_value) {
            (None, None) => {
                let why = "must set either a target value for metric or a per-pod target";
                errs.required(at.child("averageValue"), why);
            }
            (Some(_), Some(_)) => {
                let why = "may not set both a target value for metric and a per-pod target";
                errs.forbidden(at.child("value"), why);
            }
            _ => {}
        }
    } else if let ("pods", Some(pods)) = (field, &metric.pods) {
        identifier(&pods.metric, path, errs);
        target(&pods.target, &at, errs);
        if pods.target.average_value.is_none() {
            errs.required(at.child("averageValue"), "must specify a positive target averageValue");
        }
    } else if let ("resource", Some(resource)) = (field, &metric.resource) {
        if resource.name.is_empty() {
            errs.required(path.child("name"), "must specify a resource name");
        }
        resource_target(&resource.target, &at, errs);
    } else if let ("containerResource", Some(resource)) = (field, &metric.container_resource) {
        match resource.name.as_str() {
            "" => errs.required(path.child("name"), "must specify a resource name"),
            name => container_resource_name(name, &path.child("name"), errs),
        }
        match resource.container.as_str() {
            "" => errs.required(path.child("container"), "must specify a container"),
            name => named(errs, &path.child("container"), name, names::dns1123_label),
        }
        resource_target(&resource.target, &at, errs);
    }
}

fn identifier(metric: &MetricIdentifier, path: &Path, errs: &mut ErrorList) {
    let at = path.child("metric").child("name");
    match metric.name.as_str() {
        "" => errs.required(at, "must specify a metric name"),
        name => named(errs, &at, name, names::path_segment),
    }
}

fn resource_target(wanted: &MetricTarget, path: &Path, errs: &mut ErrorList) {
    target(wanted, path, errs);
    match (wanted.average_utilization, &wanted.average_value) {
        (None, None) => {
            let why = "must set either a target raw value or a target utilization";
            errs.required(path.child("averageUtilization"), why);
        }
        (Some(_), Some(_)) => {
            let why = "may not set both a target raw value and a target utilization";
            errs.forbidden(path.child("averageValue"), why);
        }
        _ => {}
    }
}

fn target(wanted: &MetricTarget, path: &Path, errs: &mut ErrorList) {
    let kind = wanted.type_.as_str();
    if kind.is_empty() {
        errs.required(path.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errs.invalid(path.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for (field, amount) in [("value", &wanted.value), ("averageValue", &wanted.average_value)] {
        if let Some(amount) = amount.as_ref().filter(|amount| Number::from_api(amount).sign() <= 0) {
            errs.invalid(path.child(field), amount.0.as_str(), "must be positive");
        }
    }
    if let Some(percent) = wanted.average_utilization.filter(|percent| *percent < 1) {
        errs.invalid(path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

/// What the table shows: current and wanted values of the first two metrics.
pub(super) fn cell(specs: &[MetricSpec], statuses: &[MetricStatus]) -> String {
    const SHOWN: usize = 2;
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let cells = specs.iter().enumerate().take(SHOWN).map(|(i, spec)| one(spec, statuses.get(i)));
    let joined = cells.collect::<Vec<_>>().join(", ");
    if specs.len() > SHOWN { format!("{joined} + {} more...", specs.len() - SHOWN) } else { joined }
}

fn shown(amount: Option<&Quantity>) -> String {
    amount.map_or("<unknown>".to_owned(), |amount| Number::from_api(amount).to_string())
}

fn one(spec: &MetricSpec, status: Option<&MetricStatus>) -> String {
    let amounts = |target: &MetricTarget, current: Option<&MetricValueStatus>| match &target.average_value {
        Some(wanted) => {
            format!("{}/{} (avg)", shown(current.and_then(|c| c.average_value.as_ref())), shown(Some(wanted)))
        }
        None => {
            format!("{}/{}", shown(current.and_then(|c| c.value.as_ref())), shown(target.value.as_ref()))
        }
    };
    let uses = |name: &str, target: &MetricTarget, current: Option<&MetricValueStatus>| {
        if let Some(wanted) = &target.average_value {
            let current = shown(current.and_then(|c| c.average_value.as_ref()));
            return format!("{name}: {current}/{}", shown(Some(wanted)));
        }
        let percent = |n: Option<i32>, unset: &str| n.map_or(unset.to_owned(), |n| format!("{n}%"));
        let current = percent(current.and_then(|c| c.average_utilization), "<unknown>");
        format!("{name}: {current}/{}", percent(target.average_utilization, "<auto>"))
    };
    match spec.type_.as_str() {
        "External" => spec
            .external
            .as_ref()
            .map(|s| amounts(&s.target, status.and_then(|s| s.external.as_ref()).map(|s| &s.current))),
        "Object" => spec
            .object
            .as_ref()
            .map(|s| amounts(&s.target, status.and_then(|s| s.object.as_ref()).map(|s| &s.current))),
        "Pods" => spec.pods.as_ref().map(|s| {
            let current = status.and_then(|s| s.pods.as_ref()?.current.average_value.as_ref());
            format!("{}/{}", shown(current), shown(s.target.average_value.as_ref()))
        }),
        "Resource" => spec
            .resource
            .as_ref()
            .map(|s| uses(&s.name, &s.target, status.and_then(|s| s.resource.as_ref()).map(|s| &s.current))),
        "ContainerResource" => spec.container_resource.as_ref().map(|s| {
            let current = status.and_then(|s| s.container_resource.as_ref()).map(|s| &s.current);
            uses(&s.name, &s.target, current)
        }),
        _ => None,
    }
    .unwrap_or_else(|| "<unknown type>".to_owned())
}
