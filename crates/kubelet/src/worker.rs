//! One worker per pod: gathers what happened, decides, acts, and keeps the status written.
//!
//! A worker sleeps until a message, the end of one of its own tasks, or the time it computed. Everything that
//! takes time runs in tasks; the worker itself never waits.

mod act;
mod close;
mod finish;
mod mirror;
mod probes;
mod room;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::CriError;
use coracle_meta::Status;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

use crate::allocation::Allocated;
use crate::container_status::{Messages, Sources};
use crate::context::Context;
use crate::decide::{Actions, decide};
use crate::images::Held;
use crate::names;
use crate::observe;
use crate::pod::earliest;
use crate::probe::Kind;
use crate::prober::Report;
use crate::restart;
use crate::state::{Memory, Observed};
use crate::status;
use crate::volumes::{MountedVolumes, VolumeError};

/// What happened, for a worker.
#[derive(Clone, Debug)]
pub enum Message {
    /// A newer state of the pod.
    Pod(Arc<Pod>),
    /// The pod is gone from the API, or from the manifests.
    Gone,
    /// The object that mirrors this static pod has changed or is gone.
    Mirror(Option<Arc<Pod>>),
    /// Something changed in the runtime.
    Runtime,
    /// The pod must go within `grace` seconds; `node` tells whether because the node is short of something.
    Evict { failure: crate::state::Failure, node: bool, grace: i64 },
    /// The node goes down: the pod has `grace` seconds. `holds` is dropped when nothing of it runs or is mounted.
    ShutDown { failure: crate::state::Failure, grace: i64, holds: mpsc::Sender<()> },
    /// A probe's verdict changed.
    Probe(Report),
    /// An object that the pod refers to changed.
    Objects,
}

type VolumesResult = Result<(MountedVolumes, Option<Timestamp>), VolumeError>;

/// The end of one of the worker's tasks.
enum Done {
    Volumes(VolumesResult),
    Renewed(VolumesResult),
    Sandbox(Result<(), CriError>),
    Started(String, Result<String, Held>),
    Killed(String, Result<(), CriError>),
    SandboxStopped(String, Result<(), CriError>),
    Removed,
    Reset,
    Resized(Result<(), String>),
    Mirrored(Result<Arc<Pod>, Status>),
    StatusWritten(Result<Arc<Pod>, Status>),
    /// The status was not written: somebody else had changed the pod, which is now this.
    Refreshed(Result<Arc<Pod>, Status>),
    TornDown(Result<(), std::io::Error>),
    Deleted(Result<(), Status>),
    Cleaned,
}

/// How far the end of a pod has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    /// Not begun.
    #[default]
    No,
    /// Volumes are being unmounted.
    Unmounting,
    /// All is released; a final status, and the deletion if it was asked for, remain.
    Released,
    /// The API is asked to delete the pod.
    Deleting,
    /// Containers, logs and directories are being removed.
    Cleaning,
    /// Nothing is left.
    Closed,
}

/// A pod's worker; [`Worker::run`] it in a task of its own.
pub struct Worker {
    cx: Arc<Context>,
    /// The newest state known, with our own status writes, and with the resources that the pod was given.
    pod: Arc<Pod>,
    /// The same with the resources that the API asks for.
    desired: Arc<Pod>,
    allocated: Allocated,
    /// What shows a static pod in the API.
    mirror: Option<Arc<Pod>>,
    /// Tells when room on the node may have become free.
    freed: watch::Receiver<u64>,
    seen: Arc<Observed>,
    memory: Memory,
    messages: Messages,
    volumes: Arc<MountedVolumes>,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// For probes and object watches, which report to this worker.
    outbox: mpsc::UnboundedSender<Message>,
    observed: watch::Sender<Arc<Observed>>,
    tasks: JoinSet<Done>,
    probes: HashMap<(String, Kind), AbortHandle>,
    dirty: bool,
    wake_at: Option<Timestamp>,
    renew_at: Option<Timestamp>,
    renewing: bool,
    writing: bool,
    write_after: Option<Timestamp>,
    /// The status written last, and the version it got: the server may store it in another shape.
    written: Option<PodStatus>,
    written_version: Option<String>,
    failures: u32,
    volume_failures: u32,
    retry_at: Option<Timestamp>,
    closing: Closing,
    /// Held until everything of the pod is released.
    leaving: Option<mpsc::Sender<()>>,
}

