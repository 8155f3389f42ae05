//! Probes: the pure bookkeeping of results against thresholds.

use k8s_openapi::api::core::v1::{Container, Probe};

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The others wait for it.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its failure takes the pod out of services.
    Readiness,
}

impl Kind {
    /// As events name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A series of results of one probe of one container.
#[derive(Clone, Copy, Debug, Default)]
pub struct Series {
    successes: i32,
    failures: i32,
    verdict: Option<bool>,
}

impl Series {
    /// Counts a result; the verdict if this result changed it.
    pub fn record(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        if success {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        let settled = if success {
            self.successes >= probe.success_threshold.unwrap_or(1)
        } else {
            self.failures >= probe.failure_threshold.unwrap_or(3)
        };
        if settled && self.verdict != Some(success) {
            self.verdict = Some(success);
            return self.verdict;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_change_only_at_thresholds() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Probe::default() };
        let mut s = Series::default();
        let got: Vec<_> =
            [true, true, true, false, true, false, false].iter().map(|r| s.record(*r, &probe)).collect();
        assert_eq!(got, [None, Some(true), None, None, None, None, Some(false)]);
    }
}
