//! Metrics of what the kernel counts of containers, by cAdvisor's names.

use super::{COUNTER, GAUGE, LABELS, metric};
use crate::counters::{Counters, Packets};
use crate::wire::{Metric, MetricDescriptor};

/// Name, help, kind and figure.
type Row = (&'static str, &'static str, i32, fn(&Counters) -> u64);
/// Name, help and figure.
type NetworkRow = (&'static str, &'static str, fn(&Packets) -> u64);

/// What is read of devices: name, help; labels are the device's numbers and `Read` or `Write`.
const DEVICES: (&str, &str) =
    ("container_blkio_device_usage_total", "Blkio device bytes usage; total of reads and writes.");
const DEVICE_LABELS: [&str; 4] = ["device", "major", "minor", "operation"];

const SECOND: u64 = 1_000_000_000;

const ROWS: [Row; 28] = [
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", COUNTER, |c| {
        c.cpu_user / SECOND
    }),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", COUNTER, |c| {
        c.cpu_system / SECOND
    }),
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", COUNTER, |c| {
        c.cpu_periods
    }),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", COUNTER, |c| {
        c.cpu_throttled_periods
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        COUNTER,
        |c| c.cpu_throttled / SECOND,
    ),
    ("container_spec_cpu_period", "CPU period of the container.", GAUGE, |c| c.cpu_period),
    ("container_spec_cpu_shares", "CPU share of the container.", GAUGE, |c| c.cpu_shares),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", GAUGE, |c| c.memory_limit),
    ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", GAUGE, |c| {
        c.memory_swap_limit
    }),
    ("container_memory_cache", "Number of bytes of page cache memory.", GAUGE, |c| c.memory_cache),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", GAUGE, |c| {
        c.memory_mapped_file
    }),
    ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", GAUGE, |c| {
        c.memory_kernel
    }),
    ("container_memory_swap", "Container swap usage in bytes.", GAUGE, |c| c.memory_swap),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", GAUGE, |c| c.memory_most),
    ("container_memory_failcnt", "Number of memory usage hits limits.", COUNTER, |c| c.memory_limit_hits),
    (
        "container_oom_events_total",
        "Count of out of memory events observed for the container.",
        COUNTER,
        |c| c.oom_kills,
    ),
    ("container_file_descriptors", "Number of open file descriptors for the container.", GAUGE, |c| {
        c.open_files
    }),
    ("container_sockets", "Number of open sockets for the container.", GAUGE, |c| c.open_sockets),
    ("container_threads", "Number of threads running inside the container.", GAUGE, |c| c.threads),
    (
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero.",
        GAUGE,
        |c| c.most_threads,
    ),
    (
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        GAUGE,
        |c| c.disk_size,
    ),
    ("container_fs_inodes_total", "Number of Inodes.", GAUGE, |c| c.disk_inodes),
    ("container_fs_inodes_free", "Number of available Inodes.", GAUGE, |c| c.disk_inodes_free),
    (
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        GAUGE,
        |c| c.started_at / SECOND,
    ),
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", COUNTER, |c| {
        c.io(|d| d.read_bytes)
    }),
    ("container_fs_reads_total", "Cumulative count of reads completed.", COUNTER, |c| c.io(|d| d.reads)),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", COUNTER, |c| {
        c.io(|d| d.written_bytes)
    }),
    ("container_fs_writes_total", "Cumulative count of writes completed.", COUNTER, |c| c.io(|d| d.writes)),
];

const NETWORK: [NetworkRow; 4] = [
    ("container_network_receive_packets_total", "Cumulative count of packets received.", |p| p.received),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving.",
        |p| p.receive_dropped,
    ),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", |p| p.sent),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting.",
        |p| p.send_dropped,
    ),
];

/// All of these metrics.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let one = |name: &str, help: &str, more: &[&str]| MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(more).map(|l| (*l).to_owned()).collect(),
    };
    let rows = ROWS.iter().map(|(name, help, ..)| one(name, help, &[]));
    let network = NETWORK.iter().map(|(name, help, _)| one(name, help, &["interface"]));
    rows.chain(network).chain([one(DEVICES.0, DEVICES.1, &DEVICE_LABELS)]).collect()
}

/// Metrics of a container that has these labels.
pub(super) fn of_container(counters: &Counters, labels: &[&str]) -> Vec<Metric> {
    let rows = ROWS.iter().map(|(name, _, kind, of)| metric(name, *kind, labels, of(counters)));
    let mut all: Vec<Metric> = rows.collect();
    for device in &counters.devices {
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.written_bytes)] {
            let labels = [labels, &["", &major, &minor, operation]].concat();
            all.push(metric(DEVICES.0, COUNTER, &labels, bytes));
        }
    }
    all
}

/// Metrics of a pod's network; the interface is the last label.
pub(super) fn of_network(packets: &Packets, labels: &[&str]) -> Vec<Metric> {
    NETWORK.iter().map(|(name, _, of)| metric(name, COUNTER, labels, of(packets))).collect()
}
