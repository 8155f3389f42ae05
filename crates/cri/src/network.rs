//! What the runtime asks of a pod network when it makes and removes a sandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "protocol names")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A host port forwarded to the pod.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// Host address to listen on; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
}

/// A sandbox to connect.
#[derive(Clone, Debug)]
pub struct PodNetworkRequest {
    /// Sandbox id, unique on the node.
    pub sandbox_id: String,
    /// Pod namespace, for logs and CNI arguments.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Bind-mounted network namespace.
    pub netns: PathBuf,
    /// Uid of the pod, for CNI arguments.
    pub uid: String,
    /// Annotations of the pod: bandwidth, and what plug-ins read.
    pub annotations: BTreeMap<String, String>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
}

/// Why connecting a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No free address in the node's pod range.
    #[error("no free address in pod range {range}")]
    NoAddress {
        /// The node's pod CIDR.
        range: String,
    },
    /// The pod network is not configured yet (node has no pod CIDR).
    #[error("the pod network is not ready: {0}")]
    NotReady(String),
    /// A kernel request failed.
    #[error("{what}: {cause}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel said.
        cause: String,
    },
    /// A CNI plug-in refused or failed.
    #[error("plugin type={plugin:?} failed ({command}): {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was asked to do: `add`, `delete`, …
        command: &'static str,
        /// What it said.
        message: String,
    },
}

/// Gives sandboxes addresses and links.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a sandbox; returns its addresses, primary first. Idempotent per sandbox id: after a restart
    /// a second call returns the same addresses.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing is left behind then.
    async fn setup(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError>;
    /// Disconnects a sandbox and frees its addresses. Idempotent.
    ///
    /// # Errors
    /// Kernel failures; retry.
    async fn teardown(&self, sandbox_id: &str) -> Result<(), NetworkError>;
    /// `Err(reason)` while pods cannot be connected.
    async fn ready(&self) -> Result<(), String>;
}
