//! Events of a runtime that sends none, made of what its lists show from one look to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use crate::service::{CriError, RuntimeService};
use crate::v1::{
    Container, ContainerEventResponse, ContainerEventType, ContainerFilter, ContainerState, PodSandbox,
    PodSandboxFilter,
};

/// From one look to the next; as upstream's kubelet.
const INTERVAL: Duration = Duration::from_secs(1);

/// What lists showed.
#[derive(Default)]
pub(crate) struct Seen {
    sandboxes: HashMap<String, PodSandbox>,
    containers: HashMap<String, Container>,
}

impl Seen {
    async fn look(runtime: &dyn RuntimeService) -> Result<Self, CriError> {
        let sandboxes = runtime.list_pod_sandbox(PodSandboxFilter::default()).await?;
        let containers = runtime.list_containers(ContainerFilter::default()).await?;
        Ok(Self {
            sandboxes: sandboxes.into_iter().map(|s| (s.id.clone(), s)).collect(),
            containers: containers.into_iter().map(|c| (c.id.clone(), c)).collect(),
        })
    }

    fn event(&self, sandbox: &str, container: &str, kind: ContainerEventType) -> ContainerEventResponse {
        ContainerEventResponse {
            container_id: container.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            kind,
            created_at: 0,
            pod: self.sandboxes.get(sandbox).map(|s| s.metadata.clone()).unwrap_or_default(),
        }
    }
}

/// What must have happened between two looks.
pub(crate) fn changes(before: &Seen, after: &Seen) -> Vec<ContainerEventResponse> {
    use ContainerEventType::{Created, Deleted, Started, Stopped};
    let mut events = Vec::new();
    for (id, sandbox) in &after.sandboxes {
        let was_ready = before.sandboxes.get(id).map(|s| s.ready);
        match (was_ready, sandbox.ready) {
            (None | Some(false), true) => events.push(after.event(id, "", Started)),
            (None | Some(true), false) => events.push(after.event(id, "", Stopped)),
            _ => {}
        }
    }
    for (id, c) in &after.containers {
        let was = before.containers.get(id).map(|c| c.state);
        let kind = match c.state {
            ContainerState::Created => Created,
            ContainerState::Running => Started,
            ContainerState::Exited | ContainerState::Unknown => Stopped,
        };
        if was != Some(c.state) {
            events.push(after.event(&c.pod_sandbox_id, id, kind));
        }
    }
    for (id, c) in before.containers.iter().filter(|(id, _)| !after.containers.contains_key(*id)) {
        events.push(before.event(&c.pod_sandbox_id, id, Deleted));
    }
    for id in before.sandboxes.keys().filter(|id| !after.sandboxes.contains_key(*id)) {
        events.push(before.event(id, "", Deleted));
    }
    events
}

/// Looks again and again, and tells what has changed, until nobody listens.
pub(crate) fn watch(
    runtime: Arc<dyn RuntimeService>,
    queue: usize,
) -> mpsc::Receiver<ContainerEventResponse> {
    let (sender, receiver) = mpsc::channel(queue);
    tokio::spawn(async move {
        let mut seen = Seen::look(&*runtime).await.unwrap_or_default();
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
            }
            let now = match Seen::look(&*runtime).await {
                Ok(now) => now,
                Err(error) => {
                    debug!(%error, "the runtime cannot be asked what runs");
                    continue;
                }
            };
            for event in changes(&seen, &now) {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            seen = now;
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sandboxes: &[(&str, bool)], containers: &[(&str, ContainerState)]) -> Seen {
        let sandbox = |(id, ready): &(&str, bool)| {
            ((*id).to_owned(), PodSandbox { id: (*id).to_owned(), ready: *ready, ..Default::default() })
        };
        let container = |(id, state): &(&str, ContainerState)| {
            let pod_sandbox_id = "s".to_owned();
            (
                (*id).to_owned(),
                Container { id: (*id).to_owned(), pod_sandbox_id, state: *state, ..Default::default() },
            )
        };
        Seen {
            sandboxes: sandboxes.iter().map(sandbox).collect(),
            containers: containers.iter().map(container).collect(),
        }
    }

    #[track_caller]
    fn check(before: &Seen, after: &Seen, want: &[(&str, ContainerEventType)]) {
        let got = changes(before, after);
        let got: Vec<_> = got.iter().map(|e| (e.container_id.as_str(), e.kind)).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn what_changed_between_two_looks_is_told_once() {
        use ContainerEventType::{Created, Deleted, Started, Stopped};
        let nothing = Seen::default();
        let made = seen(&[("s", true)], &[("c", ContainerState::Created)]);
        let runs = seen(&[("s", true)], &[("c", ContainerState::Running)]);
        let ended = seen(&[("s", false)], &[("c", ContainerState::Exited)]);
        check(&nothing, &made, &[("", Started), ("c", Created)]);
        check(&made, &made, &[]);
        check(&made, &runs, &[("c", Started)]);
        check(&runs, &ended, &[("", Stopped), ("c", Stopped)]);
        check(&ended, &nothing, &[("c", Deleted), ("", Deleted)]);
    }
}
