//! `compare`: starts Coracle, and upstream where its programs are named, and measures both in one run.

mod contestant;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::contestant::{ApiServer, Cluster, Upstream};
use self::table::Figures;
use crate::load::LoadArgs;
use crate::process::total;
use crate::scenario::pod_start::PodStartArgs;
use crate::scenario::schedule::ScheduleArgs;
use crate::scenario::watch::FanoutArgs;
use crate::scenario::{api, pod_start, schedule, watch};
use crate::stats::Summary;
use crate::target::{Failure, Target};

/// Options of `compare`.
#[derive(clap::Args, Clone, Debug)]
pub struct CompareArgs {
    /// The coracle program.
    #[arg(long, env = "CORACLE")]
    pub coracle: PathBuf,
    /// Upstream's etcd.
    #[arg(long, env = "ETCD")]
    pub etcd: Option<PathBuf>,
    /// Upstream's kube-apiserver; needs --etcd too.
    #[arg(long, env = "KUBE_APISERVER", requires = "etcd")]
    pub kube_apiserver: Option<PathBuf>,
    /// Upstream's kube-scheduler.
    #[arg(long, env = "KUBE_SCHEDULER", requires = "kube_apiserver")]
    pub kube_scheduler: Option<PathBuf>,
    /// File to which the table is appended.
    #[arg(long)]
    pub results: Option<PathBuf>,
    /// Commit to note; default what git says.
    #[arg(long)]
    pub commit: Option<String>,
    /// Connections of the API scenarios.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Seconds of each API scenario.
    #[arg(long, default_value_t = 8.0)]
    pub duration: f64,
    /// Seconds of warm-up of each.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Pods that are there while listing and while memory is measured.
    #[arg(long, default_value_t = 5000)]
    pub objects: u64,
    /// Fake nodes of the scheduling scenario.
    #[arg(long, default_value_t = 200)]
    pub nodes: u64,
    /// Pods of the scheduling scenario.
    #[arg(long, default_value_t = 1000)]
    pub pods: u64,
    /// Pods of the pod-start scenario.
    #[arg(long, default_value_t = 20)]
    pub starts: usize,
    /// Only the API server: no `coracle up` (which needs root), no scheduling, no pods.
    #[arg(long)]
    pub api_only: bool,
    /// Also write all figures as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl CompareArgs {
    fn load(&self) -> LoadArgs {
        LoadArgs { connections: self.connections, warmup: self.warmup, duration: self.duration, count: None }
    }
    fn schedule(&self) -> ScheduleArgs {
        let (nodes, pods) = (self.nodes, self.pods);
        ScheduleArgs { nodes, pods, connections: 32, anti_affinity: false, patience: 30.0 }
    }
}

/// Runs everything and prints the table. Figures that could not be measured are named, with the reason, and
/// do not keep the others back.
///
/// # Errors
/// Coracle's API server does not start, or the results cannot be written.
pub async fn run(args: &CompareArgs) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("coracle-bench-").tempdir().map_err(|e| e.to_string())?;
    eprintln!("Coracle's API server");
    let mut ours = Figures::default();
    let mut server = ApiServer::coracle(&args.coracle, &dir.path().join("coracle"))?;
    api_figures(&mut server, args, &mut ours).await?;
    drop(server);
    if !args.api_only {
        eprintln!("Coracle as a cluster");
        match Cluster::up(&args.coracle, &dir.path().join("up")) {
            Err(e) => ours.missed("coracle up", &e),
            Ok(mut cluster) => {
                if let Err(e) = cluster_figures(&mut cluster, args, &mut ours).await {
                    ours.missed("coracle up", &format!("{e}\n{}", cluster.log_tail()));
                }
                if let Err(e) = cluster.down() {
                    ours.missed("coracle down", &e);
                }
            }
        }
    }
    let theirs = upstream_figures(args, &dir.path().join("upstream")).await;
    let commit = args.commit.clone().unwrap_or_else(table::commit);
    let text = table::render(&commit, args, &ours, theirs.as_ref());
    println!("{text}");
    if let Some(path) = &args.json {
        table::write_json(path, &commit, &ours, theirs.as_ref())?;
    }
    match &args.results {
        Some(path) => table::append(path, &text),
        None => Ok(()),
    }
}

