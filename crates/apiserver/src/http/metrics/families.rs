//! The metrics that are counted by labels alone: this file is the table of their names.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use super::{SHARD, SHARDS, header};

/// What a metric is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    /// Durations in seconds, with the upper bounds of the buckets.
    Histogram(&'static [f64]),
}

/// A metric: its name, its help as upstream has it, the names of its labels in order.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: &'static [&'static str],
}

/// A millisecond, doubled fourteen times.
const DOUBLED: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];
const ADMISSION: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOKS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

macro_rules! families {
    ($($id:ident $name:literal $kind:expr, [$($label:literal)*] $help:literal;)*) => {
        $(#[doc = $name]
        pub(crate) static $id: Family =
            Family { name: $name, kind: $kind, help: $help, labels: &[$($label),*] };)*
        /// All of them, by name.
        static ALL: &[&Family] = &[$(&$id),*];
    };
}

families! {
    UNAVAILABLE "aggregator_unavailable_apiservice" Kind::Gauge, ["name"]
        "[ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name.";
    UNAVAILABLE_TOTAL "aggregator_unavailable_apiservice_total" Kind::Counter, ["name" "reason"]
        "[ALPHA] Counter of APIServices which are marked as unavailable broken down by APIService name and \
         reason.";
    ADMISSION_CONTROLLER "apiserver_admission_controller_admission_duration_seconds"
        Kind::Histogram(ADMISSION), ["name" "operation" "rejected" "type"]
        "[STABLE] Admission controller latency histogram in seconds, identified by name and broken out for \
         each operation and API resource and type (validate or admit).";
    ADMISSION_STEP "apiserver_admission_step_admission_duration_seconds"
        Kind::Histogram(ADMISSION), ["operation" "rejected" "type"]
        "[STABLE] Admission sub-step latency histogram in seconds, broken out for each operation and API \
         resource and step type (validate or admit).";
    WEBHOOK "apiserver_admission_webhook_admission_duration_seconds"
        Kind::Histogram(WEBHOOKS), ["name" "operation" "rejected" "type"]
        "[STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each \
         operation and API resource and type (validate or admit).";
    WEBHOOK_OPEN "apiserver_admission_webhook_fail_open_count" Kind::Counter, ["name" "type"]
        "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type \
         (validating or admit).";
    WEBHOOK_REJECTIONS "apiserver_admission_webhook_rejection_count"
        Kind::Counter, ["error_type" "name" "operation" "rejection_code" "type"]
        "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type \
         (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error \
         or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero \
         rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver \
         when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the \
         metrics cardinality bounded.";
    WEBHOOK_REQUESTS "apiserver_admission_webhook_request_total"
        Kind::Counter, ["code" "name" "operation" "rejected" "type"]
        "[ALPHA] Admission webhook request total, identified by name and broken out for each admission type \
         (validating or admit) and operation. Additional labels specify whether the request was rejected or \
         not and an HTTP status code. Codes greater than 600 are truncated to 600, to keep the metrics \
         cardinality bounded.";
    AUDIT_EVENTS "apiserver_audit_event_total" Kind::Counter, []
        "[ALPHA] Counter of audit events generated and sent to the audit backend.";
    IMPERSONATION "apiserver_impersonation_attempts_duration_seconds"
        Kind::Histogram(DOUBLED), ["decision" "mode"]
        "[ALPHA] Latency of impersonation attempts in seconds split by mode and decision.";
    IMPERSONATIONS "apiserver_impersonation_attempts_total" Kind::Counter, ["decision" "mode"]
        "[ALPHA] Total number of impersonation attempts split by mode and decision.";
    IMPERSONATION_CHECK "apiserver_impersonation_authorization_attempts_duration_seconds"
        Kind::Histogram(DOUBLED), ["decision" "mode"]
        "[ALPHA] Latency of authorization checks made by the impersonation handler in seconds split by mode \
         and decision.";
    IMPERSONATION_CHECKS "apiserver_impersonation_authorization_attempts_total" Kind::Counter, ["decision" "mode"]
        "[ALPHA] Total number of authorization checks made by the impersonation handler split by mode and \
         decision.";
    AUTHENTICATED "authenticated_user_requests" Kind::Counter, ["username"]
        "[ALPHA] Counter of authenticated requests broken out by username.";
    AUTHENTICATIONS "authentication_attempts" Kind::Counter, ["result"]
        "[ALPHA] Counter of authenticated attempts.";
    AUTHENTICATION "authentication_duration_seconds" Kind::Histogram(DOUBLED), ["result"]
        "[ALPHA] Authentication duration in seconds broken out by result.";
    AUTHORIZATIONS "authorization_attempts_total" Kind::Counter, ["result"]
        "[ALPHA] Counter of authorization attempts broken down by result. It can be either 'allowed', \
         'denied', 'no-opinion' or 'error'.";
    AUTHORIZATION "authorization_duration_seconds" Kind::Histogram(DOUBLED), ["result"]
        "[ALPHA] Authorization duration in seconds broken out by result.";
}

