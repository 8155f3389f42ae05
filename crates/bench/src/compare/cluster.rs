//! `coracle up` as a whole: how soon it is ready, what it needs when idle and with a hundred pods, how fast pods
//! start and are scheduled.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::contestant::{Asker, LOOK, PATIENCE, make_dir, text};
use super::record::{Contestant, Record};
use super::{CONTROLLER_SCENARIOS, ClusterArgs, controllers, idle};
use crate::process::{Process, free_port, own_mb, proportional_mb, usage, with_argument};
use crate::scenario::pod_links::{LinksArgs, pod_links};
use crate::scenario::pod_start::{PodStartArgs, pod_start};
use crate::scenario::schedule::{ScheduleArgs, schedule};
use crate::scenario::{Leftovers, Outcome};
use crate::target::{Failure, Target, TargetArgs};

/// Pods that run while memory is measured.
const PODS: usize = 100;
/// Pods that start before pods are measured.
const WARMUP: usize = 2;
/// First argument of a pod's shim.
const SHIM: &str = "__shim";

/// Measures in this network namespace; each record goes to standard output as soon as it is known.
///
/// # Errors
/// The cluster does not start, or standard output is gone.
pub async fn measure(args: &ClusterArgs) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("coracle-bench-").tempdir().map_err(|e| e.to_string())?;
    match pod_links(&LinksArgs { count: 100 }) {
        Ok(summary) => say(&Record::summary(Contestant::Coracle, "pod_links", summary))?,
        Err(e) => say(&Record::missed(Contestant::Coracle, "pod_links", &e))?,
    }
    let mut cluster = Cluster::up(&args.coracle, dir.path())?;
    let result = figures(&mut cluster, args).await;
    let result = result.map_err(|e| format!("{e}\n{}", cluster.process.log_tail()));
    let down = cluster.down();
    result.and(down)?;
    if args.deployments > 0 {
        for what in CONTROLLER_SCENARIOS {
            let mut cluster = Cluster::up(&args.coracle, &dir.path().join(what))?;
            let result = match cluster.wait_ready().await {
                Ok((_, _, target)) => controllers(what, &target, args).await,
                Err(e) => Err(format!("{e}\n{}", cluster.process.log_tail())),
            };
            say_outcome(what, result)?;
            cluster.down()?;
        }
    }
    Ok(())
}

fn say(record: &Record) -> Result<(), Failure> {
    let line = serde_json::to_string(record).map_err(|e| e.to_string())?;
    writeln!(std::io::stdout(), "{line}").map_err(|e| e.to_string())
}

fn say_figures(scenario: &str, figures: &[(&str, f64)]) -> Result<(), Failure> {
    say(&Record::figures(Contestant::Coracle, scenario, figures))
}

fn say_outcome(scenario: &str, result: Result<Outcome, Failure>) -> Result<Option<Leftovers>, Failure> {
    match result {
        Ok(Outcome { summary, leftovers }) => {
            say(&Record::summary(Contestant::Coracle, scenario, summary))?;
            Ok(Some(leftovers))
        }
        Err(e) => say(&Record::missed(Contestant::Coracle, scenario, &e)).map(|()| None),
    }
}

async fn figures(cluster: &mut Cluster, args: &ClusterArgs) -> Result<(), Failure> {
    let (api, node, target) = cluster.wait_ready().await?;
    let millis = |d: Duration| d.as_secs_f64() * 1000.0;
    say_figures("up", &[("api_ready_ms", millis(api)), ("node_ready_ms", millis(node))])?;
    let pid = cluster.process.pid();
    let seen = idle(&[pid], Duration::from_secs(5), Duration::from_secs_f64(args.idle)).await;
    let (pss, own) = (proportional_mb(pid), own_mb(pid));
    let figures = [("rss_mb", seen.0), ("cpu_percent", seen.1), ("pss_mb", pss), ("own_mb", own)];
    say_figures("up_idle", &figures)?;
    pods(cluster, &target, args, own).await?;
    let mut plain = ScheduleArgs {
        nodes: args.nodes,
        pods: args.pods,
        connections: 32,
        anti_affinity: false,
        patience: 30.0,
    };
    let left = say_outcome("schedule", schedule(&target, &plain).await)?;
    if let Some(left) = left {
        left.clean().await;
    }
    (plain.anti_affinity, plain.pods) = (true, args.nodes.min(args.pods));
    say_outcome("schedule_anti_affinity", schedule(&target, &plain).await)?;
    cluster.process.check()
}

/// Pods one after another, the rest of a hundred at once, and what they cost while they run: at once, and when it has
/// been quiet for a while. `idle_own` is what the daemon had for itself before them, in MB.
async fn pods(
    cluster: &Cluster,
    target: &Arc<Target>,
    args: &ClusterArgs,
    idle_own: f64,
) -> Result<(), Failure> {
    let starts = args.starts.min(PODS - WARMUP);
    let mut start = PodStartArgs {
        count: starts,
        warmup: WARMUP,
        connections: 1,
        image: "coracle.local/self".into(),
        args: vec!["demo".into(), "serve".into()],
        ready: false,
        timeout: 60.0,
    };
    let mut left = vec![say_outcome("pod_start", pod_start(target, &start).await)?];
    let burst = PODS - WARMUP - starts;
    (start.count, start.warmup, start.connections) = (burst, 0, burst);
    left.push(say_outcome("pod_burst", pod_start(target, &start).await)?);
    let pid = cluster.process.pid();
    let (rss, cpu) = idle(&[pid], Duration::from_secs(3), Duration::from_secs_f64(args.idle / 3.0)).await;
    let shims = with_argument(SHIM);
    let shims: Vec<u32> = shims.into_iter().filter(|pid| cluster.owns(*pid)).collect();
    let of_shims: f64 = shims.iter().map(|pid| proportional_mb(*pid)).sum();
    let daemon = proportional_mb(pid);
    say_figures(
        "up_100_pods",
        &[
            ("rss_mb", rss),
            ("cpu_percent", cpu),
            ("pss_mb", daemon),
            ("shims", shims.len() as f64),
            ("shims_pss_mb", of_shims),
            ("all_pss_mb", daemon + of_shims),
        ],
    )?;
    let quiet = idle(&[pid], Duration::from_secs_f64(args.quiet), Duration::from_secs_f64(args.idle)).await;
    let own = own_mb(pid);
    let each = (own - idle_own) * 1024.0 / PODS as f64;
    let figures = [("rss_mb", quiet.0), ("cpu_percent", quiet.1), ("own_mb", own), ("own_kb_per_pod", each)];
    say_figures("up_100_pods_quiet", &figures)?;
    for left in left.into_iter().flatten() {
        left.clean().await;
    }
    let start = Instant::now();
    while with_argument(SHIM).into_iter().any(|pid| cluster.owns(pid)) && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    say_figures("pods_removed", &[("seconds", start.elapsed().as_secs_f64()), ("rss_mb", usage(pid).rss_mb)])
}

