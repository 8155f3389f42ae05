//! `/metrics`, `/metrics/resource`, `/metrics/probes` and `/metrics/cadvisor` in Prometheus' text form.

use std::fmt::Write as _;

use super::figures::{self, Rates};
use crate::context::Context;
use crate::manager::Pods;
use crate::names;

/// A metric being written.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { out, name }
    }
    fn add(&mut self, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let list: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let labels = if list.is_empty() { String::new() } else { format!("{{{}}}", list.join(",")) };
        let at = at.map(|t| format!(" {t}")).unwrap_or_default();
        let _ = writeln!(self.out, "{}{labels} {value}{at}", self.name);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A figure of containers or pods, which not all of them need to have.
type Figure<T> = (&'static str, &'static str, &'static str, fn(&T) -> Option<f64>);

const CONTAINERS: [Figure<figures::ContainerFigures>; 5] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        |c| Some(seconds(c.stats.usage.cpu_core_nano_seconds)),
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the container in bytes",
        |c| Some(c.stats.usage.memory_working_set_bytes as f64),
    ),
    (
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
        |c| Some(c.status.started_at as f64 / 1e9),
    ),
    (
        "container_swap_limit_bytes",
        "gauge",
        "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
        |c| Some(c.stats.usage.swap_available_bytes? as f64 + c.stats.usage.swap_bytes as f64),
    ),
    (
        "container_swap_usage_bytes",
        "gauge",
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        |c| Some(c.stats.usage.swap_bytes as f64),
    ),
];

const NODE: [Figure<figures::NodeFigures>; 3] = [
    (
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        |n| Some(seconds(n.cpu)),
    ),
    ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes", |n| {
        Some(n.memory_working_set as f64)
    }),
    (
        "node_swap_usage_bytes",
        "gauge",
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
        |n| Some(n.swap.0 as f64),
    ),
];

const PODS: [Figure<figures::PodFigures>; 3] = [
    (
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        |p| Some(seconds(p.stats.usage.cpu_core_nano_seconds)),
    ),
    ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes", |p| {
        Some(p.stats.usage.memory_working_set_bytes as f64)
    }),
    (
        "pod_swap_usage_bytes",
        "gauge",
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        |p| Some(p.stats.usage.swap_bytes as f64),
    ),
];

/// Writes figures of all, in the table's order.
fn figures_of<T, const N: usize>(
    out: &mut String,
    table: &[Figure<T>],
    all: &[(&T, [(&str, &str); N])],
    now: i64,
) {
    for (name, kind, help, figure) in table {
        let mut family = Family::new(out, name, kind, help);
        // When something started does not change.
        let at = (!name.ends_with("_start_time_seconds")).then_some(now);
        for (one, labels) in all {
            if let Some(value) = figure(one) {
                family.add(labels, value, at);
            }
        }
    }
}

