//! How many replicas a metric asks for: pure. Pods without figures and pods that are not ready yet are counted so
//! that they dampen a change and never turn it round.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use coracle_meta::pod as podutil;
use coracle_meta::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use k8s_openapi::api::core::v1::{Container, Pod};

/// A pod's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// When it was taken.
    pub at: Timestamp,
    /// The time that it is an average over.
    pub window: SignedDuration,
    /// In thousandths.
    pub milli: i64,
}

/// Figures by the pods' names.
pub(super) type Samples = BTreeMap<String, Sample>;

/// How far the usage may be off the target, as a share of it, before anything changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    /// Below the target.
    pub down: f64,
    /// Above it.
    pub up: f64,
}

impl Tolerances {
    /// The autoscaler's own, where it has some; else the cluster's.
    pub(super) fn of(behavior: Option<&HorizontalPodAutoscalerBehavior>, cluster: f64) -> Self {
        let own = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            rules.and_then(|rules| rules.tolerance.as_ref()).map(|q| Quantity::from_api(q).as_f64())
        };
        Self {
            down: own(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(cluster),
            up: own(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(cluster),
        }
    }

    fn contain(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric's figures are held against.
#[derive(Clone, Copy)]
pub(super) struct Calculator<'a> {
    /// The target's pods.
    pub pods: &'a [Arc<Pod>],
    /// The time.
    pub now: Timestamp,
    /// How long after a pod's start its CPU figures count only while it is ready.
    pub cpu_initialization: SignedDuration,
    /// How long after a pod's start it may turn not ready and still count as never ready.
    pub readiness_delay: SignedDuration,
    /// What counts as on target.
    pub tolerances: Tolerances,
}

impl fmt::Debug for Calculator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Calculator({} pods)", self.pods.len())
    }
}

/// The use of a resource, over all pods that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Utilization {
    /// Percent of the requests.
    pub percent: i32,
    /// Per pod, in thousandths.
    pub milli: i64,
}

/// Pods by what becomes of their figures.
#[derive(Debug, Default)]
struct Groups<'a> {
    ready: usize,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
    ignored: Vec<&'a str>,
}

/// The number of replicas, rounded up; what does not fit into the type counts as its end.
#[expect(clippy::cast_possible_truncation, reason = "casts of floats saturate")]
fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

#[expect(clippy::cast_precision_loss, reason = "ratios are approximations")]
fn ratio_of(usage: i64, target: i64) -> f64 {
    usage as f64 / target as f64
}

