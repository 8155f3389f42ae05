//! What happened to the requests of a FlowSchema, and the metrics of upstream's names.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::queues::{Refusal, Work};
use super::{FlowControl, Level};
use crate::http::metrics::header;

/// Upper bounds of durations, in seconds.
const BOUNDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// Durations by bound.
#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Durations {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let sum = Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {below}");
    }

    fn any(&self) -> bool {
        self.buckets.iter().any(|b| b.load(Ordering::Relaxed) > 0)
    }
}

/// Counts of one FlowSchema in one level.
#[derive(Debug, Default)]
pub(super) struct Counted {
    dispatched: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
    running: AtomicI64,
    running_seats: AtomicI64,
    waiting: AtomicI64,
    waiting_seats: AtomicI64,
    waited: Durations,
    waited_in_vain: Durations,
    took: Durations,
    watches_took: Durations,
}

const REFUSALS: [Refusal; 3] = [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut];

fn signed(seats: u64) -> i64 {
    i64::try_from(seats).unwrap_or(i64::MAX)
}

impl Counted {
    /// A request begins to wait.
    pub(super) fn waits(&self, work: Work) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting_seats.fetch_add(signed(work.most()), Ordering::Relaxed);
    }

    /// It does not wait any more.
    pub(super) fn waited(&self, work: Work) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_seats.fetch_sub(signed(work.most()), Ordering::Relaxed);
    }

    /// A request is refused.
    pub(super) fn refused(&self, why: Refusal, waited: Duration) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        if why == Refusal::TimeOut {
            self.waited_in_vain.observe(waited);
        }
    }

    /// A request begins to run.
    pub(super) fn runs(&self, seats: u64, waited: Duration) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        self.running_seats.fetch_add(signed(seats), Ordering::Relaxed);
        self.waited.observe(waited);
    }

    /// It has run.
    pub(super) fn ran(&self, seats: u64, took: Duration, watch: bool) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        self.running_seats.fetch_sub(signed(seats), Ordering::Relaxed);
        if watch { &self.watches_took } else { &self.took }.observe(took);
    }
}

/// A gauge or counter: name, type, help, and its value of a schema's counts.
type Single = (&'static str, &'static str, &'static str, fn(&Counted) -> i64);

const SINGLES: &[Single] = &[
    (
        "current_executing_requests",
        "gauge",
        "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API \
         Priority and Fairness subsystem",
        |c| c.running.load(Ordering::Relaxed),
    ),
    (
        "current_executing_seats",
        "gauge",
        "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage \
         otherwise) requests in the API Priority and Fairness subsystem",
        |c| c.running_seats.load(Ordering::Relaxed),
    ),
    (
        "current_inqueue_requests",
        "gauge",
        "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        |c| c.waiting.load(Ordering::Relaxed),
    ),
    (
        "current_inqueue_seats",
        "gauge",
        "[ALPHA] Number of seats currently pending in queues of the API Priority and Fairness subsystem",
        |c| c.waiting_seats.load(Ordering::Relaxed),
    ),
    (
        "dispatched_requests_total",
        "counter",
        "[BETA] Number of requests executed by API Priority and Fairness subsystem",
        |c| signed(c.dispatched.load(Ordering::Relaxed)),
    ),
];

/// A gauge of a level.
type OfLevel = (&'static str, &'static str, fn(&super::LevelView) -> f64);

#[expect(clippy::cast_precision_loss, reason = "seats are few")]
const LEVELS: &[OfLevel] = &[
    (
        "current_limit_seats",
        "[ALPHA] current derived number of execution seats available to each priority level",
        |v| v.level.queues.lock().limit() as f64,
    ),
    (
        "demand_seats_average",
        "[ALPHA] Time-weighted average, over last adjustment period, of demand_seats",
        |v| v.level.history.lock().average,
    ),
    (
        "demand_seats_high_watermark",
        "[ALPHA] High watermark, over last adjustment period, of demand_seats",
        |v| v.level.history.lock().most as f64,
    ),
    ("demand_seats_smoothed", "[ALPHA] Smoothed seat demands", |v| v.level.history.lock().smoothed),
    (
        "demand_seats_stdev",
        "[ALPHA] Time-weighted standard deviation, over last adjustment period, of demand_seats",
        |v| v.level.history.lock().deviation,
    ),
    (
        "lower_limit_seats",
        "[ALPHA] Configured lower bound on number of execution seats available to each priority level",
        |v| v.seats.lower as f64,
    ),
    (
        "nominal_limit_seats",
        "[BETA] Nominal number of execution seats configured for each priority level",
        |v| v.seats.nominal as f64,
    ),
    (
        "upper_limit_seats",
        "[ALPHA] Configured upper bound on number of execution seats available to each priority level",
        |v| v.seats.upper as f64,
    ),
];

impl FlowControl {
    /// Appends the metrics.
    pub(crate) fn metrics(&self, out: &mut String) {
        let configured = self.configured.read().clone();
        for (name, help, value) in LEVELS {
            let name = format!("apiserver_flowcontrol_{name}");
            header(out, &name, "gauge", help);
            for view in &configured.levels {
                let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", view.level.name, value(view));
            }
        }
        let levels: Vec<&Level> = configured.levels.iter().map(|view| &*view.level).collect();
        let each = |out: &mut String, write: &dyn Fn(&mut String, &Counted, &str, &str)| {
            for level in &levels {
                for (schema, counted) in level.counted.lock().iter() {
                    write(out, counted, &format!("flow_schema=\"{schema}\""), &level.name);
                }
            }
        };
        for (name, kind, help, value) in SINGLES {
            let name = format!("apiserver_flowcontrol_{name}");
            header(out, &name, kind, help);
            each(out, &|out, counted, schema, level| {
                let _ = writeln!(out, "{name}{{{schema},priority_level=\"{level}\"}} {}", value(counted));
            });
        }
        let name = "apiserver_flowcontrol_rejected_requests_total";
        header(
            out,
            name,
            "counter",
            "[BETA] Number of requests rejected by API Priority and Fairness subsystem",
        );
        each(out, &|out, counted, schema, level| {
            for (why, count) in REFUSALS.iter().zip(&counted.refused) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let reason = why.reason();
                    let _ = writeln!(
                        out,
                        "{name}{{{schema},priority_level=\"{level}\",reason=\"{reason}\"}} {count}"
                    );
                }
            }
        });
        let name = "apiserver_flowcontrol_request_execution_seconds";
        let help = "[ALPHA] Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in \
                    the API Priority and Fairness subsystem";
        header(out, name, "histogram", help);
        each(out, &|out, counted, schema, level| {
            for (kind, took) in [("regular", &counted.took), ("watch", &counted.watches_took)] {
                if took.any() {
                    took.write(out, name, &format!("{schema},priority_level=\"{level}\",type=\"{kind}\""));
                }
            }
        });
        let name = "apiserver_flowcontrol_request_wait_duration_seconds";
        header(out, name, "histogram", "[BETA] Length of time a request spent waiting in its queue");
        each(out, &|out, counted, schema, level| {
            for (execute, waited) in [("true", &counted.waited), ("false", &counted.waited_in_vain)] {
                if waited.any() {
                    waited.write(
                        out,
                        name,
                        &format!("execute=\"{execute}\",{schema},priority_level=\"{level}\""),
                    );
                }
            }
        });
    }
}
