//! Messages of `runtime.v1` under upstream's names, as plain structs in the form in which kubelet and runtime work
//! with them: flat, with ports and addresses parsed. Their protobuf form is in `wire`, and [`crate::convert`] stands
//! between the two.

use std::collections::BTreeMap;

/// Declares a plain message struct with public fields.
macro_rules! messages {
    ($($(#[$m:meta])* $name:ident { $($(#[$f:meta])* $field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$m])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        #[expect(missing_docs, reason = "fields as in runtime.v1")]
        pub struct $name { $($(#[$f])* pub $field: $ty),* }
    )*};
}

/// A string map: labels, annotations.
pub type Map = BTreeMap<String, String>;

messages! {
    /// Runtime identity.
    VersionResponse { runtime_name: String, runtime_version: String, runtime_api_version: String }
    /// `Some(reason)` where a condition does not hold.
    RuntimeStatus { runtime_not_ready: Option<String>, network_not_ready: Option<String>,
        handlers: Vec<RuntimeHandler>, supplemental_groups_policy: bool }
    /// A handler that RuntimeClasses may name, and what it can; the one without a name is the default.
    RuntimeHandler { name: String, recursive_read_only_mounts: bool, user_namespaces: bool }
    /// Identity of a pod.
    PodSandboxMetadata { name: String, uid: String, namespace: String, attempt: u32 }
    /// Resolver configuration of a pod.
    DnsConfig { servers: Vec<String>, searches: Vec<String>, options: Vec<String> }
    /// Namespace modes; `true` means the node's (host) namespace.
    NamespaceOptions { host_network: bool, host_pid: bool, host_ipc: bool, share_process_namespace: bool,
        user_namespace: Option<IdMapping> }
    /// Users and groups 0 to `length` of a pod are those from `host_id` on of the host.
    IdMapping { host_id: u32, length: u32 }
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
        /// A container of it may be privileged.
        privileged: bool,
        /// What a RuntimeClass names; empty for the default.
        runtime_handler: String,
    }
    /// Sandbox filter; empty fields match all.
    PodSandboxFilter { id: String, ready: Option<bool>, label_selector: Map }
    /// A sandbox in a list. `ready` is SANDBOX_READY. Times in nanoseconds since 1970.
    PodSandbox {
        id: String, metadata: PodSandboxMetadata, ready: bool, created_at: i64, labels: Map, annotations: Map,
        runtime_handler: String,
    }
    /// A sandbox's status; `ips` primary first, empty on the host network.
    PodSandboxStatus {
        id: String, metadata: PodSandboxMetadata, ready: bool, created_at: i64, ips: Vec<String>,
        labels: Map, annotations: Map, namespaces: NamespaceOptions, runtime_handler: String,
    }
    /// Identity of a container in its pod.
    ContainerMetadata { name: String, attempt: u32 }
    /// An image reference.
    ImageSpec { image: String, annotations: Map }
    /// An environment variable.
    KeyValue { key: String, value: String }
    /// A bind mount. `propagation`: 0 private, 1 host to container, 2 bidirectional. With `image` the files are
    /// those of an image (below `image_sub_path`), which is present, and `host_path` is empty; `image_ref` is what a
    /// status tells of it. With `id_mapping` owners are shifted as in the pod's user namespace.
    Mount { container_path: String, host_path: String, readonly: bool, recursive_read_only: bool,
        propagation: i32, image: String, image_sub_path: String, image_ref: String,
        id_mapping: Option<IdMapping> }
    /// A device made available.
    Device { container_path: String, host_path: String, permissions: String }
    /// cgroup limits; 0 and empty mean unset. Memory in bytes, quota and period in microseconds; processors and
    /// memory nodes as lists (`0-2,7`); huge pages in bytes by page size (`2MB`). `unified` are files of cgroup v2.
    LinuxResources {
        cpu_period: i64, cpu_quota: i64, cpu_shares: i64, memory_limit_in_bytes: i64, oom_score_adj: i64,
        pids_limit: i64, cpuset_cpus: String, cpuset_mems: String, hugepages: BTreeMap<String, u64>, unified: Map,
        memory_swap_limit_in_bytes: i64,
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
        /// Path of a profile on the host, instead of the runtime's default.
        seccomp_localhost: String,
        /// The groups that the image gives the user are left out.
        supplemental_groups_strict: bool,
        /// A container whose process namespace is shared; empty for the pod's or an own one.
        pid_target: String,
        /// It has a process namespace of its own, though the pod shares one.
        pid_private: bool,
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
        /// Names of devices after the Container Device Interface.
        cdi_devices: Vec<String>,
        /// What asks it to end, instead of the image's: `SIGTERM`, `SIGRTMIN+3`.
        stop_signal: String,
    }
    /// Container filter; empty fields match all.
    ContainerFilter { id: String, pod_sandbox_id: String, state: Option<ContainerState>, label_selector: Map }
    /// A container in a list.
    Container {
        id: String, pod_sandbox_id: String, metadata: ContainerMetadata, image: ImageSpec, image_ref: String,
        state: ContainerState, created_at: i64, labels: Map, annotations: Map, image_id: String,
    }
    /// A container's status. Times in nanoseconds since 1970, 0 when not reached. `reason` is `Completed`,
    /// `Error`, `OOMKilled`, `StartError` or empty.
    ContainerStatus {
        id: String, pod_sandbox_id: String, metadata: ContainerMetadata, state: ContainerState,
        created_at: i64, started_at: i64, finished_at: i64, exit_code: i32, signal: i32, image: ImageSpec,
        image_ref: String, image_id: String, reason: String, message: String, labels: Map, annotations: Map,
        log_path: String, mounts: Vec<Mount>, pid: i32, user: Option<LinuxContainerUser>,
        resources: LinuxResources,
    }
    /// Whom a container's first process ran as.
    LinuxContainerUser { uid: i64, gid: i64, supplemental_groups: Vec<i64> }
    /// Result of a command.
    ExecSyncResponse { stdout: Vec<u8>, stderr: Vec<u8>, exit_code: i32 }
    /// What processes use: CPU in nanoseconds since start, memory in bytes; what is available is `None`
    /// without a limit.
    Usage { cpu_core_nano_seconds: u64, memory_working_set_bytes: u64, memory_usage_bytes: u64,
        memory_available_bytes: Option<u64>, swap_bytes: u64, swap_available_bytes: Option<u64>,
        memory_rss_bytes: u64, memory_page_faults: u64, memory_major_page_faults: u64, process_count: u64 }
    /// Usage counters of a container. The writable layer's size is found by walking it and may be some time old.
    ContainerStats { id: String, usage: Usage, writable_layer_bytes: u64, writable_layer_inodes: u64 }
    /// Usage counters of a whole pod; the network's are those of its first interface.
    PodSandboxStats { id: String, usage: Usage, rx_bytes: u64, rx_errors: u64, tx_bytes: u64, tx_errors: u64 }
    /// What a file system's part is used for; sizes in bytes.
    FilesystemUsage { mountpoint: String, used_bytes: u64, inodes_used: u64 }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the event types of runtime.v1")]
pub enum ContainerEventType {
    #[default]
    Created,
    Started,
    Stopped,
    Deleted,
}
