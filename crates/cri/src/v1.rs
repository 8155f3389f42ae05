//! Messages of `runtime.v1` under upstream's names, as plain structs. Only the fields that Coracle's kubelet
//! and runtime use today are present; the protobuf form is the business of the socket server and client.

use std::collections::BTreeMap;

/// Declares a plain message struct with public fields.
macro_rules! messages {
    ($($(#[$m:meta])* $name:ident { $($field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$m])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        #[expect(missing_docs, reason = "fields as in runtime.v1")]
        pub struct $name { $(pub $field: $ty),* }
    )*};
}

/// A string map: labels, annotations.
pub type Map = BTreeMap<String, String>;

messages! {
    /// Runtime identity.
    VersionResponse { runtime_name: String, runtime_version: String, runtime_api_version: String }
    /// `Some(reason)` where a condition does not hold.
    RuntimeStatus { runtime_not_ready: Option<String>, network_not_ready: Option<String> }
    /// Identity of a pod.
    PodSandboxMetadata { name: String, uid: String, namespace: String, attempt: u32 }
    /// Resolver configuration of a pod.
    DnsConfig { servers: Vec<String>, searches: Vec<String>, options: Vec<String> }
    /// Namespace modes; `true` means the node's (host) namespace.
    NamespaceOptions { host_network: bool, host_pid: bool, host_ipc: bool, share_process_namespace: bool }
    /// What a sandbox is to be.
    PodSandboxConfig {
        metadata: PodSandboxMetadata,
        hostname: String,
        log_directory: String,
        dns_config: DnsConfig,
        port_mappings: Vec<crate::network::PortMapping>,
        labels: Map,
        annotations: Map,
        cgroup_parent: String,
        sysctls: Map,
        namespaces: NamespaceOptions,
        resources: LinuxResources,
    }
    /// Sandbox filter; empty fields match all.
    PodSandboxFilter { id: String, label_selector: Map }
    /// A sandbox in a list. `ready` is SANDBOX_READY. Times in nanoseconds since 1970.
    PodSandbox {
        id: String, metadata: PodSandboxMetadata, ready: bool, created_at: i64, labels: Map, annotations: Map,
    }
    /// A sandbox's status; `ips` primary first, empty on the host network.
    PodSandboxStatus {
        id: String, metadata: PodSandboxMetadata, ready: bool, created_at: i64, ips: Vec<String>,
        labels: Map, annotations: Map,
    }
    /// Identity of a container in its pod.
    ContainerMetadata { name: String, attempt: u32 }
    /// An image reference.
    ImageSpec { image: String, annotations: Map }
    /// An environment variable.
    KeyValue { key: String, value: String }
    /// A bind mount. `propagation`: 0 private, 1 host to container, 2 bidirectional.
    Mount { container_path: String, host_path: String, readonly: bool, propagation: i32 }
    /// A device made available.
    Device { container_path: String, host_path: String, permissions: String }
    /// cgroup limits; 0 means unset. Memory in bytes, quota and period in microseconds.
    LinuxResources {
        cpu_period: i64, cpu_quota: i64, cpu_shares: i64, memory_limit_in_bytes: i64, oom_score_adj: i64,
        pids_limit: i64,
    }
    /// Who a container runs as and what it may do.
    LinuxSecurityContext {
        capabilities_add: Vec<String>,
        capabilities_drop: Vec<String>,
        privileged: bool,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_username: String,
        readonly_rootfs: bool,
        supplemental_groups: Vec<i64>,
        no_new_privs: bool,
        masked_paths: Vec<String>,
        readonly_paths: Vec<String>,
        seccomp_unconfined: bool,
    }
    /// What a container is to be. `command` overrides the image's entrypoint, `args` its command.
    ContainerConfig {
        metadata: ContainerMetadata,
        image: ImageSpec,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        envs: Vec<KeyValue>,
        mounts: Vec<Mount>,
        devices: Vec<Device>,
        labels: Map,
        annotations: Map,
        log_path: String,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        resources: LinuxResources,
        security: LinuxSecurityContext,
    }
    /// Container filter; empty fields match all.
    ContainerFilter { id: String, pod_sandbox_id: String, label_selector: Map }
    /// A container in a list.
    Container {
        id: String, pod_sandbox_id: String, metadata: ContainerMetadata, image: ImageSpec, image_ref: String,
        state: ContainerState, created_at: i64, labels: Map, annotations: Map,
    }
    /// A container's status. Times in nanoseconds since 1970, 0 when not reached. `reason` is `Completed`,
    /// `Error`, `OOMKilled`, `StartError` or empty.
    ContainerStatus {
        id: String, pod_sandbox_id: String, metadata: ContainerMetadata, state: ContainerState,
        created_at: i64, started_at: i64, finished_at: i64, exit_code: i32, signal: i32, image: ImageSpec,
        image_ref: String, image_id: String, reason: String, message: String, labels: Map, annotations: Map,
        log_path: String, mounts: Vec<Mount>, pid: i32,
    }
    /// Result of a command.
    ExecSyncResponse { stdout: Vec<u8>, stderr: Vec<u8>, exit_code: i32 }
    /// Usage counters: CPU in nanoseconds since start, memory in bytes.
    ContainerStats { id: String, cpu_usage_core_nano_seconds: u64, memory_working_set_bytes: u64,
        memory_usage_bytes: u64 }
    /// An image. `id` is `sha256:…` of its configuration.
    Image {
        id: String, repo_tags: Vec<String>, repo_digests: Vec<String>, size: u64, uid: Option<i64>,
        username: String, pinned: bool,
    }
    /// Registry credentials.
    AuthConfig { username: String, password: String, auth: String, server_address: String,
        identity_token: String, registry_token: String }
    /// Something happened to a container (or, with an empty `container_id`, to its sandbox).
    ContainerEventResponse { container_id: String, pod_sandbox_id: String, kind: ContainerEventType,
        created_at: i64, pod: PodSandboxMetadata }
}

/// State of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the states of runtime.v1")]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

/// Kind of a container event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the event types of runtime.v1")]
pub enum ContainerEventType {
    #[default]
    Created,
    Started,
    Stopped,
    Deleted,
}
