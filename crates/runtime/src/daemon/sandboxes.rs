//! Sandboxes: make, stop, remove.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerEventType, ContainerState, PodSandboxConfig};
use coracle_cri::{CriError, PodNetworkRequest};

use super::shim_client::{self, ShimConnection, unexpected};
use super::{Runtime, Sandbox, SandboxRecord, blocking};
use crate::cgroup::Hierarchies;
use crate::namespaces::PodNamespaces;
use crate::protocol::{Reply, Request};
use crate::user_namespace;

/// Directory of a sandbox with what its containers mount: `resolv.conf`, `hostname`, `shm`.
const FILES: &str = "files";
/// How long a new shim may take to answer.
const SHIM_PATIENCE: Duration = Duration::from_secs(20);

impl Runtime {
    pub(super) async fn make_sandbox(self: &Arc<Self>, config: PodSandboxConfig) -> Result<String, CriError> {
        if !super::service::HANDLERS.contains(&config.runtime_handler.as_str()) {
            let handler = &config.runtime_handler;
            return Err(CriError::Internal(format!(
                "failed to get sandbox runtime: no runtime for {handler:?} is configured"
            )));
        }
        if config.namespaces.user_namespace.is_some() && config.namespaces.host_network {
            let text = "a pod on the host's network cannot have a user namespace of its own";
            return Err(CriError::InvalidArgument(text.into()));
        }
        let id = coracle_stdx::random_hex(32);
        let dir = self.config.sandboxes().join(&id);
        let record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: self.now_nanos(),
            ..SandboxRecord::default()
        };
        let sandbox = Arc::new(Sandbox::new(dir, record));
        match self.build_sandbox(&sandbox).await {
            Ok(connection) => {
                self.sandboxes.lock().insert(id.clone(), sandbox.clone());
                self.weigh(&sandbox.config).await;
                self.follow(&sandbox, connection);
                self.emit(ContainerEventType::Started, "", &sandbox);
                Ok(id)
            }
            Err(error) => {
                self.dismantle(&sandbox).await;
                let dir = sandbox.dir.clone();
                let _ = blocking(move || crate::files::remove_tree(&dir)).await;
                Err(error)
            }
        }
    }

    async fn build_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<ShimConnection, CriError> {
        let parts = Parts {
            sandbox: sandbox.clone(),
            hierarchies: self.hierarchies.clone(),
            namespaces: self.namespaces(&sandbox.id),
            pod_cgroup: self.pod_cgroup(&sandbox.id, &sandbox.config),
            shim_cgroup: format!("{}/{}", self.config.shims_cgroup(), sandbox.id),
            shifted: self.config.shifted().join(&sandbox.id),
        };
        blocking(move || parts.make()).await?;
        let network = self.connect_network(sandbox);
        let (ips, connection) = tokio::join!(network, Self::greet_shim(sandbox));
        let connection = connection?;
        {
            let mut state = sandbox.state.lock();
            state.ips = ips?.iter().map(ToString::to_string).collect();
            state.ready = true;
            state.made = true;
        }
        let saved = sandbox.clone();
        blocking(move || saved.save()).await?;
        Ok(connection)
    }

    /// Connects a sandbox to the pod network, unless it is on the host's.
    pub(super) async fn connect_network(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, CriError> {
        if sandbox.config.namespaces.host_network {
            return Ok(Vec::new());
        }
        let request = PodNetworkRequest {
            sandbox_id: sandbox.id.clone(),
            namespace: sandbox.metadata().namespace.clone(),
            name: sandbox.metadata().name.clone(),
            netns: self.namespaces(&sandbox.id).network(),
            uid: sandbox.metadata().uid.clone(),
            annotations: sandbox.config.annotations.clone(),
            port_mappings: sandbox.config.port_mappings.clone(),
        };
        self.network.setup(&request).await.map_err(|e| {
            CriError::Internal(format!("failed to setup network for sandbox {:?}: {e}", sandbox.id))
        })
    }

    /// Waits until the shim answers, subscribes, and learns about the pause process.
    async fn greet_shim(sandbox: &Sandbox) -> Result<ShimConnection, CriError> {
        let greet = async {
            let mut connection = Self::subscribe(sandbox).await?;
            if sandbox.config.namespaces.share_process_namespace
                && let (Reply::State { pause_pid, .. }, _) = connection.call(&Request::State, &[]).await?
            {
                sandbox.state.lock().pause_pid = pause_pid;
            }
            Ok::<_, io::Error>(connection)
        };
        let log = || fs::read_to_string(sandbox.dir.join("shim.log")).unwrap_or_default();
        match tokio::time::timeout(SHIM_PATIENCE, greet).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(e)) => Err(CriError::Internal(format!("the shim did not start: {e} {}", log().trim()))),
            Err(_) => Err(CriError::DeadlineExceeded(format!("the shim does not answer {}", log().trim()))),
        }
    }

    pub(super) async fn end_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CriError> {
        let _ending = sandbox.ending.lock().await;
        if sandbox.state.lock().stopped {
            return Ok(());
        }
        sandbox.state.lock().stopped = true;
        if let Err(error) = self.shut_down(sandbox).await {
            sandbox.state.lock().stopped = false;
            return Err(error);
        }
        let was_ready = std::mem::replace(&mut sandbox.state.lock().ready, false);
        let saved = sandbox.clone();
        blocking(move || saved.save()).await?;
        self.weigh(&sandbox.config).await;
        if was_ready {
            self.emit(ContainerEventType::Stopped, "", sandbox);
        }
        Ok(())
    }

    async fn shut_down(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CriError> {
        if !sandbox.config.namespaces.host_network {
            self.network.teardown(&sandbox.id).await.map_err(|e| {
                CriError::Internal(format!("failed to destroy network for sandbox {:?}: {e}", sandbox.id))
            })?;
        }
        let asked = shim_client::ask(&sandbox.dir, Request::Shutdown);
        match tokio::time::timeout(SHIM_PATIENCE, asked).await {
            Ok(Ok(Reply::Done)) => {}
            Ok(Ok(other)) => return Err(unexpected("stop sandbox", Ok(other))),
            // Gone already.
            Ok(Err(_)) => self.abandon(sandbox).await,
            Err(_) => {
                return Err(CriError::DeadlineExceeded(format!(
                    "the containers of sandbox {:?} do not die",
                    sandbox.id
                )));
            }
        }
        for container in self.containers_of(&sandbox.id) {
            let running = container.now.lock().state != ContainerState::Created;
            if let Some(exit) = Self::recorded_exit(&container).filter(|_| running) {
                self.mark_exited(&container, exit);
            }
        }
        self.dismantle(sandbox).await;
        Ok(())
    }

    /// Where a container finds the files of its sandbox.
    pub(super) fn sandbox_files(&self, sandbox: &Sandbox) -> PathBuf {
        if sandbox.config.namespaces.user_namespace.is_some() {
            return self.config.shifted().join(&sandbox.id);
        }
        let files = sandbox.dir.join(FILES);
        // Versions before this one had them beside its records.
        if files.exists() { files } else { sandbox.dir.clone() }
    }

    /// Takes away shim, network, namespaces, mounts and cgroups; each may be absent.
    pub(super) async fn dismantle(&self, sandbox: &Arc<Sandbox>) {
        if !sandbox.config.namespaces.host_network
            && let Err(error) = self.network.teardown(&sandbox.id).await
        {
            tracing::warn!(sandbox = sandbox.id, %error, "cannot disconnect sandbox from the network");
        }
        let (owned, hierarchies) = (sandbox.clone(), self.hierarchies.clone());
        let namespaces = self.namespaces(&sandbox.id);
        let shim_cgroup = format!("{}/{}", self.config.shims_cgroup(), sandbox.id);
        let shifted = self.config.shifted().join(&sandbox.id);
        let done = blocking(move || {
            owned.collect_shim();
            hierarchies.kill(&shim_cgroup);
            namespaces.remove();
            crate::files::remove_mount_points(&shifted)?;
            // The second: where versions before this one had it.
            for shm in [owned.dir.join(FILES).join("shm"), owned.dir.join("shm")] {
                crate::files::unmount(&shm);
            }
            hierarchies.remove(&shim_cgroup);
            Ok(())
        });
        if let Err(error) = done.await {
            tracing::warn!(sandbox = sandbox.id, %error, "cannot dismantle sandbox");
        }
    }

    pub(super) async fn delete_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CriError> {
        self.end_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.delete_container(&container).await?;
        }
        let _ending = sandbox.ending.lock().await;
        if self.sandboxes.lock().remove(&sandbox.id).is_none() {
            return Ok(());
        }
        let (owned, hierarchies) = (sandbox.clone(), self.hierarchies.clone());
        let (pods, mut cgroup) = (self.config.pods_cgroup(), self.pod_cgroup(&sandbox.id, &sandbox.config));
        blocking(move || {
            // The pod's cgroup, and the ones above it that nobody uses any more.
            while cgroup.len() > pods.len() {
                hierarchies.remove_if_empty(&cgroup);
                let Some((parent, _)) = cgroup.rsplit_once('/') else { break };
                cgroup = parent.to_owned();
            }
            crate::files::remove_tree(&owned.dir)
        })
        .await?;
        self.emit(ContainerEventType::Deleted, "", sandbox);
        Ok(())
    }
}

