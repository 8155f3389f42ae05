//! Controllers that are stopped and started again at random moments come to the same end as ones that are left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_client::testing::FakeTransport;
use coracle_client::{Client, ListOptions, PatchKind};
use coracle_stdx::Clock;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::runtime::Context;
use crate::testing::{context, eventually, play_kubelet, seeded};

/// The controllers of workloads.
fn start(cx: &Context) -> Vec<JoinHandle<()>> {
    let runs = [
        crate::deployment::run,
        crate::replicaset::run,
        crate::statefulset::run,
        crate::daemonset::run,
        crate::job::run,
        crate::job::run_orphans,
    ];
    runs.map(|run| tokio::spawn(run(cx))).into()
}

fn template(image: &str, restart: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "x" } },
        "spec": { "restartPolicy": restart, "containers": [{ "name": "c", "image": image }] } })
}

fn workload(name: &str, extra: &Value) -> Value {
    let mut spec =
        json!({ "selector": { "matchLabels": { "kind": name } }, "template": template("v0", "Always") });
    spec["template"]["metadata"]["labels"] = json!({ "kind": name });
    for (key, part) in extra.as_object().into_iter().flatten() {
        spec[key] = part.clone();
    }
    json!({ "metadata": { "name": name }, "spec": spec })
}

async fn create<K: coracle_meta::Kind>(client: &Client, namespace: &str, value: Value) {
    let object: K = serde_json::from_value(value).expect("an object");
    client.api::<K>().create(namespace, object).await.expect("created");
}

async fn create_all(client: &Client) {
    for name in ["n1", "n2", "n3"] {
        create::<Node>(client, "", json!({ "metadata": { "name": name } })).await;
    }
    let rolling = json!({ "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 1 }, "type": "RollingUpdate" });
    let deployment = json!({ "replicas": 3, "strategy": rolling, "progressDeadlineSeconds": 600 });
    create::<Deployment>(client, "ns", workload("deploy", &deployment)).await;
    let set = json!({ "replicas": 3, "serviceName": "s", "updateStrategy": { "type": "RollingUpdate" } });
    create::<StatefulSet>(client, "ns", workload("set", &set)).await;
    let daemons =
        json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } } });
    create::<DaemonSet>(client, "ns", workload("daemon", &daemons)).await;
    let job = json!({ "metadata": { "name": "job", "uid": "job" }, "spec": {
        "completions": 5, "parallelism": 2, "backoffLimit": 6, "selector": { "matchLabels": { "kind": "job" } },
        "template": { "metadata": { "labels": { "kind": "job" } },
            "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "v0" }] } } } });
    create::<Job>(client, "ns", job).await;
}

/// Another template and size, in the middle of everything.
async fn change_all(client: &Client) {
    let image = |size: Option<i32>| {
        json!({ "spec": { "replicas": size,
            "template": { "spec": { "containers": [{ "name": "c", "image": "v1" }] } } } })
    };
    client
        .api::<Deployment>()
        .patch("ns", "deploy", PatchKind::Merge, image(Some(5)))
        .await
        .expect("changed");
    client.api::<StatefulSet>().patch("ns", "set", PatchKind::Merge, image(Some(4))).await.expect("changed");
    client.api::<DaemonSet>().patch("ns", "daemon", PatchKind::Merge, image(None)).await.expect("changed");
}

/// The kubelets; a Job's pods end well.
async fn kubelets(client: &Client) {
    play_kubelet(client).await;
    let api = client.api::<Pod>();
    let jobs = ListOptions { label_selector: "kind=job".to_owned(), ..ListOptions::default() };
    for pod in api.list("ns", jobs).await.expect("listed") {
        if coracle_meta::pod::is_ready(&pod) && !coracle_meta::pod::is_terminal(&pod) {
            let done = json!({ "status": { "phase": "Succeeded" } });
            let name = pod.metadata.name.clone().unwrap_or_default();
            let _ = api.patch_status("ns", &name, PatchKind::Merge, done).await;
        }
    }
}

/// Pods by kind and image, and what the Job counted.
async fn outcome(client: &Client) -> (BTreeMap<(String, String), usize>, Option<i32>) {
    let mut pods = BTreeMap::new();
    for pod in client.api::<Pod>().list("ns", ListOptions::default()).await.expect("listed") {
        let kind = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kind")).cloned();
        let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone());
        *pods.entry((kind.unwrap_or_default(), image.unwrap_or_default())).or_default() += 1;
    }
    let job = client.api::<Job>().get("ns", "job").await.expect("there");
    (pods, job.status.as_ref().and_then(|status| status.succeeded))
}

fn wanted() -> (BTreeMap<(String, String), usize>, Option<i32>) {
    let pods = [("daemon", "v1", 3), ("deploy", "v1", 5), ("job", "v0", 5), ("set", "v1", 4)];
    (pods.map(|(kind, image, n)| ((kind.to_owned(), image.to_owned()), n)).into(), Some(5))
}

async fn history(rng: &mut StdRng) {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    create_all(&client).await;
    let mut tasks = start(&context(&fake));
    let changed = rng.random_range(0..60);
    for step in 0..120 {
        // Restarts come at any moment, also in the middle of a pass: a few polls are all that a task may have had.
        for _ in 0..rng.random_range(0..40) {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        if step == changed {
            change_all(&client).await;
        }
        if rng.random_range(0..4) == 0 {
            tasks.iter().for_each(JoinHandle::abort);
            tasks = start(&context(&fake));
        }
        kubelets(&client).await;
    }
    eventually(|| async {
        kubelets(&client).await;
        outcome(&client).await == wanted()
    })
    .await;
    // It stays so.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(outcome(&client).await, wanted());
    tasks.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn controllers_restarted_at_random_moments_come_to_the_same_end() {
    let mut rng = seeded(11);
    for _ in 0..6 {
        history(&mut rng).await;
    }
}