/// What others hold of a worker.
#[derive(Clone)]
pub struct Handle {
    /// To tell it something.
    pub sender: mpsc::UnboundedSender<Message>,
    /// The runtime state it saw last.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// The pod, newest state from the API.
    pub pod: Arc<Pod>,
}

fn version(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok())
}

/// Whether `new` is at least as new as `old` (resource versions are ordered).
fn at_least_as_new(new: &Pod, old: &Pod) -> bool {
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new >= old,
        _ => true,
    }
}

impl Worker {
    /// A worker for `pod`, and its handle.
    pub fn new(cx: Arc<Context>, pod: Arc<Pod>) -> (Self, Handle) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let (observed, receiver) = watch::channel(Arc::default());
        let handle = Handle { sender: outbox.clone(), observed: receiver, pod: pod.clone() };
        let allocated =
            Allocated::load(&cx.directory(names::uid(&pod))).unwrap_or_else(|| Allocated::of(&pod));
        let worker = Self {
            memory: adopt(&pod),
            pod: allocated.apply(&pod),
            desired: pod,
            allocated,
            mirror: None,
            freed: cx.allocations.freed(),
            cx,
            seen: Arc::default(),
            messages: Messages::new(),
            volumes: Arc::default(),
            inbox,
            outbox,
            observed,
            tasks: JoinSet::new(),
            probes: HashMap::new(),
            dirty: true,
            wake_at: None,
            renew_at: None,
            renewing: false,
            writing: false,
            write_after: None,
            written: None,
            written_version: None,
            failures: 0,
            volume_failures: 0,
            retry_at: None,
            closing: Closing::No,
            leaving: None,
        };
        (worker, handle)
    }

    fn uid(&self) -> &str {
        names::uid(&self.pod)
    }

    fn now(&self) -> Timestamp {
        self.cx.clock.now()
    }

    /// Works until the pod is gone from the API and from the machine. Boxed: there are many, and a future would hold it
    /// twice.
    pub async fn run(mut self: Box<Self>) {
        self.take_room().await;
        loop {
            self.sync().await;
            if self.closing == Closing::Closed {
                break;
            }
            self.wait().await;
        }
        self.probes.drain().for_each(|(_, task)| task.abort());
        debug!(pod = names::full_name(&self.pod), "pod worker ends");
    }

    /// Sleeps until there is something to do, then takes in all that waits.
    async fn wait(&mut self) {
        let now = self.now();
        let renew = self.renew_at.filter(|_| !self.renewing);
        let write = self.write_after.filter(|_| !self.writing);
        let due = earliest(earliest(self.wake_at, renew), earliest(write, self.retry_at));
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep(crate::pod::elapsed(now, at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.inbox.recv() => {
                if let Some(message) = message {
                    self.take(message);
                }
            }
            done = self.tasks.join_next(), if !self.tasks.is_empty() => self.joined(done),
            () = timer => self.dirty |= self.retry_at.is_some(),
            _ = self.freed.changed(), if self.memory.resize.pending.is_some() => self.consider_resize(),
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        while let Some(done) = self.tasks.try_join_next() {
            self.joined(Some(done));
        }
    }

    fn joined(&mut self, done: Option<Result<Done, tokio::task::JoinError>>) {
        match done {
            Some(Ok(done)) => self.finish(done),
            Some(Err(e)) => {
                // A task of ours panicked: forget what was under way and look at the world again.
                warn!(pod = names::full_name(&self.pod), error = %e, "pod task failed");
                self.memory.slots.values_mut().for_each(|s| s.starting = false);
                self.memory.killing.clear();
                self.memory.stopping.clear();
                self.memory.resize.busy = false;
                self.memory.resetting = false;
                self.writing = false;
                self.renewing = false;
                self.dirty = true;
            }
            None => {}
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                if at_least_as_new(&pod, &self.pod) {
                    let relabelled = pod.metadata.labels != self.pod.metadata.labels
                        || pod.metadata.annotations != self.pod.metadata.annotations;
                    self.set_pod(pod);
                    if relabelled {
                        self.renew_at = Some(self.now());
                    }
                    self.consider_resize();
                }
            }
            Message::Evict { failure, node, grace } => self.evict(failure, node, grace),
            Message::ShutDown { failure, grace, holds } => {
                self.evict(failure, true, grace);
                self.leaving = Some(holds).filter(|_| !self.released());
            }
            Message::Mirror(mirror) => self.mirrored(mirror),
            Message::Gone => {
                self.memory.gone = true;
                if let Some(mirror) = self.mirror.take() {
                    tokio::spawn(crate::statics::remove_mirror(self.cx.clone(), mirror));
                }
                if matches!(self.closing, Closing::Deleting) {
                    self.closing = Closing::Released;
                }
            }
            Message::Runtime => self.dirty = true,
            Message::Probe(report) => self.probed(report),
            Message::Objects => self.objects_changed(),
        }
    }

    /// An object changed: volumes are renewed, and what failed for want of an object is tried again.
    fn objects_changed(&mut self) {
        self.renew_at = Some(self.now());
        if let crate::state::Step::RetryAt(_) = self.memory.volumes {
            self.memory.volumes = crate::state::Step::Idle;
        }
        for slot in self.memory.slots.values_mut() {
            let config = slot.waiting.as_ref().is_some_and(|w| w.reason == "CreateContainerConfigError");
            if config {
                slot.not_before = None;
            }
        }
    }

    /// One round: look, decide, write the status, act.
    async fn sync(&mut self) {
        if self.dirty {
            self.look().await;
        }
        let actions = self.decide();
        self.wake_at = actions.wake_at;
        self.update_probes();
        self.follow_resize();
        let settles_at = restart::settles_at(&self.pod, &self.seen, &self.memory, self.now());
        self.wake_at = earliest(self.wake_at, settles_at);
        if settles_at.is_none() {
            let status = self.status();
            self.write_status(&status);
        }
        self.act(actions);
        self.renew_volumes();
    }

    async fn look(&mut self) {
        self.retry_at = None;
        match observe::observe(&*self.cx.runtime, names::uid(&self.pod), &self.seen).await {
            Ok(seen) => {
                self.dirty = false;
                let logs = crate::start::log_directory(&self.cx, &self.pod);
                observe::read_messages(&seen, &logs, &mut self.messages);
                self.forget_the_dead(&seen);
                self.seen = Arc::new(seen);
                self.observed.send_replace(self.seen.clone());
                self.collect_garbage();
            }
            Err(e) => {
                warn!(pod = names::full_name(&self.pod), error = %e, "runtime does not answer");
                self.retry_at = Some(crate::pod::after(self.now(), 1));
            }
        }
    }

    /// Drops what was remembered of containers that do not run any more.
    fn forget_the_dead(&mut self, seen: &Observed) {
        let alive = |id: &String| seen.running().any(|c| c.id == *id);
        self.memory.unhealthy.retain(|id, _| alive(id));
        self.memory.killing.retain(|id, _| alive(id));
        self.memory.replaced.retain(|id| seen.by_id(id).is_some());
        self.memory.started.retain(alive);
        self.memory.ready.retain(alive);
    }

    /// Decides, and remembers what the decision itself settles.
    fn decide(&mut self) -> Actions {
        loop {
            let now = self.now();
            let actions = decide(&self.pod, &self.seen, &self.memory, now);
            if let Some(failure) = &actions.fail {
                let message = failure.message.clone();
                self.cx.events.event(&*self.pod, coracle_client::EventType::Normal, &failure.reason, message);
                self.memory.failed = Some(failure.clone());
                continue;
            }
            if actions.end && !self.memory.ended {
                self.memory.ended = true;
                continue;
            }
            for back_off in &actions.back_off {
                self.back_off(&back_off.name, back_off.seconds);
            }
            return actions;
        }
    }

    /// The status as it should be now.
    fn status(&self) -> PodStatus {
        let sources =
            Sources { pod: &self.pod, seen: &self.seen, memory: &self.memory, messages: &self.messages };
        let empty = PodStatus::default();
        let base = self.pod.status.as_ref().unwrap_or(&empty);
        status::generate(sources, base, self.cx.config.node_ip, self.now())
    }

    /// Whether the API has this status.
    fn is_written(&self, status: &PodStatus) -> bool {
        let shown = if names::is_static(&self.pod) { self.mirror.as_ref() } else { Some(&self.pod) };
        let Some(shown) = shown else { return false };
        shown.status.as_ref() == Some(status)
            || (self.written.as_ref() == Some(status)
                && self.written_version.is_some()
                && self.written_version == shown.metadata.resource_version)
    }

    /// Writes the status if it differs from what the API has. One write at a time, in order.
    fn write_status(&mut self, status: &PodStatus) {
        self.write_after = self.write_after.filter(|at| *at > self.now());
        let held = self.writing || self.memory.gone || self.write_after.is_some();
        if held || self.is_written(status) {
            return;
        }
        let is_static = names::is_static(&self.pod);
        let Some(object) = (if is_static { self.mirror.clone() } else { Some(self.pod.clone()) }) else {
            return self.make_mirror();
        };
        self.written = Some(status.clone());
        self.writing = true;
        let mut pod = (*object).clone();
        pod.status = Some(status.clone());
        let client = self.cx.client.clone();
        self.tasks.spawn(async move {
            let api = client.api::<Pod>();
            let (namespace, name) = (names::namespace(&pod).to_owned(), names::name(&pod).to_owned());
            let uid = pod.metadata.uid.clone();
            let same = |result: Result<Arc<Pod>, Status>| match result {
                Ok(pod) if pod.metadata.uid != uid => Err(Status::not_found("", "pods", &name)),
                result => result,
            };
            match api.update_status(&namespace, pod).await {
                // Somebody else wrote: take the newest state, the worker computes anew.
                Err(s) if s.reason() == coracle_meta::Reason::Conflict => {
                    Done::Refreshed(same(api.get(&namespace, &name).await))
                }
                result => Done::StatusWritten(same(result)),
            }
        });
    }

    /// Renews live volumes when it is time.
    fn renew_volumes(&mut self) {
        let due = self.renew_at.is_some_and(|at| at <= self.now());
        let mounted = self.memory.volumes == crate::state::Step::Done;
        if !due || self.renewing || self.memory.ended || self.memory.gone {
            if due && !self.renewing {
                self.renew_at = None;
            }
            return;
        }
        self.renew_at = None;
        if !mounted || !crate::volumes::has_live(&self.pod) {
            return;
        }
        self.renewing = true;
        let cx = self.volume_context();
        self.tasks.spawn(async move { Done::Renewed(crate::volumes::set_up(&cx, true).await) });
    }
}

/// What a worker of a new process knows of a pod that an earlier one ran: which containers were started and
/// ready, so that a restart of the kubelet takes no pod out of its services.
fn adopt(pod: &Pod) -> Memory {
    let mut memory = Memory::default();
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    let apps = status.and_then(|s| s.container_statuses.as_ref());
    for c in init.into_iter().chain(apps).flatten() {
        let Some(id) = c.container_id.as_deref().map(names::runtime_id) else { continue };
        if c.started == Some(true) {
            memory.started.insert(id.to_owned());
        }
        if c.ready {
            memory.ready.insert(id.to_owned());
        }
    }
    memory
}

/// `1m20s`, as Go prints whole seconds.
pub(crate) fn go_seconds(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

/// The wait before the next try after `failures` failures: 500 ms, doubling up to two minutes.
fn retry_wait(failures: u32) -> Duration {
    Duration::from_millis(500)
        .saturating_mul(2u32.saturating_pow(failures.min(16)))
        .min(Duration::from_secs(122))
}

#[cfg(test)]
mod tests;
