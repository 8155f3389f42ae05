//! Killing a container: the event, the preStop hook, SIGTERM, SIGKILL.

use std::time::Duration;

use coracle_cri::CriError;
use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::decide::Kill;
use crate::hooks;

/// A container gets at least this many seconds after its hook.
const LEAST: i64 = 2;

/// Kills a container; returns when it is dead. With `overtake` a kill is under way already: neither event nor
/// hook is repeated.
///
/// # Errors
/// The runtime's; the caller tries again.
pub async fn kill(
    cx: &Context,
    pod: &Pod,
    kill: &Kill,
    pod_ip: &str,
    overtake: bool,
) -> Result<(), CriError> {
    let mut grace = kill.grace.max(0);
    if !overtake {
        cx.container_event(pod, &kill.name, "Killing", kill.message.clone());
        let container = crate::pod::container(pod, &kill.name).map(|(c, _)| c);
        let lifecycle = container.as_ref().and_then(|c| c.lifecycle.as_ref());
        let hook = lifecycle.and_then(|l| l.pre_stop.as_ref());
        if let (Some(container), Some(hook), true) = (&container, hook, grace > 0) {
            let begun = tokio::time::Instant::now();
            let limit = Duration::from_secs(grace.unsigned_abs());
            let run = hooks::run(cx, container, &kill.id, pod_ip, hook);
            match tokio::time::timeout(limit, run).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    tracing::debug!(container = kill.name, error = e, "preStop hook failed");
                    cx.container_warning(pod, &kill.name, "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => tracing::debug!(container = kill.name, "preStop hook took all the grace period"),
            }
            let spent = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
            grace = (grace - spent).max(LEAST);
        }
    }
    match cx.runtime.stop_container(&kill.id, grace).await {
        Err(CriError::NotFound(_)) => Ok(()),
        result => result,
    }
}
