//! What the machine is and has: CPUs, memory, disk, kernel and operating system.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_cri::PodsLimits;
use coracle_meta::quantity::Quantity;

use crate::admit::NodeView;
use crate::config::KubeletConfig;
use crate::container::resources::shares;
use crate::swap::Swap;

/// Facts about the machine, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Size of the file system of the data directory in bytes.
    pub disk: i64,
    /// Pods.
    pub pods: i64,
    /// Bytes of huge pages by the size of a page in bytes.
    pub huge_pages: BTreeMap<i64, i64>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// DMI product id, else the machine id.
    pub system_uuid: String,
    /// Id of this boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
    /// `amd64`, `arm64`, ….
    pub architecture: &'static str,
    /// What is not for pods.
    pub reserved: BTreeMap<String, Quantity>,
    /// What evictions keep free of memory and disk.
    pub kept_free: Capacity,
    /// Whether the kernel enforces AppArmor profiles.
    pub app_armor: bool,
    /// Swap, and what pods may do with it.
    pub swap: Swap,
}

/// Bytes of memory and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub memory: i64,
    pub disk: i64,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of `key` in `KEY=value` lines.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// Bytes of a `/proc/meminfo` line.
pub fn meminfo(text: &str, key: &str) -> Option<i64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

/// Go's name of the architecture.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

impl Machine {
    /// Reads the machine; the disk is the one with the kubelet's directory.
    pub fn read(config: &KubeletConfig) -> Self {
        let disk = rustix::fs::statvfs(&config.root).map_or(0, |v| v.f_frsize.saturating_mul(v.f_blocks));
        let disk = i64::try_from(disk).unwrap_or(i64::MAX);
        let memory = meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or(0);
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpus: i64::try_from(cpus).unwrap_or(1),
            memory,
            disk,
            pods: i64::from(config.max_pods),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_release(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| "Linux".into()),
            architecture: architecture(),
            reserved: config.reserved.clone(),
            kept_free: config.eviction.kept_free(Capacity { memory, disk }),
            app_armor: read("/sys/module/apparmor/parameters/enabled") == "Y",
            swap: Swap::read(config.swap),
        }
    }

    /// `status.capacity`.
    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        let bytes = |n: i64| Quantity::parse(&format!("{}Ki", n / 1024)).unwrap_or_default();
        let mut amounts = BTreeMap::from([
            ("cpu".to_owned(), Quantity::from(self.cpus)),
            ("memory".to_owned(), bytes(self.memory)),
            ("pods".to_owned(), Quantity::from(self.pods)),
            ("ephemeral-storage".to_owned(), bytes(self.disk)),
        ]);
        for (size, total) in &self.huge_pages {
            amounts.insert(huge_pages_name(*size), Quantity::from_bytes(*total));
        }
        amounts
    }

    /// `status.allocatable`: less what evictions keep free, less what is kept back.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let mut amounts = self.capacity();
        let huge: i64 = self.huge_pages.values().sum();
        let memory = (self.memory - huge - self.kept_free.memory).max(0) / 1024;
        amounts.insert("memory".into(), Quantity::parse(&format!("{memory}Ki")).unwrap_or_default());
        amounts.insert("ephemeral-storage".into(), Quantity::from((self.disk - self.kept_free.disk).max(0)));
        for (name, reserved) in &self.reserved {
            if let Some(amount) = amounts.get_mut(name) {
                *amount = (*amount - *reserved).max(Quantity::default());
            }
        }
        amounts
    }

    /// What all pods together may have: evictions happen before they have it.
    pub fn pods_limits(&self) -> PodsLimits {
        let reserved = |name: &str| self.reserved.get(name).copied().unwrap_or_default();
        let milli = i64::try_from((Quantity::from(self.cpus) - reserved("cpu")).milli()).unwrap_or(0);
        let memory = (self.memory - reserved("memory").value()).max(0);
        PodsLimits { memory, cpu_shares: shares(milli) }
    }

    /// The node as pods meet it before its object is known.
    pub fn view(&self, name: &str) -> NodeView {
        NodeView {
            name: name.to_owned(),
            labels: self.labels(name),
            taints: Vec::new(),
            allocatable: self.allocatable(),
            app_armor: self.app_armor,
        }
    }

    /// The labels that the kubelet answers for.
    pub fn labels(&self, name: &str) -> BTreeMap<String, String> {
        let labels = [
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", self.architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", self.architecture),
        ];
        labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }
}

/// Name of the resource that huge pages of so many bytes are.
pub fn huge_pages_name(size: i64) -> String {
    format!("hugepages-{}", Quantity::from_bytes(size).to_api().0)
}

/// Reads how many bytes of huge pages there are, by size of a page.
pub fn huge_pages(root: &Path) -> BTreeMap<i64, i64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB"));
        let Some(kib) = size.and_then(|s| s.parse::<i64>().ok()) else { continue };
        let count = read(&entry.path().join("nr_hugepages").to_string_lossy()).parse::<i64>().unwrap_or(0);
        found.insert(kib * 1024, count * kib * 1024);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert_eq!(meminfo("MemTotal:       24000000 kB\n", "MemTotal"), Some(24_576_000_000));
        let text = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_release(text, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }
}
