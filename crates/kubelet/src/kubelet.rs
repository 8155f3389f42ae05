//! Puts the parts together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use coracle_client::{Client, EventRecorder, Informers, ListOptions};
use coracle_cri::{ImageService, PodsCgroup, RuntimeService, Streams};
use coracle_meta::quantity::Quantity;
use coracle_stdx::{Clock, Tasks};
use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::net::TcpListener;

use crate::allocation::Allocations;
use crate::config::{KubeletConfig, KubeletError};
use crate::container::dns;
use crate::context::Context;
use crate::cpus::{Cpus, Topology};
use crate::credential_plugins::CredentialPlugins;
use crate::devices::{self, Devices};
use crate::images::Images;
use crate::machine::Machine;
use crate::manager::Pods;
use crate::memory_manager::MemoryManager;
use crate::objects::Objects;
use crate::server::{Server, tls};
use crate::swap::Swap;
use crate::tokens::Tokens;
use crate::topology_manager::{NumaNode, TopologyManager, read_nodes};
use crate::user_namespaces::UserNamespaces;
use crate::{cpus, node, node_events, plugins, rotate, shutdown, watchman};
use coracle_stdx::files::Watcher;

/// The agent of a node.
pub struct Kubelet {
    config: KubeletConfig,
    client: Client,
    informers: Informers,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    streams: Streams,
    clock: Clock,
    pods_cgroup: Option<Arc<dyn PodsCgroup>>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kubelet({})", self.config.node_name)
    }
}

impl Kubelet {
    /// A kubelet that acts as `client` (user `system:node:<name>`) on the given runtime. Nothing is done yet.
    pub fn new(
        config: KubeletConfig,
        client: Client,
        informers: Informers,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        streams: Streams,
        clock: Clock,
    ) -> Self {
        Self { config, client, informers, runtime, images, streams, clock, pods_cgroup: None }
    }

    /// Holds all pods together to what the node's `status.allocatable` promises, by their common cgroup.
    pub fn with_pods_cgroup(mut self, cgroup: Option<Arc<dyn PodsCgroup>>) -> Self {
        self.pods_cgroup = cgroup;
        self
    }

    /// Registers the node, adopts what runs, and runs pods until dropped. Pods go on without it.
    ///
    /// # Errors
    /// What makes a start impossible: the port, the certificates, the directories.
    pub async fn run(self) -> Result<(), KubeletError> {
        let tls = tls::acceptor(&self.config)?;
        let listener = listen(self.config.port).await?;
        let informers = self.informers.clone();
        let cx = Arc::new(self.context()?);
        node_events::start(&cx);
        let selector = format!("spec.nodeName={}", cx.config.node_name);
        let options = ListOptions { field_selector: selector, ..ListOptions::default() };
        let pods_informer = informers.filtered::<Pod>("", options);
        let pods = Pods::default();
        let server = Arc::new(Server::new(cx.clone(), pods.clone()));
        let mut tasks = Tasks::new();
        let node_cx = cx.clone();
        tasks.supervise("node status", move || node::run(node_cx.clone()));
        let device_cx = cx.clone();
        tasks.supervise("device plugins", move || devices::run(device_cx.clone()));
        let plugin_cx = cx.clone();
        tasks.supervise("plug-ins", move || plugins::run(plugin_cx.clone()));
        let (told_cx, told_pods) = (cx.clone(), pods.clone());
        tasks.supervise("pod resources", move || {
            devices::serve_pod_resources(told_cx.clone(), told_pods.clone())
        });
        let rotate_cx = cx.clone();
        tasks.supervise("log rotation", move || rotate_logs(rotate_cx.clone()));
        let listener = Arc::new(listener);
        tasks.supervise("kubelet server", move || server.clone().serve(listener.clone(), tls.clone()));
        let (watch_cx, watch_pods) = (cx.clone(), pods.clone());
        tasks.supervise("eviction", move || watchman::run(watch_cx.clone(), watch_pods.clone()));
        let (down_cx, down_pods) = (cx.clone(), pods.clone());
        let cpu_cx = cx.clone();
        tasks.supervise("cpus", move || cpus::run(cpu_cx.clone()));
        tasks.supervise("shutdown", move || shutdown::run(down_cx.clone(), down_pods.clone()));
        tasks.supervise("pods", move || {
            let (pods, cx, informer) = (pods.clone(), cx.clone(), pods_informer.clone());
            async move { pods.run(cx, informer).await }
        });
        tasks.join().await;
        Ok(())
    }

