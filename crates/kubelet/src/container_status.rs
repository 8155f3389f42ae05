//! `containerStatuses`: what the API shows of each container. Pure.

use std::collections::BTreeMap;

use coracle_cri::v1::{self as cri, ContainerState as Cri};
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Pod, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::names::container_id;
use crate::pod::{self, Role};
use crate::state::{Memory, Observed};

fn time(nanos: i64) -> Option<Time> {
    Some(Time(pod::whole_seconds(pod::from_nanos(nanos))))
}

fn terminated(c: &cri::ContainerStatus, message: Option<&String>) -> ContainerState {
    let reason = match (c.reason.as_str(), c.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let message = message.unwrap_or(&c.message);
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(&c.id)),
            exit_code: c.exit_code,
            finished_at: time(c.finished_at),
            message: (!message.is_empty()).then(|| message.clone()),
            reason: Some(reason.to_owned()),
            signal: (c.signal != 0 && c.exit_code == 0).then_some(c.signal),
            started_at: time(c.started_at),
        }),
        ..ContainerState::default()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

/// Termination messages by container id, read from the containers' files.
pub type Messages = BTreeMap<String, String>;

/// What container statuses are made of.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The runtime's state.
    pub seen: &'a Observed,
    /// The worker's memory.
    pub memory: &'a Memory,
    /// Termination messages.
    pub messages: &'a Messages,
}

impl Sources<'_> {
    /// The status of one container.
    pub fn container(&self, c: &Container, role: Role) -> ContainerStatus {
        let newest = self.seen.newest(&c.name);
        let mut status = ContainerStatus {
            name: c.name.clone(),
            image: c.image.clone().unwrap_or_default(),
            volume_mounts: mounts(c),
            started: (role != Role::Ephemeral).then_some(false),
            ..ContainerStatus::default()
        };
        let has_init = pod::init_containers(self.pod).next().is_some();
        let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        match newest {
            Some(n) => self.fill_from_runtime(&mut status, n, c, role, default_reason),
            None => {
                status.state = Some(self.without_instance(c, default_reason));
                self.recall(&mut status);
            }
        }
        if let Some(n) = newest {
            if role != Role::Ephemeral {
                let resources = c.resources.clone().unwrap_or_default();
                status.allocated_resources = resources.requests.filter(|r| !r.is_empty());
                status.resources = Some(actual_resources(c, n));
            }
            status.user = n.user.as_ref().map(|u| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: u.uid,
                    gid: u.gid,
                    supplemental_groups: Some(u.supplemental_groups.clone()),
                }),
            });
        }
        status
    }

    /// What the status told before of a container whose instances are all gone.
    fn recall(&self, status: &mut ContainerStatus) {
        let told = self.pod.status.as_ref();
        let lists = [
            told.and_then(|s| s.container_statuses.as_ref()),
            told.and_then(|s| s.init_container_statuses.as_ref()),
        ];
        let old = lists.into_iter().flatten().flatten().find(|s| s.name == status.name);
        let Some(old) = old else { return };
        status.restart_count = old.restart_count;
        let ended = old.state.as_ref().is_some_and(|s| s.terminated.is_some());
        status.last_state = if ended { old.state.clone() } else { old.last_state.clone() };
    }

    fn without_instance(&self, c: &Container, default_reason: &str) -> ContainerState {
        // A pod that ends before a container ever ran reports it as terminated, as upstream does.
        if self.memory.ended && !self.memory.gone && self.pod.metadata.deletion_timestamp.is_none() {
            return self.never_ran();
        }
        match self.memory.slots.get(&c.name).and_then(|s| s.waiting.as_ref()) {
            Some(w) => waiting(&w.reason, &w.message),
            None => waiting(default_reason, ""),
        }
    }

    fn never_ran(&self) -> ContainerState {
        if self.memory.failed.is_none() {
            return waiting("PodInitializing", "");
        }
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }
    }

    fn fill_from_runtime(
        &self,
        status: &mut ContainerStatus,
        n: &cri::ContainerStatus,
        c: &Container,
        role: Role,
        default_reason: &str,
    ) {
        status.container_id = Some(container_id(&n.id));
        status.restart_count = restart_count(n);
        if !n.image.image.is_empty() {
            status.image.clone_from(&n.image.image);
        }
        status.image_id = if n.image_ref.is_empty() { n.image_id.clone() } else { n.image_ref.clone() };
        let slot = self.memory.slots.get(&c.name);
        let held = slot.and_then(|s| s.waiting.as_ref());
        let message = |x: &cri::ContainerStatus| self.messages.get(&x.id);
        match n.state {
            Cri::Running => {
                status.state = Some(ContainerState {
                    running: Some(ContainerStateRunning { started_at: time(n.started_at) }),
                    ..ContainerState::default()
                });
                let started = role == Role::Init || self.memory.started.contains(&n.id);
                status.started = (role != Role::Ephemeral).then_some(started);
                status.ready = role != Role::Init && self.memory.ready.contains(&n.id);
            }
            Cri::Exited => {
                let done = terminated(n, message(n));
                let again = pod::restarts(self.pod, c, role, n.exit_code) && !self.memory.ended;
                if let (true, Some(w)) = (again, held) {
                    status.state = Some(waiting(&w.reason, &w.message));
                    status.last_state = Some(done);
                } else {
                    status.state = Some(done);
                    status.ready = role == Role::Init && n.exit_code == 0;
                }
            }
            _ => {
                status.container_id = None;
                status.state = Some(match held {
                    Some(w) => waiting(&w.reason, &w.message),
                    None => waiting(default_reason, ""),
                });
            }
        }
        if status.last_state.is_none() {
            let previous = self.seen.previous(&c.name).filter(|p| p.state == Cri::Exited);
            status.last_state = Some(previous.map(|p| terminated(p, message(p))).unwrap_or_default());
        }
    }
}

