//! A run as a table for people.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::environment::Environment;
use super::record::{Contestant, Record};
use crate::target::Failure;

/// Whether more is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

/// Scenario, figure, how it is called, unit, and which way is better.
type Row = (&'static str, &'static str, &'static str, &'static str, Better);

const ROWS: &[Row] = &[
    ("ready", "ms", "API server ready", "ms", Better::Less),
    ("idle", "rss_mb", "API server idle: memory", "MB", Better::Less),
    ("idle", "cpu_percent", "API server idle: CPU", "% of a core", Better::Less),
    ("create_pods", "rate", "create pods", "/s", Better::More),
    ("create_pods", "p99_ms", "create pods, p99", "ms", Better::Less),
    ("create_pods", "server_cpu_s_per_1000", "create pods, CPU per 1,000", "s", Better::Less),
    ("create_configmaps", "rate", "create ConfigMaps", "/s", Better::More),
    ("create_configmaps", "p99_ms", "create ConfigMaps, p99", "ms", Better::Less),
    ("create_configmaps", "server_cpu_s_per_1000", "create ConfigMaps, CPU per 1,000", "s", Better::Less),
    ("get", "rate", "GET one pod", "/s", Better::More),
    ("get", "p99_ms", "GET one pod, p99", "ms", Better::Less),
    ("get", "server_cpu_s_per_1000", "GET one pod, CPU per 1,000", "s", Better::Less),
    ("list", "rate", "LIST all pods", "/s", Better::More),
    ("list", "server_cpu_s_per_1000", "LIST all pods, CPU per 1,000", "s", Better::Less),
    ("list", "server_rss_mb", "memory after creating and listing the pods", "MB", Better::Less),
    ("flood", "p99_ms", "GET while another floods, p99", "ms", Better::Less),
    ("flood", "p99-alone-ms", "the same without the flood, p99", "ms", Better::Less),
    ("flood", "p99-ratio", "the one to the other", "", Better::Less),
    ("watch_fanout", "rate", "watch deliveries, 1000 watchers", "/s", Better::More),
    ("watch_fanout", "p99_ms", "watch delivery, p99", "ms", Better::Less),
    ("watch_fanout", "server_cpu_s_per_1000", "watch deliveries, CPU per 1,000", "s", Better::Less),
    ("schedule", "rate", "pods scheduled", "/s", Better::More),
    ("schedule", "p99_ms", "pod scheduled, p99", "ms", Better::Less),
    ("schedule", "server_cpu_s_per_1000", "pods scheduled, CPU per 1,000", "s", Better::Less),
    ("schedule_anti_affinity", "rate", "pods scheduled, anti-affinity", "/s", Better::More),
    ("schedule_anti_affinity", "server_cpu_s_per_1000", "the same, CPU per 1,000", "s", Better::Less),
    ("deployments", "all_complete_seconds", "Deployments, all complete", "s", Better::Less),
    ("deployments", "p99_ms", "Deployment complete, p99", "ms", Better::Less),
    ("deployments", "writes_per_deployment", "writes for each Deployment", "", Better::Less),
    ("deployments", "server_cpu_s_per_1000", "Deployments, CPU per 1,000", "s", Better::Less),
    ("idle_deployments", "rss_mb", "with idle Deployments: memory", "MB", Better::Less),
    ("idle_deployments", "rss_grown_mb", "what they added", "MB", Better::Less),
    ("idle_deployments", "cpu_percent", "with idle Deployments: CPU", "% of a core", Better::Less),
    ("delete_namespace", "gone_seconds", "full namespace gone", "s", Better::Less),
    ("up", "api_ready_ms", "`coracle up`: API ready", "ms", Better::Less),
    ("up", "node_ready_ms", "`coracle up`: node Ready", "ms", Better::Less),
    ("up_idle", "rss_mb", "whole cluster idle: memory", "MB", Better::Less),
    ("up_idle", "cpu_percent", "whole cluster idle: CPU", "% of a core", Better::Less),
    ("pod_links", "p50_ms", "connect a pod to the network, p50", "ms", Better::Less),
    ("pod_start", "p50_ms", "pod create to Running, p50", "ms", Better::Less),
    ("pod_start", "p99_ms", "pod create to Running, p99", "ms", Better::Less),
    ("pod_burst", "rate", "pods started, many at once", "/s", Better::More),
    ("up_100_pods", "rss_mb", "with 100 pods: memory of the daemon", "MB", Better::Less),
    ("up_100_pods", "shims_pss_mb", "with 100 pods: memory of all shims", "MB", Better::Less),
    ("up_100_pods", "cpu_percent", "with 100 pods: CPU of the daemon", "% of a core", Better::Less),
    ("up_100_pods_quiet", "own_kb_per_pod", "the daemon's own memory per pod, later", "KB", Better::Less),
];

/// Scenarios whose split of processor time is shown.
const LOADS: &[(&str, &str)] = &[
    ("create_pods", "create pods"),
    ("create_configmaps", "create ConfigMaps"),
    ("get", "GET one pod"),
    ("list", "LIST all pods"),
    ("watch_fanout", "watch deliveries"),
    ("schedule", "pods scheduled"),
    ("schedule_anti_affinity", "pods scheduled, anti-affinity"),
    ("deployments", "Deployments"),
];

