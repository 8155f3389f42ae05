//! Metrics of containers and pods under cAdvisor's names: the same figures as the stats, one row each.

mod kernel;

use std::collections::HashMap;

use super::{CriServer, Outcome};
use crate::counters::Counters;
use crate::v1::ContainerFilter;
use crate::wire::{
    ContainerMetrics, ContainerStats, Metric, MetricDescriptor, NetworkInterfaceUsage, PodSandboxMetrics,
    PodSandboxStats, UInt64Value,
};

const COUNTER: i32 = 0;
const GAUGE: i32 = 1;

/// Labels of every metric, in the order of their values.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Name, help, kind, a further label with its value, and the figure.
type OfContainer = (
    &'static str,
    &'static str,
    i32,
    Option<(&'static str, &'static str)>,
    fn(&ContainerStats) -> Option<u64>,
);
type OfInterface = fn(&NetworkInterfaceUsage) -> &Option<UInt64Value>;

fn value(figure: &Option<UInt64Value>) -> Option<u64> {
    figure.as_ref().map(|v| v.value)
}

/// What is told of containers.
const OF_CONTAINERS: [OfContainer; 9] = [
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", COUNTER, None, |s| {
        value(&s.cpu.as_ref()?.usage_core_nano_seconds).map(|nanos| nanos / 1_000_000_000)
    }),
    ("container_memory_usage_bytes", "Current memory usage in bytes.", GAUGE, None, |s| {
        value(&s.memory.as_ref()?.usage_bytes)
    }),
    ("container_memory_working_set_bytes", "Current working set in bytes.", GAUGE, None, |s| {
        value(&s.memory.as_ref()?.working_set_bytes)
    }),
    ("container_memory_rss", "Size of RSS in bytes.", GAUGE, None, |s| value(&s.memory.as_ref()?.rss_bytes)),
    ("container_memory_failures_total", FAULTS, COUNTER, Some(("failure_type", "pgfault")), |s| {
        value(&s.memory.as_ref()?.page_faults)
    }),
    ("container_memory_failures_total", FAULTS, COUNTER, Some(("failure_type", "pgmajfault")), |s| {
        value(&s.memory.as_ref()?.major_page_faults)
    }),
    ("container_fs_usage_bytes", "Number of bytes that are consumed.", GAUGE, None, |s| {
        value(&s.writable_layer.as_ref()?.used_bytes)
    }),
    ("container_fs_inodes_used", "Number of inodes that are used.", GAUGE, None, |s| {
        value(&s.writable_layer.as_ref()?.inodes_used)
    }),
    ("container_last_seen", "Last time a container was seen by the exporter.", GAUGE, None, |s| {
        u64::try_from(s.cpu.as_ref()?.timestamp / 1_000_000_000).ok()
    }),
];

const FAULTS: &str = "Cumulative count of memory allocation failures.";

/// What is told of a pod's network, with the interface as a further label.
const OF_NETWORKS: [(&str, &str, OfInterface); 4] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| &i.rx_bytes),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| &i.rx_errors,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| &i.tx_bytes),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| &i.tx_errors,
    ),
];

/// Name of the metric of the processes of a pod.
const PROCESSES: (&str, &str) = ("container_processes", "Number of processes running inside the container.");

/// All metrics that there are.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let one = |name: &str, help: &str, more: Option<&str>| MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.into_iter().chain(more).map(str::to_owned).collect(),
    };
    let containers = OF_CONTAINERS.map(|(name, help, _, more, _)| one(name, help, more.map(|(key, _)| key)));
    let networks = OF_NETWORKS.map(|(name, help, _)| one(name, help, Some("interface")));
    let mut all =
        [containers.to_vec(), networks.to_vec(), vec![one(PROCESSES.0, PROCESSES.1, None)]].concat();
    all.dedup_by(|a, b| a.name == b.name);
    all.extend(kernel::descriptors());
    all
}

fn metric(name: &str, kind: i32, labels: &[&str], figure: u64) -> Metric {
    Metric {
        name: name.to_owned(),
        timestamp: 0,
        metric_type: kind,
        label_values: labels.iter().map(|l| (*l).to_owned()).collect(),
        value: Some(UInt64Value { value: figure }),
    }
}