/// The resources that a container has: those it was given, with the limits that the kernel knows.
fn actual_resources(c: &Container, n: &cri::ContainerStatus) -> ResourceRequirements {
    let mut resources = c.resources.clone().unwrap_or_default();
    let now = &n.resources;
    if n.state != Cri::Running || *now == cri::LinuxResources::default() {
        return resources;
    }
    let mut set = |limits: bool, name: &str, amount: i128, least: i128| {
        let side = if limits { &mut resources.limits } else { &mut resources.requests };
        let Some(side) = side else { return };
        let given = side.get(name).map_or(0, |q| Quantity::from_api(q).milli());
        // Around the least that the kernel takes, what was asked for says more.
        if amount > 0 && amount != given && (amount > least || given > least) {
            let value = if name == "cpu" {
                Quantity::parse(&format!("{amount}m")).unwrap_or_default()
            } else {
                Quantity::from_bytes(i64::try_from(amount / 1000).unwrap_or(i64::MAX))
            };
            side.insert(name.to_owned(), value.to_api());
        }
    };
    if now.cpu_period > 0 {
        set(true, "cpu", i128::from(now.cpu_quota) * 1000 / i128::from(now.cpu_period), 10);
    }
    set(true, "memory", i128::from(now.memory_limit_in_bytes) * 1000, 0);
    let milli = i128::from(now.cpu_shares) * 1000;
    set(false, "cpu", milli / 1024 + i128::from(milli % 1024 != 0), 2);
    resources
}

/// How often the container was restarted before this instance.
pub fn restart_count(c: &cri::ContainerStatus) -> i32 {
    let noted = c.annotations.get(crate::names::RESTART_COUNT).and_then(|v| v.parse().ok());
    noted.unwrap_or_else(|| i32::try_from(c.metadata.attempt).unwrap_or(i32::MAX))
}

fn mounts(c: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = c.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
    let one = |m: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only,
        recursive_read_only: (m.read_only == Some(true)).then(|| {
            let wanted = matches!(m.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
            if wanted { "Enabled" } else { "Disabled" }.to_owned()
        }),
        ..VolumeMountStatus::default()
    };
    Some(mounts.iter().map(one).collect())
}
