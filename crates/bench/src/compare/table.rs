//! The figures of a comparison, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use serde_json::json;

use super::CompareArgs;
use crate::stats::Summary;
use crate::target::Failure;

/// What was measured of one contestant.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    values: BTreeMap<String, f64>,
    summaries: BTreeMap<String, Summary>,
    missed: Vec<(String, String)>,
}

impl Figures {
    /// Keeps a figure.
    pub fn set(&mut self, key: &str, value: f64) {
        self.values.insert(key.to_owned(), value);
    }
    /// Keeps a scenario's rate and latencies.
    pub fn summary(&mut self, key: &str, summary: Summary) {
        self.set(&format!("{key}_rate"), summary.rate);
        self.set(&format!("{key}_p50_ms"), summary.latency_ms.p50);
        self.set(&format!("{key}_p99_ms"), summary.latency_ms.p99);
        if summary.failures() > 0 {
            let kinds: Vec<String> = summary.errors.iter().map(|(k, n)| format!("{n} x {k}")).collect();
            self.missed.push((key.to_owned(), format!("errors: {}", kinds.join("; "))));
        }
        self.summaries.insert(key.to_owned(), summary);
    }
    /// Notes that a figure could not be had, or is impaired.
    pub fn missed(&mut self, what: &str, why: &str) {
        eprintln!("  {what}: {why}");
        self.missed.push((what.to_owned(), why.to_owned()));
    }
}

/// Whether more is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

const ROWS: &[(&str, &str, &str, Better)] = &[
    ("ready_ms", "API server ready", "ms", Better::Less),
    ("idle_rss_mb", "API server idle: memory", "MB", Better::Less),
    ("idle_cpu_percent", "API server idle: CPU", "% of a core", Better::Less),
    ("create_pods_rate", "create pods", "/s", Better::More),
    ("create_pods_p99_ms", "create pods, p99", "ms", Better::Less),
    ("create_configmaps_rate", "create ConfigMaps", "/s", Better::More),
    ("create_configmaps_p99_ms", "create ConfigMaps, p99", "ms", Better::Less),
    ("get_rate", "GET one pod", "/s", Better::More),
    ("get_p99_ms", "GET one pod, p99", "ms", Better::Less),
    ("list_rate", "LIST the pods", "/s", Better::More),
    ("loaded_rss_mb", "memory with the pods", "MB", Better::Less),
    ("watch_fanout_rate", "watch deliveries, 200 watchers", "/s", Better::More),
    ("watch_fanout_p99_ms", "watch delivery, p99", "ms", Better::Less),
    ("schedule_rate", "pods scheduled", "/s", Better::More),
    ("up_api_ready_ms", "whole cluster: API ready", "ms", Better::Less),
    ("up_node_ready_ms", "whole cluster: node Ready", "ms", Better::Less),
    ("up_idle_rss_mb", "whole cluster idle: memory", "MB", Better::Less),
    ("up_idle_cpu_percent", "whole cluster idle: CPU", "% of a core", Better::Less),
    ("pod_start_p50_ms", "pod create to Running, p50", "ms", Better::Less),
    ("pod_start_p99_ms", "pod create to Running, p99", "ms", Better::Less),
];

/// The table in Markdown, with a heading and what was missed.
pub fn render(commit: &str, args: &CompareArgs, ours: &Figures, theirs: Option<&Figures>) -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "## {:.0}, commit {commit}\n\n{cpus} CPUs shared with the load generator; {} connections, {} s each; \
         {} pods listed; {} pods on {} nodes scheduled.\n\n",
        jiff::Timestamp::now(),
        args.connections,
        args.duration,
        args.objects,
        args.pods,
        args.nodes
    );
    text.push_str("| figure | Coracle | upstream | times better |\n|---|---|---|---|\n");
    for (key, label, unit, better) in ROWS {
        let mine = ours.values.get(*key);
        let other = theirs.and_then(|t| t.values.get(*key));
        if mine.is_none() && other.is_none() {
            continue;
        }
        let show = |v: Option<&f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{} {unit}", number(*v)));
        let ratio = mine.zip(other).and_then(|(a, b)| ratio(*a, *b, *better));
        let ratio = ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.1}"));
        let _ = writeln!(text, "| {label} | {} | {} | {ratio} |", show(mine), show(other));
    }
    for (who, figures) in [("Coracle", Some(ours)), ("upstream", theirs)] {
        for (what, why) in figures.iter().flat_map(|f| &f.missed) {
            let _ = writeln!(text, "\n{who}, {what}: {}", why.lines().next().unwrap_or_default());
        }
    }
    text
}

fn ratio(ours: f64, theirs: f64, better: Better) -> Option<f64> {
    let (large, small) = if better == Better::More { (ours, theirs) } else { (theirs, ours) };
    (small > 0.0).then(|| large / small)
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The commit of the working directory, or `unknown`.
pub fn commit() -> String {
    let out = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let text =
        out.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).unwrap_or_else(|| "unknown".into())
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
        let head = "# Results\n\nAppended by `make bench`, oldest first. Compare only within one table: \
                    each is one run.\n";
        file.write_all(head.as_bytes()).map_err(failed)?;
    }
    file.write_all(format!("\n{text}").as_bytes()).map_err(failed)
}

/// Writes all figures as JSON.
///
/// # Errors
/// They cannot be written.
pub fn write_json(
    path: &Path,
    commit: &str,
    ours: &Figures,
    theirs: Option<&Figures>,
) -> Result<(), Failure> {
    let body = json!({ "commit": commit, "coracle": ours, "upstream": theirs });
    let text = serde_json::to_string_pretty(&body).map_err(|e| e.to_string())?;
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: CompareArgs,
    }

    #[test]
    fn table_names_ratios_and_what_was_missed() {
        let args = Cli::parse_from(["bench", "--coracle", "c"]).args;
        let (mut ours, mut theirs) = (Figures::default(), Figures::default());
        ours.set("create_pods_rate", 12_000.0);
        theirs.set("create_pods_rate", 1200.0);
        ours.set("ready_ms", 250.0);
        theirs.set("ready_ms", 2500.0);
        ours.set("get_rate", 1.0);
        ours.missed("list", "it broke\nwith details");
        let text = render("abc", &args, &ours, Some(&theirs));
        assert!(text.contains("| create pods | 12000 /s | 1200 /s | 10.0 |"), "{text}");
        assert!(text.contains("| API server ready | 250 ms | 2500 ms | 10.0 |"), "{text}");
        assert!(text.contains("| GET one pod | 1.00 /s | - | - |"), "{text}");
        assert!(text.contains("Coracle, list: it broke\n") && text.contains("commit abc"), "{text}");
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
