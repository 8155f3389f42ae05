//! Images of containers: pull policies, pulls, credentials and back-off, with upstream's reasons and texts.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{AuthConfig, Image};
use coracle_cri::{CriError, ImageService};
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;

use crate::backoff::CrashBackoff;
use crate::context::Context;
use crate::keyring;
use crate::names;
use crate::pod::{image_spec, spec};
use crate::state::Waiting;

/// Why a container cannot be started now, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What the status shows.
    pub waiting: Waiting,
    /// Not before.
    pub until: Option<Timestamp>,
}

impl Held {
    /// Shown as `reason` with `message` until `until`.
    pub fn new(reason: &str, message: impl Into<String>, until: Option<Timestamp>) -> Self {
        let waiting = Waiting { reason: reason.to_owned(), message: message.into() };
        Self { waiting, until }
    }
}

#[derive(Clone, Debug)]
struct Failed {
    at: Timestamp,
    error: String,
}

/// Finds and pulls images.
pub struct Images {
    service: Arc<dyn ImageService>,
    clock: Clock,
    backoff: Mutex<CrashBackoff>,
    failures: Mutex<std::collections::HashMap<String, Failed>>,
}

/// An image that a container needs: its own, or one that it mounts.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The container, for events.
    pub container: &'a str,
    /// The image's name.
    pub image: &'a str,
    /// What the specification says about pulling.
    pub policy: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// The image that a container is made from.
    pub fn of(container: &'a Container) -> Self {
        Self {
            container: &container.name,
            image: container.image.as_deref().unwrap_or("").trim(),
            policy: container.image_pull_policy.as_deref(),
        }
    }
}

/// `Always`, `IfNotPresent` or `Never`; by tag when nothing is said.
fn policy<'a>(wanted: Wanted<'a>) -> &'a str {
    if let Some(policy) = wanted.policy.filter(|p| !p.is_empty()) {
        return policy;
    }
    let image = wanted.image;
    let last = image.rsplit('/').next().unwrap_or("");
    let latest = !last.contains(':') || last.ends_with(":latest");
    if latest && !image.contains('@') { "Always" } else { "IfNotPresent" }
}

/// `1.234s`, as Go prints durations.
fn duration(d: Duration) -> String {
    match d.as_millis() {
        ms if ms < 1000 => format!("{ms}ms"),
        ms => format!("{}s", (ms as f64) / 1000.0),
    }
}

impl Images {
    /// Images of `service`.
    pub fn new(service: Arc<dyn ImageService>, clock: Clock) -> Self {
        Self { service, clock, backoff: Mutex::default(), failures: Mutex::default() }
    }

