//! What the tests of several controllers need.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::testing::FakeTransport;
use coracle_client::{Client, Informers};
use coracle_meta::pod as podutil;
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::runtime::Context;
use crate::{ControllersConfig, ResourceEntry};

/// A context whose clients all reach `fake`.
pub(crate) fn context(fake: &Arc<FakeTransport>) -> Context {
    context_with(fake, Vec::new())
}

/// The same, with these served resources.
pub(crate) fn context_with(fake: &Arc<FakeTransport>, resources: Vec<ResourceEntry>) -> Context {
    context_of(&fake.client(), resources)
}

fn context_of(client: &Client, resources: Vec<ResourceEntry>) -> Context {
    let client = client.clone();
    Context {
        served: crate::served::Served::new(resources.clone(), tokio::sync::watch::channel(Vec::new()).1),
        config: Arc::new(ControllersConfig::new("root CA".to_owned(), resources)),
        informers: Informers::new(client.clone()),
        rollouts: crate::rollouts::Rollouts::new(0, Clock::system()),
        make_client: Arc::new(move |_| client.clone()),
        clock: Clock::system(),
    }
}

/// Waits up to a minute of (paused) time for `holds`.
pub(crate) async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    for _ in 0..6000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come true");
}

/// A clock that follows tokio's (paused) time.
pub(crate) fn test_clock() -> Clock {
    let (start, wall) = (tokio::time::Instant::now(), jiff::Timestamp::UNIX_EPOCH);
    Clock::from_fn(move || wall.checked_add(start.elapsed()).unwrap_or(wall))
}

/// A context at a clock of the test's own.
pub(crate) fn context_at(fake: &Arc<FakeTransport>, clock: Clock) -> Context {
    context_over(&fake.client(), clock)
}

/// A context whose clients are all the same.
pub(crate) fn context_over(client: &Client, clock: Clock) -> Context {
    Context { clock, ..context_of(client, Vec::new()) }
}

/// Random histories that are the same in every run.
pub(crate) fn seeded(seed: u64) -> rand::rngs::StdRng {
    rand::SeedableRng::seed_from_u64(seed)
}

/// Marks a pod as running, and as ready since `at` or not ready.
pub(crate) fn set_ready(pod: &mut Pod, is_ready: bool, at: Timestamp) {
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".to_owned());
    status.conditions = Some(vec![PodCondition {
        type_: "Ready".to_owned(),
        status: if is_ready { "True" } else { "False" }.to_owned(),
        last_transition_time: Some(Time(at)),
        ..PodCondition::default()
    }]);
}

/// What a throw of the dice brings a pod: it fails, becomes unready or is deleted (not `kindly`), or gets ready.
pub(crate) fn befall(pod: &mut Pod, throw: u32, kindly: bool, at: Timestamp) {
    match throw {
        // What has finished does not run again.
        0..3 | 4.. if podutil::is_terminal(pod) => {}
        0 if !kindly => {
            set_ready(pod, false, at);
            pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
        }
        1 | 2 if !kindly => set_ready(pod, false, at),
        // Somebody deletes it.
        3 if !kindly => pod.metadata.deletion_timestamp = Some(Time(at)),
        _ if podutil::is_ready(pod) => {}
        _ => set_ready(pod, true, at),
    }
}

/// Plays the kubelet over the API: every pod that is not finished runs and is ready, and what is being
/// deleted goes.
pub(crate) async fn play_kubelet(client: &Client) {
    let api = client.api::<Pod>();
    for pod in api.list("", coracle_client::ListOptions::default()).await.expect("listed") {
        let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        if pod.metadata.deletion_timestamp.is_some() {
            let now = coracle_client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
            let _ = api.delete(&namespace, &name, now).await;
        } else if !coracle_meta::pod::is_ready(&pod) && !coracle_meta::pod::is_terminal(&pod) {
            let ready = serde_json::json!({ "status": { "phase": "Running", "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z" }] } });
            let _ = api.patch_status(&namespace, &name, coracle_client::PatchKind::Merge, ready).await;
        }
    }
}
