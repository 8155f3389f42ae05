//! The cgroup that all pods of a node are in.

use std::io;
use std::os::fd::OwnedFd;

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

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryOf {
    /// All processes.
    Machine,
    /// All pods.
    Pods,
}

/// The cgroup that all pods of a node are in, where the kubelet's own runtime makes it.
pub trait PodsCgroup: Send + Sync + 'static {
    /// Makes it unless it is there. What the kernel can limit shows in the files of cgroups below the root: where
    /// there is no other, in those of this one.
    ///
    /// # Errors
    /// The kernel's.
    fn create(&self) -> io::Result<()>;
    /// Limits all pods together.
    ///
    /// # Errors
    /// The kernel's; pods that already have more than the limit.
    fn limit(&self, limits: PodsLimits) -> io::Result<()>;
    /// What they have.
    fn memory(&self) -> PodsMemory;
    /// Something that becomes readable when so many bytes more are used; `None` where the kernel does not tell
    /// (cgroup v2). Ends when it is closed.
    ///
    /// # Errors
    /// The kernel's.
    fn notify_memory(&self, of: MemoryOf, growth: u64) -> io::Result<Option<OwnedFd>>;
}