/// What is made without waiting for anyone.
struct Parts {
    sandbox: Arc<Sandbox>,
    hierarchies: Hierarchies,
    namespaces: PodNamespaces,
    pod_cgroup: String,
    shim_cgroup: String,
    /// Where the pod's files are shown to its users, if it has its own.
    shifted: PathBuf,
}

impl Parts {
    fn make(&self) -> io::Result<()> {
        let (dir, config) = (&self.sandbox.dir, &self.sandbox.config);
        fs::create_dir_all(dir)?;
        self.sandbox.save()?;
        self.hierarchies.create(&self.shim_cgroup)?;
        let users = config.namespaces.user_namespace.is_some();
        if users {
            // The pause process, which the shim starts, must be in it.
            self.namespaces.create(&config.namespaces, &config.hostname, &config.sysctls)?;
        }
        let pause = match config.namespaces.share_process_namespace && !config.namespaces.host_pid {
            true if users => format!("pause={}", self.namespaces.user().display()),
            true => "pause".to_owned(),
            false => "-".to_owned(),
        };
        // The shim comes up while we do the rest.
        *self.sandbox.child.lock() = Some(shim_client::start(dir, &self.shim_cgroup, &pause)?);
        self.hierarchies.create(&self.pod_cgroup)?;
        self.hierarchies.limit(&self.pod_cgroup, &config.resources);
        if !users {
            self.namespaces.create(&config.namespaces, &config.hostname, &config.sysctls)?;
        }
        self.write_files(&dir.join(FILES))?;
        if users {
            user_namespace::show(&dir.join(FILES), &self.shifted, &self.namespaces.user(), true)?;
        }
        Ok(())
    }

