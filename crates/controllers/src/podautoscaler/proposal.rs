//! What each metric of an autoscaler proposes, in the API's own terms and upstream's words: pure, given the readings.

use coracle_meta::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource,
    PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::replicas::{Calculator, Samples};

/// What was read of a metric.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    /// A figure of each pod.
    Pods(Samples),
    /// One figure, or several that are added up.
    Values(Vec<i64>),
}

/// What a metric asks for.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub replicas: i32,
    /// The metric, as reasons of changes name it.
    pub name: String,
    pub status: MetricStatus,
}

/// Why a metric asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Of the event and of the `ScalingActive` condition.
    pub reason: &'static str,
    /// What the event says.
    pub said: String,
    /// What the autoscaler as a whole says.
    pub error: String,
}

/// The target's size, as its scale tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Asked for.
    pub spec: i32,
    /// There now.
    pub status: i32,
}

fn api_milli(quantity: &ApiQuantity) -> i64 {
    i64::try_from(Quantity::from_api(quantity).milli()).unwrap_or(i64::MAX)
}

fn amount(milli: i64) -> Option<ApiQuantity> {
    Some(Quantity::from_milli(i128::from(milli)).to_api())
}

/// Memory prints as metrics servers print it.
fn amount_of(resource: &str, milli: i64) -> Option<ApiQuantity> {
    let quantity = Quantity::from_milli(i128::from(milli));
    Some(if resource == "memory" { quantity.binary() } else { quantity }.to_api())
}

/// A selector as Go prints it.
pub(super) fn printed(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|e| {
            let values = e.values.as_deref().unwrap_or(&[]).join(" ");
            format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", e.key, e.operator)
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},\
         MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn total(values: &[i64]) -> i64 {
    values.iter().fold(0, |sum, value| sum.saturating_add(*value))
}

/// A failed step; the text of the whole is made of the text of the step.
fn failed(reason: &'static str, said: String, error: impl FnOnce(&str) -> String) -> Failure {
    let error = error(&said);
    Failure { reason, said, error }
}

/// What a metric proposes, from its reading or from why there is none.
///
/// # Errors
/// No reading, or one that proposes nothing.
pub(super) fn propose(
    calculator: &Calculator<'_>,
    namespace: &str,
    spec: &MetricSpec,
    reading: Result<Reading, String>,
    size: Size,
) -> Result<Proposal, Failure> {
    if let Some(source) = &spec.resource {
        let whole = Resource { name: &source.name, container: "", target: &source.target };
        return whole.propose(calculator, reading, size.spec).map(|(replicas, name, current)| {
            let resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
            Proposal { replicas, name, status: status(spec, |s| s.resource = resource) }
        });
    }
    if let Some(source) = &spec.container_resource {
        let one = Resource { name: &source.name, container: &source.container, target: &source.target };
        return one.propose(calculator, reading, size.spec).map(|(replicas, name, current)| {
            let (container, resource) = (source.container.clone(), source.name.clone());
            let part = Some(ContainerResourceMetricStatus { container, name: resource, current });
            Proposal { replicas, name, status: status(spec, |s| s.container_resource = part) }
        });
    }
    match (&spec.pods, &spec.object, &spec.external) {
        (Some(source), ..) => of_pods(calculator, spec, source, reading, size),
        (_, Some(source), _) => of_object(calculator, namespace, spec, source, reading, size),
        (.., Some(source)) => external(calculator, namespace, spec, source, reading, size),
        _ => {
            let said = format!("unknown metric source type {:?}", spec.type_);
            Err(failed("InvalidMetricSourceType", said, str::to_owned))
        }
    }
}

fn status(spec: &MetricSpec, fill: impl FnOnce(&mut MetricStatus)) -> MetricStatus {
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    fill(&mut status);
    status
}

fn samples(reading: Result<Reading, String>) -> Result<Samples, String> {
    reading.map(|reading| match reading {
        Reading::Pods(samples) => samples,
        Reading::Values(_) => Samples::new(),
    })
}

fn values(reading: Result<Reading, String>) -> Result<i64, String> {
    reading.map(|reading| match reading {
        Reading::Values(values) => total(&values),
        Reading::Pods(_) => 0,
    })
}

/// A resource metric, of pods or of one container of each.
struct Resource<'a> {
    name: &'a str,
    container: &'a str,
    target: &'a MetricTarget,
}

impl Resource<'_> {
    fn propose(
        &self,
        calculator: &Calculator<'_>,
        reading: Result<Reading, String>,
        current: i32,
    ) -> Result<(i32, String, MetricValueStatus), Failure> {
        let name = self.name;
        let samples =
            samples(reading).map_err(|why| format!("unable to get metrics for resource {name}: {why}"));
        if let Some(target) = &self.target.average_value {
            let proposed = samples.and_then(|s| calculator.average(s, current, api_milli(target), name));
            let (replicas, milli) =
                proposed.map_err(|why| self.failed(format!("failed to get {name} usage: {why}")))?;
            let current = MetricValueStatus { average_value: amount_of(name, milli), ..Default::default() };
            return Ok((replicas, format!("{name} resource"), current));
        }
        let Some(target) = self.target.average_utilization else {
            let why = "invalid resource metric source: neither an average utilization target nor an average value \
                       (usage) target was set";
            return Err(self.failed(why.to_owned()));
        };
        let proposed = samples.and_then(|s| calculator.utilization(s, current, target, name, self.container));
        let (replicas, used) =
            proposed.map_err(|why| self.failed(format!("failed to get {name} utilization: {why}")))?;
        let current = MetricValueStatus {
            average_utilization: Some(used.percent),
            average_value: amount_of(name, used.milli),
            value: None,
        };
        let part = if self.container.is_empty() { "" } else { "container " };
        Ok((replicas, format!("{name} {part}resource utilization (percentage of request)"), current))
    }

    fn failed(&self, said: String) -> Failure {
        match self.container {
            "" => failed("FailedGetResourceMetric", said, |said| {
                format!("failed to get {} resource metric value: {said}", self.name)
            }),
            container => failed("FailedGetContainerResourceMetric", said, |said| {
                format!("failed to get {container} container metric value: {said}")
            }),
        }
    }
}

