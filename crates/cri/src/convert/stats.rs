//! Figures.

use crate::{v1, wire};

fn value(value: u64) -> Option<wire::UInt64Value> {
    Some(wire::UInt64Value { value })
}

fn number(value: Option<wire::UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

fn cpu(u: &v1::Usage, now: i64) -> wire::CpuUsage {
    let usage_core_nano_seconds = value(u.cpu_core_nano_seconds);
    wire::CpuUsage { timestamp: now, usage_core_nano_seconds, ..Default::default() }
}

fn memory(u: &v1::Usage, now: i64) -> wire::MemoryUsage {
    wire::MemoryUsage {
        timestamp: now,
        working_set_bytes: value(u.memory_working_set_bytes),
        available_bytes: u.memory_available_bytes.and_then(value),
        usage_bytes: value(u.memory_usage_bytes),
        rss_bytes: value(u.memory_rss_bytes),
        page_faults: value(u.memory_page_faults),
        major_page_faults: value(u.memory_major_page_faults),
        ..Default::default()
    }
}

fn swap(u: &v1::Usage, now: i64) -> wire::SwapUsage {
    wire::SwapUsage {
        timestamp: now,
        swap_available_bytes: u.swap_available_bytes.and_then(value),
        swap_usage_bytes: value(u.swap_bytes),
    }
}

fn usage(
    cpu: Option<wire::CpuUsage>,
    memory: Option<wire::MemoryUsage>,
    swap: Option<wire::SwapUsage>,
    processes: Option<wire::ProcessUsage>,
) -> v1::Usage {
    let memory = memory.unwrap_or_default();
    // Who tells nothing about swap has none.
    let swap = swap.unwrap_or(wire::SwapUsage { swap_available_bytes: value(0), ..Default::default() });
    v1::Usage {
        cpu_core_nano_seconds: number(cpu.unwrap_or_default().usage_core_nano_seconds),
        memory_working_set_bytes: number(memory.working_set_bytes),
        memory_usage_bytes: number(memory.usage_bytes),
        memory_available_bytes: memory.available_bytes.map(|v| v.value),
        swap_bytes: number(swap.swap_usage_bytes),
        swap_available_bytes: swap.swap_available_bytes.map(|v| v.value),
        memory_rss_bytes: number(memory.rss_bytes),
        memory_page_faults: number(memory.page_faults),
        memory_major_page_faults: number(memory.major_page_faults),
        process_count: number(processes.unwrap_or_default().process_count),
    }
}

/// The usage of a file system's part at a time in nanoseconds since 1970.
pub(crate) fn filesystem(f: v1::FilesystemUsage, now: i64) -> wire::FilesystemUsage {
    wire::FilesystemUsage {
        timestamp: now,
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: f.mountpoint }),
        used_bytes: value(f.used_bytes),
        inodes_used: value(f.inodes_used),
    }
}

impl From<wire::FilesystemUsage> for v1::FilesystemUsage {
    fn from(f: wire::FilesystemUsage) -> Self {
        Self {
            mountpoint: f.fs_id.map(|i| i.mountpoint).unwrap_or_default(),
            used_bytes: number(f.used_bytes),
            inodes_used: number(f.inodes_used),
        }
    }
}

/// Figures of a container with whose they are.
pub(crate) fn container_stats(
    s: &v1::ContainerStats,
    of: v1::Container,
    image_root: &str,
    now: i64,
) -> wire::ContainerStats {
    let layer = v1::FilesystemUsage {
        mountpoint: image_root.to_owned(),
        used_bytes: s.writable_layer_bytes,
        inodes_used: s.writable_layer_inodes,
    };
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: of.id,
            metadata: Some(of.metadata.into()),
            labels: of.labels,
            annotations: of.annotations,
        }),
        cpu: Some(cpu(&s.usage, now)),
        memory: Some(memory(&s.usage, now)),
        writable_layer: Some(filesystem(layer, now)),
        swap: Some(swap(&s.usage, now)),
        io: None,
    }
}

impl From<wire::ContainerStats> for v1::ContainerStats {
    fn from(s: wire::ContainerStats) -> Self {
        let layer = s.writable_layer.unwrap_or_default();
        Self {
            id: s.attributes.map(|a| a.id).unwrap_or_default(),
            usage: usage(s.cpu, s.memory, s.swap, None),
            writable_layer_bytes: number(layer.used_bytes),
            writable_layer_inodes: number(layer.inodes_used),
        }
    }
}

