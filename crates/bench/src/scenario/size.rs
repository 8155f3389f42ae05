//! The store at size: many pods, a month's changes, and how large the files are and how long a start takes then.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::Namespace;
use super::api::{IMAGE, numbered_pod};
use crate::compare::ApiServer;
use crate::cost::{Cost, Meter};
use crate::http::{Call, NUMBER};
use crate::load::all;
use crate::objects::{config_map, run_id};
use crate::process::total;
use crate::stats::{Samples, Summary};
use crate::target::Failure;

/// Options.
#[derive(clap::Args, Clone, Debug)]
pub struct SizeArgs {
    /// The program to measure.
    #[arg(long)]
    pub coracle: PathBuf,
    /// A directory for its data; it is emptied of them in the end. Without it a temporary one.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Pods.
    #[arg(long, default_value_t = 100_000)]
    pub pods: u64,
    /// How many times every pod is changed. A pod that is replaced twice in a month, with six changes from its creation
    /// to its end, makes twelve.
    #[arg(long, default_value_t = 12)]
    pub changes: u64,
    /// Seconds between two compactions of the history, as `--etcd-compaction-interval`. A month has 8,640 intervals of
    /// five minutes; what a run needs is several of them.
    #[arg(long, default_value_t = 30)]
    pub compaction: u64,
    /// Starts that are measured.
    #[arg(long, default_value_t = 5)]
    pub starts: u32,
}

/// Bytes below a directory as the disk has them.
fn bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some(if meta.is_dir() { bytes(&entry.path()) } else { meta.blocks() * 512 })
        })
        .sum()
}

fn mb(bytes: u64) -> f64 {
    (bytes as f64 / 1e4).round() / 100.0
}

/// Makes the pods, changes each as often as asked with a tenth as many short-lived objects beside, then starts the
/// server again and again. The latency is that of a start.
///
/// # Errors
/// The server does not start, or refuses.
pub async fn size(args: &SizeArgs) -> Result<Summary, Failure> {
    let temporary = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let store = dir.join("data/store");
    let further = [format!("--etcd-compaction-interval={}s", args.compaction)];
    let mut server = ApiServer::coracle_with(&args.coracle, &dir, &further)?;
    server.wait_ready().await?;
    let target = server.target.clone();
    let run = run_id();
    let namespace = Namespace::make(&target, &run).await?;
    let began = Instant::now();
    all(&target, 64, args.pods, &Call::post(namespace.path("pods"), numbered_pod()), |_| ()).await?;
    let loaded = bytes(&store);
    eprintln!("{} pods ({IMAGE}) after {:.0} s: {} MB", args.pods, began.elapsed().as_secs_f64(), mb(loaded));

    let (churn, meter, mut largest) = (Instant::now(), Meter::start(&server.pids()), loaded);
    for round in 0..args.changes {
        let change =
            json!({ "metadata": { "annotations": { "example.com/round": format!("{round:0>200}") } } });
        let path = namespace.path(&format!("pods/{}", pod_name()));
        all(&target, 64, args.pods, &Call::patch(path, &change), |_| ()).await?;
        let brief = config_map(&format!("brief-{NUMBER}"), 1024).to_string();
        all(&target, 64, args.pods / 10, &Call::post(namespace.path("configmaps"), brief), |_| ()).await?;
        let gone = Call::delete(namespace.path(&format!("configmaps/brief-{NUMBER}")));
        all(&target, 64, args.pods / 10, &gone, |_| ()).await?;
        let now = bytes(&store);
        largest = largest.max(now);
        eprintln!("round {round}: {:.0} s, {} MB", churn.elapsed().as_secs_f64(), mb(now));
        server.check()?;
    }
    let writes = args.changes * (args.pods + args.pods / 10 * 2);
    let seconds = churn.elapsed().as_secs_f64();
    let cost = meter.stop();
    let memory = total(&server.pids()).rss_mb;
    let settled = settled(&store, args.compaction).await;

    let mut starts = Samples::default();
    let mut after = 0.0;
    for _ in 0..args.starts {
        server.stop();
        server = ApiServer::coracle_with(&args.coracle, &dir, &further)?;
        starts.ok(server.wait_ready().await?, 0);
        after = total(&server.pids()).rss_mb;
    }
    server.stop();
    let mut summary = starts.summary("store_at_size", began.elapsed(), Cost::default());
    for (name, value) in [
        ("pods", args.pods as f64),
        ("writes", writes as f64),
        ("writes_per_s", (writes as f64 / seconds.max(1e-9)).round()),
        ("server_cpu_s_per_1000_writes", cost.server / writes.max(1) as f64 * 1000.0),
        ("loaded_mb", mb(loaded)),
        ("largest_mb", mb(largest)),
        ("settled_mb", mb(settled)),
        ("memory_mb", memory.round()),
        ("memory_after_start_mb", after.round()),
    ] {
        summary.extra.insert(name.into(), value);
    }
    std::fs::remove_dir_all(dir.join("data")).map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
    Ok(summary)
}

/// The size once the history of the churn is compacted: two intervals later.
async fn settled(store: &Path, compaction: u64) -> u64 {
    tokio::time::sleep(std::time::Duration::from_secs(2 * compaction + 5)).await;
    bytes(store)
}

/// The name of the pods that [`numbered_pod`] makes.
fn pod_name() -> String {
    let pod: serde_json::Value = serde_json::from_str(&numbered_pod()).unwrap_or_default();
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}
