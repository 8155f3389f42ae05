//! Latencies and what is reported of them.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// Latencies (to a microsecond, three digits), errors and bytes of a run.
#[derive(Debug)]
pub struct Samples {
    histogram: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    bytes: u64,
}

impl Default for Samples {
    fn default() -> Self {
        let histogram = Histogram::new(3).expect("3 digits are within 0..=5");
        Self { histogram, errors: BTreeMap::new(), bytes: 0 }
    }
}

impl Samples {
    /// Counts a success.
    pub fn ok(&mut self, latency: Duration, bytes: u64) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        // An auto-resizing histogram takes any value; `saturating_record` would not resize it.
        let _ = self.histogram.record(micros.max(1));
        self.bytes += bytes;
    }
    /// Counts a failure by its kind.
    pub fn error(&mut self, kind: impl Into<String>) {
        *self.errors.entry(kind.into()).or_default() += 1;
    }
    /// Successes.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }
    /// Takes in another run's samples.
    pub fn merge(&mut self, other: Self) {
        self.histogram.add(other.histogram).expect("an auto-resizing histogram takes any other");
        for (kind, n) in other.errors {
            *self.errors.entry(kind).or_default() += n;
        }
        self.bytes += other.bytes;
    }
    /// What is reported.
    pub fn summary(&self, scenario: &str, elapsed: Duration, cost: Cost) -> Summary {
        let at = |q: f64| millis(self.histogram.value_at_quantile(q));
        let seconds = elapsed.as_secs_f64();
        Summary {
            scenario: scenario.to_owned(),
            count: self.count(),
            errors: self.errors.clone(),
            seconds: round(seconds, 3),
            rate: if seconds > 0.0 { round(self.count() as f64 / seconds, 1) } else { 0.0 },
            bytes: self.bytes,
            latency_ms: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: millis(self.histogram.max()),
                mean: round(self.histogram.mean() / 1000.0, 3),
            },
            extra: cost.figures(self.count()),
        }
    }
}

fn millis(micros: u64) -> f64 {
    round(micros as f64 / 1000.0, 3)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Latency percentiles in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half are below.
    pub p50: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

/// Result of one scenario: printed for people, and written as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Which scenario.
    pub scenario: String,
    /// Successful operations.
    pub count: u64,
    /// Failed ones by kind.
    pub errors: BTreeMap<String, u64>,
    /// Length of the measured part.
    pub seconds: f64,
    /// Successes per second.
    pub rate: f64,
    /// Bytes of the answers' bodies.
    pub bytes: u64,
    /// Latency of successes.
    pub latency_ms: Latency,
    /// Further figures of the scenario.
    pub extra: BTreeMap<String, f64>,
}

impl Summary {
    /// Failed operations.
    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let l = &self.latency_ms;
        write!(f, "{}: {} in {:.2} s = {:.1}/s", self.scenario, self.count, self.seconds, self.rate)?;
        if self.count > 0 && self.bytes > 0 {
            write!(f, ", {:.1} MB/s", self.bytes as f64 / 1e6 / self.seconds.max(1e-9))?;
        }
        let line = [l.p50, l.p90, l.p99, l.p999, l.max].map(|v| format!("{v:.2}")).join(" / ");
        write!(f, "\n  latency ms p50 / p90 / p99 / p99.9 / max: {line}")?;
        for (name, value) in &self.extra {
            write!(f, "\n  {name}: {value}")?;
        }
        for (kind, n) in &self.errors {
            write!(f, "\n  error x{n}: {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_all_merged_samples() {
        let (mut a, mut b) = (Samples::default(), Samples::default());
        for i in 1..=500u64 {
            a.ok(Duration::from_micros(i * 1000), 10);
            b.ok(Duration::from_micros((500 + i) * 1000), 10);
        }
        b.error("503");
        b.error("503");
        a.merge(b);
        let s = a.summary("x", Duration::from_secs(2), Cost::default());
        assert_eq!((s.count, s.bytes, s.rate, s.failures()), (1000, 10_000, 500.0, 2));
        assert!((s.latency_ms.p50 - 500.0).abs() < 1.0, "{:?}", s.latency_ms);
        assert!((s.latency_ms.p99 - 990.0).abs() < 2.0 && (s.latency_ms.max - 1000.0).abs() < 1.0);
        let text = s.to_string();
        assert!(text.contains("500.0/s") && text.contains("error x2: 503"), "{text}");
        let again: Summary =
            serde_json::from_str(&serde_json::to_string(&s).expect("json")).expect("reads back");
        assert_eq!(again.count, 1000);
    }

    #[test]
    fn empty_run_has_rate_zero() {
        let s = Samples::default().summary("x", Duration::ZERO, Cost::default());
        assert_eq!((s.count, s.rate, s.latency_ms.p99), (0, 0.0, 0.0));
    }
}
