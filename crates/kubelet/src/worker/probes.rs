//! Which probes run, and what their verdicts mean to the worker.

use coracle_cri::v1::ContainerStatus;

use super::Worker;
use crate::pod::Role;
use crate::probe::Kind;
use crate::prober::{self, Report, Target};
use crate::state::Unhealthy;

impl Worker {
    /// Starts the probes of containers that run now, ends those of containers that do not; containers without
    /// a startup or readiness probe count as started or ready once they run.
    pub(super) fn update_probes(&mut self) {
        let seen = self.seen.clone();
        self.probes.retain(|(id, _), task| {
            let alive = seen.running().any(|c| c.id == *id);
            if !alive {
                task.abort();
            }
            alive
        });
        if self.memory.ended {
            let stop = |kind: Kind| kind != Kind::Readiness;
            self.probes.iter().filter(|((_, kind), _)| stop(*kind)).for_each(|(_, task)| task.abort());
        }
        for running in seen.running() {
            self.probe_container(running);
        }
    }

    fn probe_container(&mut self, running: &ContainerStatus) {
        let pod = self.pod.clone();
        let Some((container, role)) = crate::pod::container(&pod, &running.metadata.name) else { return };
        if matches!(role, Role::Init | Role::Ephemeral) {
            return;
        }
        let container = &*container;
        // A container counts as running only after its postStart hook.
        if self.memory.slots.get(&container.name).is_some_and(|s| s.starting) {
            return;
        }
        if !self.memory.started.contains(&running.id) {
            if container.startup_probe.is_some() {
                self.begin(container, running, Kind::Startup);
                return;
            }
            self.memory.started.insert(running.id.clone());
        }
        if self.memory.ended {
            return;
        }
        if container.readiness_probe.is_some() {
            self.begin(container, running, Kind::Readiness);
        } else {
            self.memory.ready.insert(running.id.clone());
        }
        if container.liveness_probe.is_some() {
            self.begin(container, running, Kind::Liveness);
        }
    }

    fn begin(&mut self, container: &k8s_openapi::api::core::v1::Container, c: &ContainerStatus, kind: Kind) {
        let key = (c.id.clone(), kind);
        if self.probes.contains_key(&key) || self.memory.ended {
            return;
        }
        let target = Target {
            pod: self.pod.clone(),
            container: container.clone(),
            id: c.id.clone(),
            ip: self.pod_ip(),
            started: crate::pod::from_nanos(c.started_at),
            kind,
        };
        let task = tokio::spawn(prober::run(self.cx.clone(), target, self.outbox.clone()));
        self.probes.insert(key, task.abort_handle());
    }

    pub(super) fn probed(&mut self, report: Report) {
        let id = report.container_id;
        if !self.seen.running().any(|c| c.id == id) {
            return;
        }
        match (report.kind, report.success) {
            (Kind::Readiness, true) => {
                self.memory.ready.insert(id);
            }
            (Kind::Readiness, false) => {
                self.memory.ready.remove(&id);
            }
            (Kind::Startup, true) => {
                self.memory.started.insert(id);
            }
            (Kind::Liveness, true) => {}
            (kind, false) => {
                let what = if kind == Kind::Startup { "startup" } else { "liveness" };
                let message =
                    format!("Container {} failed {what} probe, will be restarted", report.container);
                self.memory.unhealthy.insert(id, Unhealthy { message, grace: report.grace });
            }
        }
    }
}
