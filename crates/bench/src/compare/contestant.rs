//! API servers under measurement: Coracle's and upstream's, each with a store of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::{Call, Connection, Reply};
use crate::process::{Process, free_port};
use crate::target::{Failure, Target};

/// The token that every server here accepts for `admin` in `system:masters`.
const TOKEN: &str = "admintoken";
/// The token of a user whose reads are measured, and of one who floods.
pub const OTHER_TOKEN: &str = "othertoken";
pub const FLOOD_TOKEN: &str = "floodtoken";
const TOKENS: &str =
    "admintoken,admin,admin,\"system:masters\"\nothertoken,other,other\nfloodtoken,flood,flood\n";
/// How long a start may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a server that starts.
pub const LOOK: Duration = Duration::from_millis(5);

/// Upstream's programs.
pub struct Upstream<'a> {
    /// etcd.
    pub etcd: &'a Path,
    /// kube-apiserver.
    pub apiserver: &'a Path,
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

/// Flags as a program takes them.
pub fn text(parts: &[(&str, String)]) -> Vec<String> {
    parts.iter().map(|(flag, value)| format!("--{flag}={value}")).collect()
}

fn write(path: &Path, content: &str) -> Result<String, Failure> {
    std::fs::write(path, content).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(path.display().to_string())
}

/// Makes a directory.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), Failure> {
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
            ("token-auth-file", write(&dir.join("tokens.csv"), TOKENS)?),
            ("service-cluster-ip-range", "10.96.0.0/16".into()),
            ("authorization-mode", "Node,RBAC".into()),
        ]));
        let started = Instant::now();
        let process = Process::start("coracle-apiserver", program, &args, dir)?;
        Self::started(vec![process], port, started)
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
        // Upstream takes a PKCS#8 key to sign with, but to verify with it wants the public half.
        let key = rcgen::KeyPair::generate().map_err(|e| e.to_string())?;
        let public = write(&dir.join("sa.pub"), &key.public_key_pem())?;
        let key = write(&dir.join("sa.key"), &key.serialize_pem())?;
        let apiserver = text(&[
            ("etcd-servers", etcd_url),
            ("secure-port", port.to_string()),
            ("bind-address", "127.0.0.1".into()),
            ("cert-dir", dir.join("certs").display().to_string()),
            ("token-auth-file", write(&dir.join("tokens.csv"), TOKENS)?),
            ("authorization-mode", "Node,RBAC".into()),
            ("allow-privileged", "true".into()),
            ("service-cluster-ip-range", "10.96.0.0/16".into()),
            ("service-account-issuer", "https://kubernetes.default.svc".into()),
            ("service-account-key-file", public),
            ("service-account-signing-key-file", key),
        ]);
        let started = Instant::now();
        let etcd = Process::start("etcd", programs.etcd, &etcd, dir)?;
        let apiserver = Process::start("kube-apiserver", programs.apiserver, &apiserver, dir)?;
        Self::started(vec![apiserver, etcd], port, started)
    }

    fn started(processes: Vec<Process>, port: u16, started: Instant) -> Result<Self, Failure> {
        let url = format!("https://127.0.0.1:{port}");
        let pids: Vec<u32> = processes.iter().map(Process::pid).collect();
        Ok(Self { target: Target::insecure(&url, TOKEN, &pids)?, processes, url, started })
    }

    /// Adds kube-scheduler, without the client-side rate limit of its defaults, and waits until it is ready; its
    /// processor time counts too.
    ///
    /// # Errors
    /// It does not start.
    pub async fn add_scheduler(&mut self, program: &Path, dir: &Path) -> Result<(), Failure> {
        let port = free_port()?;
        let args = self.component("scheduler", port, dir)?;
        self.processes.insert(0, Process::start("kube-scheduler", program, &args, dir)?);
        self.target = self.target.with_processes(self.pids());
        self.wait(&Target::insecure(&format!("https://127.0.0.1:{port}"), TOKEN, &[])?).await
    }

    /// Adds kube-controller-manager likewise.
    ///
    /// # Errors
    /// It does not start.
    pub async fn add_controller_manager(&mut self, program: &Path, dir: &Path) -> Result<(), Failure> {
        let port = free_port()?;
        let mut args = self.component("controller-manager", port, dir)?;
        args.extend(text(&[
            ("service-account-private-key-file", dir.join("sa.key").display().to_string()),
            ("cert-dir", dir.join("certs").display().to_string()),
        ]));
        self.processes.insert(0, Process::start("kube-controller-manager", program, &args, dir)?);
        self.target = self.target.with_processes(self.pids());
        let target = Target::insecure(&format!("https://127.0.0.1:{port}"), TOKEN, &[])?;
        self.wait_at(&target, "/healthz").await
    }

    /// The flags that upstream's scheduler and controllers have in common.
    fn component(&self, name: &str, port: u16, dir: &Path) -> Result<Vec<String>, Failure> {
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n",
            self.url
        );
        Ok(text(&[
            ("kubeconfig", write(&dir.join(format!("{name}.kubeconfig")), &config)?),
            ("leader-elect", "false".into()),
            ("bind-address", "127.0.0.1".into()),
            ("secure-port", port.to_string()),
            ("kube-api-qps", "5000".into()),
            ("kube-api-burst", "5000".into()),
        ]))
    }

    /// Waits for `/readyz`; how long it took since the start.
    ///
    /// # Errors
    /// A process ended, or it takes too long.
    pub async fn wait_ready(&mut self) -> Result<Duration, Failure> {
        self.wait(&self.target.clone()).await?;
        Ok(self.started.elapsed())
    }

    async fn wait(&mut self, target: &Arc<Target>) -> Result<(), Failure> {
        self.wait_at(target, "/readyz").await
    }

    async fn wait_at(&mut self, target: &Arc<Target>, path: &str) -> Result<(), Failure> {
        let (mut asker, start) = (Asker::new(target), Instant::now());
        while start.elapsed() < PATIENCE {
            self.check()?;
            if asker.get(path).await.is_some_and(|reply| reply.status == 200) {
                return Ok(());
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

    /// Ends all its processes.
    pub fn stop(&mut self) {
        self.processes.iter_mut().for_each(Process::stop);
    }

    /// Ids of its processes.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

/// Asks a starting server for its state, on one connection as long as that holds: handshakes would slow the start
/// that is measured.
pub struct Asker {
    target: Arc<Target>,
    connection: Option<Connection>,
}

impl Asker {
    /// For this server.
    pub fn new(target: &Arc<Target>) -> Self {
        Self { target: target.clone(), connection: None }
    }

    /// The answer to a GET, if there is one soon.
    pub async fn get(&mut self, path: &str) -> Option<Reply> {
        let ask = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => Connection::open(&self.target).await?,
            };
            let reply = connection.send(&Call::get(path), true).await?;
            Ok::<_, Failure>((connection, reply))
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
        let (connection, reply) = answer.ok()?.ok()?;
        self.connection = Some(connection);
        Some(reply)
    }

    /// Whether it is ready.
    pub async fn is_ready(&mut self) -> bool {
        self.get("/readyz").await.is_some_and(|reply| reply.status == 200)
    }
}
