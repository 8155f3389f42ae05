//! Images of containers: pull policies, pulls, credentials and back-off, with upstream's reasons and texts.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{AuthConfig, Image};
use coracle_cri::{CriError, ImageService};
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

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
    /// Who may pull; the others wait, in order.
    pulls: Option<Semaphore>,
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
    /// Images of `service`, of which so many are pulled at a time; `None`: as many as are wanted.
    pub fn new(service: Arc<dyn ImageService>, clock: Clock, at_a_time: Option<usize>) -> Self {
        let pulls = at_a_time.map(Semaphore::new);
        Self { service, clock, backoff: Mutex::default(), failures: Mutex::default(), pulls }
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
        let wanted = self.clock.now();
        let credentials = credentials(cx, pod, name).await;
        // The semaphore is never closed.
        let permit = match &self.pulls {
            Some(pulls) => pulls.acquire().await.ok(),
            None => None,
        };
        let begun = self.clock.now();
        let result = self.pull_with_credentials(credentials, name).await;
        drop(permit);
        let now = self.clock.now();
        match result {
            Ok(image) => {
                self.failures.lock().remove(&key);
                self.backoff.lock().reset(&key);
                let took = duration(crate::pod::elapsed(begun, now));
                let in_all = duration(crate::pod::elapsed(wanted, now));
                let message = format!(
                    "Successfully pulled image {name:?} in {took} ({in_all} including waiting). \
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

    async fn pull_with_credentials(
        &self,
        mut credentials: Vec<Option<AuthConfig>>,
        name: &str,
    ) -> Result<Image, CriError> {
        let mut last = None;
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use coracle_cri::v1::{FilesystemUsage, ImageSpec};

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

    /// Has no image until it is pulled, and counts who pulls at one time.
    #[derive(Default)]
    struct Registry {
        has: Mutex<Vec<String>>,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    #[async_trait]
    impl ImageService for Registry {
        async fn list_images(&self) -> Result<Vec<Image>, CriError> {
            Ok(Vec::new())
        }
        async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>, CriError> {
            Ok(self.has.lock().contains(&image.image).then(Image::default))
        }
        async fn pull_image(&self, image: &ImageSpec, _: Option<AuthConfig>) -> Result<String, CriError> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Everybody else gets as far as can be.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            self.now.fetch_sub(1, Ordering::SeqCst);
            self.has.lock().push(image.image.clone());
            Ok(image.image.clone())
        }
        async fn remove_image(&self, _: &ImageSpec) -> Result<(), CriError> {
            Ok(())
        }
        async fn image_fs_info(&self) -> Result<FilesystemUsage, CriError> {
            Ok(FilesystemUsage::default())
        }
    }

    #[tokio::test]
    async fn so_many_images_are_pulled_at_a_time_as_are_allowed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cx, ..) = crate::testing::context(dir.path());
        let pod = crate::pod::tests::pod(serde_json::json!({"containers": []}));
        for (allowed, most) in [(Some(1), 1), (Some(2), 2), (None, 4)] {
            let registry = Arc::new(Registry::default());
            let images = Images::new(registry.clone(), cx.clock.clone(), allowed);
            let names = ["a:1", "b:1", "c:1", "d:1"];
            let wanted = names.map(|image| Wanted { container: "c", image, policy: None });
            let pulls = wanted.map(|wanted| images.ensure(&cx, &pod, wanted));
            let all = futures::future::join_all(pulls).await;
            assert!(all.iter().all(Result::is_ok), "{all:?}");
            assert_eq!(registry.most.load(Ordering::SeqCst), most, "{allowed:?}");
        }
    }
}
