//! One look at an autoscaler: what becomes of the target's size, of the conditions and of the status. Pure; the shell
//! reads the target and the metrics in between.

use coracle_client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::behavior::{Bounds, History};
use super::proposal::{Failure, Proposal};

pub(super) const ABLE: &str = "AbleToScale";
pub(super) const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

/// What the target's size alone decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Scaled to zero by hand: nothing is touched.
    Disabled,
    /// Out of bounds: back in, whatever the metrics say.
    Bound { to: i32, reason: &'static str },
    /// The metrics decide.
    Metrics,
}

/// A change of the target's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rescale {
    pub from: i32,
    pub to: i32,
    pub reason: String,
}

/// A look in progress: what it found so far.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// The status to be.
    pub status: HorizontalPodAutoscalerStatus,
    /// Events to record, in order.
    pub events: Vec<(EventType, &'static str, String)>,
    now: Timestamp,
}

impl Look {
    pub(super) fn new(autoscaler: &HorizontalPodAutoscaler, now: Timestamp) -> Self {
        let old = autoscaler.status.clone().unwrap_or_default();
        Self { status: old, events: Vec::new(), now }
    }

    fn warn(&mut self, reason: &'static str, message: impl Into<String>) {
        self.events.push((EventType::Warning, reason, message.into()));
    }

    pub(super) fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let all = self.status.conditions.get_or_insert_default();
        let at = all.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
            let type_ = kind.to_owned();
            all.push(HorizontalPodAutoscalerCondition { type_, ..Default::default() });
            all.len() - 1
        });
        let condition = &mut all[at];
        if condition.status != status {
            condition.last_transition_time = Some(Time(self.now));
        }
        status.clone_into(&mut condition.status);
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    /// The target's size could not be read.
    pub(super) fn no_scale(&mut self, why: &str) {
        self.warn("FailedGetScale", why);
        let message = format!("the HPA controller was unable to get the target's current scale: {why}");
        self.set(ABLE, false, "FailedGetScale", message);
    }

    /// The target's size was read: what does it decide?
    pub(super) fn plan(&mut self, autoscaler: &HorizontalPodAutoscaler, current: i32) -> Plan {
        let message = "the HPA controller was able to get the target's current scale";
        self.set(ABLE, true, "SucceededGetScale", message);
        let (min, max) = (autoscaler.spec.min_replicas.unwrap_or(1), autoscaler.spec.max_replicas);
        if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set(ACTIVE, false, "ScalingDisabled", message);
            Plan::Disabled
        } else if current > max {
            Plan::Bound { to: max, reason: "Current number of replicas above Spec.MaxReplicas" }
        } else if current < min {
            Plan::Bound { to: min, reason: "Current number of replicas below Spec.MinReplicas" }
        } else {
            Plan::Metrics
        }
    }

    /// The target's pods cannot be told: no metric is asked.
    pub(super) fn bad_selector(&mut self, event: &'static str, said: &str, message: &str) -> String {
        self.warn(event, said);
        self.without_metrics();
        let reason = if event == "AmbiguousSelector" { event } else { "InvalidSelector" };
        self.set(ACTIVE, false, reason, message);
        said.to_owned()
    }

    /// The most that any metric asks for, with its name. A metric that failed stands in the way of scaling down.
    ///
    /// # Errors
    /// No metric counts, or some failed and the others would scale down. The second part is set too where some
    /// failed and the others decide.
    pub(super) fn weigh(
        &mut self,
        outcomes: Vec<Result<Proposal, Failure>>,
        current: i32,
    ) -> Result<(Proposal, Option<String>), String> {
        let all = outcomes.len();
        let mut best: Option<Proposal> = None;
        let mut failures = Vec::new();
        let mut statuses = Vec::with_capacity(all);
        for outcome in outcomes {
            match outcome {
                Ok(proposal) => {
                    statuses.push(proposal.status.clone());
                    let most = best.as_ref().map_or(0, |best| best.replicas);
                    if most == 0 || proposal.replicas > most {
                        best = Some(proposal);
                    }
                }
                Err(failure) => {
                    statuses.push(MetricStatus::default());
                    self.warn(failure.reason, failure.said.clone());
                    failures.push(failure);
                }
            }
        }
        self.status.current_metrics = Some(statuses);
        let error = failures.first().map(|first| {
            format!(
                "invalid metrics ({} invalid out of {all}), first error is: {}",
                failures.len(),
                first.error
            )
        });
        match (best, failures.first()) {
            (Some(best), failure) if failure.is_none() || best.replicas >= current => {
                let message =
                    format!("the HPA was able to successfully calculate a replica count from {}", best.name);
                self.set(ACTIVE, true, "ValidMetricFound", message);
                Ok((best, error))
            }
            (_, Some(first)) => {
                let message = format!("the HPA was unable to compute the replica count: {}", first.said);
                self.set(ACTIVE, false, first.reason, message);
                Err(error.unwrap_or_default())
            }
            // Defaulting gives every autoscaler a metric.
            _ => Err("invalid metrics (0 invalid out of 0), first error is: no metrics".to_owned()),
        }
    }

    /// Nothing can be decided: the status keeps what was wanted before.
    pub(super) fn give_up(&mut self, current: i32, why: &str) {
        self.status.current_replicas = Some(current);
        self.warn("FailedComputeMetricsReplicas", why);
    }

    /// What the metrics' wish comes to; `None` when that is the present size.
    pub(super) fn normalize(
        &mut self,
        autoscaler: &HorizontalPodAutoscaler,
        wish: &Proposal,
        current: i32,
        history: &mut History,
        window: SignedDuration,
    ) -> Option<Rescale> {
        let spec = &autoscaler.spec;
        let wanted = wish.replicas.max(0);
        let reason = match wanted.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{} above target", wish.name),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let bounds = Bounds { min: spec.min_replicas.unwrap_or(1), max: spec.max_replicas, current };
        let normal = history.normalize(spec.behavior.as_ref(), wanted, bounds, window, self.now);
        self.set(ABLE, true, normal.able.0, normal.able.1);
        self.set(LIMITED, normal.limited, normal.limit.0, normal.limit.1);
        (normal.replicas != current).then_some(Rescale { from: current, to: normal.replicas, reason })
    }

    /// The target keeps its size.
    pub(super) fn stays(&mut self, current: i32) {
        self.status.current_replicas = Some(current);
        self.status.desired_replicas = current;
    }

    /// The target has its new size.
    pub(super) fn rescaled(&mut self, change: &Rescale) {
        let to = change.to;
        let message = format!("the HPA controller was able to update the target scale to {to}");
        self.set(ABLE, true, "SucceededRescale", message);
        let said = format!("New size: {to}; reason: {}", change.reason);
        self.events.push((EventType::Normal, "SuccessfulRescale", said));
        self.status.current_replicas = Some(change.from);
        self.status.desired_replicas = to;
        self.status.last_scale_time = Some(Time(self.now));
    }

    /// The target refused its new size.
    pub(super) fn not_rescaled(&mut self, change: &Rescale, why: &str) {
        let said = format!("New size: {}; reason: {}; error: {why}", change.to, change.reason);
        self.warn("FailedRescale", said);
        let message = format!("the HPA controller was unable to update the target scale: {why}");
        self.set(ABLE, false, "FailedUpdateScale", message);
        self.status.current_replicas = Some(change.from);
    }

    /// The metrics are not looked at this time.
    pub(super) fn without_metrics(&mut self) {
        self.status.current_metrics = None;
    }
}
