//! A fake runtime and a context around it, for tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::testing::FakeTransport;
use coracle_client::{Client, EventRecorder, Informers};
use coracle_cri::v1::*;
use coracle_cri::{CriError, ExecRequest, ExecSession, ImageService, RuntimeService, Streaming};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::allocation::Allocations;
use crate::config::KubeletConfig;
use crate::context::Context;
use crate::cpus::{CpuPolicy, Cpus, Topology};
use crate::images::Images;
use crate::machine::Machine;
use crate::memory_manager::MemoryManager;
use crate::objects::Objects;
use crate::shutdown::ShutdownPeriod;
use crate::tokens::Tokens;
use crate::topology_manager::{NodeSet, TopologyConfig, TopologyManager};
use crate::user_namespaces::{IdRange, UserNamespaces};
use coracle_stdx::files::Watcher;

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, (PodSandboxConfig, PodSandboxStatus)>,
    containers: BTreeMap<String, (ContainerConfig, ContainerStatus)>,
    listeners: Vec<mpsc::Sender<ContainerEventResponse>>,
    next: u32,
}

/// A runtime whose containers are entries in a map.
#[derive(Default)]
pub struct FakeRuntime(Mutex<State>);

fn selects(selector: &Map, labels: &Map) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl FakeRuntime {
    fn emit(&self, id: &str, sandbox: &str, kind: ContainerEventType) {
        let mut state = self.0.lock();
        let pod = state.sandboxes.get(sandbox).map(|s| s.0.metadata.clone()).unwrap_or_default();
        let event = ContainerEventResponse {
            container_id: id.into(),
            pod_sandbox_id: sandbox.into(),
            kind,
            created_at: 0,
            pod,
        };
        state.listeners.retain(|l| l.try_send(event.clone()).is_ok());
    }
    /// Lets the newest running instance of a container end.
    pub fn exit(&self, name: &str, code: i32) {
        let (id, sandbox) = {
            let mut state = self.0.lock();
            let found = state
                .containers
                .values_mut()
                .map(|c| &mut c.1)
                .find(|c| c.metadata.name == name && c.state == ContainerState::Running);
            let c = found.expect("a running container");
            c.state = ContainerState::Exited;
            c.exit_code = code;
            c.finished_at = now();
            (c.id.clone(), c.pod_sandbox_id.clone())
        };
        self.emit(&id, &sandbox, ContainerEventType::Stopped);
    }
    /// Containers and sandboxes that exist.
    pub fn count(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.containers.len(), state.sandboxes.len())
    }
    /// Configuration of the newest instance of a container.
    pub fn config(&self, name: &str) -> Option<ContainerConfig> {
        let state = self.0.lock();
        state.containers.values().rev().map(|c| &c.0).find(|c| c.metadata.name == name).cloned()
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("in range")
}

