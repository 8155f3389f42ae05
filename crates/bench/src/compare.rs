//! `compare`: starts Coracle, and upstream where its programs are named, in turns, and measures both in one run.

mod cluster;
mod contestant;
mod environment;
mod record;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::cluster::Machine;
pub use self::contestant::ApiServer;
use self::contestant::{FLOOD_TOKEN, OTHER_TOKEN, Upstream};
use self::environment::Environment;
use self::record::{Contestant, Record};
use crate::load::LoadArgs;
use crate::process::total;
use crate::scenario::controllers::{IdleArgs, RolloutArgs, delete_namespace, idle_deployments, rollouts};
use crate::scenario::flood::{FloodArgs, flood};
use crate::scenario::schedule::{ScheduleArgs, schedule};
use crate::scenario::watch::{FanoutArgs, fanout};
use crate::scenario::{Outcome, api};
use crate::target::{Failure, Target};

/// Connections of LIST: each answer is tens of megabytes.
const LIST_CONNECTIONS: usize = 4;
/// Connections that read while another user floods.
const FLOOD_CONNECTIONS: usize = 8;

/// Options of `compare`.
#[derive(clap::Args, Clone, Debug)]
pub struct CompareArgs {
    /// Upstream's etcd.
    #[arg(long, env = "ETCD")]
    pub etcd: Option<PathBuf>,
    /// Upstream's kube-apiserver; needs --etcd too.
    #[arg(long, env = "KUBE_APISERVER", requires = "etcd")]
    pub kube_apiserver: Option<PathBuf>,
    /// Upstream's kube-scheduler.
    #[arg(long, env = "KUBE_SCHEDULER", requires = "kube_apiserver")]
    pub kube_scheduler: Option<PathBuf>,
    /// Upstream's kube-controller-manager.
    #[arg(long, env = "KUBE_CONTROLLER_MANAGER", requires = "kube_scheduler")]
    pub kube_controller_manager: Option<PathBuf>,
    /// File to which the table is appended.
    #[arg(long)]
    pub results: Option<PathBuf>,
    /// File to which the figures are appended as JSON lines.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Commit to note; default what git says.
    #[arg(long)]
    pub commit: Option<String>,
    /// How often each contestant is measured, in turns.
    #[arg(long, default_value_t = 2)]
    pub rounds: u32,
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
    #[arg(long, default_value_t = 30_000)]
    pub objects: u64,
    /// Only the API server: no `coracle up` (which needs root), no scheduling, no pods.
    #[arg(long)]
    pub api_only: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of `cluster`.
#[derive(clap::Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The coracle program.
    #[arg(long, env = "CORACLE")]
    pub coracle: PathBuf,
    /// Fake nodes of the scheduling scenarios.
    #[arg(long, default_value_t = 1000)]
    pub nodes: u64,
    /// Pods of the scheduling scenarios (with anti-affinity, as many as nodes).
    #[arg(long, default_value_t = 3000)]
    pub pods: u64,
    /// Pods that are started one after another; the rest of a hundred starts at once.
    #[arg(long, default_value_t = 30)]
    pub starts: usize,
    /// Deployments of three pods that are rolled out; 0 leaves the controllers out.
    #[arg(long, default_value_t = 1000)]
    pub deployments: u64,
    /// Deployments of which nothing is asked.
    #[arg(long, default_value_t = 10_000)]
    pub idle_deployments: u64,
    /// Objects in a namespace that is deleted.
    #[arg(long, default_value_t = 10_000)]
    pub namespace_objects: u64,
    /// Seconds for which the idle cluster is watched.
    #[arg(long, default_value_t = 30.0)]
    pub idle: f64,
    /// Seconds after which memory that a hundred pods took is measured once more.
    #[arg(long, default_value_t = 200.0)]
    pub quiet: f64,
}