/// The values of a family's labels, in their order.
type Values = Vec<Cow<'static, str>>;

#[derive(Clone, Default)]
struct Sample {
    /// Of a counter or gauge; the sum of a histogram.
    value: f64,
    count: u64,
    buckets: Vec<u64>,
}

/// What was counted, in parts so that threads do not wait for each other.
#[derive(Default)]
pub(crate) struct Counts([Mutex<HashMap<(&'static str, Values), Sample>>; SHARDS]);

impl Counts {
    fn with(&self, family: &'static Family, values: Values, change: impl FnOnce(&mut Sample)) {
        debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
        let mut shard = self.0[SHARD.with(|shard| *shard)].lock();
        change(shard.entry((family.name, values)).or_default());
    }

    /// Counts one.
    pub(crate) fn add(&self, family: &'static Family, values: Values) {
        self.with(family, values, |sample| sample.value += 1.0);
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, family: &'static Family, values: Values, value: f64) {
        for shard in &self.0 {
            shard.lock().remove(&(family.name, values.clone()));
        }
        self.with(family, values, |sample| sample.value = value);
    }

    /// Notes a duration.
    pub(crate) fn took(&self, family: &'static Family, values: Values, took: Duration) {
        let Kind::Histogram(bounds) = family.kind else { return };
        let seconds = took.as_secs_f64();
        self.with(family, values, |sample| {
            sample.value += seconds;
            sample.count += 1;
            sample.buckets.resize(bounds.len(), 0);
            if let Some(bucket) = bounds.iter().position(|bound| seconds <= *bound) {
                sample.buckets[bucket] += 1;
            }
        });
    }

    /// What was counted, as text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// Writes what was counted.
    pub(super) fn write(&self, out: &mut String) {
        let mut merged: BTreeMap<(&'static str, Values), Sample> = BTreeMap::new();
        for shard in &self.0 {
            for (key, sample) in &*shard.lock() {
                let sum = merged.entry(key.clone()).or_default();
                sum.value += sample.value;
                sum.count += sample.count;
                sum.buckets.resize(sample.buckets.len().max(sum.buckets.len()), 0);
                sum.buckets.iter_mut().zip(&sample.buckets).for_each(|(into, n)| *into += n);
            }
        }
        for family in ALL {
            let samples = || merged.iter().filter(|((name, _), _)| *name == family.name);
            if samples().next().is_none() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            header(out, family.name, kind, family.help);
            for ((_, values), sample) in samples() {
                write_sample(out, family, values, sample);
            }
        }
    }
}

fn write_sample(out: &mut String, family: &Family, values: &Values, sample: &Sample) {
    let pairs = family.labels.iter().zip(values).map(|(label, value)| format!("{label}={:?}", &**value));
    let labels = pairs.collect::<Vec<_>>().join(",");
    let shown = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let name = family.name;
    let Kind::Histogram(bounds) = family.kind else {
        let _ = writeln!(out, "{name}{shown} {}", sample.value);
        return;
    };
    let comma = if labels.is_empty() { "" } else { "," };
    let below = Cell::new(0);
    for (bound, n) in bounds.iter().zip(&sample.buckets) {
        below.set(below.get() + n);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {}", below.get());
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", sample.count);
    let _ = writeln!(out, "{name}_sum{shown} {}", sample.value);
    let _ = writeln!(out, "{name}_count{shown} {}", sample.count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_written_by_name_and_labels() {
        let counts = Counts::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    counts.add(&AUTHENTICATIONS, vec!["success".into()]);
                    counts.took(&AUTHENTICATION, vec!["success".into()], Duration::from_millis(3));
                    counts.set(&UNAVAILABLE, vec!["v1.a".into()], 1.0);
                });
            }
        });
        let mut out = String::new();
        counts.write(&mut out);
        for line in [
            "authentication_attempts{result=\"success\"} 3",
            "authentication_duration_seconds_bucket{result=\"success\",le=\"0.002\"} 0",
            "authentication_duration_seconds_bucket{result=\"success\",le=\"0.004\"} 3",
            "authentication_duration_seconds_count{result=\"success\"} 3",
            "aggregator_unavailable_apiservice{name=\"v1.a\"} 1",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} not in\n{out}");
        }
        assert!(!out.contains("impersonation"), "what never happened is not shown");
    }

    #[test]
    fn the_table_is_in_the_order_of_names() {
        assert!(ALL.is_sorted_by_key(|family| family.name));
    }
}
