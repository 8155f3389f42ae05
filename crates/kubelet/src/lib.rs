//! The kubelet: runs the pods that are bound to its node, and tells the API how they do.
//!
//! One worker per pod observes, decides (purely) and acts; volumes, probes, images and hooks are its tools.
//! An HTTPS server answers the API server's requests for logs and streams. Containers are reached only
//! through `cri` traits, the cluster only through `client`.

mod admit;
mod allocation;
mod backoff;
mod checkpoint;
mod config;
mod container;
mod container_status;
mod context;
mod cpus;
mod credential_plugins;
mod decide;
mod devices;
mod evict;
mod grpc_health;
mod hooks;
mod http_get;
mod image_gc;
mod images;
mod keyring;
mod kill;
mod kubelet;
mod logs;
mod machine;
mod manager;
mod manifests;
mod memory_manager;
mod names;
mod node;
mod node_events;
mod objects;
mod observe;
mod phase;
mod plugins;
mod pod;
mod probe;
mod prober;
mod resize;
mod restart;
mod rotate;
mod server;
mod shutdown;
mod start;
mod state;
mod statics;
mod status;
mod swap;
#[cfg(test)]
mod testing;
mod tokens;
mod topology_manager;
mod usage;
mod user_namespaces;
mod volumes;
mod watchman;
mod worker;

pub use config::{KubeletConfig, KubeletError};
pub use cpus::{CpuOptionGates, CpuOptions, CpuPolicy, CpuSet};
pub use credential_plugins::{Provider as CredentialProvider, parse as credential_providers};
pub use evict::{EvictionConfig, EvictionTexts};
pub use image_gc::ImageGc;
pub use kubelet::{Kubelet, purge};
pub use manifests::ManifestUrl;
pub use memory_manager::{MemoryPolicy, MemoryReservation};
pub use shutdown::{ShutdownPeriod, periods as shutdown_periods};
pub use swap::SwapBehavior;
pub use topology_manager::{TopologyConfig, TopologyPolicy, TopologyScope};
pub use user_namespaces::IdRange;