/// The labels of a pod.
fn whose(p: &figures::PodFigures) -> [(&'static str, &str); 2] {
    [("namespace", names::namespace(&p.handle.pod)), ("pod", names::name(&p.handle.pod))]
}

/// CPU, memory and swap of containers, pods and the node.
pub async fn resource(cx: &Context, pods: &Pods, rates: &Rates) -> String {
    let now = cx.clock.now().as_millisecond();
    let node = figures::node(cx, rates);
    let list = figures::pods(cx, pods, rates).await;
    let mut out = String::new();
    let pods: Vec<_> = list.iter().map(|p| (p, whose(p))).collect();
    let containers: Vec<_> = list
        .iter()
        .flat_map(|p| p.containers.iter().map(move |c| (c, whose(p))))
        .map(|(c, [namespace, pod])| (c, [("container", c.status.metadata.name.as_str()), namespace, pod]))
        .collect();
    figures_of(&mut out, &CONTAINERS, &containers, now);
    figures_of(&mut out, &NODE, &[(&node, [])], now);
    figures_of(&mut out, &PODS, &pods, now);
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    Family::new(&mut out, "resource_scrape_error", "gauge", help).add(&[], 0.0, None);
    out
}

/// Containers as cAdvisor shows them: the figures that dashboards ask for.
pub async fn cadvisor(cx: &Context, pods: &Pods, rates: &Rates) -> String {
    let now = cx.clock.now().as_millisecond();
    let list = figures::pods(cx, pods, rates).await;
    let mut out = String::new();
    let rows: Vec<_> = list
        .iter()
        .flat_map(|p| p.containers.iter().map(move |c| (p, c)))
        .map(|(p, c)| {
            let labels = [
                ("container", c.status.metadata.name.as_str()),
                ("id", c.status.id.as_str()),
                ("image", c.status.image.image.as_str()),
                ("name", c.status.id.as_str()),
                ("namespace", names::namespace(&p.handle.pod)),
                ("pod", names::name(&p.handle.pod)),
            ];
            (c, labels)
        })
        .collect();
    let mut family = |name, kind, help, value: fn(&figures::ContainerFigures) -> f64| {
        let mut f = Family::new(&mut out, name, kind, help);
        rows.iter().for_each(|(c, labels)| f.add(labels, value(c), Some(now)));
    };
    family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |c| {
        seconds(c.stats.usage.cpu_core_nano_seconds)
    });
    family("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", |c| {
        c.stats.usage.memory_usage_bytes as f64
    });
    family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |c| {
        c.stats.usage.memory_working_set_bytes as f64
    });
    family("container_memory_rss", "gauge", "Size of RSS in bytes.", |c| {
        c.stats.usage.memory_rss_bytes as f64
    });
    family("container_processes", "gauge", "Number of processes running inside the container.", |c| {
        c.stats.usage.process_count as f64
    });
    family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch.", |c| {
        c.status.started_at as f64 / 1e9
    });
    family("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |c| {
        c.status.resources.memory_limit_in_bytes as f64
    });
    family("container_spec_cpu_shares", "gauge", "CPU share of the container.", |c| {
        c.status.resources.cpu_shares as f64
    });
    type Read = fn(&figures::PodFigures) -> f64;
    let network: [(&'static str, &str, Read); 2] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |p| {
            p.stats.rx_bytes as f64
        }),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |p| {
            p.stats.tx_bytes as f64
        }),
    ];
    for (name, help, value) in network {
        let mut f = Family::new(&mut out, name, "counter", help);
        for p in list.iter().filter(|p| !crate::pod::host_network(&p.handle.pod)) {
            let (namespace, pod) = (names::namespace(&p.handle.pod), names::name(&p.handle.pod));
            f.add(&[("interface", "eth0"), ("namespace", namespace), ("pod", pod)], value(p), Some(now));
        }
    }
    out
}

/// How probes went.
pub fn probes(cx: &Context) -> String {
    let mut out = String::new();
    let help =
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    let mut f = Family::new(&mut out, "prober_probe_total", "counter", help);
    for (key, count) in cx.probe_counts.lock().iter() {
        let labels = [
            ("container", key.container.as_str()),
            ("namespace", key.namespace.as_str()),
            ("pod", key.pod.as_str()),
            ("pod_uid", key.uid.as_str()),
            ("probe_type", key.kind),
            ("result", key.result),
        ];
        f.add(&labels, *count as f64, None);
    }
    out
}