/// The table in Markdown, with a heading and what was missed.
pub fn render(environment: &Environment, records: &[Record]) -> String {
    let e = environment;
    let versions: Vec<String> = e.versions.iter().map(|(name, v)| format!("{name}: {v}")).collect();
    let mut text = format!(
        "## {}, commit {}\n\n{} × {}, {} GB, Linux {}, shared with the load generator; load average at the \
         start {}. {}. {}. Figures are medians (least to most).\n\n",
        e.run,
        e.commit,
        e.processors,
        e.processor,
        e.memory_gb,
        e.kernel,
        e.load,
        versions.join("; "),
        e.options
    );
    text.push_str("| figure | Coracle | upstream | times better |\n|---|---|---|---|\n");
    for (scenario, figure, label, unit, better) in ROWS {
        let of = |who| Spread::of(records, who, scenario, figure);
        let (mine, other) = (of(Contestant::Coracle), of(Contestant::Upstream));
        if mine.is_none() && other.is_none() {
            continue;
        }
        let ratio = mine.as_ref().zip(other.as_ref()).and_then(|(a, b)| ratio(a.median, b.median, *better));
        let ratio = ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.1}"));
        let show = |s: Option<Spread>| s.map_or_else(|| "-".to_owned(), |s| s.show(unit));
        let _ = writeln!(text, "| {label} | {} | {} | {ratio} |", show(mine), show(other));
    }
    split(&mut text, records);
    for record in records {
        let Some(why) = &record.missed else { continue };
        let why = why.lines().next().unwrap_or_default();
        let _ =
            writeln!(text, "\n{:?}, round {}, {}: {why}", record.contestant, record.round, record.scenario);
    }
    text
}

/// Who used the processors during each scenario.
fn split(text: &mut String, records: &[Record]) {
    let cores = |scenario: &str, who, figure: &str| {
        Spread::of(records, who, scenario, figure)
            .map_or_else(|| "-".to_owned(), |s| format!("{:.2}", s.median))
    };
    let mut rows = String::new();
    for (scenario, label) in LOADS {
        if !records.iter().any(|r| r.scenario == *scenario && r.summary.is_some()) {
            continue;
        }
        let _ = write!(rows, "| {label} |");
        for who in [Contestant::Coracle, Contestant::Upstream] {
            for figure in ["server_cores", "generator_cores", "other_cores"] {
                let _ = write!(rows, " {} |", cores(scenario, who, figure));
            }
        }
        rows.push('\n');
    }
    if !rows.is_empty() {
        text.push_str(
            "\nCores used by the server, by the load generator, and by everything else on the machine:\n\n\
             | scenario | Coracle | generator | others | upstream | generator | others |\n\
             |---|---|---|---|---|---|---|\n",
        );
        text.push_str(&rows);
    }
}

/// A figure over all rounds.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(records: &[Record], who: Contestant, scenario: &str, figure: &str) -> Option<Self> {
        let matching = records.iter().filter(|r| r.contestant == who && r.scenario == scenario);
        let mut values: Vec<f64> = matching.filter_map(|r| r.figures.get(figure).copied()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { values[half - 1].midpoint(values[half]) };
        Some(Self { least, median, most })
    }

    fn show(&self, unit: &str) -> String {
        let (median, least, most) = (number(self.median), number(self.least), number(self.most));
        if least == most {
            format!("{median} {unit}")
        } else {
            format!("{median} {unit} ({least} to {most})")
        }
    }
}

fn ratio(ours: f64, theirs: f64, better: Better) -> Option<f64> {
    let (large, small) = if better == Better::More { (ours, theirs) } else { (theirs, ours) };
    (small > 0.0).then(|| large / small)
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Appends a table to the file of results.
///
/// # Errors
/// It cannot be written.
pub fn append(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() == 0 {
        let head = "# Results\n\nAppended by `make bench`, oldest first; `results.jsonl` has the same figures, one \
                    measurement a line. Compare only\nwithin one table: each is one run. A dash was not \
                    measured.\n";
        file.write_all(head.as_bytes()).map_err(failed)?;
    }
    file.write_all(format!("\n{text}").as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(who: Contestant, round: u32, scenario: &str, figures: &[(&str, f64)]) -> Record {
        Record { round, ..Record::figures(who, scenario, figures) }
    }

    #[test]
    fn table_names_ratios_spread_and_what_was_missed() {
        let (ours, theirs) = (Contestant::Coracle, Contestant::Upstream);
        let records = [
            record(ours, 1, "create_pods", &[("rate", 11_000.0)]),
            record(ours, 2, "create_pods", &[("rate", 13_000.0)]),
            record(theirs, 1, "create_pods", &[("rate", 1200.0)]),
            record(ours, 1, "ready", &[("ms", 250.0)]),
            record(theirs, 1, "ready", &[("ms", 2500.0)]),
            record(ours, 1, "get", &[("rate", 1.5)]),
            Record { round: 2, ..Record::missed(ours, "list", "it broke\nwith details") },
        ];
        let environment = Environment::find(Some("abc"), &[], "options".into());
        let text = render(&environment, &records);
        assert!(text.contains("| create pods | 12000 /s (11000 to 13000) | 1200 /s | 10.0 |"), "{text}");
        assert!(text.contains("| API server ready | 250 ms | 2500 ms | 10.0 |"), "{text}");
        assert!(text.contains("| GET one pod | 1.50 /s | - | - |"), "{text}");
        assert!(text.contains("Coracle, round 2, list: it broke\n") && text.contains("commit abc"), "{text}");
        assert!(!text.contains("Cores used"), "no load was measured: {text}");
    }

    #[test]
    fn results_are_appended_below_one_heading() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bench/RESULTS.md");
        append(&path, "## one\n").expect("writes");
        append(&path, "## two\n").expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text.matches("# Results").count(), 1);
        assert!(text.find("## one") < text.find("## two"));
    }
}