async fn upstream_figures(args: &CompareArgs, dir: &std::path::Path) -> Option<Figures> {
    let (etcd, apiserver) = (args.etcd.as_ref()?, args.kube_apiserver.as_ref()?);
    eprintln!("upstream");
    let mut figures = Figures::default();
    let programs = Upstream { etcd, apiserver, scheduler: args.kube_scheduler.as_deref() };
    let result = async {
        let mut server = ApiServer::upstream(&programs, dir)?;
        api_figures(&mut server, args, &mut figures).await?;
        if programs.scheduler.is_some() && !args.api_only {
            let _scheduler = server.start_scheduler(&programs, dir)?;
            let summary = schedule::schedule(&server.target, &args.schedule()).await?;
            show(&mut figures, "schedule", summary);
        }
        Ok::<(), Failure>(())
    };
    if let Err(e) = result.await {
        figures.missed("upstream", &e);
    }
    Some(figures)
}

/// Shows a result at once and keeps its rate and latency.
fn show(figures: &mut Figures, key: &str, summary: Summary) {
    eprintln!("  {}", summary.to_string().replace('\n', "\n  "));
    figures.summary(key, summary);
}

async fn api_figures(
    server: &mut ApiServer,
    args: &CompareArgs,
    figures: &mut Figures,
) -> Result<(), Failure> {
    let ready = server.wait_ready().await?;
    figures.set("ready_ms", ready.as_secs_f64() * 1000.0);
    let pids = server.pids();
    idle(&pids, figures, "idle").await;
    let target = server.target.clone();
    let load = args.load();
    let size = 1024;
    keep(figures, "create_configmaps", api::create_config_maps(&target, &load, size).await);
    keep(figures, "create_pods", api::create_pods(&target, &load).await);
    keep(figures, "get", api::get(&target, &load).await);
    let probe = || vec![("rss_mb".to_owned(), total(&pids).rss_mb)];
    let list = LoadArgs { connections: 4, ..load };
    match api::list(&target, &list, args.objects, probe).await {
        Ok(summary) => {
            if let Some(rss) = summary.extra.get("rss_mb") {
                figures.set("loaded_rss_mb", *rss);
            }
            show(figures, "list", summary);
        }
        Err(e) => figures.missed("list", &e),
    }
    let fanout = FanoutArgs { watchers: 200, count: 300, writers: 8, size: 512 };
    keep(figures, "watch_fanout", watch::fanout(&target, &fanout).await);
    server.check()
}

fn keep(figures: &mut Figures, key: &str, result: Result<Summary, Failure>) {
    match result {
        Ok(summary) => show(figures, key, summary),
        Err(e) => figures.missed(key, &e),
    }
}

/// Memory and CPU of processes that nobody asks anything of.
async fn idle(pids: &[u32], figures: &mut Figures, prefix: &str) {
    const SETTLE: Duration = Duration::from_secs(3);
    const WINDOW: Duration = Duration::from_secs(10);
    tokio::time::sleep(SETTLE).await;
    let (before, start) = (total(pids), Instant::now());
    tokio::time::sleep(WINDOW).await;
    let (after, seconds) = (total(pids), start.elapsed().as_secs_f64());
    figures.set(&format!("{prefix}_rss_mb"), after.rss_mb);
    let percent = (after.cpu_seconds - before.cpu_seconds) / seconds * 100.0;
    figures.set(&format!("{prefix}_cpu_percent"), percent);
    eprintln!("  {prefix}: {:.1} MB, {percent:.2} % of a core", after.rss_mb);
}

async fn cluster_figures(
    cluster: &mut Cluster,
    args: &CompareArgs,
    figures: &mut Figures,
) -> Result<(), Failure> {
    let (api, node, target): (Duration, Duration, Arc<Target>) = cluster.wait_ready().await?;
    figures.set("up_api_ready_ms", api.as_secs_f64() * 1000.0);
    figures.set("up_node_ready_ms", node.as_secs_f64() * 1000.0);
    eprintln!("  API ready after {} ms, node Ready after {} ms", api.as_millis(), node.as_millis());
    idle(&[cluster.pid()], figures, "up_idle").await;
    let starts = PodStartArgs {
        count: args.starts,
        warmup: 2,
        connections: 1,
        image: "coracle.local/self".into(),
        args: vec!["demo".into(), "serve".into()],
        ready: false,
        timeout: 30.0,
    };
    keep(figures, "pod_start", pod_start::pod_start(&target, &starts).await);
    keep(figures, "schedule", schedule::schedule(&target, &args.schedule()).await);
    Ok(())
}
