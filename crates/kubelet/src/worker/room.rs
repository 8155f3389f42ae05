//! The worker's part in who gets how much: admission to the node, and resizing in place.

use std::sync::Arc;

use coracle_client::EventType;
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::{Done, Worker};
use crate::allocation::Allocated;
use crate::evict;
use crate::resize::{self, InProgress, Pending};
use crate::state::Failure;

/// Pause before limits that could not be changed are tried again.
const RETRY: i64 = 5;

impl Worker {
    /// Takes a newer state of the pod, seen with the resources that it was given.
    pub(super) fn set_pod(&mut self, pod: Arc<Pod>) {
        self.pod = self.allocated.apply(&pod);
        self.desired = pod;
        self.cx.allocations.refresh(&self.pod);
    }

    /// Asks for room on the node, unless the pod ran here before or has ended.
    pub(super) async fn take_room(&mut self) {
        let status = self.pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) || self.pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let adopted = status.is_some_and(|s| s.container_statuses.as_ref().is_some_and(|c| !c.is_empty()));
        let pressures = self.cx.pressures.lock().conditions(self.now());
        let kept_out = if adopted { None } else { evict::keeps_out(&self.pod, &pressures) };
        let going_down = self.cx.shutdown.keeps_out().filter(|_| !adopted);
        let kept_out = kept_out.map(|message| Failure { reason: "Evicted".to_owned(), message });
        let mut admitted = match kept_out.or(going_down) {
            Some(failure) => Err(failure),
            None => self.cx.allocations.admit(&self.pod, adopted, crate::names::is_static(&self.pod)),
        };
        if admitted.is_ok() && !adopted {
            admitted = self.cx.topology_manager.admit(&self.cx.hint_providers(), &self.pod).await;
            if admitted.is_err() {
                self.cx.allocations.forget(self.uid());
            }
        }
        if let Err(refused) = admitted {
            self.cx.pod_warning(&self.pod, &refused.reason, refused.message.clone());
            let message = format!("Pod was rejected: {}", refused.message);
            self.memory.failed = Some(Failure { reason: refused.reason, message });
            self.memory.rejected = true;
        }
    }

    /// Ends the pod within `grace` seconds; `node` tells whether it is not the pod's own fault.
    pub(super) fn evict(&mut self, failure: Failure, node: bool, grace: i64) {
        if self.memory.failed.is_none() && !self.memory.ended {
            self.memory.failed = Some(failure);
            self.memory.disrupted = node;
            self.memory.grace = Some(grace);
        }
    }

    /// Compares what the API asks for with what the pod was given, and grants the difference if there is room.
    pub(super) fn consider_resize(&mut self) {
        let wanted = Allocated::of(&self.desired);
        if wanted == self.allocated {
            self.memory.resize.pending = None;
            return;
        }
        let ending = self.memory.ended || self.memory.gone || self.memory.failed.is_some();
        if ending || self.desired.metadata.deletion_timestamp.is_some() {
            return;
        }
        let generation = self.desired.metadata.generation.unwrap_or(0);
        let policies = (self.cx.cpus.policy(), self.cx.memory_manager.policy());
        let swaps = self.cx.machine.swap.forbids_resize(&self.desired, &self.pod);
        let never = swaps.or_else(|| resize::infeasible(&self.desired, &self.pod, policies));
        let granted = match never {
            Some(message) => Err(("Infeasible", Failure { reason: "Infeasible".to_owned(), message })),
            None => self.cx.allocations.resize(&self.desired).map_err(|short| ("Deferred", short)),
        };
        match granted {
            Ok(()) => {
                if let Err(e) = wanted.save(&self.cx.directory(self.uid())) {
                    warn!(pod = crate::names::full_name(&self.pod), error = %e, "allocation not kept");
                }
                self.allocated = wanted;
                self.set_pod(self.desired.clone());
                self.memory.resize.pending = None;
                self.memory.resize.retry_at = None;
                self.memory.resize.in_progress = Some(InProgress { generation, error: String::new() });
                self.resize_event(EventType::Normal, "ResizeStarted", "Pod resize started", generation, "");
            }
            Err((reason, short)) => {
                let pending = Pending { generation, reason, message: short.message };
                let known = self.memory.resize.pending.as_ref();
                let news = known.is_none_or(|k| k.generation != generation || k.reason != pending.reason);
                if news {
                    let (what, why) = (format!("Pod resize {}", short.reason), pending.message.clone());
                    self.resize_event(
                        EventType::Warning,
                        &format!("Resize{reason}"),
                        &what,
                        generation,
                        &why,
                    );
                }
                self.memory.resize.pending = Some(pending);
            }
        }
    }

    fn resize_event(&self, kind: EventType, reason: &str, what: &str, generation: i64, error: &str) {
        let text = resize::event_text(what, &self.desired, generation, error);
        self.cx.events.event(&*self.pod, kind, reason, text);
    }

    /// Ends a resize once every running container has what it should.
    pub(super) fn follow_resize(&mut self) {
        if self.dirty || self.memory.resize.busy || resize::in_progress(&self.pod, &self.seen) {
            return;
        }
        if let Some(done) = self.memory.resize.in_progress.take() {
            let what = "Pod resize completed";
            self.resize_event(EventType::Normal, "ResizeCompleted", what, done.generation, "");
        }
    }

    pub(super) fn resize(&mut self) {
        self.memory.resize.busy = true;
        let (cx, pod, seen) = (self.cx.clone(), self.pod.clone(), self.seen.clone());
        self.tasks.spawn(async move { Done::Resized(resize::carry_out(&cx, &pod, &seen).await) });
    }

    pub(super) fn resized(&mut self, result: Result<(), String>) {
        self.memory.resize.busy = false;
        self.dirty = true;
        let generation = self.pod.metadata.generation.unwrap_or(0);
        match result {
            Ok(()) => {
                self.memory.resize.retry_at = None;
                if let Some(progress) = &mut self.memory.resize.in_progress {
                    progress.error.clear();
                }
            }
            Err(error) => {
                self.memory.resize.retry_at = Some(crate::pod::after(self.now(), RETRY));
                let known = self.memory.resize.in_progress.as_ref();
                let generation = known.map_or(generation, |k| k.generation);
                if known.is_none_or(|k| k.error != error) {
                    let what = "Pod resize error";
                    self.resize_event(EventType::Warning, "ResizeError", what, generation, &error);
                }
                self.memory.resize.in_progress = Some(InProgress { generation, error });
            }
        }
    }
}