impl ClusterArgs {
    fn to_flags(&self) -> Vec<String> {
        contestant::text(&[
            ("coracle", self.coracle.display().to_string()),
            ("nodes", self.nodes.to_string()),
            ("pods", self.pods.to_string()),
            ("starts", self.starts.to_string()),
            ("deployments", self.deployments.to_string()),
            ("idle-deployments", self.idle_deployments.to_string()),
            ("namespace-objects", self.namespace_objects.to_string()),
            ("idle", self.idle.to_string()),
            ("quiet", self.quiet.to_string()),
        ])
    }
}

impl CompareArgs {
    fn load(&self, connections: usize) -> LoadArgs {
        LoadArgs { connections, warmup: self.warmup, duration: self.duration, count: None }
    }

    fn schedule(&self, anti_affinity: bool) -> ScheduleArgs {
        let ClusterArgs { nodes, pods, .. } = self.cluster;
        let pods = if anti_affinity { nodes.min(pods) } else { pods };
        ScheduleArgs { nodes, pods, connections: 32, anti_affinity, patience: 30.0 }
    }

    /// Upstream's programs, if they are named.
    fn upstream(&self) -> Option<Upstream<'_>> {
        Some(Upstream { etcd: self.etcd.as_deref()?, apiserver: self.kube_apiserver.as_deref()? })
    }

    fn environment(&self) -> Environment {
        let mut programs = vec![("coracle", self.cluster.coracle.as_path(), "--version")];
        programs.extend(self.etcd.as_deref().map(|p| ("etcd", p, "--version")));
        programs.extend(self.kube_apiserver.as_deref().map(|p| ("kube-apiserver", p, "--version")));
        programs.extend(self.kube_scheduler.as_deref().map(|p| ("kube-scheduler", p, "--version")));
        let manager = self.kube_controller_manager.as_deref();
        programs.extend(manager.map(|p| ("kube-controller-manager", p, "--version")));
        let options = format!(
            "{} rounds; API: {} connections, {} s each after {} s of warm-up; {} pods listed over {} \
             connections; {} pods on {} nodes scheduled; {} pods started one after another; {} Deployments of 3 \
             pods, {} idle ones, {} objects in a namespace",
            self.rounds,
            self.connections,
            self.duration,
            self.warmup,
            self.objects,
            LIST_CONNECTIONS,
            self.cluster.pods,
            self.cluster.nodes,
            self.cluster.starts,
            self.cluster.deployments,
            self.cluster.idle_deployments,
            self.cluster.namespace_objects
        );
        Environment::find(self.commit.as_deref(), &programs, options)
    }
}

/// A run under way.
struct Run<'a> {
    args: &'a CompareArgs,
    dir: &'a Path,
    environment: Environment,
    round: u32,
    records: Vec<Record>,
}

/// Runs everything and prints the table. Figures that could not be measured are named, with the reason, and
/// do not keep the others back.
///
/// # Errors
/// The results cannot be written, or nothing could be measured.
pub async fn run(args: &CompareArgs) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("coracle-bench-").tempdir().map_err(|e| e.to_string())?;
    let environment = args.environment();
    if let Some(path) = &args.json {
        record::append(path, [&environment])?;
    }
    let mut run = Run { args, dir: dir.path(), environment, round: 0, records: Vec::new() };
    for round in 1..=args.rounds {
        run.round = round;
        eprintln!("round {round} of {}", args.rounds);
        run.api(Contestant::Coracle).await?;
        if args.upstream().is_some() {
            run.api(Contestant::Upstream).await?;
        }
        if !args.api_only {
            run.cluster()?;
            if args.kube_scheduler.is_some() {
                run.upstream_schedule("schedule", false).await?;
                run.upstream_schedule("schedule_anti_affinity", true).await?;
            }
            if args.kube_controller_manager.is_some() && args.cluster.deployments > 0 {
                run.upstream_controllers().await?;
            }
        }
    }
    let text = table::render(&run.environment, &run.records);
    println!("{text}");
    if let Some(path) = &args.results {
        table::append(path, &text)?;
    }
    if run.records.iter().all(|r| r.figures.is_empty()) {
        return Err("nothing could be measured".into());
    }
    Ok(())
}

