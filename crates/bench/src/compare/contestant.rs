//! The servers under measurement: Coracle's API server, Coracle as a cluster, upstream's programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Call, Connection};
use crate::process::{Process, free_port};
use crate::target::{Failure, Target, TargetArgs};

/// The token that every server here accepts for `admin` in `system:masters`.
const TOKEN: &str = "admintoken";
const TOKEN_LINE: &str = "admintoken,admin,admin,\"system:masters\"\n";
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a server that starts.
const LOOK: Duration = Duration::from_millis(4);

/// Upstream's programs.
pub struct Upstream<'a> {
    /// etcd.
    pub etcd: &'a Path,
    /// kube-apiserver.
    pub apiserver: &'a Path,
    /// kube-scheduler.
    pub scheduler: Option<&'a Path>,
}

/// An API server with whatever stores for it.
pub struct ApiServer {
    /// Ended in this order.
    processes: Vec<Process>,
    /// How to reach it.
    pub target: Arc<Target>,
    url: String,
    started: Instant,
}

fn text(parts: &[(&str, String)]) -> Vec<String> {
    parts.iter().map(|(flag, value)| format!("--{flag}={value}")).collect()
}

fn write(path: &Path, content: &str) -> Result<String, Failure> {
    std::fs::write(path, content).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(path.display().to_string())
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))
}

