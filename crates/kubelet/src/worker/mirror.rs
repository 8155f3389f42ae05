//! The worker's part in mirrors: a static pod is shown in the API by an object that the kubelet keeps.

use std::sync::Arc;

use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::{Done, Worker};
use crate::names;
use crate::statics;

impl Worker {
    /// The mirror is there, has changed or is gone. One that is being deleted, or mirrors an older manifest, makes
    /// room for a new one.
    pub(super) fn mirrored(&mut self, mirror: Option<Arc<Pod>>) {
        let Some(mirror) = mirror else {
            self.mirror = None;
            return;
        };
        if statics::is_mirror_of(&mirror, &self.pod) {
            self.take_mirror(mirror);
        } else {
            self.mirror = None;
            tokio::spawn(statics::remove_mirror(self.cx.clone(), mirror));
        }
    }

    /// What others wrote into the mirror's status (conditions) is the pod's.
    fn take_mirror(&mut self, mirror: Arc<Pod>) {
        let mut pod = (*self.pod).clone();
        if mirror.status.as_ref().is_some_and(|s| s.phase.is_some()) {
            pod.status.clone_from(&mirror.status);
        }
        self.pod = Arc::new(pod);
        self.mirror = Some(mirror);
    }

    pub(super) fn make_mirror(&mut self) {
        self.writing = true;
        let (cx, pod) = (self.cx.clone(), self.pod.clone());
        self.tasks.spawn(async move { Done::Mirrored(statics::create_mirror(&cx, &pod).await) });
    }

    pub(super) fn mirror_made(&mut self, result: Result<Arc<Pod>, Status>) {
        self.writing = false;
        match result {
            Ok(mirror) if self.memory.gone => {
                tokio::spawn(statics::remove_mirror(self.cx.clone(), mirror));
            }
            Ok(mirror) => self.take_mirror(mirror),
            Err(s) => {
                if s.reason() != Reason::AlreadyExists {
                    warn!(pod = names::full_name(&self.pod), status = %s, "mirror not made");
                }
                self.write_after = Some(crate::pod::after(self.now(), 2));
            }
        }
    }

    pub(super) fn mirror_written(&mut self, result: Result<Arc<Pod>, Status>) {
        self.writing = false;
        match result {
            Ok(mirror) => {
                self.written_version.clone_from(&mirror.metadata.resource_version);
                if self.mirror.as_ref().is_none_or(|old| super::at_least_as_new(&mirror, old)) {
                    self.take_mirror(mirror);
                }
            }
            Err(s) if s.reason() == Reason::NotFound => {
                self.mirror = None;
                self.written = None;
            }
            Err(s) => {
                warn!(pod = names::full_name(&self.pod), status = %s, "mirror's status not written");
                self.written = None;
                self.write_after = Some(crate::pod::after(self.now(), 1));
            }
        }
    }
}