    /// What all containers of the pod mount.
    fn write_files(&self, dir: &Path) -> io::Result<()> {
        let config = &self.sandbox.config;
        fs::create_dir_all(dir)?;
        if !config.namespaces.host_ipc {
            shared_memory(&dir.join("shm"))?;
        }
        if !config.hostname.is_empty() {
            fs::write(dir.join("hostname"), format!("{}\n", config.hostname))?;
        }
        fs::write(dir.join("resolv.conf"), resolver(config))
    }
}

/// 64 MiB of memory files shared by the pod's containers.
fn shared_memory(dir: &Path) -> io::Result<()> {
    use rustix::mount::{MountFlags, mount};
    fs::create_dir_all(dir)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("shm", dir, "tmpfs", flags, Some(c"mode=1777,size=67108864"))?)
}

/// The content of the pod's `/etc/resolv.conf`; without a configuration, the host's.
fn resolver(config: &PodSandboxConfig) -> String {
    let dns = &config.dns_config;
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use coracle_cri::v1::DnsConfig;

    use super::*;

    #[test]
    fn resolver_file_has_searches_servers_and_options_in_order() {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let dns_config = DnsConfig {
            servers: list(&["10.96.0.10"]),
            searches: list(&["a.svc", "svc"]),
            options: list(&["ndots:5"]),
        };
        let config = PodSandboxConfig { dns_config, ..Default::default() };
        assert_eq!(resolver(&config), "search a.svc svc\nnameserver 10.96.0.10\noptions ndots:5\n");
    }
}
