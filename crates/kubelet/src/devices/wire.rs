//! Messages of the device plugin API (`v1beta1`) and of the pod resources API (`v1`).

use coracle_grpc::Map;

coracle_grpc::messages! {
    /// How a plug-in wants to be treated.
    DevicePluginOptions { pre_start_required: bool = 1, get_preferred_allocation_available: bool = 2 }
    /// A plug-in that has come.
    RegisterRequest {
        version: String = 1, endpoint: String = 2, resource_name: String = 3,
        options: Option<DevicePluginOptions> = 4,
    }
    /// Nothing.
    Empty {}
    /// All devices as they are now.
    ListAndWatchResponse { devices: Vec<PluginDevice> = 1 }
    /// Where devices are.
    TopologyInfo { nodes: Vec<NumaNode> = 1 }
    /// A NUMA node.
    NumaNode { id: i64 = 1 }
    /// A device.
    PluginDevice { id: String = 1, health: String = 2, topology: Option<TopologyInfo> = 3 }
    /// A container with these devices is about to start.
    PreStartContainerRequest { devices_ids: Vec<String> = 1 }
    /// Which devices would be best.
    PreferredAllocationRequest { container_requests: Vec<ContainerPreferredAllocationRequest> = 1 }
    /// For one container.
    ContainerPreferredAllocationRequest {
        available: Vec<String> = 1, must_include: Vec<String> = 2, allocation_size: i32 = 3,
    }
    /// Per container.
    PreferredAllocationResponse { container_responses: Vec<ContainerPreferredAllocationResponse> = 1 }
    /// The best ones.
    ContainerPreferredAllocationResponse { device_ids: Vec<String> = 1 }
    /// Which devices are given.
    AllocateRequest { container_requests: Vec<ContainerAllocateRequest> = 1 }
    /// To one container.
    ContainerAllocateRequest { devices_ids: Vec<String> = 1 }
    /// A device after the Container Device Interface.
    CdiDevice { name: String = 1 }
    /// Per container.
    AllocateResponse { container_responses: Vec<ContainerAllocateResponse> = 1 }
    /// What a container needs for its devices.
    ContainerAllocateResponse {
        envs: Map = 1, mounts: Vec<PluginMount> = 2, devices: Vec<DeviceSpec> = 3, annotations: Map = 4,
        cdi_devices: Vec<CdiDevice> = 5,
    }
    /// A mount.
    PluginMount { container_path: String = 1, host_path: String = 2, read_only: bool = 3 }
    /// A device node.
    DeviceSpec { container_path: String = 1, host_path: String = 2, permissions: String = 3 }

    /// What the pods of this node have.
    ListPodResourcesResponse { pod_resources: Vec<PodResources> = 1 }
    /// What a pod has.
    PodResources { name: String = 1, namespace: String = 2, containers: Vec<ContainerResources> = 3 }
    /// What a container has.
    ContainerResources {
        name: String = 1, devices: Vec<ContainerDevices> = 2, cpu_ids: Vec<i64> = 3, memory: Vec<ContainerMemory> = 4,
    }
    /// Memory of one kind.
    ContainerMemory { memory_type: String = 1, size: u64 = 2, topology: Option<TopologyInfo> = 3 }
    /// Devices of a resource.
    ContainerDevices { resource_name: String = 1, device_ids: Vec<String> = 2, topology: Option<TopologyInfo> = 3 }
    /// What there is to be had.
    AllocatableResourcesResponse {
        devices: Vec<ContainerDevices> = 1, cpu_ids: Vec<i64> = 2, memory: Vec<ContainerMemory> = 3,
    }
    /// Which pod is asked for.
    GetPodResourcesRequest { pod_name: String = 1, pod_namespace: String = 2 }
    /// What it has.
    GetPodResourcesResponse { pod_resources: Option<PodResources> = 1 }
}
