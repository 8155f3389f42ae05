//! What the kernel counts of a container beside the figures of CRI's stats; only metrics tell it.

/// Counters of a container that runs. Times in nanoseconds, sizes in bytes; 0 where the kernel does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say what they count")]
pub struct Counters {
    pub cpu_user: u64,
    pub cpu_system: u64,
    /// Periods of the CPU quota, those in which it was used up, and the time that was waited then.
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled: u64,
    /// What is set: the length of a period in microseconds, shares, and limits (0: none).
    pub cpu_period: u64,
    pub cpu_shares: u64,
    pub memory_limit: u64,
    pub memory_swap_limit: u64,
    pub memory_cache: u64,
    pub memory_mapped_file: u64,
    pub memory_kernel: u64,
    pub memory_swap: u64,
    /// The most that was used at a time.
    pub memory_most: u64,
    /// How often the limit was met.
    pub memory_limit_hits: u64,
    pub oom_kills: u64,
    pub open_files: u64,
    pub open_sockets: u64,
    pub threads: u64,
    /// How many there may be (0: no limit).
    pub most_threads: u64,
    /// The file system of the writable layer.
    pub disk_size: u64,
    pub disk_inodes: u64,
    pub disk_inodes_free: u64,
    /// When it was started, in nanoseconds since 1970.
    pub started_at: u64,
    /// Of the pod; `None` if it has the host's network.
    pub network: Option<Packets>,
    pub devices: Vec<DeviceIo>,
}

/// Packets of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say what they count")]
pub struct Packets {
    pub received: u64,
    pub receive_dropped: u64,
    pub sent: u64,
    pub send_dropped: u64,
}

/// What was read from and written to a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say what they count")]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Counters {
    /// A sum over all devices.
    pub fn io(&self, of: impl Fn(&DeviceIo) -> u64) -> u64 {
        self.devices.iter().map(of).sum()
    }
}