    fn context(self) -> Result<Context, KubeletError> {
        let config = self.config;
        for path in [config.root.join("pods"), config.log_root.clone()] {
            std::fs::create_dir_all(&path).map_err(|source| KubeletError::Directory { path, source })?;
        }
        let host_resolv = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let files = Watcher::new()
            .map_err(|source| KubeletError::Directory { path: "inotify instance".into(), source })?;
        if config.fail_swap_on {
            let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
            Swap::refuse(&swaps).map_err(|why| KubeletError::Manager("container", why))?;
        }
        if let Some(Err(e)) = self.pods_cgroup.as_ref().map(|cgroup| cgroup.create()) {
            tracing::warn!(error = %e, "the cgroup of all pods cannot be made");
        }
        let machine = Machine::read(&config);
        let system = Path::new("/sys/devices/system");
        let nodes = read_nodes(system, machine.memory.max(0).unsigned_abs(), &machine.huge_pages);
        Ok(Context {
            events: EventRecorder::with_host(
                self.client.clone(),
                "kubelet",
                &config.node_name,
                self.clock.clone(),
            ),
            services: self.informers.get::<Service>(),
            informers: self.informers.clone(),
            objects: Objects::new(self.informers),
            tokens: Arc::new(Tokens::new(self.client.clone(), self.clock.clone())),
            devices: Arc::new(Devices::open(&config.device_plugins, nodes.iter().map(|n| n.id).collect())),
            credential_plugins: CredentialPlugins::new(
                config.credential_provider_dir.clone(),
                config.credential_providers.clone(),
            ),
            cpus: open_cpus(&config, system)?,
            memory_manager: open_memory(&config, &machine, &nodes)?,
            topology_manager: TopologyManager::new(config.topology, nodes)
                .map_err(|why| KubeletError::Manager("topology", why))?,
            images: Images::new(self.images.clone(), self.clock.clone(), config.image_pulls),
            allocations: Allocations::new(machine.view(&config.node_name)),
            machine,
            user_namespaces: UserNamespaces::open(config.user_ids, config.ids_per_pod, &config.root),
            host_dns: dns::parse_resolv_conf(&host_resolv),
            client: self.client,
            runtime: self.runtime,
            image_service: self.images,
            pods_cgroup: self.pods_cgroup,
            streams: self.streams,
            shutdown: Default::default(),
            pressures: Default::default(),
            probe_counts: Default::default(),
            started: self.clock.now(),
            clock: self.clock,
            files,
            config,
        })
    }
}

/// The CPU manager as configured.
fn open_cpus(config: &KubeletConfig, system: &Path) -> Result<Cpus, KubeletError> {
    let topology = Topology::read(system);
    let milli = config.reserved.get("cpu").map_or(0, |q| q.milli());
    // Part of a CPU cannot be kept from others.
    let count = usize::try_from(milli.max(0)).unwrap_or(0).div_ceil(1000);
    let (reserved, nearness) = (config.reserved_cpus.clone(), config.topology.policy);
    Cpus::open(config.cpu_policy, topology, reserved, count, nearness, &config.root)
        .map_err(|why| KubeletError::Manager("CPU", why))
}

/// The memory manager as configured.
fn open_memory(
    config: &KubeletConfig,
    machine: &Machine,
    nodes: &[NumaNode],
) -> Result<MemoryManager, KubeletError> {
    // What evictions keep free is not for pods, either.
    let mut reserved = config.reserved.clone();
    *reserved.entry("memory".to_owned()).or_default() += Quantity::from_bytes(machine.kept_free.memory);
    MemoryManager::open(config.memory_policy, nodes, &reserved, &config.reserved_memory, &config.root)
        .map_err(|why| KubeletError::Manager("memory", why))
}

/// Unmounts and removes what kubelets with this [`KubeletConfig::root`] left: pod directories and their
/// volumes. Call it once no kubelet and no container uses them.
///
/// # Errors
/// The first directory that could not be removed.
pub fn purge(root: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten() {
        crate::volumes::remove_pod_directory(&entry.path())?;
    }
    match std::fs::remove_dir_all(root) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Listens on all addresses, IPv6 too where there is.
async fn listen(port: u16) -> Result<TcpListener, KubeletError> {
    let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    let mut last = None;
    for ip in any {
        let address = SocketAddr::new(ip, port);
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(source) => {
                let taken = source.kind() == std::io::ErrorKind::AddrInUse;
                last = Some(KubeletError::Listen { address, source });
                if taken {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or(KubeletError::Certificates("no address to listen on".into())))
}

/// One rotator per running container, begun by its start event.
async fn rotate_logs(cx: Arc<Context>) {
    use coracle_cri::v1::{ContainerEventType, ContainerFilter, ContainerState};
    let Ok(mut events) = cx.runtime.container_events().await else { return };
    let mut keepers: std::collections::HashMap<String, tokio::task::AbortHandle> = Default::default();
    let mut set = tokio::task::JoinSet::new();
    let present = cx.runtime.list_containers(ContainerFilter::default()).await.unwrap_or_default();
    let running = present.into_iter().filter(|c| c.state == ContainerState::Running).map(|c| c.id);
    for id in running {
        if let Some(log) = rotate::log_of(&cx, &id).await {
            keepers.insert(id.clone(), set.spawn(rotate::keep(cx.clone(), id, log)));
        }
    }
    while let Some(event) = events.recv().await {
        let id = event.container_id;
        match event.kind {
            ContainerEventType::Started if !id.is_empty() => {
                if let Some(log) = rotate::log_of(&cx, &id).await {
                    keepers.insert(id.clone(), set.spawn(rotate::keep(cx.clone(), id, log)));
                }
            }
            ContainerEventType::Stopped | ContainerEventType::Deleted => {
                if let Some(task) = keepers.remove(&id) {
                    task.abort();
                }
            }
            _ => {}
        }
        while set.try_join_next().is_some() {}
    }
}