/// `coracle up`: a whole cluster on this machine.
struct Cluster {
    process: Process,
    program: PathBuf,
    data: PathBuf,
    started: Instant,
}

impl Cluster {
    fn up(program: &Path, dir: &Path) -> Result<Self, Failure> {
        make_dir(dir)?;
        let data = dir.join("data");
        let mut args = vec!["up".to_owned(), "--no-user-kubeconfig".to_owned()];
        args.extend(text(&[
            ("data-dir", data.display().to_string()),
            ("api-port", free_port()?.to_string()),
            ("kubelet-port", free_port()?.to_string()),
        ]));
        let started = Instant::now();
        let process = Process::start("coracle-up", program, &args, dir)?;
        Ok(Self { process, program: program.to_owned(), data, started })
    }

    /// Waits until the API answers and until the node is Ready: both times, and how to reach the API.
    async fn wait_ready(&mut self) -> Result<(Duration, Duration, Arc<Target>), Failure> {
        let kubeconfig = Some(self.data.join("kubeconfig"));
        let args = TargetArgs { kubeconfig, server_pid: vec![self.process.pid()], ..TargetArgs::default() };
        let target = loop {
            self.process.check()?;
            // The file may be there before it is whole.
            match Target::from_args(&args) {
                Ok(target) => break target,
                Err(e) if self.started.elapsed() > PATIENCE => return Err(e),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        let (mut asker, mut api) = (Asker::new(&target), None);
        while self.started.elapsed() < PATIENCE {
            self.process.check()?;
            match api {
                None if asker.is_ready().await => api = Some(self.started.elapsed()),
                Some(api) if node_is_ready(&mut asker).await => {
                    return Ok((api, self.started.elapsed(), target));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        Err(format!("no Ready node after {} s", PATIENCE.as_secs()))
    }

    /// Whether a process is a shim of this cluster: its directory bears the cluster's id.
    fn owns(&self, pid: u32) -> bool {
        let file = std::fs::read(self.data.join("cluster.json")).unwrap_or_default();
        let cluster: Value = serde_json::from_slice(&file).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let directory = line.split(|b| *b == 0).nth(2).unwrap_or_default();
        let id = cluster["id"].as_str().unwrap_or("unknown");
        String::from_utf8_lossy(directory).contains(&format!("/{id}/"))
    }

    /// Ends it and removes all of it.
    fn down(mut self) -> Result<(), Failure> {
        self.process.stop();
        let data = format!("--data-dir={}", self.data.display());
        let out = Command::new(&self.program).args(["down", "--purge", &data]).output();
        let out = out.map_err(|e| e.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }
}

async fn node_is_ready(asker: &mut Asker) -> bool {
    let Some(reply) = asker.get("/api/v1/nodes").await else { return false };
    let list: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let nodes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().any(|node| {
        let conditions = node["status"]["conditions"].as_array().map(Vec::<Value>::as_slice);
        conditions.unwrap_or_default().iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

/// A network namespace like a machine: an address, and a default route that leads nowhere. Ends with the value.
pub struct Machine(String);

impl Machine {
    /// Makes it.
    ///
    /// # Errors
    /// Not root, or no iproute2.
    pub fn new() -> Result<Self, Failure> {
        let name = format!("coracle-bench-{}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let machine = Self(name.clone());
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link add uplink0 type veth peer name uplink1"))?;
        ip(&format!("-n {name} addr add 192.168.79.1/24 dev uplink0"))?;
        ip(&format!("-n {name} link set uplink0 up"))?;
        ip(&format!("-n {name} link set uplink1 up"))?;
        ip(&format!("-n {name} route add default via 192.168.79.254 dev uplink0"))?;
        Ok(machine)
    }

    /// Runs this program's `cluster` in it; its records as they come.
    ///
    /// # Errors
    /// It failed.
    pub fn cluster(&self, args: &ClusterArgs, mut each: impl FnMut(Record)) -> Result<(), Failure> {
        use std::io::BufRead as _;
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.0))
            .arg("--")
            .arg(this)
            .arg("cluster")
            .args(args.to_flags())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("nsenter: {e}"))?;
        let lines = child.stdout.take().map(std::io::BufReader::new).into_iter().flat_map(|r| r.lines());
        for line in lines.map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(record) => each(record),
                Err(e) => eprintln!("not a record ({e}): {line}"),
            }
        }
        let status = child.wait().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the cluster's measurement ended with {status}")) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.0));
    }
}

fn ip(args: &str) -> Result<(), Failure> {
    let out = Command::new("ip").args(args.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}