#[expect(clippy::cast_precision_loss, reason = "numbers of pods are small")]
fn count(pods: usize) -> f64 {
    pods as f64
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

impl Calculator<'_> {
    /// Replicas that bring the use of a resource to `target` percent of the requests.
    ///
    /// # Errors
    /// No figures that count, or a pod without a request.
    pub(super) fn utilization(
        &self,
        samples: Samples,
        current: i32,
        target: i32,
        resource: &str,
        container: &str,
    ) -> Result<(i32, Utilization), String> {
        let requests = self.requests(resource, container);
        let measure = |samples: &Samples| {
            let used = utilization(samples, requests.as_ref().map_err(Clone::clone)?)?;
            Ok((f64::from(used.percent) / f64::from(target), used))
        };
        let full = i64::from(target.max(100));
        let fallback = |pod: &str| {
            requests.as_ref().ok().and_then(|r| r.get(pod)).map_or(0, |request| request * full / 100)
        };
        self.propose(samples, current, resource, measure, fallback)
    }

    /// Replicas that bring the average over the pods to `target` thousandths. `resource` is empty for metrics that
    /// are none.
    ///
    /// # Errors
    /// No figures that count.
    pub(super) fn average(
        &self,
        samples: Samples,
        current: i32,
        target: i64,
        resource: &str,
    ) -> Result<(i32, i64), String> {
        let measure = |samples: &Samples| {
            let total: i64 = samples.values().map(|s| s.milli).fold(0, i64::saturating_add);
            let usage = total / i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
            Ok((ratio_of(usage, target), usage))
        };
        self.propose(samples, current, resource, measure, |_| target)
    }

    /// Replicas that bring one figure, of all pods together, to `target` thousandths.
    ///
    /// # Errors
    /// No pods.
    pub(super) fn value(&self, usage: i64, current: i32, target: i64) -> Result<i32, String> {
        let ratio = ratio_of(usage, target);
        if current == 0 {
            return Ok(ceil(ratio));
        }
        if self.tolerances.contain(ratio) {
            return Ok(current);
        }
        if self.pods.is_empty() {
            return Err(format!("unable to calculate ready pods: {NO_PODS}"));
        }
        let ready = |pod: &&Arc<Pod>| podutil::phase(pod) == "Running" && podutil::is_ready(pod);
        Ok(ceil(ratio * count(self.pods.iter().filter(ready).count())))
    }

    /// Replicas that bring one figure, divided by the number of pods, to `target` thousandths; and that share.
    pub(super) fn share(&self, usage: i64, present: i32, target: i64) -> (i32, i64) {
        let on_target = self.tolerances.contain(ratio_of(usage, target) / f64::from(present));
        let replicas = if on_target { present } else { ceil(ratio_of(usage, target)) };
        if usage == i64::MAX {
            return (replicas, usage);
        }
        #[expect(clippy::cast_possible_truncation, reason = "casts of floats saturate")]
        let share = (ratio_of(usage, 1) / f64::from(present)).ceil() as i64;
        (replicas, share)
    }

    /// The rule for figures of single pods. `measure` tells the ratio of usage to target; `fallback` what a pod without
    /// a figure is taken to use when that would scale down.
    fn propose<T>(
        &self,
        mut samples: Samples,
        current: i32,
        resource: &str,
        measure: impl Fn(&Samples) -> Result<(f64, T), String>,
        fallback: impl Fn(&str) -> i64,
    ) -> Result<(i32, T), String> {
        if self.pods.is_empty() {
            return Err(NO_PODS.to_owned());
        }
        let groups = self.group(&samples, resource);
        for pod in groups.ignored.iter().chain(&groups.unready) {
            samples.remove(*pod);
        }
        if samples.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let (ratio, used) = measure(&samples)?;
        let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            let on_target = self.tolerances.contain(ratio);
            return Ok((if on_target { current } else { ceil(ratio * count(groups.ready)) }, used));
        }
        let mut assume = |pods: &[&str], milli: &dyn Fn(&str) -> i64| {
            for pod in pods {
                let sample = Sample { at: self.now, window: SignedDuration::ZERO, milli: milli(pod) };
                samples.insert((*pod).to_owned(), sample);
            }
        };
        if ratio < 1.0 {
            assume(&groups.missing, &fallback);
        } else if ratio > 1.0 {
            assume(&groups.missing, &|_| 0);
        }
        if up_with_unready {
            assume(&groups.unready, &|_| 0);
        }
        let (again, _) = measure(&samples)?;
        let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
        if self.tolerances.contain(again) || turned {
            return Ok((current, used));
        }
        let replicas = ceil(again * count(samples.len()));
        let turned = (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current);
        Ok((if turned { current } else { replicas }, used))
    }

    fn group(&self, samples: &Samples, resource: &str) -> Groups<'_> {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = name(pod);
            if pod.metadata.deletion_timestamp.is_some() || podutil::phase(pod) == "Failed" {
                groups.ignored.push(name);
            } else if podutil::phase(pod) == "Pending" {
                groups.unready.push(name);
            } else {
                match samples.get(name) {
                    None => groups.missing.push(name),
                    Some(sample) if resource == "cpu" && self.is_starting(pod, sample) => {
                        groups.unready.push(name);
                    }
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }

    /// Whether a pod's CPU figure tells of its start rather than of its work.
    fn is_starting(&self, pod: &Pod, sample: &Sample) -> bool {
        let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|t| t.0);
        let (Some(ready), Some(start)) = (podutil::condition(pod, "Ready"), start) else { return true };
        let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0);
        let not_ready = ready.status == "False";
        let later = |time: Timestamp, wait: SignedDuration| time.checked_add(wait).unwrap_or(Timestamp::MAX);
        if later(start, self.cpu_initialization) > self.now {
            not_ready || sample.at < later(since, sample.window)
        } else {
            not_ready && later(start, self.readiness_delay) > since
        }
    }

    /// What each pod requests of a resource, in thousandths.
    fn requests(&self, resource: &str, container: &str) -> Result<BTreeMap<String, i64>, String> {
        let one = |pod: &Arc<Pod>| Ok((name(pod).to_owned(), request(pod, resource, container)?));
        self.pods.iter().map(one).collect()
    }
}

/// The use over all pods that have both a figure and a request.
fn utilization(samples: &Samples, requests: &BTreeMap<String, i64>) -> Result<Utilization, String> {
    let (mut used, mut requested, mut pods) = (0_i64, 0_i64, 0_i64);
    for (pod, sample) in samples {
        let Some(request) = requests.get(pod) else { continue };
        used = used.saturating_add(sample.milli);
        requested = requested.saturating_add(*request);
        pods += 1;
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".to_owned());
    }
    let percent = used.saturating_mul(100) / requested;
    Ok(Utilization { percent: i32::try_from(percent).unwrap_or(i32::MAX), milli: used / pods.max(1) })
}

fn request(pod: &Pod, resource: &str, container: &str) -> Result<i64, String> {
    let milli = |q: Quantity| i64::try_from(q.milli()).unwrap_or(i64::MAX);
    let Some(spec) = &pod.spec else { return Ok(0) };
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let at_pod_level = |name: &String| name == "cpu" || name == "memory" || name.starts_with("hugepages-");
    if container.is_empty() && whole.is_some_and(|requests| requests.keys().any(at_pod_level)) {
        let requested = podutil::requests(pod).get(resource).copied();
        let missing = || format!("missing pod-level request for {resource} in Pod {}", name(pod));
        return requested.map(milli).ok_or_else(missing);
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|c| podutil::is_restartable_init(c));
    let mut total = 0_i64;
    for c in spec.containers.iter().chain(sidecars) {
        if container.is_empty() || c.name == container {
            total = total.saturating_add(of_container(c, resource).map(milli).ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {}", c.name, name(pod))
            })?);
        }
        if c.name == container {
            return Ok(total);
        }
    }
    match container {
        "" => Ok(total),
        _ => Err(format!("container {container} not found in Pod {}", name(pod))),
    }
}

fn of_container(container: &Container, resource: &str) -> Option<Quantity> {
    Some(Quantity::from_api(container.resources.as_ref()?.requests.as_ref()?.get(resource)?))
}
