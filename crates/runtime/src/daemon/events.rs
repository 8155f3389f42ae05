//! What the shims push: exits. And what we push on: CRI events.

use std::sync::{Arc, Weak};

use coracle_cri::v1::{ContainerEventResponse, ContainerEventType, ContainerState};
use tokio::sync::mpsc;

use super::shim_client::ShimConnection;
use super::{ContainerEntry, Runtime, Sandbox};
use crate::protocol::{Exit, Reply, Request};

/// Events a listener may leave unread; what does not fit it makes up for by listing.
const QUEUE: usize = 4096;

impl Runtime {
    pub(super) fn listen(&self) -> mpsc::Receiver<ContainerEventResponse> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.listeners.lock().push(sender);
        receiver
    }

    pub(super) fn emit(&self, kind: ContainerEventType, container: &str, sandbox: &Sandbox) {
        let event = ContainerEventResponse {
            container_id: container.to_owned(),
            pod_sandbox_id: sandbox.id.clone(),
            kind,
            created_at: self.now_nanos(),
            pod: sandbox.metadata().clone(),
        };
        self.listeners.lock().retain(|l| match l.try_send(event.clone()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// Records an exit, once; later reports of the same are ignored.
    pub(super) fn mark_exited(&self, container: &ContainerEntry, exit: Exit) {
        {
            let mut now = container.now.lock();
            if now.exit.is_some() {
                return;
            }
            now.state = ContainerState::Exited;
            now.pid = 0;
            now.started_at = exit.started_at;
            now.exit = Some(exit);
        }
        // Before the kubelet hears of it, who will unmount them too.
        self.snapshot(&container.record).release_volumes();
        if let Ok(sandbox) = self.sandbox(&container.record.sandbox_id) {
            self.emit(ContainerEventType::Stopped, &container.record.id, &sandbox);
        }
    }

    /// The exit as recorded on disk by the shim, if there is one.
    pub(super) fn recorded_exit(container: &ContainerEntry) -> Option<Exit> {
        crate::files::read_json(&container.record.launch.bundle.join("exit.json")).ok()
    }

    /// Follows a shim until it ends.
    pub(super) fn follow(self: &Arc<Self>, sandbox: &Arc<Sandbox>, mut connection: ShimConnection) {
        let (runtime, sandbox) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        tokio::spawn(async move {
            while let Ok((reply, _)) = connection.next().await {
                let (Some(runtime), Some(sandbox)) = (runtime.upgrade(), sandbox.upgrade()) else { return };
                match reply {
                    Reply::Exited { id, exit } => {
                        if let Ok(container) = runtime.container(&id) {
                            runtime.mark_exited(&container, exit);
                        }
                    }
                    Reply::PauseExited => runtime.sandbox_lost(&sandbox),
                    _ => {}
                }
            }
            shim_ended(runtime, sandbox).await;
        });
    }

    fn sandbox_lost(&self, sandbox: &Sandbox) {
        let was_ready = std::mem::replace(&mut sandbox.state.lock().ready, false);
        if was_ready {
            self.emit(ContainerEventType::Stopped, "", sandbox);
        }
    }

    /// The shim of a sandbox is gone though nobody stopped it: its containers have no parent and no log any
    /// more.
    pub(super) async fn abandon(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        self.sandbox_lost(sandbox);
        let containers = self.containers_of(&sandbox.id);
        let (hierarchies, finished_at) = (self.hierarchies.clone(), self.now_nanos());
        let dead = sandbox.clone();
        let exits = super::blocking(move || {
            dead.collect_shim();
            let mut exits = Vec::new();
            for container in containers {
                if let Some(exit) = Self::recorded_exit(&container) {
                    exits.push((container, exit));
                    continue;
                }
                let (state, started_at) = {
                    let now = container.now.lock();
                    (now.state, now.started_at)
                };
                hierarchies.kill(&container.record.launch.cgroup);
                if state == ContainerState::Created {
                    continue;
                }
                let exit = Exit {
                    code: 255,
                    started_at,
                    finished_at,
                    reason: "Unknown".into(),
                    message: "the container's shim is gone".into(),
                    ..Exit::default()
                };
                let _ = crate::files::write_json(&container.record.launch.bundle.join("exit.json"), &exit);
                exits.push((container, exit));
            }
            Ok(exits)
        })
        .await;
        for (container, exit) in exits.unwrap_or_default() {
            self.mark_exited(&container, exit);
        }
    }

    /// Subscribes to a shim's events; `Err` if it is gone.
    pub(super) async fn subscribe(sandbox: &Sandbox) -> std::io::Result<ShimConnection> {
        let mut connection = ShimConnection::open(&sandbox.dir)?;
        connection.call(&Request::Subscribe, &[]).await?;
        Ok(connection)
    }
}

async fn shim_ended(runtime: Weak<Runtime>, sandbox: Weak<Sandbox>) {
    let (Some(runtime), Some(sandbox)) = (runtime.upgrade(), sandbox.upgrade()) else { return };
    // While it is stopped on purpose, the one who stops it does the rest.
    let _ending = sandbox.ending.lock().await;
    if !sandbox.state.lock().stopped {
        tracing::warn!(sandbox = sandbox.id, "shim ended unexpectedly");
        runtime.abandon(&sandbox).await;
    }
}
