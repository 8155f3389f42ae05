//! The worker's acting half: turns decisions into tasks.

use std::sync::Arc;

use coracle_client::EventType;
use coracle_cri::CriError;
use coracle_cri::v1::ContainerState;

use super::{Closing, Done, Message, Worker, go_seconds};
use crate::context::Context;
use crate::decide::{Actions, Kill, backoff_key};
use crate::kill;
use crate::names;
use crate::objects::Notify;
use crate::start::{self, Start};
use crate::state::{Step, Waiting};
use crate::volumes::{self, VolumeContext};

impl Worker {
    pub(super) fn act(&mut self, actions: Actions) {
        if actions.mount_volumes {
            self.mount_volumes();
        }
        if let Some(attempt) = actions.create_sandbox {
            self.create_sandbox(attempt);
        }
        for id in actions.stop_sandboxes {
            self.stop_sandbox(id);
        }
        for kill in actions.kill {
            self.kill(kill);
        }
        for name in actions.start {
            self.start(&name);
        }
        if actions.reset {
            self.reset();
        }
        if actions.resize {
            self.resize();
        }
        if actions.over {
            self.close();
        }
    }

    fn ips(&self) -> Vec<String> {
        if crate::pod::host_network(&self.pod) {
            return vec![self.cx.config.node_ip.to_string()];
        }
        self.seen.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    }

    pub(super) fn pod_ip(&self) -> String {
        self.ips().into_iter().next().unwrap_or_default()
    }

    pub(super) fn volume_context(&self) -> VolumeContext {
        VolumeContext {
            client: self.cx.client.clone(),
            tokens: self.cx.tokens.clone(),
            pod: self.pod.clone(),
            directory: self.cx.directory(self.uid()),
            facts: Arc::new(self.cx.facts(&self.pod, &self.ips())),
            node_labels: Arc::new(self.cx.allocations.node().labels),
        }
    }

    /// Everything that the pod's volumes and environments refer to is followed from now on.
    fn follow_objects(&self) {
        let mut references = volumes::references(&self.pod);
        let namespace = names::namespace(&self.pod);
        let ephemeral: Vec<_> =
            crate::pod::ephemeral_containers(&self.pod).map(crate::pod::as_container).collect();
        for container in crate::pod::containers(&self.pod).map(|(c, _)| c).chain(&ephemeral) {
            let (maps, secrets) = crate::container::env::referenced(container);
            references.extend(maps.iter().map(|n| crate::objects::Reference::config_map(namespace, n)));
            references.extend(secrets.iter().map(|n| crate::objects::Reference::secret(namespace, n)));
        }
        if references.is_empty() {
            return;
        }
        let outbox = self.outbox.clone();
        let notify: Notify = Arc::new(move || {
            // The worker may have ended: then nobody cares.
            let _ = outbox.send(Message::Objects);
        });
        self.cx.objects.follow(self.uid(), &references, &notify);
    }

    fn mount_volumes(&mut self) {
        if self.memory.volumes == Step::Idle && self.volume_failures == 0 {
            self.follow_objects();
        }
        self.memory.volumes = Step::Busy;
        let cx = self.volume_context();
        self.tasks.spawn(async move { Done::Volumes(volumes::set_up(&cx, false).await) });
    }