fn of_pods(
    calculator: &Calculator<'_>,
    spec: &MetricSpec,
    source: &PodsMetricSource,
    reading: Result<Reading, String>,
    size: Size,
) -> Result<Proposal, Failure> {
    let name = &source.metric.name;
    let target = source.target.average_value.as_ref().map_or(0, api_milli);
    let samples = samples(reading).map_err(|why| format!("unable to get metric {name}: {why}"));
    let proposed = samples.and_then(|samples| calculator.average(samples, size.spec, target, ""));
    let (replicas, milli) = proposed.map_err(|why| {
        failed("FailedGetPodsMetric", why, |why| format!("failed to get pods metric value: {why}"))
    })?;
    let current = MetricValueStatus { average_value: amount(milli), ..MetricValueStatus::default() };
    let pods = Some(PodsMetricStatus { current, metric: source.metric.clone() });
    Ok(Proposal { replicas, name: format!("pods metric {name}"), status: status(spec, |s| s.pods = pods) })
}

fn of_object(
    calculator: &Calculator<'_>,
    namespace: &str,
    spec: &MetricSpec,
    source: &ObjectMetricSource,
    reading: Result<Reading, String>,
    size: Size,
) -> Result<Proposal, Failure> {
    const REASON: &str = "FailedGetObjectMetric";
    let (name, object, target) = (&source.metric.name, &source.described_object, &source.target);
    let whole = |why: &str| format!("failed to get object metric value: {why}");
    // In upstream's order, which puts the cause last.
    let usage = values(reading).map_err(|why| {
        format!("unable to get metric {name}: {} on {namespace} {}/{why}", object.kind, object.name)
    });
    let done = |replicas, name, current| {
        let object = Some(ObjectMetricStatus {
            current,
            described_object: object.clone(),
            metric: source.metric.clone(),
        });
        Ok(Proposal { replicas, name, status: status(spec, |s| s.object = object) })
    };
    match (target.type_.as_str(), &target.value, &target.average_value) {
        ("Value", Some(target), _) => {
            let target = api_milli(target);
            let proposed = usage.and_then(|usage| Ok((calculator.value(usage, size.spec, target)?, usage)));
            let (replicas, usage) = proposed.map_err(|why| failed(REASON, why, whole))?;
            let current = MetricValueStatus { value: amount(usage), ..MetricValueStatus::default() };
            done(replicas, format!("{} metric {name}", object.kind), current)
        }
        ("AverageValue", _, Some(target)) => {
            let usage = usage.map_err(|why| {
                failed(REASON, why, |why| whole(&format!("failed to get {name} object metric: {why}")))
            })?;
            let (replicas, share) = calculator.share(usage, size.status, api_milli(target));
            let current = MetricValueStatus { average_value: amount(share), ..MetricValueStatus::default() };
            let selector = printed(source.metric.selector.as_ref());
            done(replicas, format!("external metric {name}({selector})"), current)
        }
        _ => {
            let why =
                "invalid object metric source: neither a value target nor an average value target was set";
            Err(failed(REASON, why.to_owned(), whole))
        }
    }
}

fn external(
    calculator: &Calculator<'_>,
    namespace: &str,
    spec: &MetricSpec,
    source: &ExternalMetricSource,
    reading: Result<Reading, String>,
    size: Size,
) -> Result<Proposal, Failure> {
    const REASON: &str = "FailedGetExternalMetric";
    let name = &source.metric.name;
    let selector = printed(source.metric.selector.as_ref());
    let whole = |why: &str| format!("failed to get {name} external metric value: {why}");
    let usage = values(reading)
        .map_err(|why| format!("unable to get external metric {namespace}/{name}/{selector}: {why}"));
    let (replicas, current) = match (&source.target.average_value, &source.target.value) {
        (Some(target), _) => {
            let usage = usage.map_err(|why| {
                failed(REASON, why, |why| whole(&format!("failed to get {name} external metric: {why}")))
            })?;
            let (replicas, share) = calculator.share(usage, size.status, api_milli(target));
            (replicas, MetricValueStatus { average_value: amount(share), ..MetricValueStatus::default() })
        }
        (None, Some(target)) => {
            let target = api_milli(target);
            let proposed = usage.and_then(|usage| Ok((calculator.value(usage, size.spec, target)?, usage)));
            let (replicas, usage) = proposed.map_err(|why| {
                failed(REASON, why, |why| whole(&format!("failed to get external metric {name}: {why}")))
            })?;
            (replicas, MetricValueStatus { value: amount(usage), ..MetricValueStatus::default() })
        }
        (None, None) => {
            let why =
                "invalid external metric source: neither a value target nor an average value target was set";
            return Err(failed(REASON, why.to_owned(), whole));
        }
    };
    let metric = source.metric.clone();
    let external = Some(ExternalMetricStatus { current, metric });
    let name = format!("external metric {name}({selector})");
    Ok(Proposal { replicas, name, status: status(spec, |s| s.external = external) })
}
