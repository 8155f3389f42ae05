//! What the worker does when one of its tasks ends.

use std::sync::Arc;

use coracle_meta::Reason;
use jiff::SignedDuration;
use tracing::warn;

use super::{Closing, Done, VolumesResult, Worker, retry_wait};
use crate::images::Held;
use crate::names;
use crate::pod::earliest;
use crate::state::Step;

impl Worker {
    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Volumes(result) => self.volumes_mounted(result),
            Done::Renewed(result) => {
                self.renewing = false;
                match result {
                    Ok((_, at)) => self.renew_at = earliest(self.renew_at, at),
                    Err(e) => {
                        warn!(pod = names::full_name(&self.pod), error = %e, "volume not renewed");
                        let later = crate::pod::after(self.now(), 10);
                        self.renew_at = earliest(self.renew_at, Some(later));
                    }
                }
            }
            Done::Sandbox(result) => {
                self.dirty = true;
                match result {
                    Ok(()) => {
                        self.failures = 0;
                        self.memory.sandbox = Step::Idle;
                    }
                    Err(_) => self.memory.sandbox = self.retry_step(),
                }
            }
            Done::Started(name, result) => self.started(&name, result),
            Done::Killed(id, result) => self.killed(&id, result),
            Done::SandboxStopped(id, result) => {
                self.memory.stopping.remove(&id);
                self.dirty = true;
                if let Err(e) = result {
                    warn!(sandbox = id, error = %e, "sandbox not stopped");
                    self.memory.stopping.insert(id);
                    self.retry_at = Some(crate::pod::after(self.now(), 1));
                    self.memory.stopping.clear();
                }
            }
            // The runtime's own event makes the worker look again.
            Done::Removed => {}
            Done::Reset => {
                self.memory.resetting = false;
                self.dirty = true;
            }
            Done::Mirrored(result) => self.mirror_made(result),
            Done::Resized(result) => self.resized(result),
            Done::StatusWritten(result) | Done::Refreshed(result) if names::is_static(&self.pod) => {
                self.mirror_written(result);
            }
            Done::StatusWritten(result) => {
                if let Ok(pod) = &result {
                    self.written_version.clone_from(&pod.metadata.resource_version);
                }
                self.status_written(result);
            }
            Done::Refreshed(result) => {
                self.written = None;
                match result {
                    // The node authorizer knows no such pod of this node (any more): it was deleted, and the
                    // watch is about to say so.
                    Err(s) if s.reason() == Reason::Forbidden => {
                        self.writing = false;
                        self.write_after = Some(crate::pod::after(self.now(), 1));
                    }
                    result => self.status_written(result),
                }
            }
            Done::TornDown(result) => self.torn_down(result),
            Done::Deleted(result) => self.deleted(result),
            Done::Cleaned => {
                if self.closing == Closing::Cleaning {
                    self.closing = Closing::Closed;
                }
            }
        }
    }

    fn killed(&mut self, id: &str, result: Result<(), coracle_cri::CriError>) {
        self.dirty = true;
        if let Err(e) = result {
            warn!(container = id, error = %e, "container not killed");
            self.cx.pod_warning(&self.pod, "FailedKillPod", format!("error killing pod: {e}"));
            self.memory.killing.remove(id);
            self.retry_at = Some(crate::pod::after(self.now(), 1));
        }
    }

    /// A failed step: to be tried again after a while that grows.
    fn retry_step(&mut self) -> Step {
        let wait = retry_wait(self.failures);
        self.failures += 1;
        let wait = SignedDuration::try_from(wait).unwrap_or_default();
        Step::RetryAt(self.now().saturating_add(wait).unwrap_or_default())
    }

    fn volumes_mounted(&mut self, result: VolumesResult) {
        match result {
            Ok((volumes, renew_at)) => {
                self.volumes = Arc::new(volumes);
                self.renew_at = earliest(self.renew_at, renew_at);
                self.memory.volumes = Step::Done;
                self.failures = 0;
                self.volume_failures = 0;
            }
            Err(e) => {
                self.cx.pod_warning(&self.pod, "FailedMount", e.to_string());
                self.volume_failures += 1;
                self.memory.volumes = self.retry_step();
            }
        }
    }

    fn started(&mut self, name: &str, result: Result<String, Held>) {
        self.dirty = true;
        let slot = self.memory.slot(name);
        slot.starting = false;
        match result {
            Ok(_) => {
                slot.waiting = None;
                slot.not_before = None;
            }
            Err(held) => {
                slot.waiting = Some(held.waiting);
                slot.not_before = held.until;
            }
        }
    }

    fn status_written(&mut self, result: Result<Arc<k8s_openapi::api::core::v1::Pod>, coracle_meta::Status>) {
        self.writing = false;
        match result {
            Ok(pod) => {
                if self.written == pod.status {
                    // The pod says it: no second copy.
                    self.written = None;
                }
                // What the watch has shown already is shared with others, this copy is not.
                let shown =
                    super::version(&pod).is_some() && super::version(&pod) == super::version(&self.desired);
                if !shown && super::at_least_as_new(&pod, &self.pod) {
                    self.set_pod(pod);
                    self.consider_resize();
                }
            }
            Err(s) if s.reason() == Reason::NotFound => self.memory.gone = true,
            Err(s) => {
                warn!(pod = names::full_name(&self.pod), status = %s, "status not written");
                self.write_after = Some(crate::pod::after(self.now(), 1));
            }
        }
    }
}
