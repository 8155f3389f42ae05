//! The pure heart of a pod worker: from the pod, the runtime's state and memory to what to do now.

use coracle_cri::v1::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::names::{HASH, container_hash};
use crate::pod::{self, Role, earliest};
use crate::resize::{self, Difference};
use crate::state::{Failure, Memory, Observed, Step};

/// A container to kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Runtime id.
    pub id: String,
    /// Container name.
    pub name: String,
    /// Seconds it gets.
    pub grace: i64,
    /// Text of the Killing event.
    pub message: String,
    /// Another instance is to take its place at once.
    pub replace: bool,
}

/// A container kept waiting by crash-loop back-off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// Container name.
    pub name: String,
    /// The length of the wait in seconds.
    pub seconds: u64,
}

/// What to do now. Everything in it may be done at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Mount the volumes.
    pub mount_volumes: bool,
    /// Make a sandbox with this attempt number.
    pub create_sandbox: Option<u32>,
    /// Stop these sandboxes.
    pub stop_sandboxes: Vec<String>,
    /// Start these containers.
    pub start: Vec<String>,
    /// Kill these containers.
    pub kill: Vec<Kill>,
    /// These containers wait after a crash.
    pub back_off: Vec<BackOff>,
    /// Remove all containers, so that the pod starts over in its sandbox.
    pub reset: bool,
    /// Change the limits of running containers.
    pub resize: bool,
    /// The pod fails as a whole.
    pub fail: Option<Failure>,
    /// The pod has run to its end or must end.
    pub end: bool,
    /// The pod has ended and nothing of it runs any more.
    pub over: bool,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

impl Actions {
    fn wake(&mut self, at: Option<Timestamp>) {
        self.wake_at = earliest(self.wake_at, at);
    }
}

/// Decides for one pod.
pub fn decide(pod: &Pod, seen: &Observed, memory: &Memory, now: Timestamp) -> Actions {
    let mut actions = Actions::default();
    let d = Decider { pod, seen, memory, now };
    if d.must_end() {
        actions.end = true;
        d.wind_down(&mut actions);
        return actions;
    }
    d.deadline(&mut actions);
    if actions.fail.is_some() {
        return actions;
    }
    if memory.volumes.due(now) {
        actions.mount_volumes = true;
    }
    actions.wake(memory.volumes.wake_at(now));
    if memory.volumes == Step::Done || !seen.containers.is_empty() {
        d.run(&mut actions);
    }
    actions
}

struct Decider<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
}

/// What stands between a container and the next step.
enum Progress {
    /// It is where it should be.
    Through,
    /// Later init containers and the app containers wait for it.
    Blocks,
    /// It failed for good.
    Failed,
}

