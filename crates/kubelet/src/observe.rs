//! Reads a pod's state from the runtime.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_cri::v1::{ContainerFilter, ContainerState, ContainerStatus, PodSandboxFilter, PodSandboxStatus};
use coracle_cri::{CriError, RuntimeService};

use crate::container_status::Messages;
use crate::logs::tail_text;
use crate::names;
use crate::state::Observed;

/// Longest termination message.
const MAX_MESSAGE: usize = 4096;
/// Longest one taken from the log.
const MAX_LOG_MESSAGE: usize = 2048;
/// Lines of it.
const MAX_LOG_LINES: usize = 80;

/// Sandboxes and containers of a pod. What `before` shows as exited is not asked for again: it cannot change.
///
/// # Errors
/// The runtime's.
pub async fn observe(
    runtime: &dyn RuntimeService,
    uid: &str,
    before: &Observed,
) -> Result<Observed, CriError> {
    let selector = BTreeMap::from([(names::POD_UID.to_owned(), uid.to_owned())]);
    let filter = PodSandboxFilter { label_selector: selector.clone(), ..PodSandboxFilter::default() };
    let mut sandboxes = Vec::new();
    for s in runtime.list_pod_sandbox(filter).await? {
        match runtime.pod_sandbox_status(&s.id).await {
            Ok(status) => sandboxes.push(PodSandboxStatus { labels: BTreeMap::new(), ..status }),
            Err(CriError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    sandboxes.sort_by_key(|s: &PodSandboxStatus| std::cmp::Reverse((s.metadata.attempt, s.created_at)));
    let filter = ContainerFilter { label_selector: selector, ..ContainerFilter::default() };
    let mut containers: Vec<ContainerStatus> = Vec::new();
    for c in runtime.list_containers(filter).await? {
        let known = before.by_id(&c.id).filter(|k| k.state == ContainerState::Exited);
        if let Some(known) = known {
            containers.push(known.clone());
            continue;
        }
        match runtime.container_status(&c.id).await {
            // A status that came over a socket does not say whose it is; the list does.
            Ok(status) => {
                containers.push(slim(ContainerStatus { pod_sandbox_id: c.pod_sandbox_id, ..status }))
            }
            Err(CriError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.metadata.attempt)));
    Ok(Observed { sandboxes, containers })
}

/// The status as it is kept for each container, without what the pod says as well; where its last words are found is of
/// interest once it has ended.
fn slim(mut status: ContainerStatus) -> ContainerStatus {
    status.labels = BTreeMap::new();
    if status.state != ContainerState::Exited {
        status.mounts = Vec::new();
    }
    status
}

/// Adds the last words of containers that have ended since.
pub fn read_messages(seen: &Observed, log_directory: &Path, messages: &mut Messages) {
    messages.retain(|id, _| seen.by_id(id).is_some());
    for c in seen.containers.iter().filter(|c| c.state == ContainerState::Exited) {
        if !messages.contains_key(&c.id) {
            messages.insert(c.id.clone(), last_words(c, log_directory));
        }
    }
}

fn last_words(c: &ContainerStatus, log_directory: &Path) -> String {
    let place = c.annotations.get(names::MESSAGE_PATH);
    let file = place.and_then(|p| c.mounts.iter().find(|m| m.container_path == *p));
    let mut text = file.and_then(|m| std::fs::read(&m.host_path).ok()).unwrap_or_default();
    text.truncate(MAX_MESSAGE);
    let mut text = String::from_utf8_lossy(&text).into_owned();
    let fallback = c.annotations.get(names::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    if text.is_empty() && fallback && c.exit_code != 0 {
        let log = log_directory.join(&c.metadata.name).join(format!("{}.log", c.metadata.attempt));
        text = tail_text(&log, MAX_LOG_LINES, MAX_LOG_MESSAGE);
    }
    if text.is_empty() { c.message.clone() } else { text }
}