impl ApiServer {
    /// `coracle apiserver` with its embedded store in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn coracle(program: &Path, dir: &Path) -> Result<Self, Failure> {
        make_dir(dir)?;
        let port = free_port()?;
        let mut args = vec!["apiserver".to_owned()];
        args.extend(text(&[
            ("data-dir", dir.join("data").display().to_string()),
            ("secure-port", port.to_string()),
            ("bind-address", "127.0.0.1".into()),
            ("token-auth-file", write(&dir.join("tokens.csv"), TOKEN_LINE)?),
            ("service-cluster-ip-range", "10.96.0.0/16".into()),
            ("authorization-mode", "Node,RBAC".into()),
        ]));
        let url = format!("https://127.0.0.1:{port}");
        let target = Target::insecure(&url, TOKEN)?;
        let started = Instant::now();
        let process = Process::start("coracle-apiserver", program, &args, dir)?;
        Ok(Self { processes: vec![process], target, url, started })
    }

    /// etcd and kube-apiserver with the same flags.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn upstream(programs: &Upstream<'_>, dir: &Path) -> Result<Self, Failure> {
        make_dir(dir)?;
        let (client, peer, port) = (free_port()?, free_port()?, free_port()?);
        let etcd_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let etcd = text(&[
            ("data-dir", dir.join("etcd").display().to_string()),
            ("listen-client-urls", etcd_url.clone()),
            ("advertise-client-urls", etcd_url.clone()),
            ("listen-peer-urls", peer_url.clone()),
            ("initial-advertise-peer-urls", peer_url.clone()),
            ("initial-cluster", format!("default={peer_url}")),
            ("log-level", "error".into()),
        ]);
        let key = coracle_auth::pki::generate_key().map_err(|e| e.to_string())?;
        let key = write(&dir.join("sa.key"), &key)?;
        let apiserver = text(&[
            ("etcd-servers", etcd_url),
            ("secure-port", port.to_string()),
            ("bind-address", "127.0.0.1".into()),
            ("cert-dir", dir.join("certs").display().to_string()),
            ("token-auth-file", write(&dir.join("tokens.csv"), TOKEN_LINE)?),
            ("authorization-mode", "Node,RBAC".into()),
            ("allow-privileged", "true".into()),
            ("service-cluster-ip-range", "10.96.0.0/16".into()),
            ("service-account-issuer", "https://kubernetes.default.svc".into()),
            ("service-account-key-file", key.clone()),
            ("service-account-signing-key-file", key),
        ]);
        let url = format!("https://127.0.0.1:{port}");
        let target = Target::insecure(&url, TOKEN)?;
        let started = Instant::now();
        let etcd = Process::start("etcd", programs.etcd, &etcd, dir)?;
        let apiserver = Process::start("kube-apiserver", programs.apiserver, &apiserver, dir)?;
        Ok(Self { processes: vec![apiserver, etcd], target, url, started })
    }

    /// kube-scheduler for this server, without the client-side rate limit of its defaults.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_scheduler(&self, programs: &Upstream<'_>, dir: &Path) -> Result<Process, Failure> {
        let program = programs.scheduler.ok_or("no kube-scheduler")?;
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n",
            self.url
        );
        let args = text(&[
            ("kubeconfig", write(&dir.join("scheduler.kubeconfig"), &config)?),
            ("leader-elect", "false".into()),
            ("bind-address", "127.0.0.1".into()),
            ("secure-port", free_port()?.to_string()),
            ("kube-api-qps", "5000".into()),
            ("kube-api-burst", "5000".into()),
        ]);
        Process::start("kube-scheduler", program, &args, dir)
    }

    /// Waits for `/readyz`; how long it took since the start.
    ///
    /// # Errors
    /// A process ended, or it takes too long.
    pub async fn wait_ready(&mut self) -> Result<Duration, Failure> {
        while self.started.elapsed() < PATIENCE {
            self.check()?;
            if is_ready(&self.target).await {
                return Ok(self.started.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
        let logs: Vec<String> = self.processes.iter().map(Process::log_tail).collect();
        Err(format!("not ready after {} s:\n{}", PATIENCE.as_secs(), logs.join("\n")))
    }

    /// Whether all its processes run.
    ///
    /// # Errors
    /// One ended: the end of its log.
    pub fn check(&mut self) -> Result<(), Failure> {
        self.processes.iter_mut().try_for_each(Process::check)
    }

    /// Ids of its processes.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

async fn is_ready(target: &Arc<Target>) -> bool {
    let ask = async {
        let mut connection = Connection::open(target).await?;
        connection.send(Call::get("/readyz"), false).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
    answer.is_ok_and(|reply| reply.is_ok_and(|r| r.status == 200))
}

/// `coracle up`: a whole cluster on this machine.
pub struct Cluster {
    process: Process,
    program: PathBuf,
    data: PathBuf,
    started: Instant,
}

impl Cluster {
    /// Starts it with data in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn up(program: &Path, dir: &Path) -> Result<Self, Failure> {
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
    ///
    /// # Errors
    /// The process ended, or it takes too long.
    pub async fn wait_ready(&mut self) -> Result<(Duration, Duration, Arc<Target>), Failure> {
        let kubeconfig = Some(self.data.join("kubeconfig"));
        let args = TargetArgs { kubeconfig, ..TargetArgs::default() };
        let mut api: Option<Duration> = None;
        while self.started.elapsed() < PATIENCE {
            self.process.check()?;
            // The file may be there before it is whole.
            if let Ok(target) = Target::from_args(&args) {
                if api.is_none() && is_ready(&target).await {
                    api = Some(self.started.elapsed());
                }
                if let Some(api) = api
                    && node_is_ready(&target).await
                {
                    return Ok((api, self.started.elapsed(), target));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("no Ready node after {} s", PATIENCE.as_secs()))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Ends it and removes all of it.
    ///
    /// # Errors
    /// `coracle down --purge` failed.
    pub fn down(mut self) -> Result<(), Failure> {
        self.process.stop();
        let data = format!("--data-dir={}", self.data.display());
        let out = Command::new(&self.program).args(["down", "--purge", &data]).output();
        let out = out.map_err(|e| e.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }
}

async fn node_is_ready(target: &Arc<Target>) -> bool {
    let ask = async {
        let mut connection = Connection::open(target).await?;
        connection.json(Call::get("/api/v1/nodes")).await
    };
    let Ok(Ok(list)) = tokio::time::timeout(Duration::from_secs(2), ask).await else { return false };
    let nodes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().any(|node| {
        let conditions = node["status"]["conditions"].as_array().map(Vec::<Value>::as_slice);
        conditions.unwrap_or_default().iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}