impl Decider<'_> {
    /// Deleted, gone, failed or ended before.
    fn must_end(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        self.pod.metadata.deletion_timestamp.is_some()
            || self.memory.gone
            || self.memory.failed.is_some()
            || self.memory.ended
            || matches!(phase, Some("Succeeded" | "Failed"))
    }

    fn deadline(&self, actions: &mut Actions) {
        let Some(seconds) = pod::spec(self.pod).active_deadline_seconds else { return };
        let Some(start) = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref()) else { return };
        let at = pod::after(start.0, seconds);
        if at <= self.now {
            actions.fail = Some(Failure {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
        } else {
            actions.wake(Some(at));
        }
    }

    /// Kills app containers first, then sidecars from the last to the first, then stops the sandboxes.
    fn wind_down(&self, actions: &mut Actions) {
        let sidecars: Vec<&str> = pod::init_containers(self.pod)
            .filter(|(_, role)| *role == Role::Sidecar)
            .map(|(c, _)| c.name.as_str())
            .collect();
        let is_sidecar = |c: &&ContainerStatus| sidecars.contains(&c.metadata.name.as_str());
        let grace = self.memory.grace.unwrap_or_else(|| pod::grace_period(self.pod));
        let alive: Vec<_> = self.seen.running().collect();
        let mut now: Vec<&ContainerStatus> = alive.iter().copied().filter(|c| !is_sidecar(c)).collect();
        if now.is_empty() {
            now.extend(
                alive.iter().copied().max_by_key(|c| sidecars.iter().position(|s| *s == c.metadata.name)),
            );
        }
        for c in now {
            self.kill(actions, c, grace, format!("Stopping container {}", c.metadata.name));
        }
        if !alive.is_empty() || self.memory.busy() {
            return;
        }
        self.stop_sandboxes(actions, |_| true);
        actions.over = !self.seen.sandboxes.iter().any(|s| s.ready);
    }

    fn stop_sandboxes(&self, actions: &mut Actions, which: impl Fn(&str) -> bool) {
        let ready = self.seen.sandboxes.iter().filter(|s| s.ready && which(&s.id));
        actions
            .stop_sandboxes
            .extend(ready.filter(|s| !self.memory.stopping.contains(&s.id)).map(|s| s.id.clone()));
    }

    /// Kills a container unless that is under way with no longer a time.
    fn kill(&self, actions: &mut Actions, c: &ContainerStatus, grace: i64, message: String) {
        let deadline = pod::after(self.now, grace);
        if self.memory.killing.get(&c.id).is_some_and(|d| *d <= pod::after(deadline, 1)) {
            return;
        }
        let name = c.metadata.name.clone();
        actions.kill.push(Kill { id: c.id.clone(), name, grace, message, replace: false });
    }

    /// Kills a container to start it anew.
    fn replace(&self, actions: &mut Actions, c: &ContainerStatus, grace: i64, message: String) {
        let before = actions.kill.len();
        self.kill(actions, c, grace, message);
        actions.kill.iter_mut().skip(before).for_each(|k| k.replace = true);
    }

    fn run(&self, actions: &mut Actions) {
        let sandbox = self.seen.sandbox(pod::host_network(self.pod));
        let Some(sandbox) = sandbox else {
            self.replace_sandbox(actions);
            return;
        };
        let id = sandbox.id.clone();
        self.stop_sandboxes(actions, |s| s != id);
        if self.restart_all(actions, &id) {
            return;
        }
        self.ephemeral(actions);
        let begun = self.apps().any(|c| self.seen.newest_in(&id, &c.name).is_some());
        for (c, role) in pod::init_containers(self.pod) {
            if role == Role::Init && begun {
                continue;
            }
            let progress = match role {
                Role::Init => self.init(actions, &id, c),
                _ => self.sidecar(actions, &id, c),
            };
            match progress {
                Progress::Through => {}
                Progress::Blocks if begun => {}
                Progress::Blocks => return,
                Progress::Failed => {
                    actions.end = true;
                    return;
                }
            }
        }
        let mut unfinished = false;
        for c in self.apps() {
            unfinished |= self.app(actions, &id, c);
        }
        actions.end = !unfinished;
    }

    /// A container has ended with a code by which the whole pod starts over: ends what runs, then clears the sandbox.
    /// Whether that is under way.
    fn restart_all(&self, actions: &mut Actions, sandbox: &str) -> bool {
        let ended = |c: &Container| {
            let newest = self.seen.newest_in(sandbox, &c.name);
            newest.filter(|s| {
                s.state == ContainerState::Exited
                    && pod::matching_rule(c, s.exit_code) == Some(pod::RESTART_ALL)
            })
        };
        let Some(cause) = pod::containers(self.pod).find_map(|(c, _)| ended(c)) else { return false };
        for c in self.seen.running() {
            let message = format!("Stopping container {}", c.metadata.name);
            self.kill(actions, c, pod::grace_period(self.pod), message);
        }
        if self.seen.running().next().is_some() || self.memory.busy() || self.memory.resetting {
            return true;
        }
        let failed = pod::from_nanos(cause.finished_at);
        match self.memory.backoff.waiting(RESET, failed, self.now) {
            Some((_, until)) => actions.wake(Some(until)),
            None => actions.reset = true,
        }
        true
    }

    /// Starts ephemeral containers that never ran; nothing waits for them.
    fn ephemeral(&self, actions: &mut Actions) {
        for c in pod::ephemeral_containers(self.pod) {
            if self.seen.newest(&c.name).is_none() {
                self.start(actions, &pod::as_container(c));
            }
        }
    }

    fn apps(&self) -> impl Iterator<Item = &Container> {
        pod::spec(self.pod).containers.iter()
    }

    /// No usable sandbox: ends the pod if it is done, else kills what is left and makes a new one.
    fn replace_sandbox(&self, actions: &mut Actions) {
        if self.memory.sandbox == Step::Busy {
            return;
        }
        let restarts = |c: &Container| match self.seen.newest(&c.name) {
            Some(s) if s.state == ContainerState::Exited => {
                pod::restarts(self.pod, c, Role::App, s.exit_code)
            }
            Some(_) | None => true,
        };
        let all_ran = self.apps().all(|c| self.seen.newest(&c.name).is_some());
        if !self.seen.sandboxes.is_empty() && all_ran && !self.apps().any(restarts) {
            actions.end = true;
            return;
        }
        let grace = pod::grace_period(self.pod);
        for c in self.seen.running() {
            self.kill(actions, c, grace, format!("Stopping container {}", c.metadata.name));
        }
        if self.seen.running().next().is_some() || self.memory.busy() {
            return;
        }
        self.stop_sandboxes(actions, |_| true);
        if self.memory.sandbox.due(self.now) && actions.stop_sandboxes.is_empty() {
            let attempt = self.seen.sandboxes.first().map_or(0, |s| s.metadata.attempt + 1);
            actions.create_sandbox = Some(attempt);
        }
        actions.wake(match self.memory.sandbox {
            Step::RetryAt(_) => self.memory.sandbox.wake_at(self.now),
            _ => None,
        });
    }

    fn init(&self, actions: &mut Actions, sandbox: &str, c: &Container) -> Progress {
        match self.seen.newest_in(sandbox, &c.name) {
            Some(s) if s.state == ContainerState::Exited && s.exit_code == 0 => Progress::Through,
            Some(s) if s.state == ContainerState::Exited => {
                if !pod::restarts(self.pod, c, Role::Init, s.exit_code) {
                    return Progress::Failed;
                }
                self.start(actions, c);
                Progress::Blocks
            }
            Some(s) if s.state == ContainerState::Running => Progress::Blocks,
            _ => {
                self.start(actions, c);
                Progress::Blocks
            }
        }
    }

    fn sidecar(&self, actions: &mut Actions, sandbox: &str, c: &Container) -> Progress {
        match self.seen.newest_in(sandbox, &c.name) {
            Some(s) if s.state == ContainerState::Running => {
                self.condemned(actions, c, s);
                if self.memory.started.contains(&s.id) { Progress::Through } else { Progress::Blocks }
            }
            _ => {
                self.start(actions, c);
                Progress::Blocks
            }
        }
    }

    /// Whether the container still has work to do.
    fn app(&self, actions: &mut Actions, sandbox: &str, c: &Container) -> bool {
        let here = self.seen.newest_in(sandbox, &c.name);
        match here.or_else(|| self.seen.newest(&c.name)) {
            Some(s) if s.state == ContainerState::Running => {
                self.condemned(actions, c, s);
                true
            }
            Some(s) if s.state == ContainerState::Exited => {
                if self.memory.slots.get(&c.name).is_some_and(|s| s.starting) {
                    return true;
                }
                let again = pod::restarts(self.pod, c, Role::App, s.exit_code);
                if again {
                    self.start(actions, c);
                }
                again
            }
            _ => {
                self.start(actions, c);
                true
            }
        }
    }

    /// Kills a running container that failed a probe or whose definition changed.
    fn condemned(&self, actions: &mut Actions, c: &Container, s: &ContainerStatus) {
        if let Some(unhealthy) = self.memory.unhealthy.get(&s.id) {
            let grace = unhealthy.grace.unwrap_or_else(|| pod::grace_period(self.pod));
            self.replace(actions, s, grace, unhealthy.message.clone());
        } else if s.annotations.get(HASH).is_some_and(|h| *h != container_hash(c)) {
            let message = format!("Container {} definition changed, will be restarted", c.name);
            self.replace(actions, s, pod::grace_period(self.pod), message);
        } else {
            self.resize(actions, c, s);
        }
    }

    /// Lets a running container get the limits that it should have, by a restart if it wants one.
    fn resize(&self, actions: &mut Actions, c: &Container, s: &ContainerStatus) {
        match resize::difference(self.pod, c, s) {
            Difference::None => {}
            Difference::Restart => {
                let message = format!("Container {} resize requires restart", c.name);
                self.replace(actions, s, pod::grace_period(self.pod), message);
            }
            Difference::InPlace => {
                let state = &self.memory.resize;
                let held = state.retry_at.filter(|at| *at > self.now);
                actions.resize |= !state.busy && held.is_none();
                actions.wake(held);
            }
        }
    }

    /// Starts a container, unless that is under way or it must wait.
    fn start(&self, actions: &mut Actions, c: &Container) {
        if self.memory.volumes != Step::Done {
            return;
        }
        if let Some(slot) = self.memory.slots.get(&c.name) {
            if slot.starting {
                return;
            }
            if let Some(at) = slot.not_before.filter(|at| *at > self.now) {
                actions.wake(Some(at));
                return;
            }
        }
        if let Some(last) = self.seen.newest(&c.name).filter(|s| s.state == ContainerState::Exited) {
            let failed = pod::from_nanos(last.finished_at);
            let key = backoff_key(c);
            if let Some((wait, until)) = self.memory.backoff.waiting(&key, failed, self.now) {
                actions.back_off.push(BackOff { name: c.name.clone(), seconds: wait.as_secs() });
                actions.wake(Some(until));
                return;
            }
        }
        actions.start.push(c.name.clone());
    }
}

/// Key of the whole pod in the back-off.
pub const RESET: &str = "";

/// Key of a container in the crash-loop back-off: a changed definition starts over.
pub fn backoff_key(c: &Container) -> String {
    format!("{}_{}", c.name, container_hash(c))
}

#[cfg(test)]
mod tests;