#[async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self) -> Result<VersionResponse, CriError> {
        Ok(VersionResponse { runtime_name: "fake".into(), runtime_version: "1".into(), ..Default::default() })
    }
    async fn status(&self) -> Result<RuntimeStatus, CriError> {
        Ok(RuntimeStatus::default())
    }
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, CriError> {
        let mut state = self.0.lock();
        state.next += 1;
        let id = format!("s{:03}", state.next);
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            ready: true,
            created_at: now(),
            ips: vec!["127.0.0.1".into()],
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..PodSandboxStatus::default()
        };
        state.sandboxes.insert(id.clone(), (config, status));
        Ok(id)
    }
    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        if let Some(s) = self.0.lock().sandboxes.get_mut(id) {
            s.1.ready = false;
        }
        Ok(())
    }
    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        self.0.lock().sandboxes.remove(id);
        Ok(())
    }
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CriError> {
        let state = self.0.lock();
        state.sandboxes.get(id).map(|s| s.1.clone()).ok_or_else(|| CriError::NotFound(id.into()))
    }
    async fn list_pod_sandbox(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>, CriError> {
        let state = self.0.lock();
        let wanted = state.sandboxes.values().filter(|s| selects(&filter.label_selector, &s.1.labels));
        Ok(wanted
            .map(|(_, s)| PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata.clone(),
                ready: s.ready,
                created_at: s.created_at,
                labels: s.labels.clone(),
                annotations: s.annotations.clone(),
                ..PodSandbox::default()
            })
            .collect())
    }
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        _: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut state = self.0.lock();
        state.next += 1;
        let id = format!("c{:03}", state.next);
        let status = ContainerStatus {
            id: id.clone(),
            pod_sandbox_id: sandbox_id.into(),
            metadata: config.metadata.clone(),
            state: ContainerState::Created,
            created_at: now(),
            image: config.image.clone(),
            image_ref: "sha256:1".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            resources: config.resources.clone(),
            ..ContainerStatus::default()
        };
        state.containers.insert(id.clone(), (config, status));
        Ok(id)
    }
    async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let sandbox = {
            let mut state = self.0.lock();
            let c = &mut state.containers.get_mut(id).ok_or_else(|| CriError::NotFound(id.into()))?.1;
            c.state = ContainerState::Running;
            c.started_at = now();
            c.pod_sandbox_id.clone()
        };
        self.emit(id, &sandbox, ContainerEventType::Started);
        Ok(())
    }
    async fn stop_container(&self, id: &str, _: i64) -> Result<(), CriError> {
        let name = {
            let state = self.0.lock();
            let c = state.containers.get(id).filter(|c| c.1.state == ContainerState::Running);
            c.map(|c| c.1.metadata.name.clone())
        };
        if let Some(name) = name {
            self.exit(&name, 137);
        }
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        self.0.lock().containers.remove(id);
        Ok(())
    }
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<Container>, CriError> {
        let state = self.0.lock();
        let wanted = state.containers.values().map(|c| &c.1).filter(|c| {
            selects(&filter.label_selector, &c.labels) && (filter.id.is_empty() || filter.id == c.id)
        });
        Ok(wanted
            .map(|c| Container {
                id: c.id.clone(),
                pod_sandbox_id: c.pod_sandbox_id.clone(),
                metadata: c.metadata.clone(),
                state: c.state,
                created_at: c.created_at,
                labels: c.labels.clone(),
                annotations: c.annotations.clone(),
                ..Container::default()
            })
            .collect())
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let state = self.0.lock();
        state.containers.get(id).map(|c| c.1.clone()).ok_or_else(|| CriError::NotFound(id.into()))
    }
    async fn reopen_container_log(&self, _: &str) -> Result<(), CriError> {
        Ok(())
    }
    async fn exec_sync(&self, _: &str, cmd: Vec<String>, _: i64) -> Result<ExecSyncResponse, CriError> {
        let exit_code = i32::from(cmd.first().is_some_and(|c| c == "false"));
        Ok(ExecSyncResponse { exit_code, ..ExecSyncResponse::default() })
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, CriError> {
        Ok(ContainerStats { id: id.into(), ..ContainerStats::default() })
    }
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, CriError> {
        Ok(PodSandboxStats { id: id.into(), ..PodSandboxStats::default() })
    }
    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<(), CriError> {
        let mut state = self.0.lock();
        let c = state.containers.get_mut(id).ok_or_else(|| CriError::NotFound(id.into()))?;
        c.1.resources = resources;
        Ok(())
    }
    async fn update_pod_sandbox_resources(&self, _: &str, _: LinuxResources) -> Result<(), CriError> {
        Ok(())
    }
    async fn container_events(&self) -> Result<mpsc::Receiver<ContainerEventResponse>, CriError> {
        let (sender, receiver) = mpsc::channel(100);
        self.0.lock().listeners.push(sender);
        Ok(receiver)
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        Ok(Vec::new())
    }
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>, CriError> {
        let present = !image.image.starts_with("absent");
        Ok(present.then(|| Image { id: "sha256:1".into(), ..Image::default() }))
    }
    async fn pull_image(&self, image: &ImageSpec, _: Option<AuthConfig>) -> Result<String, CriError> {
        Err(CriError::NotFound(format!("{}: not found", image.image)))
    }
    async fn remove_image(&self, _: &ImageSpec) -> Result<(), CriError> {
        Ok(())
    }
    async fn image_fs_info(&self) -> Result<FilesystemUsage, CriError> {
        Ok(FilesystemUsage::default())
    }
}

/// Sessions echo their input and end with code 3 at its end.
#[async_trait]
impl Streaming for FakeRuntime {
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (to_exit, exit) = tokio::sync::oneshot::channel();
        let (resize, mut sizes) = mpsc::channel(4);
        tokio::spawn(async move {
            let (mut input, mut output) = tokio::io::split(far);
            if request.tty {
                let size: coracle_cri::TerminalSize = sizes.recv().await.expect("a size");
                let text = format!("{}x{}\n", size.width, size.height);
                tokio::io::AsyncWriteExt::write_all(&mut output, text.as_bytes()).await.expect("written");
            }
            tokio::io::copy(&mut input, &mut output).await.expect("echo");
            tokio::io::AsyncWriteExt::shutdown(&mut output).await.expect("end");
            to_exit.send(Ok(3)).expect("somebody waits");
        });
        let (stdout, stdin) = tokio::io::split(near);
        Ok(ExecSession { stdin: Some(Box::pin(stdin)), stdout: Box::pin(stdout), stderr: None, resize, exit })
    }
    async fn attach(&self, id: &str, stdin: bool, tty: bool) -> Result<ExecSession, CriError> {
        self.exec(ExecRequest { container_id: id.into(), command: Vec::new(), tty, stdin }).await
    }
    async fn port_forward(&self, _: &str, port: u16) -> Result<tokio::net::TcpStream, CriError> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        stream.map_err(|e| CriError::Unavailable(e.to_string()))
    }
}