/// The metrics of a pod and of its containers; `images` are names of images by container, as are `counters`.
fn of_pod(
    stats: &PodSandboxStats,
    images: &HashMap<String, String>,
    counters: &HashMap<String, Counters>,
) -> PodSandboxMetrics {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let pod = attributes.metadata.unwrap_or_default();
    let linux = stats.linux.clone().unwrap_or_default();
    let own = ["", attributes.id.as_str(), "", "", pod.namespace.as_str(), pod.name.as_str()];
    let mut metrics = Vec::new();
    for interface in linux.network.iter().filter_map(|n| n.default_interface.as_ref()) {
        let labels = [&own[..], &[interface.name.as_str()]].concat();
        let told = OF_NETWORKS.iter().filter_map(|(name, _, of)| Some((name, value(of(interface))?)));
        metrics.extend(told.map(|(name, figure)| metric(name, COUNTER, &labels, figure)));
        let mut ids = linux.containers.iter().filter_map(|c| Some(&c.attributes.as_ref()?.id));
        let packets = ids.find_map(|id| counters.get(id)?.network);
        metrics.extend(packets.iter().flat_map(|packets| kernel::of_network(packets, &labels)));
    }
    let processes = linux.process.as_ref().and_then(|p| value(&p.process_count));
    metrics.extend(processes.map(|count| metric(PROCESSES.0, GAUGE, &own, count)));
    let of_container = |s: &ContainerStats| {
        let container = s.attributes.clone().unwrap_or_default();
        let name = container.metadata.unwrap_or_default().name;
        let image = images.get(&container.id).map_or("", String::as_str);
        let id = container.id.as_str();
        let labels = [name.as_str(), id, image, id, pod.namespace.as_str(), pod.name.as_str()];
        let told = OF_CONTAINERS.iter().filter_map(|(name, _, kind, more, of)| {
            let labels: Vec<&str> = labels.into_iter().chain(more.map(|(_, value)| value)).collect();
            Some(metric(name, *kind, &labels, of(s)?))
        });
        let counted = counters.get(id).map(|counters| kernel::of_container(counters, &labels));
        let metrics = told.chain(counted.into_iter().flatten()).collect();
        ContainerMetrics { container_id: container.id.clone(), metrics }
    };
    PodSandboxMetrics {
        pod_sandbox_id: attributes.id.clone(),
        metrics,
        container_metrics: linux.containers.iter().map(of_container).collect(),
    }
}

impl CriServer {
    /// The metrics of all pods that run.
    pub(super) async fn metrics(&self) -> Outcome<Vec<PodSandboxMetrics>> {
        let containers = self.runtime.list_containers(ContainerFilter::default()).await?;
        let mut counters = HashMap::new();
        for container in &containers {
            // One that has just ended has none.
            if let Ok(Some(counted)) = self.runtime.counters(&container.id).await {
                counters.insert(container.id.clone(), counted);
            }
        }
        let images = containers.into_iter().map(|c| (c.id, c.image.image)).collect();
        let all = self.figures_of_sandboxes(None).await?;
        Ok(all.iter().map(|stats| of_pod(stats, &images, &counters)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{container_stats, sandbox_stats};
    use crate::counters::{DeviceIo, Packets};
    use crate::v1;

    #[test]
    fn every_metric_has_a_descriptor_with_as_many_labels() {
        let usage =
            v1::Usage { cpu_core_nano_seconds: 7_500_000_000, memory_rss_bytes: 3, ..Default::default() };
        let stats = v1::ContainerStats { id: "c1".into(), usage: usage.clone(), ..Default::default() };
        let of = v1::Container { id: "c1".into(), ..Default::default() };
        let containers = vec![container_stats(&stats, of, "/i", 9_000_000_000)];
        let pod = v1::PodSandboxStats { id: "s1".into(), usage, rx_bytes: 5, ..Default::default() };
        let metadata =
            v1::PodSandboxMetadata { name: "p".into(), namespace: "n".into(), ..Default::default() };
        let of = v1::PodSandbox { id: "s1".into(), metadata, ..Default::default() };
        let images = HashMap::from([("c1".to_owned(), "image:1".to_owned())]);
        let device = DeviceIo { major: 8, read_bytes: 4096, ..DeviceIo::default() };
        let counted = Counters {
            memory_cache: 11,
            network: Some(Packets { received: 6, ..Packets::default() }),
            devices: vec![device],
            ..Counters::default()
        };
        let counted = HashMap::from([("c1".to_owned(), counted)]);
        let got = of_pod(&sandbox_stats(&pod, of, containers, 9_000_000_000), &images, &counted);
        let descriptors = descriptors();
        let keys = |m: &Metric| {
            let found = descriptors.iter().find(|d| d.name == m.name);
            found.unwrap_or_else(|| panic!("{} is not described", m.name)).label_keys.len()
        };
        let container = &got.container_metrics[0];
        for m in got.metrics.iter().chain(&container.metrics) {
            assert_eq!(m.label_values.len(), keys(m), "{}", m.name);
        }
        let figure = |list: &[Metric], name: &str| list.iter().find(|m| m.name == name).unwrap().clone();
        let cpu = figure(&container.metrics, "container_cpu_usage_seconds_total");
        assert_eq!((cpu.metric_type, cpu.value), (COUNTER, Some(UInt64Value { value: 7 })));
        assert_eq!(cpu.label_values, ["", "c1", "image:1", "c1", "n", "p"]);
        let value = |list: &[Metric], name: &str| figure(list, name).value.map(|v| v.value);
        assert_eq!(value(&container.metrics, "container_memory_cache"), Some(11));
        assert_eq!(value(&container.metrics, "container_fs_reads_bytes_total"), Some(4096));
        assert_eq!(value(&got.metrics, "container_network_receive_packets_total"), Some(6));
        let read = figure(&container.metrics, "container_blkio_device_usage_total");
        assert_eq!(read.label_values[6..], ["", "8", "0", "Read"]);
        let received = figure(&got.metrics, "container_network_receive_bytes_total");
        assert_eq!(received.label_values.last().map(String::as_str), Some("eth0"));
        assert_eq!(
            container.metrics.iter().filter(|m| m.name == "container_memory_failures_total").count(),
            2
        );
        assert_eq!(descriptors.iter().filter(|d| d.name == "container_memory_failures_total").count(), 1);
    }
}