    fn create_sandbox(&mut self, attempt: u32) {
        if attempt > 0 {
            self.cx.events.event(
                &*self.pod,
                EventType::Normal,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
        self.memory.sandbox = Step::Busy;
        let (cx, pod) = (self.cx.clone(), self.pod.clone());
        self.tasks.spawn(async move { Done::Sandbox(start::start_sandbox(&cx, &pod, attempt).await) });
    }

    fn stop_sandbox(&mut self, id: String) {
        self.memory.stopping.insert(id.clone());
        let cx = self.cx.clone();
        self.tasks.spawn(async move {
            let result = cx.runtime.stop_pod_sandbox(&id).await;
            Done::SandboxStopped(id, result)
        });
    }

    fn kill(&mut self, kill: Kill) {
        let deadline = crate::pod::after(self.now(), kill.grace);
        if kill.replace {
            self.memory.replaced.insert(kill.id.clone());
        }
        let overtake = self.memory.killing.insert(kill.id.clone(), deadline).is_some();
        let (cx, pod, ip) = (self.cx.clone(), self.pod.clone(), self.pod_ip());
        self.tasks.spawn(async move {
            let result = kill::kill(&cx, &pod, &kill, &ip, overtake).await;
            Done::Killed(kill.id, result)
        });
    }

    fn start(&mut self, name: &str) {
        let Some((container, _)) = crate::pod::container(&self.pod, name) else { return };
        let container = container.into_owned();
        let Some(sandbox) = self.seen.sandboxes.first() else { return };
        let newest = self.seen.newest(name);
        let attempt = match newest {
            Some(n) => {
                u32::try_from(crate::container_status::restart_count(n)).unwrap_or(0).saturating_add(1)
            }
            None => self.attempt_by_status(name),
        };
        if newest.is_some_and(|n| n.state == ContainerState::Exited) {
            let now = self.now();
            self.memory.backoff.next(&backoff_key(&container), now);
        }
        let start = Start {
            pod: self.pod.clone(),
            container,
            attempt,
            sandbox_id: sandbox.id.clone(),
            sandbox_attempt: sandbox.metadata.attempt,
            ips: self.ips(),
            volumes: self.volumes.clone(),
            target: self.target_of(name),
        };
        let slot = self.memory.slot(name);
        slot.starting = true;
        slot.not_before = None;
        let cx = self.cx.clone();
        let name = name.to_owned();
        self.tasks.spawn(async move {
            let result = start::start_container(&cx, &start).await;
            Done::Started(name, result)
        });
    }

    /// The number of the next instance of a container that the runtime does not know: it was removed.
    fn attempt_by_status(&self, name: &str) -> u32 {
        let status = self.pod.status.as_ref();
        let lists = [
            status.and_then(|s| s.container_statuses.as_ref()),
            status.and_then(|s| s.init_container_statuses.as_ref()),
        ];
        let known = lists.into_iter().flatten().flatten().find(|c| c.name == name);
        let known = known.filter(|c| {
            let state = c.state.as_ref();
            let ran = |s: &k8s_openapi::api::core::v1::ContainerState| {
                s.running.is_some() || s.terminated.is_some()
            };
            state.is_some_and(ran) || c.last_state.as_ref().is_some_and(ran)
        });
        known.map_or(0, |c| u32::try_from(c.restart_count).unwrap_or(0).saturating_add(1))
    }

    /// Removes the containers of the sandbox; the pod then starts over.
    fn reset(&mut self) {
        self.memory.resetting = true;
        let now = self.now();
        self.memory.backoff.next(crate::decide::RESET, now);
        self.memory.slots.clear();
        let ephemeral: Vec<String> =
            crate::pod::ephemeral_containers(&self.pod).map(|c| c.name.clone()).collect();
        let old: Vec<String> = self
            .seen
            .containers
            .iter()
            .filter(|c| !ephemeral.contains(&c.metadata.name))
            .map(|c| c.id.clone())
            .collect();
        let cx = self.cx.clone();
        self.tasks.spawn(async move {
            for id in old {
                remove_container(&cx, &id).await;
            }
            Done::Reset
        });
    }

    /// The running container whose processes an ephemeral container wants to see.
    fn target_of(&self, name: &str) -> String {
        let own = crate::pod::ephemeral_containers(&self.pod).find(|c| c.name == name);
        let target = own.and_then(|c| c.target_container_name.as_deref()).filter(|t| !t.is_empty());
        let instance = target.and_then(|t| self.seen.newest(t));
        instance.filter(|c| c.state == ContainerState::Running).map(|c| c.id.clone()).unwrap_or_default()
    }

    /// Shows a crash loop and records it, once per wait.
    pub(super) fn back_off(&mut self, name: &str, seconds: u64) {
        let pod = names::full_name(&self.pod);
        let wait = go_seconds(seconds);
        let waiting = Waiting {
            reason: "CrashLoopBackOff".to_owned(),
            message: format!("back-off {wait} restarting failed container={name} pod={pod}"),
        };
        let slot = self.memory.slot(name);
        if slot.waiting.as_ref() == Some(&waiting) {
            return;
        }
        slot.waiting = Some(waiting);
        let message = format!("Back-off restarting failed container {name} in pod {pod}");
        self.cx.container_warning(&self.pod, name, "BackOff", message);
    }

    /// Keeps the newest instance of each container and one dead one before it; older ones go.
    pub(super) fn collect_garbage(&mut self) {
        let mut kept: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
        let mut old = Vec::new();
        for c in &self.seen.containers {
            let count = kept.entry(c.metadata.name.as_str()).or_default();
            *count += 1;
            if *count > 2 && c.state != ContainerState::Running {
                old.push((c.id.clone(), c.metadata.name.clone(), c.metadata.attempt));
            }
        }
        let current = self.seen.sandboxes.first().map(|s| s.id.clone());
        let idle: Vec<String> = self
            .seen
            .sandboxes
            .iter()
            .filter(|s| !s.ready && Some(&s.id) != current.as_ref())
            .filter(|s| !self.seen.containers.iter().any(|c| c.pod_sandbox_id == s.id))
            .map(|s| s.id.clone())
            .collect();
        if old.is_empty() && idle.is_empty() {
            return;
        }
        let cx = self.cx.clone();
        let logs = start::log_directory(&cx, &self.pod);
        self.tasks.spawn(async move {
            for (id, name, attempt) in old {
                if remove_container(&cx, &id).await {
                    crate::rotate::remove(&logs.join(name).join(format!("{attempt}.log")));
                }
            }
            for id in idle {
                if let Err(e) = cx.runtime.remove_pod_sandbox(&id).await {
                    tracing::warn!(sandbox = id, error = %e, "old sandbox not removed");
                }
            }
            Done::Removed
        });
    }

    /// Everything has stopped: goes on with the next step of the end.
    fn close(&mut self) {
        match self.closing {
            Closing::No => self.unmount(),
            Closing::Released => self.after_release(),
            Closing::Unmounting | Closing::Deleting | Closing::Cleaning | Closing::Closed => {}
        }
    }
}

/// Removes a container; whether it is gone.
pub(super) async fn remove_container(cx: &Context, id: &str) -> bool {
    match cx.runtime.remove_container(id).await {
        Ok(()) | Err(CriError::NotFound(_)) => true,
        Err(e) => {
            tracing::warn!(container = id, error = %e, "container not removed");
            false
        }
    }
}