/// A kubelet's context in `directory`, on a fake API server and a fake runtime.
pub fn context(directory: &Path) -> (Arc<Context>, Arc<FakeTransport>, Arc<FakeRuntime>, Informers) {
    let clock = Clock::system();
    let api = FakeTransport::new(clock.clone());
    let client: Client = api.client();
    let informers = Informers::new(client.clone());
    let runtime = Arc::new(FakeRuntime::default());
    let config = KubeletConfig {
        node_name: "n1".into(),
        node_ip: [10, 0, 0, 1].into(),
        node_labels: BTreeMap::new(),
        pod_cidr: "10.244.0.0/24".into(),
        version: "v1.36.2+coracle".into(),
        port: 0,
        server_cert_pem: String::new(),
        server_key_pem: String::new(),
        client_ca_pem: String::new(),
        root: directory.join("kubelet"),
        own_log: None,
        device_plugins: directory.join("kubelet/device-plugins"),
        static_pods: directory.join("manifests"),
        static_pods_check: std::time::Duration::from_secs(20),
        static_pod_url: None,
        log_root: directory.join("logs"),
        cgroup_root: "/x".into(),
        cluster_dns: vec![[10, 96, 0, 10].into()],
        cluster_domain: "cluster.local".into(),
        resolv_conf: "/etc/resolv.conf".into(),
        max_pods: 110,
        pod_pids_limit: -1,
        user_ids: IdRange::all(65536),
        ids_per_pod: 65536,
        credential_providers: Vec::new(),
        credential_provider_dir: directory.to_owned(),
        cpu_policy: CpuPolicy::None,
        reserved_cpus: None,
        memory_policy: Default::default(),
        swap: Default::default(),
        fail_swap_on: false,
        reserved_memory: Vec::new(),
        topology: TopologyConfig::NONE,
        reserved: BTreeMap::new(),
        image_gc: crate::image_gc::ImageGc::UPSTREAM,
        image_pulls: Some(1),
        eviction: crate::evict::EvictionConfig::standard(),
        enforce_allocatable: false,
        shutdown_periods: vec![
            ShutdownPeriod { priority: 0, seconds: 20 },
            ShutdownPeriod { priority: 1000, seconds: 10 },
        ],
        system_bus: directory.join("bus"),
        log_max_size: 10 << 20,
        log_max_files: 5,
    };
    std::fs::create_dir_all(config.root.join("pods")).expect("directory");
    let machine = Machine::read(&config);
    let cx = Context {
        events: EventRecorder::with_host(client.clone(), "kubelet", "n1", clock.clone()),
        services: informers.get::<Service>(),
        informers: informers.clone(),
        objects: Objects::new(informers.clone()),
        tokens: Arc::new(Tokens::new(client.clone(), clock.clone())),
        devices: Arc::new(crate::devices::Devices::open(&config.device_plugins, NodeSet::default().with(0))),
        credential_plugins: Default::default(),
        cpus: Cpus::open(CpuPolicy::None, Topology::default(), None, 0, Default::default(), directory)
            .expect("no policy"),
        memory_manager: MemoryManager::open(Default::default(), &[], &BTreeMap::new(), &[], directory)
            .expect("no policy"),
        topology_manager: TopologyManager::new(TopologyConfig::NONE, Vec::new()).expect("no policy"),
        images: Images::new(runtime.clone(), clock.clone(), config.image_pulls),
        allocations: Allocations::new(machine.view("n1")),
        machine,
        user_namespaces: UserNamespaces::open(config.user_ids, config.ids_per_pod, directory),
        host_dns: DnsConfig::default(),
        client,
        runtime: runtime.clone(),
        image_service: runtime.clone(),
        streams: coracle_cri::Streams::Here(runtime.clone()),
        shutdown: Default::default(),
        pods_cgroup: None,
        pressures: Default::default(),
        probe_counts: Default::default(),
        started: clock.now(),
        clock,
        files: Watcher::new().expect("inotify"),
        config,
    };
    (Arc::new(cx), api, runtime, informers)
}
