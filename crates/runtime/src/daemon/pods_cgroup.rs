//! What all pods together may have, and have.

use std::io;
use std::os::fd::OwnedFd;

use coracle_cri::v1::LinuxResources;
use coracle_cri::{MemoryOf, PodsCgroup, PodsLimits, PodsMemory};

use super::Runtime;

impl PodsCgroup for Runtime {
    fn create(&self) -> io::Result<()> {
        self.hierarchies.create(&self.config.pods_cgroup())
    }

    fn limit(&self, limits: PodsLimits) -> io::Result<()> {
        let path = self.config.pods_cgroup();
        self.create()?;
        let cpu = LinuxResources { cpu_shares: limits.cpu_shares, ..LinuxResources::default() };
        self.hierarchies.limit(&path, &cpu);
        let memory = LinuxResources { memory_limit_in_bytes: limits.memory, ..LinuxResources::default() };
        self.hierarchies.change(&path, &memory)
    }

    fn memory(&self) -> PodsMemory {
        let path = self.config.pods_cgroup();
        PodsMemory {
            limit: self.hierarchies.memory_limit(&path),
            working_set: self.hierarchies.usage(&path).memory_working_set,
        }
    }

    fn notify_memory(&self, of: MemoryOf, growth: u64) -> io::Result<Option<OwnedFd>> {
        match of {
            MemoryOf::Machine => self.hierarchies.notify_memory("", growth),
            MemoryOf::Pods => self.hierarchies.notify_memory(&self.config.pods_cgroup(), growth),
        }
    }
}