/// `cluster`: the part of a comparison that needs a machine of its own.
///
/// # Errors
/// The cluster does not start.
pub async fn cluster(args: &ClusterArgs) -> Result<(), Failure> {
    cluster::measure(args).await
}

impl Run<'_> {
    /// Shows a record, writes its line and keeps it.
    fn keep(&mut self, mut record: Record) -> Result<(), Failure> {
        record.run.clone_from(&self.environment.run);
        record.round = self.round;
        eprintln!("{record}");
        if let Some(path) = &self.args.json {
            record::append(path, [&record])?;
        }
        self.records.push(record);
        Ok(())
    }

    fn outcome(
        &mut self,
        who: Contestant,
        what: &str,
        result: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        self.keep(match result {
            Ok(outcome) => Record::summary(who, what, outcome.summary),
            Err(e) => Record::missed(who, what, &e),
        })
    }

    /// A fresh server in a directory of its own, and how long it took until it was ready.
    async fn start(&mut self, who: Contestant, what: &str) -> Result<Option<(ApiServer, PathBuf)>, Failure> {
        let dir = self.dir.join(format!("{what}-{}-{who:?}", self.round));
        let started = match (who, self.args.upstream()) {
            (Contestant::Upstream, Some(programs)) => ApiServer::upstream(&programs, &dir),
            _ => ApiServer::coracle(&self.args.cluster.coracle, &dir),
        };
        let ready = async {
            let mut server = started?;
            let took = server.wait_ready().await?;
            Ok::<_, Failure>((server, took))
        };
        match ready.await {
            Ok((server, took)) => {
                let figures = [("ms", took.as_secs_f64() * 1000.0)];
                self.keep(Record::figures(who, "ready", &figures))?;
                Ok(Some((server, dir)))
            }
            Err(e) => self.keep(Record::missed(who, what, &e)).map(|()| None),
        }
    }

    /// Everything that only needs an API server. Nothing is deleted: the server goes with its data.
    async fn api(&mut self, who: Contestant) -> Result<(), Failure> {
        let (load, list) = (self.args.load(self.args.connections), self.args.load(LIST_CONNECTIONS));
        if let Some((mut server, dir)) = self.start(who, "api").await? {
            let target = server.target.clone();
            let seen = idle(&server.pids(), Duration::from_secs(5), Duration::from_secs(15)).await;
            self.keep(Record::figures(who, "idle", &[("rss_mb", seen.0), ("cpu_percent", seen.1)]))?;
            self.outcome(who, "get", api::get(&target, &load).await)?;
            self.outcome(who, "create_configmaps", api::create_config_maps(&target, &load, 1024).await)?;
            self.outcome(who, "create_pods", api::create_pods(&target, &load).await)?;
            let others = self.args.load(FLOOD_CONNECTIONS);
            let flooding = FloodArgs {
                other_token: OTHER_TOKEN.into(),
                flood_token: FLOOD_TOKEN.into(),
                flood_connections: 256,
                objects: 500,
            };
            self.outcome(who, "flood", flood(&target, &others, &flooding).await)?;
            let watchers = FanoutArgs { watchers: 1000, count: 300, writers: 32, size: 512 };
            self.outcome(who, "watch_fanout", fanout(&target, &watchers).await)?;
            self.end(who, "api", &mut server, &dir)?;
        }
        if let Some((mut server, dir)) = self.start(who, "list").await? {
            let target = server.target.clone();
            self.outcome(who, "list", api::list(&target, &list, self.args.objects).await)?;
            self.end(who, "list", &mut server, &dir)?;
        }
        Ok(())
    }

    /// Ends a server and removes its data; notes if it had ended by itself.
    fn end(
        &mut self,
        who: Contestant,
        what: &str,
        server: &mut ApiServer,
        dir: &Path,
    ) -> Result<(), Failure> {
        let alive = server.check();
        server.stop();
        let _ = std::fs::remove_dir_all(dir);
        alive.or_else(|e| self.keep(Record::missed(who, what, &e)))
    }

    /// `coracle up` and what a cluster does, in a network namespace of its own.
    fn cluster(&mut self) -> Result<(), Failure> {
        let machine = match Machine::new() {
            Ok(machine) => machine,
            Err(e) => return self.keep(Record::missed(Contestant::Coracle, "up", &e)),
        };
        let (mut kept, args) = (Ok(()), &self.args.cluster);
        let result = machine.cluster(args, |record| {
            let now = self.keep(record);
            if kept.is_ok() {
                kept = now;
            }
        });
        kept?;
        result.or_else(|e| self.keep(Record::missed(Contestant::Coracle, "up", &e)))
    }

    /// Upstream's scheduler on a fresh API server.
    async fn upstream_schedule(&mut self, what: &str, anti_affinity: bool) -> Result<(), Failure> {
        let who = Contestant::Upstream;
        let Some(program) = self.args.kube_scheduler.clone() else { return Ok(()) };
        let Some((mut server, dir)) = self.start(who, what).await? else { return Ok(()) };
        let result = match server.add_scheduler(&program, &dir).await {
            Ok(()) => schedule(&server.target, &self.args.schedule(anti_affinity)).await,
            Err(e) => Err(e),
        };
        self.outcome(who, what, result)?;
        self.end(who, what, &mut server, &dir)
    }
}

