//! What a recommendation becomes: stabilized by those before it, kept to the scaling rules and to the bounds.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// What an autoscaler remembers between its looks; lost with the process, as upstream's.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    recommendations: Vec<(i32, Timestamp)>,
    ups: Vec<(i32, Timestamp)>,
    downs: Vec<(i32, Timestamp)>,
}

/// A number with what the `AbleToScale` and `ScalingLimited` conditions say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normalized {
    pub replicas: i32,
    /// Reason and message of `AbleToScale`, which is true.
    pub able: (&'static str, &'static str),
    pub limited: bool,
    /// Reason and message of `ScalingLimited`.
    pub limit: (&'static str, &'static str),
}

/// The bounds of an autoscaler and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub min: i32,
    pub max: i32,
    pub current: i32,
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_FAST_UP: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

fn before(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
}

impl History {
    /// Before the first recommendation, the number found counts as one.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((current, now));
        }
    }

    /// Remembers a change of the target for the rules to come.
    pub(super) fn scaled(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        from: i32,
        to: i32,
        now: Timestamp,
    ) {
        let Some(behavior) = behavior else { return };
        let rules = [behavior.scale_up.as_ref(), behavior.scale_down.as_ref()];
        let policies = rules.into_iter().flatten().filter_map(|rules| rules.policies.as_ref()).flatten();
        let oldest = before(now, i64::from(policies.map(|p| p.period_seconds).max().unwrap_or(0)));
        let events = if to > from { &mut self.ups } else { &mut self.downs };
        events.retain(|(_, at)| *at >= oldest);
        events.push((to.saturating_sub(from).saturating_abs(), now));
    }

    /// Normalizes a recommendation, and remembers it. `window` is the cluster's for scaling down.
    pub(super) fn normalize(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        recommended: i32,
        bounds: Bounds,
        window: SignedDuration,
        now: Timestamp,
    ) -> Normalized {
        let Some(behavior) = behavior else { return self.normalize_plain(recommended, bounds, window, now) };
        let (none, window) = (HPAScalingRules::default(), window.as_secs());
        let up = behavior.scale_up.as_ref().unwrap_or(&none);
        let down = behavior.scale_down.as_ref().unwrap_or(&none);
        let up_from = before(now, up.stabilization_window_seconds.map_or(0, i64::from));
        let down_from = before(now, down.stabilization_window_seconds.map_or(window, i64::from));
        let recent = |from: Timestamp| {
            self.recommendations.iter().filter(move |(_, at)| *at > from).map(|(replicas, _)| *replicas)
        };
        let least = recent(up_from).fold(recommended, i32::min);
        let most = recent(down_from).fold(recommended, i32::max);
        let stable = bounds.current.max(least).min(most);
        self.remember(recommended, up_from.min(down_from), now);
        let why = if recommended >= bounds.current { UP_STABILIZED } else { DOWN_STABILIZED };
        let able = if stable == recommended { READY } else { why };
        let (replicas, limit) = self.limit(stable, bounds, up, down, now);
        Normalized { replicas, able, limited: replicas != stable, limit }
    }

    fn normalize_plain(
        &mut self,
        recommended: i32,
        bounds: Bounds,
        window: SignedDuration,
        now: Timestamp,
    ) -> Normalized {
        let from = before(now, window.as_secs());
        let recent = self.recommendations.iter().filter(|(_, at)| *at >= from).map(|(replicas, _)| *replicas);
        let stable = recent.fold(recommended, i32::max);
        self.remember(recommended, from, now);
        let able = if stable == recommended { READY } else { DOWN_STABILIZED };
        // Never more than twice as many at once, but always up to four: figures at the start are wild.
        let fastest = bounds.current.saturating_mul(2).max(4);
        let (most, why) = if bounds.max > fastest { (fastest, TOO_FAST_UP) } else { (bounds.max, TOO_MANY) };
        let (replicas, limit) = if stable < bounds.min {
            (bounds.min, TOO_FEW)
        } else if stable > most {
            (most, why)
        } else {
            (stable, WITHIN)
        };
        Normalized { replicas, able, limited: replicas != stable, limit }
    }

    fn remember(&mut self, recommended: i32, oldest: Timestamp, now: Timestamp) {
        self.recommendations.retain(|(_, at)| *at >= oldest);
        self.recommendations.push((recommended, now));
    }

    fn limit(
        &self,
        wanted: i32,
        bounds: Bounds,
        up: &HPAScalingRules,
        down: &HPAScalingRules,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        let current = bounds.current;
        if wanted > current {
            let fastest = self.limit_up(current, up, now).max(current);
            let (most, why) =
                if bounds.max > fastest { (fastest, TOO_FAST_UP) } else { (bounds.max, TOO_MANY) };
            if wanted > most {
                return (most, why);
            }
        } else if wanted < current {
            let fastest = self.limit_down(current, down, now).min(current);
            let (least, why) =
                if bounds.min < fastest { (fastest, TOO_FAST_DOWN) } else { (bounds.min, TOO_FEW) };
            if wanted < least {
                return (least, why);
            }
        }
        (wanted, WITHIN)
    }

    /// How many there were at the start of a policy's period.
    fn at_start(&self, current: i32, period: i32, now: Timestamp) -> i32 {
        let from = before(now, i64::from(period));
        let sum = |events: &[(i32, Timestamp)]| -> i32 {
            events.iter().filter(|(_, at)| *at > from).map(|(change, _)| *change).fold(0, i32::saturating_add)
        };
        current.saturating_sub(sum(&self.ups)).saturating_add(sum(&self.downs))
    }

    fn limit_up(&self, current: i32, rules: &HPAScalingRules, now: Timestamp) -> i32 {
        let policies = rules.policies.iter().flatten().map(|policy| {
            let start = self.at_start(current, policy.period_seconds, now);
            match policy.type_.as_str() {
                "Percent" => round((f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil()),
                _ => start.saturating_add(policy.value),
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => policies.min().unwrap_or(i32::MAX),
            _ => policies.max().unwrap_or(i32::MIN),
        }
    }

    fn limit_down(&self, current: i32, rules: &HPAScalingRules, now: Timestamp) -> i32 {
        let policies = rules.policies.iter().flatten().map(|policy| {
            let start = self.at_start(current, policy.period_seconds, now);
            match policy.type_.as_str() {
                "Percent" => round((f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)).trunc()),
                _ => start.saturating_sub(policy.value),
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => policies.max().unwrap_or(i32::MIN),
            _ => policies.min().unwrap_or(i32::MAX),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "casts of floats saturate")]
fn round(whole: f64) -> i32 {
    whole as i32
}
