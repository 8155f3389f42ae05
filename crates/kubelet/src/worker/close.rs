//! The end of a pod: volumes, final status, deletion, leftovers.

use coracle_client::DeleteOptions;
use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::{Closing, Done, Worker, act};
use crate::names;
use crate::start;
use crate::volumes;

impl Worker {
    pub(super) fn unmount(&mut self) {
        if self.memory.volumes == crate::state::Step::Busy || self.renewing {
            return;
        }
        self.closing = Closing::Unmounting;
        let directory = self.cx.directory(self.uid());
        self.tasks.spawn(async move {
            let result = tokio::task::spawn_blocking(move || volumes::tear_down(&directory)).await;
            Done::TornDown(result.unwrap_or_else(|e| Err(std::io::Error::other(e))))
        });
    }

    /// Whether nothing of the pod runs or is mounted any more.
    pub(super) fn released(&self) -> bool {
        !matches!(self.closing, Closing::No | Closing::Unmounting)
    }

    pub(super) fn torn_down(&mut self, result: Result<(), std::io::Error>) {
        match result {
            Ok(()) => {
                self.closing = Closing::Released;
                self.leaving = None;
                self.cx.objects.forget(self.uid());
                self.cx.tokens.forget(self.uid());
                self.cx.images.forget(self.uid());
                self.cx.probe_counts.lock().retain(|key, _| key.uid != names::uid(&self.pod));
                self.cx.allocations.forget(self.uid());
                self.cx.hint_providers().iter().for_each(|p| p.forget(self.uid()));
            }
            Err(e) => {
                warn!(pod = names::full_name(&self.pod), error = %e, "volumes not unmounted");
                self.closing = Closing::No;
                self.retry_at = Some(crate::pod::after(self.now(), 2));
            }
        }
    }

    /// The machine is rid of the pod's processes and mounts. Deletes it from the API if that was asked for
    /// and the final status is written; removes what is left once it is gone.
    pub(super) fn after_release(&mut self) {
        if self.memory.gone {
            self.clean();
            return;
        }
        if self.pod.metadata.deletion_timestamp.is_none() || self.writing {
            return;
        }
        if !self.is_written(&self.status()) {
            return;
        }
        self.closing = Closing::Deleting;
        let client = self.cx.client.clone();
        let pod = self.pod.clone();
        self.tasks.spawn(async move {
            let options = DeleteOptions {
                grace_period_seconds: Some(0),
                uid: pod.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            let api = client.api::<Pod>();
            Done::Deleted(api.delete(names::namespace(&pod), names::name(&pod), options).await)
        });
    }

    pub(super) fn deleted(&mut self, result: Result<(), Status>) {
        if self.closing != Closing::Deleting {
            return;
        }
        self.closing = Closing::Released;
        match result {
            Ok(()) => {
                // With finalizers the object stays; our part is done all the same once it is really gone.
                let finalizers = self.pod.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
                if finalizers {
                    self.closing = Closing::Deleting;
                } else {
                    self.memory.gone = true;
                }
            }
            // Gone, or another pod bears the name now.
            Err(s) if matches!(s.reason(), Reason::NotFound | Reason::Conflict) => self.memory.gone = true,
            Err(s) => {
                warn!(pod = names::full_name(&self.pod), status = %s, "pod not deleted");
                self.retry_at = Some(crate::pod::after(self.now(), 2));
            }
        }
    }

    fn clean(&mut self) {
        self.closing = Closing::Cleaning;
        let cx = self.cx.clone();
        let seen = self.seen.clone();
        let directory = cx.directory(self.uid());
        let logs = start::log_directory(&cx, &self.pod);
        let uid = self.uid().to_owned();
        self.tasks.spawn(async move {
            for c in &seen.containers {
                act::remove_container(&cx, &c.id).await;
            }
            for s in &seen.sandboxes {
                if let Err(e) = cx.runtime.remove_pod_sandbox(&s.id).await {
                    warn!(sandbox = s.id, error = %e, "sandbox not removed");
                }
            }
            let _ = tokio::task::spawn_blocking(move || {
                if let Err(e) = volumes::remove_pod_directory(&directory) {
                    warn!(path = %directory.display(), error = %e, "pod directory not removed");
                }
                let _ = std::fs::remove_dir_all(&logs);
            })
            .await;
            cx.user_namespaces.release(&uid);
            Done::Cleaned
        });
    }
}