/// Figures of a pod with those of its containers.
pub(crate) fn sandbox_stats(
    s: &v1::PodSandboxStats,
    of: v1::PodSandbox,
    containers: Vec<wire::ContainerStats>,
    now: i64,
) -> wire::PodSandboxStats {
    let interface = wire::NetworkInterfaceUsage {
        name: "eth0".into(),
        rx_bytes: value(s.rx_bytes),
        rx_errors: value(s.rx_errors),
        tx_bytes: value(s.tx_bytes),
        tx_errors: value(s.tx_errors),
    };
    wire::PodSandboxStats {
        attributes: Some(wire::PodSandboxAttributes {
            id: of.id,
            metadata: Some(of.metadata.into()),
            labels: of.labels,
            annotations: of.annotations,
        }),
        linux: Some(wire::LinuxPodSandboxStats {
            cpu: Some(cpu(&s.usage, now)),
            memory: Some(memory(&s.usage, now)),
            network: Some(wire::NetworkUsage {
                timestamp: now,
                default_interface: Some(interface),
                interfaces: Vec::new(),
            }),
            process: Some(wire::ProcessUsage { timestamp: now, process_count: value(s.usage.process_count) }),
            containers,
            io: None,
        }),
    }
}

impl From<wire::PodSandboxStats> for v1::PodSandboxStats {
    fn from(s: wire::PodSandboxStats) -> Self {
        let linux = s.linux.unwrap_or_default();
        let network = linux.network.and_then(|n| n.default_interface).unwrap_or_default();
        // CRI has no swap of pods: it is that of their containers.
        let total = |of: fn(&wire::SwapUsage) -> Option<&wire::UInt64Value>| -> u64 {
            linux.containers.iter().filter_map(|c| of(c.swap.as_ref()?)).map(|v| v.value).sum()
        };
        let swap = wire::SwapUsage {
            timestamp: 0,
            swap_available_bytes: value(total(|s| s.swap_available_bytes.as_ref())),
            swap_usage_bytes: value(total(|s| s.swap_usage_bytes.as_ref())),
        };
        Self {
            id: s.attributes.map(|a| a.id).unwrap_or_default(),
            usage: usage(linux.cpu, linux.memory, Some(swap), linux.process),
            rx_bytes: number(network.rx_bytes),
            rx_errors: number(network.rx_errors),
            tx_bytes: number(network.tx_bytes),
            tx_errors: number(network.tx_errors),
        }
    }
}

/// The figures of a pod as the sum of its containers', for runtimes that do not tell them.
pub(crate) fn sum(id: &str, containers: Vec<v1::ContainerStats>) -> v1::PodSandboxStats {
    let mut all = v1::PodSandboxStats { id: id.to_owned(), ..Default::default() };
    all.usage.swap_available_bytes = Some(0);
    for v1::ContainerStats { usage: one, .. } in containers {
        let sum = &mut all.usage;
        sum.cpu_core_nano_seconds += one.cpu_core_nano_seconds;
        sum.memory_working_set_bytes += one.memory_working_set_bytes;
        sum.memory_usage_bytes += one.memory_usage_bytes;
        sum.swap_bytes += one.swap_bytes;
        sum.swap_available_bytes =
            sum.swap_available_bytes.map(|s| s + one.swap_available_bytes.unwrap_or(0));
        sum.memory_rss_bytes += one.memory_rss_bytes;
        sum.memory_page_faults += one.memory_page_faults;
        sum.memory_major_page_faults += one.memory_major_page_faults;
        sum.process_count += one.process_count;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_through_the_wire_and_add_up() {
        let one = v1::ContainerStats {
            id: "c".into(),
            usage: v1::Usage {
                cpu_core_nano_seconds: 5,
                memory_rss_bytes: 7,
                memory_available_bytes: Some(3),
                swap_bytes: 11,
                swap_available_bytes: Some(13),
                ..Default::default()
            },
            writable_layer_bytes: 9,
            ..Default::default()
        };
        let of = v1::Container { id: "c".into(), ..Default::default() };
        let sent = container_stats(&one, of, "/i", 1);
        assert_eq!(v1::ContainerStats::from(sent.clone()), one);
        let silent = v1::ContainerStats::from(wire::ContainerStats { swap: None, ..sent.clone() });
        assert_eq!((silent.usage.swap_bytes, silent.usage.swap_available_bytes), (0, Some(0)));
        let all = sum("s", vec![one.clone(), one]);
        assert_eq!((all.usage.swap_bytes, all.usage.swap_available_bytes), (22, Some(26)));
        assert_eq!((all.usage.cpu_core_nano_seconds, all.usage.memory_rss_bytes), (10, 14));
        let of = v1::PodSandbox { id: "s".into(), ..Default::default() };
        assert_eq!(v1::PodSandboxStats::from(sandbox_stats(&all, of, vec![sent.clone(), sent], 1)), all);
    }
}
