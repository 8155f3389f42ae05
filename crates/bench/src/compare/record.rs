//! Results as JSON lines: one for the run, then one for each measurement, in the order in which they were made.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::stats::Summary;
use crate::target::Failure;

/// Who was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contestant {
    /// This project.
    Coracle,
    /// etcd, kube-apiserver and kube-scheduler.
    Upstream,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The run, by its time.
    #[serde(default)]
    pub run: String,
    /// Counted from 1: contestants alternate, each is measured once in a round.
    #[serde(default)]
    pub round: u32,
    /// Who.
    pub contestant: Contestant,
    /// What.
    pub scenario: String,
    /// The figures by name.
    pub figures: BTreeMap<String, f64>,
    /// The whole result of a scenario with a load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Why a figure is missing or impaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

impl Record {
    /// Plain figures.
    pub fn figures(contestant: Contestant, scenario: &str, figures: &[(&str, f64)]) -> Self {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Self {
            run: String::new(),
            round: 0,
            contestant,
            scenario: scenario.to_owned(),
            figures,
            summary: None,
            missed: None,
        }
    }

    /// Figures that could not be had.
    pub fn missed(contestant: Contestant, scenario: &str, why: &str) -> Self {
        Self { missed: Some(why.to_owned()), ..Self::figures(contestant, scenario, &[]) }
    }

    /// The result of a scenario with a load; failed operations are noted.
    pub fn summary(contestant: Contestant, scenario: &str, summary: Summary) -> Self {
        let latency = &summary.latency_ms;
        let plain = [("rate", summary.rate), ("p50_ms", latency.p50), ("p99_ms", latency.p99)];
        let mut record = Self::figures(contestant, scenario, &plain);
        record.figures.extend(summary.extra.clone());
        if summary.failures() > 0 {
            let kinds: Vec<String> = summary.errors.iter().map(|(k, n)| format!("{n} x {k}")).collect();
            record.missed = Some(format!("errors: {}", kinds.join("; ")));
        }
        record.summary = Some(summary);
        record
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.contestant, self.scenario)?;
        match &self.summary {
            Some(summary) => write!(f, "\n  {}", summary.to_string().replace('\n', "\n  "))?,
            None => self.figures.iter().try_for_each(|(name, value)| write!(f, " {name}={value:.2}"))?,
        }
        match &self.missed {
            Some(why) => write!(f, "\n  {why}"),
            None => Ok(()),
        }
    }
}

/// Appends lines to a file.
///
/// # Errors
/// It cannot be written.
pub fn append<T: Serialize>(path: &Path, lines: impl IntoIterator<Item = T>) -> Result<(), Failure> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    for line in lines {
        let mut text = serde_json::to_string(&line).map_err(|e| e.to_string())?;
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.jsonl");
        let one = Record::figures(Contestant::Coracle, "idle", &[("rss_mb", 12.5)]);
        append(&path, [&one, &Record::missed(Contestant::Upstream, "list", "it broke")]).expect("writes");
        append(&path, [&one]).expect("appends");
        let text = std::fs::read_to_string(&path).expect("reads");
        let read: Vec<Record> = text.lines().map(|l| serde_json::from_str(l).expect("a record")).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].figures["rss_mb"], 12.5);
        assert_eq!((read[1].contestant, read[1].missed.as_deref()), (Contestant::Upstream, Some("it broke")));
    }
}
