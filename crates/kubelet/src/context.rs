//! What all parts of the kubelet share.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::{Client, EventRecorder, EventType, Informer, Informers};
use coracle_cri::v1::DnsConfig;
use coracle_cri::{ImageService, PodsCgroup, RuntimeService, Streams};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use parking_lot::Mutex;

use crate::allocation::Allocations;
use crate::config::KubeletConfig;
use crate::container::fields::Facts;
use crate::cpus::Cpus;
use crate::credential_plugins::CredentialPlugins;
use crate::devices::Devices;
use crate::evict::Pressures;
use crate::images::Images;
use crate::machine::Machine;
use crate::memory_manager::MemoryManager;
use crate::objects::Objects;
use crate::pod::field_path;
use crate::prober::ProbeKey;
use crate::shutdown::Shutdown;
use crate::tokens::Tokens;
use crate::topology_manager::{HintProvider, TopologyManager};
use crate::user_namespaces::UserNamespaces;
use coracle_stdx::files::Watcher;

/// Shared by the workers, the server and the node's status.
pub struct Context {
    /// What the binary said.
    pub config: KubeletConfig,
    /// The kubelet's access to the API.
    pub client: Client,
    /// Containers.
    pub runtime: Arc<dyn RuntimeService>,
    /// Images on disk.
    pub image_service: Arc<dyn ImageService>,
    /// Streams into containers.
    pub streams: Streams,
    /// The time.
    pub clock: Clock,
    /// Events.
    pub events: EventRecorder,
    /// Watches of objects.
    pub informers: Informers,
    /// Services, for environment variables.
    pub services: Informer<Service>,
    /// ConfigMaps and Secrets in use.
    pub objects: Objects,
    /// Service account tokens.
    pub tokens: Arc<Tokens>,
    /// Devices of plug-ins.
    pub devices: Arc<Devices>,
    /// Programs that know credentials of images.
    pub credential_plugins: CredentialPlugins,
    /// Who has which CPUs.
    pub cpus: Cpus,
    /// Who has which memory.
    pub memory_manager: MemoryManager,
    /// Whether what pods are given is near each other.
    pub topology_manager: TopologyManager,
    /// Images and pulls.
    pub images: Images,
    /// What the machine has.
    pub machine: Machine,
    /// Who has how much of it.
    pub allocations: Allocations,
    /// Ids of pods with users of their own.
    pub user_namespaces: UserNamespaces,
    /// The host's resolver configuration.
    pub host_dns: DnsConfig,
    /// What all pods together have, where the runtime is our own.
    pub pods_cgroup: Option<Arc<dyn PodsCgroup>>,
    /// Changes of log files.
    pub files: Watcher,
    /// Whether the node is going down.
    pub shutdown: Shutdown,
    /// What the node is short of.
    pub pressures: Mutex<Pressures>,
    /// How often probes went how.
    pub probe_counts: Mutex<BTreeMap<ProbeKey, u64>>,
    /// When this kubelet began.
    pub started: jiff::Timestamp,
}

impl Context {
    /// Records a Normal event about a container.
    pub fn container_event(&self, pod: &Pod, container: &str, reason: &str, message: impl Into<String>) {
        self.events.event_at(pod, &field_path(pod, container), EventType::Normal, reason, message);
    }
    /// Records a Warning event about a container.
    pub fn container_warning(&self, pod: &Pod, container: &str, reason: &str, message: impl Into<String>) {
        self.events.event_at(pod, &field_path(pod, container), EventType::Warning, reason, message);
    }
    /// Records a Warning event about a pod.
    pub fn pod_warning(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.events.event(pod, EventType::Warning, reason, message);
    }
    /// Records an event about the node.
    pub fn node_event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let name = &self.config.node_name;
        // kubectl looks for a node's events by its name in place of its uid.
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        self.events.event_about(node, kind, reason, message);
    }
    /// What the downward API knows of a pod with these addresses.
    pub fn facts(&self, pod: &Pod, ips: &[String]) -> Facts {
        let node_ip = self.config.node_ip;
        let pod_ips = if crate::pod::host_network(pod) { vec![node_ip.to_string()] } else { ips.to_vec() };
        Facts { node_ip, pod_ips, allocatable: self.machine.allocatable() }
    }
    /// Who gives containers something that has a place, in upstream's order.
    pub fn hint_providers(&self) -> [&dyn HintProvider; 3] {
        [&*self.devices, &self.cpus, &self.memory_manager]
    }
    /// When this kubelet began, in the file system's terms.
    pub fn runtime_started(&self) -> std::time::SystemTime {
        self.started.into()
    }
    /// A pod's directory.
    pub fn directory(&self, uid: &str) -> std::path::PathBuf {
        crate::names::pod_directory(&self.config.root, uid)
    }
}
