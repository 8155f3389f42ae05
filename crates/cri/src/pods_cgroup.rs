//! The cgroup that all pods of a node are in.

use std::io;

/// What all pods together may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodsLimits {
    /// Bytes of memory.
    pub memory: i64,
    /// CPU shares, 1024 for each CPU.
    pub cpu_shares: i64,
}

/// Memory of all pods together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodsMemory {
    /// Bytes that they may have; 0: there is no limit.
    pub limit: u64,
    /// Bytes that nobody can have without a pod's giving them up.
    pub working_set: u64,
}

/// The cgroup that all pods of a node are in, where the kubelet's own runtime makes it.
pub trait PodsCgroup: Send + Sync + 'static {
    /// Limits all pods together.
    ///
    /// # Errors
    /// The kernel's; pods that already have more than the limit.
    fn limit(&self, limits: PodsLimits) -> io::Result<()>;
    /// What they have.
    fn memory(&self) -> PodsMemory;
}
