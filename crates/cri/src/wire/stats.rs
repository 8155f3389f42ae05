//! Figures: messages of `runtime.v1`, field by field as `api.proto` of cri-api 1.36 has them.

use coracle_grpc::Map;

use super::*;

coracle_grpc::messages! {
    PodSandboxStatsRequest { pod_sandbox_id: String = 1 }
    PodSandboxStatsResponse { stats: Option<PodSandboxStats> = 1 }
    PodSandboxStatsFilter { id: String = 1, label_selector: Map = 2 }
    ListPodSandboxStatsRequest { filter: Option<PodSandboxStatsFilter> = 1 }
    ListPodSandboxStatsResponse { stats: Vec<PodSandboxStats> = 1 }
    StreamPodSandboxStatsRequest { filter: Option<PodSandboxStatsFilter> = 1 }
    StreamPodSandboxStatsResponse { pod_sandbox_stats: Vec<PodSandboxStats> = 1 }
    PodSandboxAttributes {
        id: String = 1, metadata: Option<PodSandboxMetadata> = 2, labels: Map = 3, annotations: Map = 4,
    }
    PodSandboxStats { attributes: Option<PodSandboxAttributes> = 1, linux: Option<LinuxPodSandboxStats> = 2 }
    LinuxPodSandboxStats {
        cpu: Option<CpuUsage> = 1, memory: Option<MemoryUsage> = 2, network: Option<NetworkUsage> = 3,
        process: Option<ProcessUsage> = 4, containers: Vec<ContainerStats> = 5, io: Option<IoUsage> = 6,
    }
    NetworkUsage {
        timestamp: i64 = 1, default_interface: Option<NetworkInterfaceUsage> = 2,
        interfaces: Vec<NetworkInterfaceUsage> = 3,
    }
    NetworkInterfaceUsage {
        name: String = 1, rx_bytes: Option<UInt64Value> = 2, rx_errors: Option<UInt64Value> = 3,
        tx_bytes: Option<UInt64Value> = 4, tx_errors: Option<UInt64Value> = 5,
    }
    ProcessUsage { timestamp: i64 = 1, process_count: Option<UInt64Value> = 2 }
    ImageFsInfoRequest {}
    UInt64Value { value: u64 = 1 }
    FilesystemIdentifier { mountpoint: String = 1 }
    FilesystemUsage {
        timestamp: i64 = 1, fs_id: Option<FilesystemIdentifier> = 2, used_bytes: Option<UInt64Value> = 3,
        inodes_used: Option<UInt64Value> = 4,
    }
    ImageFsInfoResponse {
        image_filesystems: Vec<FilesystemUsage> = 1, container_filesystems: Vec<FilesystemUsage> = 2,
    }
    ContainerStatsRequest { container_id: String = 1 }
    ContainerStatsResponse { stats: Option<ContainerStats> = 1 }
    ListContainerStatsRequest { filter: Option<ContainerStatsFilter> = 1 }
    ContainerStatsFilter { id: String = 1, pod_sandbox_id: String = 2, label_selector: Map = 3 }
    ListContainerStatsResponse { stats: Vec<ContainerStats> = 1 }
    StreamContainerStatsRequest { filter: Option<ContainerStatsFilter> = 1 }
    StreamContainerStatsResponse { container_stats: Vec<ContainerStats> = 1 }
    ContainerAttributes {
        id: String = 1, metadata: Option<ContainerMetadata> = 2, labels: Map = 3, annotations: Map = 4,
    }
    ContainerStats {
        attributes: Option<ContainerAttributes> = 1, cpu: Option<CpuUsage> = 2,
        memory: Option<MemoryUsage> = 3, writable_layer: Option<FilesystemUsage> = 4,
        swap: Option<SwapUsage> = 5, io: Option<IoUsage> = 6,
    }
    PsiStats { full: Option<PsiData> = 1, some: Option<PsiData> = 2 }
    PsiData { total: u64 = 1, avg10: f64 = 2, avg60: f64 = 3, avg300: f64 = 4 }
    CpuUsage {
        timestamp: i64 = 1, usage_core_nano_seconds: Option<UInt64Value> = 2,
        usage_nano_cores: Option<UInt64Value> = 3, psi: Option<PsiStats> = 4,
    }
    MemoryUsage {
        timestamp: i64 = 1, working_set_bytes: Option<UInt64Value> = 2,
        available_bytes: Option<UInt64Value> = 3, usage_bytes: Option<UInt64Value> = 4,
        rss_bytes: Option<UInt64Value> = 5, page_faults: Option<UInt64Value> = 6,
        major_page_faults: Option<UInt64Value> = 7, psi: Option<PsiStats> = 8,
    }
    IoUsage { timestamp: i64 = 1, psi: Option<PsiStats> = 2 }
    ListMetricDescriptorsRequest {}
    ListMetricDescriptorsResponse { descriptors: Vec<MetricDescriptor> = 1 }
    MetricDescriptor { name: String = 1, help: String = 2, label_keys: Vec<String> = 3 }
    ListPodSandboxMetricsRequest {}
    ListPodSandboxMetricsResponse { pod_metrics: Vec<PodSandboxMetrics> = 1 }
    StreamPodSandboxMetricsRequest {}
    StreamPodSandboxMetricsResponse { pod_sandbox_metrics: Vec<PodSandboxMetrics> = 1 }
    PodSandboxMetrics {
        pod_sandbox_id: String = 1, metrics: Vec<Metric> = 2, container_metrics: Vec<ContainerMetrics> = 3,
    }
    ContainerMetrics { container_id: String = 1, metrics: Vec<Metric> = 2 }
    Metric {
        name: String = 1, timestamp: i64 = 2, metric_type: i32 = 3, label_values: Vec<String> = 4,
        value: Option<UInt64Value> = 5,
    }
    SwapUsage {
        timestamp: i64 = 1, swap_available_bytes: Option<UInt64Value> = 2,
        swap_usage_bytes: Option<UInt64Value> = 3,
    }
}
