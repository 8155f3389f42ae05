//! Figures of what runs: CPU, memory, processes, network and disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_cri::v1::{ContainerState, ContainerStats, FilesystemUsage, PodSandboxStats, Usage};
use coracle_cri::{Counters, CriError, Packets};

use super::{ContainerEntry, Runtime, blocking};
use crate::snapshot::Snapshot;

/// How long the size of a writable layer is good for: finding it walks the files.
const DISK_AGE: Duration = Duration::from_secs(10);

/// The size of a tree and when it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    bytes: u64,
    inodes: u64,
    at: Instant,
}

/// Bytes on disk and inodes of a tree, links not followed. What vanishes meanwhile does not count.
fn size_of(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return (0, 0) };
    let mut total = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            let (bytes, inodes) = size_of(&entry.path());
            total = (total.0 + bytes, total.1 + inodes);
        }
    }
    total
}

/// Received and sent bytes and errors of the first interface that is not the loopback.
fn network(text: &str) -> Option<[u64; 4]> {
    first_interface(text, [0, 2, 8, 10])
}

/// Packets of that interface.
fn packets(text: &str) -> Option<Packets> {
    let [received, receive_dropped, sent, send_dropped] = first_interface(text, [1, 3, 9, 11])?;
    Some(Packets { received, receive_dropped, sent, send_dropped })
}

/// Columns of the first interface that is not the loopback.
fn first_interface(text: &str, columns: [usize; 4]) -> Option<[u64; 4]> {
    text.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        if name.trim() == "lo" {
            return None;
        }
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        // A line without them all is the heading.
        let found: Option<Vec<u64>> = columns.iter().map(|at| numbers.get(*at).copied()).collect();
        found?.try_into().ok()
    })
}

impl Runtime {
    async fn writable_layer(&self, container: &ContainerEntry) -> (u64, u64) {
        let known = *container.disk.lock();
        if let Some(known) = known.filter(|d| d.at.elapsed() < DISK_AGE) {
            return (known.bytes, known.inodes);
        }
        let upper: PathBuf = Snapshot::new(&self.config.root, &container.record.id).upper();
        let (bytes, inodes) = blocking(move || Ok(size_of(&upper))).await.unwrap_or_default();
        *container.disk.lock() = Some(Disk { bytes, inodes, at: Instant::now() });
        (bytes, inodes)
    }

    /// What a cgroup's processes use: a handful of reads of kernel memory, quicker than a thread switch.
    fn usage_of(&self, cgroup: &str) -> Usage {
        let usage = self.hierarchies.usage(cgroup);
        Usage {
            cpu_core_nano_seconds: usage.cpu_nanoseconds,
            memory_working_set_bytes: usage.memory_working_set,
            memory_usage_bytes: usage.memory_usage,
            memory_rss_bytes: usage.memory_rss,
            memory_available_bytes: usage.memory_limit.map(|l| l.saturating_sub(usage.memory_working_set)),
            swap_bytes: usage.swap,
            swap_available_bytes: usage.swap_limit.map(|limit| limit.saturating_sub(usage.swap)),
            memory_page_faults: usage.page_faults,
            memory_major_page_faults: usage.major_page_faults,
            process_count: usage.processes,
        }
    }

    pub(super) async fn figures_of_container(&self, id: &str) -> Result<ContainerStats, CriError> {
        let container = self.container(id)?;
        let (writable_layer_bytes, writable_layer_inodes) = self.writable_layer(&container).await;
        Ok(ContainerStats {
            id: id.to_owned(),
            usage: self.usage_of(&container.record.launch.cgroup),
            writable_layer_bytes,
            writable_layer_inodes,
        })
    }

    pub(super) fn figures_of_sandbox(&self, id: &str) -> Result<PodSandboxStats, CriError> {
        let sandbox = self.sandbox(id)?;
        // Any process of the pod sees the pod's interfaces.
        let pids = self.containers_of(id).into_iter().map(|c| {
            let now = c.now.lock();
            if now.state == ContainerState::Running { now.pid } else { 0 }
        });
        let pid = pids.filter(|_| !sandbox.config.namespaces.host_network).find(|pid| *pid != 0);
        let text = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
        let [rx_bytes, rx_errors, tx_bytes, tx_errors] = text.and_then(|t| network(&t)).unwrap_or_default();
        Ok(PodSandboxStats {
            id: id.to_owned(),
            usage: self.usage_of(&self.pod_cgroup(id, &sandbox.config)),
            rx_bytes,
            rx_errors,
            tx_bytes,
            tx_errors,
        })
    }

    /// What else the kernel counts of a container, if it runs.
    pub(super) fn counters_of(&self, id: &str) -> Result<Option<Counters>, CriError> {
        let container = self.container(id)?;
        let (pid, started_at) = {
            let now = container.now.lock();
            if now.state != ContainerState::Running {
                return Ok(None);
            }
            (now.pid, now.started_at)
        };
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        let own = !sandbox.config.namespaces.host_network;
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok().filter(|_| own);
        let disk = rustix::fs::statvfs(&self.config.root).ok();
        let set = container.resources();
        let amount = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(Some(Counters {
            cpu_period: amount(set.cpu_period),
            cpu_shares: amount(set.cpu_shares),
            memory_limit: amount(set.memory_limit_in_bytes),
            disk_size: disk.as_ref().map_or(0, |d| d.f_blocks.saturating_mul(d.f_frsize)),
            disk_inodes: disk.as_ref().map_or(0, |d| d.f_files),
            disk_inodes_free: disk.as_ref().map_or(0, |d| d.f_ffree),
            started_at: amount(started_at),
            network: text.and_then(|text| packets(&text)),
            ..self.hierarchies.counters(&container.record.launch.cgroup)
        }))
    }

    /// The image store's share of its file system, as the sizes of the images add up.
    pub(super) fn image_usage(&self) -> FilesystemUsage {
        let images = self.images.list();
        FilesystemUsage {
            mountpoint: self.config.root.to_string_lossy().into_owned(),
            used_bytes: images.iter().map(|i| i.size).sum(),
            inodes_used: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_every_inode_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 10_000]).unwrap();
        let (bytes, inodes) = size_of(dir.path());
        assert!(bytes >= 10_000 && inodes == 3, "{bytes} {inodes}");
    }

    #[test]
    fn the_first_real_interface_counts() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                    \x20 eth0: 10 2 3 0 0 0 0 0 40 5 6 0 0 0 0 0\n";
        assert_eq!(network(text), Some([10, 3, 40, 6]));
        let want = Packets { received: 2, receive_dropped: 0, sent: 5, send_dropped: 0 };
        assert_eq!(packets(text), Some(want));
    }
}
