//! What a pod worker knows: what the runtime shows, and what the worker itself remembers.

use std::collections::{HashMap, HashSet};

use coracle_cri::v1::{ContainerState, ContainerStatus, PodSandboxStatus};
use jiff::Timestamp;

use crate::backoff::CrashBackoff;

/// Sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Sandboxes.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Containers of all sandboxes.
    pub containers: Vec<ContainerStatus>,
}

impl Observed {
    /// The newest sandbox, if it is ready and (off the host network) has an address.
    pub fn sandbox(&self, host_network: bool) -> Option<&PodSandboxStatus> {
        self.sandboxes.first().filter(|s| s.ready && (host_network || !s.ips.is_empty()))
    }
    /// The newest instance of a container.
    pub fn newest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.metadata.name == name)
    }
    /// The newest instance of a container in a sandbox.
    pub fn newest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerStatus> {
        self.newest(name).filter(|c| c.pod_sandbox_id == sandbox)
    }
    /// The instance before the newest.
    pub fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().filter(|c| c.metadata.name == name).nth(1)
    }
    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|c| c.state == ContainerState::Running)
    }
    /// A container by id.
    pub fn by_id(&self, id: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.id == id)
    }
}

/// Progress of something done once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Being done.
    Busy,
    /// Done.
    Done,
    /// Failed; not to be tried before this time.
    RetryAt(Timestamp),
}

impl Step {
    /// Whether it should be begun at `now`.
    pub fn due(self, now: Timestamp) -> bool {
        match self {
            Self::Idle => true,
            Self::Busy | Self::Done => false,
            Self::RetryAt(at) => at <= now,
        }
    }
    /// When to look again.
    pub fn wake_at(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::RetryAt(at) if at > now => Some(at),
            _ => None,
        }
    }
}

/// `state.waiting` of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase reason.
    pub reason: String,
    /// Text for people; may be empty.
    pub message: String,
}

/// What the worker remembers of a container name.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// A start is under way.
    pub starting: bool,
    /// Why it could not be started last time.
    pub waiting: Option<Waiting>,
    /// Not to be started before.
    pub not_before: Option<Timestamp>,
}

/// Why a whole pod failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

impl Failure {
    /// Something that a pod asks for was not given for this reason.
    pub fn unexpected(why: impl std::fmt::Display) -> Self {
        Self {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Allocate failed due to {why}, which is unexpected"),
        }
    }
}

/// A container that a probe wants restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// Text of the Killing event.
    pub message: String,
    /// The probe's own grace period.
    pub grace: Option<i64>,
}

/// What the worker remembers of its pod.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Volumes mounted.
    pub volumes: Step,
    /// A sandbox being made.
    pub sandbox: Step,
    /// Sandboxes being stopped.
    pub stopping: HashSet<String>,
    /// Per container name.
    pub slots: HashMap<String, Slot>,
    /// Crash loops, by container name and hash.
    pub backoff: CrashBackoff,
    /// Containers that probes condemned, by id.
    pub unhealthy: HashMap<String, Unhealthy>,
    /// Containers whose startup probe passed (or that have none), by id.
    pub started: HashSet<String>,
    /// Containers whose readiness probe passes (or that have none), by id.
    pub ready: HashSet<String>,
    /// Containers being killed, with the time by which they will be dead.
    pub killing: HashMap<String, Timestamp>,
    /// Containers killed because others are wanted in their place, by id.
    pub replaced: HashSet<String>,
    /// The pod is gone from the API.
    pub gone: bool,
    /// The pod failed as a whole (deadline, eviction, refusal).
    pub failed: Option<Failure>,
    /// The pod was evicted because the node is short of something.
    pub disrupted: bool,
    /// Seconds that the pod gets to end, instead of its own.
    pub grace: Option<i64>,
    /// The node refused the pod; it never ran.
    pub rejected: bool,
    /// All containers are being removed to start over.
    pub resetting: bool,
    /// Resizing in place.
    pub resize: crate::resize::State,
    /// The pod has ended once; it never starts anything again.
    pub ended: bool,
}

impl Memory {
    /// Whether any operation on containers is under way.
    pub fn busy(&self) -> bool {
        self.sandbox == Step::Busy || self.slots.values().any(|s| s.starting)
    }
    /// Remembered facts about a container name.
    pub fn slot(&mut self, name: &str) -> &mut Slot {
        self.slots.entry(name.to_owned()).or_default()
    }
}
