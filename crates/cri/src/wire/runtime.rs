//! The runtime itself and its events: messages of `runtime.v1`, as `api.proto` of cri-api 1.36 has them.

use coracle_grpc::Map;

use super::*;

coracle_grpc::messages! {
    VersionRequest { version: String = 1 }
    VersionResponse {
        version: String = 1, runtime_name: String = 2, runtime_version: String = 3,
        runtime_api_version: String = 4,
    }
    NetworkConfig { pod_cidr: String = 1 }
    RuntimeConfig { network_config: Option<NetworkConfig> = 1 }
    UpdateRuntimeConfigRequest { runtime_config: Option<RuntimeConfig> = 1 }
    UpdateRuntimeConfigResponse {}
    RuntimeCondition { kind: String = 1, status: bool = 2, reason: String = 3, message: String = 4 }
    RuntimeStatus { conditions: Vec<RuntimeCondition> = 1 }
    StatusRequest { verbose: bool = 1 }
    RuntimeHandlerFeatures { recursive_read_only_mounts: bool = 1, user_namespaces: bool = 2 }
    RuntimeHandler { name: String = 1, features: Option<RuntimeHandlerFeatures> = 2 }
    RuntimeFeatures { supplemental_groups_policy: bool = 1, user_namespaces_host_network: bool = 2 }
    StatusResponse {
        status: Option<RuntimeStatus> = 1, info: Map = 2, runtime_handlers: Vec<RuntimeHandler> = 3,
        features: Option<RuntimeFeatures> = 4,
    }
    GetEventsRequest {}
    ContainerEventResponse {
        container_id: String = 1, container_event_type: i32 = 2, created_at: i64 = 3,
        pod_sandbox_status: Option<PodSandboxStatus> = 4, containers_statuses: Vec<ContainerStatus> = 5,
    }
    RuntimeConfigRequest {}
    RuntimeConfigResponse { linux: Option<LinuxRuntimeConfiguration> = 1 }
    LinuxRuntimeConfiguration { cgroup_driver: i32 = 1 }
}