    /// The image of a container, pulled if its policy says so. Records the events.
    ///
    /// # Errors
    /// What the container's status is to show meanwhile.
    pub async fn ensure(&self, cx: &Context, pod: &Pod, wanted: Wanted<'_>) -> Result<Image, Held> {
        let name = wanted.image;
        let warn = |reason: &str, message: String| {
            cx.container_warning(pod, wanted.container, reason, message);
        };
        let now = self.clock.now();
        let retry = Some(crate::pod::after(now, 10));
        let status = self.service.image_status(&image_spec(name)).await;
        let present = match status {
            Ok(present) => present,
            Err(CriError::InvalidArgument(e)) => {
                let message = format!("Failed to apply default image tag {name:?}: {e}");
                warn("InspectFailed", message.clone());
                return Err(Held::new("InvalidImageName", message, retry));
            }
            Err(e) => {
                let message = format!("Failed to inspect image {name:?}: {e}");
                warn("InspectFailed", message.clone());
                return Err(Held::new("ImageInspectError", message, retry));
            }
        };
        match (policy(wanted), present) {
            ("Never", None) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                warn("ErrImageNeverPull", message.clone());
                Err(Held::new("ErrImageNeverPull", message, retry))
            }
            ("IfNotPresent" | "Never", Some(image)) => {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                cx.container_event(pod, wanted.container, "Pulled", message);
                Ok(image)
            }
            _ => self.pull(cx, pod, wanted.container, name).await,
        }
    }

    async fn pull(&self, cx: &Context, pod: &Pod, container: &str, name: &str) -> Result<Image, Held> {
        let key = format!("{}_{name}", names::uid(pod));
        let failed = self.failures.lock().get(&key).cloned();
        if let Some(failed) = failed {
            let wait = self.backoff.lock().waiting(&key, failed.at, self.clock.now());
            if let Some((_, until)) = wait {
                let message = format!("Back-off pulling image {name:?}");
                cx.container_event(pod, container, "BackOff", message.clone());
                cx.container_warning(pod, container, "Failed", "Error: ImagePullBackOff");
                let text = format!("{message}: ErrImagePull: {}", failed.error);
                return Err(Held::new("ImagePullBackOff", text, Some(until)));
            }
        }
        cx.container_event(pod, container, "Pulling", format!("Pulling image {name:?}"));
        let begun = self.clock.now();
        let result = self.pull_with_credentials(cx, pod, name).await;
        let now = self.clock.now();
        match result {
            Ok(image) => {
                self.failures.lock().remove(&key);
                self.backoff.lock().reset(&key);
                let took = duration(crate::pod::elapsed(begun, now));
                let message = format!(
                    "Successfully pulled image {name:?} in {took} ({took} including waiting). \
                     Image size: {} bytes.",
                    image.size
                );
                cx.container_event(pod, container, "Pulled", message);
                Ok(image)
            }
            Err(e) => {
                let error = e.to_string();
                cx.container_warning(
                    pod,
                    container,
                    "Failed",
                    format!("Failed to pull image {name:?}: {error}"),
                );
                cx.container_warning(pod, container, "Failed", "Error: ErrImagePull");
                self.backoff.lock().next(&key, now);
                self.failures.lock().insert(key, Failed { at: now, error: error.clone() });
                // Tried again after a moment, when it shows as ImagePullBackOff.
                Err(Held::new("ErrImagePull", error, Some(crate::pod::after(now, 2))))
            }
        }
    }

    async fn pull_with_credentials(&self, cx: &Context, pod: &Pod, name: &str) -> Result<Image, CriError> {
        let mut last = None;
        let mut credentials = credentials(cx, pod, name).await;
        if credentials.is_empty() {
            credentials.push(None);
        }
        for auth in credentials {
            match self.service.pull_image(&image_spec(name), auth).await {
                Ok(id) => {
                    let image = self.service.image_status(&image_spec(name)).await?;
                    let by_id = match image {
                        Some(image) => Some(image),
                        None => self.service.image_status(&image_spec(&id)).await?,
                    };
                    return by_id.ok_or_else(|| CriError::NotFound(format!("image {name:?} vanished")));
                }
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| CriError::Internal("no attempt was made".into())))
    }

    /// Forgets a pod's failures.
    pub fn forget(&self, uid: &str) {
        self.failures.lock().retain(|key, _| !key.starts_with(uid));
    }
}

/// Credentials for an image: of the pod's pull secrets, of the node's own docker configuration, of plug-ins.
async fn credentials(cx: &Context, pod: &Pod, image: &str) -> Vec<Option<AuthConfig>> {
    let mut entries = Vec::new();
    for reference in spec(pod).image_pull_secrets.iter().flatten() {
        let secret = cx.client.api::<Secret>().get(names::namespace(pod), &reference.name).await;
        let Ok(secret) = secret else {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            cx.pod_warning(pod, "FailedToRetrieveImagePullSecret", message);
            continue;
        };
        let data = secret.data.as_ref();
        let data = data.and_then(|d| d.get(".dockerconfigjson").or_else(|| d.get(".dockercfg")));
        entries.extend(data.map(|d| keyring::parse(&d.0)).unwrap_or_default());
    }
    let own = std::fs::read(cx.config.root.join("config.json")).unwrap_or_default();
    let mut found = keyring::lookup(&entries, image);
    found.extend(keyring::lookup(&keyring::parse(&own), image));
    found.extend(cx.credential_plugins.lookup(cx, pod, image).await);
    found.into_iter().map(Some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_defaults_by_tag() {
        let check = |image: &str, expected: &str| {
            let c = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(policy(Wanted::of(&c)), expected, "{image}");
        };
        check("busybox", "Always");
        check("localhost:5000/busybox", "Always");
        check("busybox:latest", "Always");
        check("busybox:1", "IfNotPresent");
        check("busybox@sha256:abc", "IfNotPresent");
    }
}
