//! What the binary tells the kubelet; there are no defaults here, the caller knows best.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use coracle_meta::quantity::Quantity;

/// Configuration of a [`crate::Kubelet`].
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Address of the node: `InternalIP`, `status.hostIP`, and where the HTTPS server listens besides
    /// loopback (it listens on all addresses).
    pub node_ip: IpAddr,
    /// Labels beyond the kubelet's own, e.g. `node-role.kubernetes.io/control-plane`.
    pub node_labels: BTreeMap<String, String>,
    /// `spec.podCIDR` of the node; empty when a controller assigns it.
    pub pod_cidr: String,
    /// `nodeInfo.kubeletVersion`, e.g. `v1.36.2+coracle`.
    pub version: String,
    /// Port of the HTTPS server.
    pub port: u16,
    /// Certificate chain of the HTTPS server, PEM.
    pub server_cert_pem: String,
    /// Private key of the HTTPS server, PEM.
    pub server_key_pem: String,
    /// Certificate authority that client certificates must chain to, PEM.
    pub client_ca_pem: String,
    /// Pod directories: `<root>/pods/<uid>`.
    pub root: PathBuf,
    /// The log of this program, for node log queries.
    pub own_log: Option<PathBuf>,
    /// Directory in which device plug-ins register and have their sockets.
    pub device_plugins: PathBuf,
    /// Directory of manifests of static pods, or one such file; need not exist.
    pub static_pods: PathBuf,
    /// How often that directory is looked at even if nothing tells of a change.
    pub static_pods_check: std::time::Duration,
    /// A server that has such manifests, too.
    pub static_pod_url: Option<crate::manifests::ManifestUrl>,
    /// Container logs: `<log_root>/<ns>_<name>_<uid>/<container>/<n>.log`.
    pub log_root: PathBuf,
    /// Parent of the pods' cgroups, as the runtime understands it, e.g. `/coracle/0a1b2c3d/pods`.
    pub cgroup_root: String,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain, e.g. `cluster.local`.
    pub cluster_domain: String,
    /// Resolver configuration of the host, for `Default` pods and as the tail of the searches.
    pub resolv_conf: PathBuf,
    /// `status.capacity.pods`.
    pub max_pods: u32,
    /// How many processes a pod may have; 0 or less for as many as the node.
    pub pod_pids_limit: i64,
    /// Ids of the host that pods with users of their own are given.
    pub user_ids: crate::user_namespaces::IdRange,
    /// How many of them a pod gets.
    pub ids_per_pod: u32,
    /// Programs that know credentials of images, and where they are.
    pub credential_providers: Vec<crate::credential_plugins::Provider>,
    /// The directory of these programs.
    pub credential_provider_dir: PathBuf,
    /// Who has which CPUs.
    pub cpu_policy: crate::cpus::CpuPolicy,
    /// CPUs that no pod has to itself, by number.
    pub reserved_cpus: Option<crate::cpus::CpuSet>,
    /// Where memory comes from.
    pub memory_policy: crate::memory_manager::MemoryPolicy,
    /// What pods may do with swap.
    pub swap: crate::swap::SwapBehavior,
    /// Whether the kubelet refuses to run where there is swap.
    pub fail_swap_on: bool,
    /// On which memory nodes it is that is not for pods.
    pub reserved_memory: Vec<crate::memory_manager::MemoryReservation>,
    /// Whether CPUs, memory and devices are to be near each other.
    pub topology: crate::topology_manager::TopologyConfig,
    /// What of the machine is not for pods.
    pub reserved: BTreeMap<String, Quantity>,
    /// How many images are pulled at a time; `None`: as many as are wanted.
    pub image_pulls: Option<usize>,
    /// When images that nobody uses go.
    pub image_gc: crate::image_gc::ImageGc,
    /// When the node is short of something and pods must go.
    pub eviction: crate::evict::EvictionConfig,
    /// Whether all pods together are held to what the node has for them.
    pub enforce_allocatable: bool,
    /// How long pods may take to end when the machine goes down, by priority; empty: they are not ended.
    pub shutdown_periods: Vec<crate::shutdown::ShutdownPeriod>,
    /// Socket of the system bus, on which logind tells of shutdowns; need not exist.
    pub system_bus: PathBuf,
    /// Size in bytes at which a container log is rotated.
    pub log_max_size: u64,
    /// How many files a container's log may have, the current one included.
    pub log_max_files: u32,
}

/// Why the kubelet could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The HTTPS port is taken or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("the kubelet's certificates cannot be used: {0}")]
    Certificates(String),
    /// A resource manager cannot do as configured; its name, and why.
    #[error("{0} manager: {1}")]
    Manager(&'static str, String),
    /// A directory could not be made.
    #[error("cannot create {path}: {source}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The runtime does not answer.
    #[error("the container runtime does not answer: {0}")]
    Runtime(#[from] coracle_cri::CriError),
}