/// Who asked the managers of resources, and what they have left.
fn managers(cx: &Context, out: &mut String) {
    let topology = cx.topology_manager.counts.read();
    let (cpu, memory) = (cx.cpus.counts.read(), cx.memory_manager.counts.read());
    let (shared, own) = cx.cpus.sizes();
    let families = [
        (
            "kubelet_topology_manager_admission_requests_total",
            "The number of admission requests where resources have to be aligned.",
            topology.0,
        ),
        (
            "kubelet_topology_manager_admission_errors_total",
            "The number of admission request failures where resources could not be aligned.",
            topology.1,
        ),
        (
            "kubelet_cpu_manager_pinning_requests_total",
            "The number of cpu core allocations which required pinning.",
            cpu.0,
        ),
        (
            "kubelet_cpu_manager_pinning_errors_total",
            "The number of cpu core allocations which required pinning failed.",
            cpu.1,
        ),
        (
            "kubelet_memory_manager_pinning_requests_total",
            "The number of memory pages allocations which required pinning.",
            memory.0,
        ),
        (
            "kubelet_memory_manager_pinning_errors_total",
            "The number of memory pages allocations which required pinning that failed.",
            memory.1,
        ),
        (
            "kubelet_cpu_manager_shared_pool_size_millicores",
            "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
            shared as u64 * 1000,
        ),
        (
            "kubelet_cpu_manager_exclusive_cpu_allocation_count",
            "The total number of CPUs exclusively allocated to containers running on this node",
            own as u64,
        ),
    ];
    for (name, help, value) in families {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        Family::new(out, name, kind, &format!("[ALPHA] {help}")).add(&[], value as f64, None);
    }
}

/// The kubelet itself.
pub fn own(cx: &Context, pods: &Pods) -> String {
    let mut out = String::new();
    let (running_pods, running) = super::stats::counts(pods);
    let node = [("node", cx.config.node_name.as_str())];
    Family::new(&mut out, "kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.")
        .add(&node, 1.0, None);
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    Family::new(&mut out, "kubelet_running_pods", "gauge", help).add(&[], running_pods as f64, None);
    let help = "[ALPHA] Number of containers currently running";
    Family::new(&mut out, "kubelet_running_containers", "gauge", help).add(
        &[("container_state", "running")],
        running as f64,
        None,
    );
    let help = "[ALPHA] The number of pods the kubelet works on";
    Family::new(&mut out, "kubelet_working_pods", "gauge", help).add(&[], pods.all().len() as f64, None);
    managers(cx, &mut out);
    let version = [("git_version", cx.config.version.as_str()), ("major", "1"), ("minor", "36")];
    Family::new(&mut out, "kubernetes_build_info", "gauge", "[ALPHA] Build information.")
        .add(&version, 1.0, None);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    let help = "[ALPHA] Resident memory size in bytes.";
    Family::new(&mut out, "process_resident_memory_bytes", "gauge", help).add(
        &[],
        rss.unwrap_or(0.0) * 1024.0,
        None,
    );
    let help = "[ALPHA] Start time of the process since unix epoch in seconds.";
    let started = cx.started.as_millisecond() as f64 / 1e3;
    Family::new(&mut out, "process_start_time_seconds", "gauge", help).add(&[], started, None);
    out
}

#[cfg(test)]
mod tests {
    use coracle_cri::v1::{ContainerStats, Usage};

    use super::*;

    #[test]
    fn swap_has_a_limit_where_the_kernel_sets_one() {
        let of = |swap_available_bytes| figures::ContainerFigures {
            status: Default::default(),
            stats: ContainerStats {
                usage: Usage { swap_bytes: 4096, swap_available_bytes, ..Usage::default() },
                ..ContainerStats::default()
            },
            rate: None,
        };
        let (limited, free) = (of(Some(8192)), of(None));
        let mut out = String::new();
        figures_of(&mut out, &CONTAINERS, &[(&limited, [("pod", "a")]), (&free, [("pod", "b")])], 7);
        let told: Vec<&str> = out.lines().filter(|l| l.starts_with("container_swap_")).collect();
        assert_eq!(
            told,
            [
                "container_swap_limit_bytes{pod=\"a\"} 12288 7",
                "container_swap_usage_bytes{pod=\"a\"} 4096 7",
                "container_swap_usage_bytes{pod=\"b\"} 4096 7"
            ]
        );
    }

    #[test]
    fn families_are_text_with_escaped_labels() {
        let mut out = String::new();
        let mut f = Family::new(&mut out, "x_total", "counter", "help");
        f.add(&[("a", "q\"b")], 1.5, Some(7));
        f.add(&[], 2.0, None);
        assert_eq!(
            out,
            "# HELP x_total help\n# TYPE x_total counter\nx_total{a=\"q\\\"b\"} 1.5 7\nx_total 2\n"
        );
    }
}