impl Run<'_> {
    /// Upstream's scheduler and controllers, on a fresh API server for each figure.
    async fn upstream_controllers(&mut self) -> Result<(), Failure> {
        let who = Contestant::Upstream;
        let (args, programs) = (self.args.cluster.clone(), self.args);
        let Some((scheduler, manager)) =
            programs.kube_scheduler.as_deref().zip(programs.kube_controller_manager.as_deref())
        else {
            return Ok(());
        };
        for what in CONTROLLER_SCENARIOS {
            let Some((mut server, dir)) = self.start(who, what).await? else { return Ok(()) };
            let started = async {
                server.add_scheduler(scheduler, &dir).await?;
                server.add_controller_manager(manager, &dir).await
            };
            let result = match started.await {
                Ok(()) => controllers(what, &server.target, &args).await,
                Err(e) => Err(e),
            };
            self.outcome(who, what, result)?;
            self.end(who, what, &mut server, &dir)?;
        }
        Ok(())
    }
}

/// What is measured of controllers, each on a fresh cluster.
const CONTROLLER_SCENARIOS: [&str; 3] = ["deployments", "idle_deployments", "delete_namespace"];

/// Measures one of them.
async fn controllers(what: &str, target: &Arc<Target>, args: &ClusterArgs) -> Result<Outcome, Failure> {
    match what {
        "deployments" => {
            let rollout =
                RolloutArgs { deployments: args.deployments, replicas: 3, nodes: 100, connections: 32 };
            rollouts(target, &rollout).await
        }
        "idle_deployments" => {
            let idle = IdleArgs { deployments: args.idle_deployments, idle: args.idle };
            idle_deployments(target, &idle).await
        }
        _ => delete_namespace(target, args.namespace_objects).await,
    }
}

/// Memory in MB and processor time in percent of a core of processes that nobody asks anything of.
async fn idle(pids: &[u32], settle: Duration, window: Duration) -> (f64, f64) {
    tokio::time::sleep(settle).await;
    let (before, start) = (total(pids), Instant::now());
    tokio::time::sleep(window).await;
    let (after, seconds) = (total(pids), start.elapsed().as_secs_f64());
    (after.rss_mb, (after.cpu_seconds - before.cpu_seconds) / seconds * 100.0)
}
