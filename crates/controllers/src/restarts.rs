//! Controllers that are stopped and started again at random moments come to the same end as ones that are left alone.
//!
//! Every request takes its time before and after the server carries it out, and watches run behind: a controller may be
//! stopped between any two of its writes, before one, or after one whose answer it never got.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::testing::FakeTransport;
use coracle_client::{
    ApiRequest, ApiResponse, Client, ListOptions, PatchKind, ResourceId, Transport, WatchStream,
};
use coracle_meta::{Kind, Status, pod as podutil};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, ReplicationController};
use parking_lot::Mutex;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::runtime::{Context, name_of};
use crate::testing::{context_over, play_kubelet, seeded, test_clock};

/// An API server that others outrun.
struct Slow {
    inner: Arc<FakeTransport>,
    dice: Mutex<StdRng>,
}

impl Slow {
    async fn wait(&self) {
        let millis = self.dice.lock().random_range(0..30);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

#[async_trait]
impl Transport for Slow {
    async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        self.wait().await;
        let answer = self.inner.request(request).await;
        self.wait().await;
        answer
    }

    async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status> {
        let events = self.inner.watch(resource, namespace, options, send_initial_events).await?;
        let mut dice = seeded(self.dice.lock().random());
        let late = events.then(move |event| {
            let millis = dice.random_range(0..10);
            async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                event
            }
        });
        Ok(late.boxed())
    }
}

/// The controllers of workloads.
fn start(cx: &Context) -> Vec<JoinHandle<()>> {
    let runs = [
        crate::deployment::run,
        crate::replicaset::run,
        crate::replicaset::run_replication,
        crate::statefulset::run,
        crate::daemonset::run,
        crate::job::run,
        crate::job::run_orphans,
        crate::cronjob::run,
    ];
    runs.map(|run| tokio::spawn(run(cx))).into()
}

fn template(name: &str, image: &str, restart: &str) -> Value {
    json!({ "metadata": { "labels": { "kind": name } },
        "spec": { "restartPolicy": restart, "containers": [{ "name": "c", "image": image }] } })
}

/// A spec that selects its pods by the label `kind`, with more in it.
fn workload(name: &str, restart: &str, extra: &Value) -> Value {
    let mut spec = json!({ "selector": { "matchLabels": { "kind": name } },
        "template": template(name, "v0", restart) });
    for (key, part) in extra.as_object().into_iter().flatten() {
        spec[key] = part.clone();
    }
    json!({ "metadata": { "name": name }, "spec": spec })
}

async fn create<K: Kind>(client: &Client, namespace: &str, value: Value) {
    let object: K = serde_json::from_value(value).expect("an object");
    client.api::<K>().create(namespace, object).await.expect("created");
}

fn rolling(rules: &Value) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": rules })
}

async fn create_all(client: &Client) {
    for name in ["n1", "n2", "n3"] {
        create::<Node>(client, "", json!({ "metadata": { "name": name } })).await;
    }
    let always = |name: &str, extra: Value| workload(name, "Always", &extra);
    let strategy = rolling(&json!({ "maxSurge": 1, "maxUnavailable": 1 }));
    let deploy =
        always("deploy", json!({ "replicas": 3, "strategy": strategy, "progressDeadlineSeconds": 600 }));
    create::<Deployment>(client, "ns", deploy).await;
    let anew = always("anew", json!({ "replicas": 2, "strategy": { "type": "Recreate" } }));
    create::<Deployment>(client, "ns", anew).await;
    create::<ReplicaSet>(client, "ns", always("alone", json!({ "replicas": 3 }))).await;
    let mut old = always("old", json!({ "replicas": 2 }));
    old["spec"]["selector"] = json!({ "kind": "old" });
    create::<ReplicationController>(client, "ns", old).await;
    let data = json!([{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"] } }]);
    let set = json!({ "replicas": 3, "serviceName": "s", "volumeClaimTemplates": data,
        "updateStrategy": rolling(&json!({ "partition": 0 })) });
    create::<StatefulSet>(client, "ns", always("set", set)).await;
    let quick = json!({ "replicas": 3, "serviceName": "s", "podManagementPolicy": "Parallel",
        "updateStrategy": rolling(&json!({ "partition": 0, "maxUnavailable": 2 })) });
    create::<StatefulSet>(client, "ns", always("quick", quick)).await;
    let daemon = json!({ "updateStrategy": rolling(&json!({ "maxUnavailable": 1 })) });
    create::<DaemonSet>(client, "ns", always("daemon", daemon)).await;
    let surge = json!({ "updateStrategy": rolling(&json!({ "maxSurge": 1, "maxUnavailable": 0 })) });
    create::<DaemonSet>(client, "ns", always("surge", surge)).await;
    let job = json!({ "completions": 5, "parallelism": 2, "backoffLimit": 50 });
    create::<Job>(client, "ns", workload("job", "Never", &job)).await;
    let parts = json!({ "completions": 4, "parallelism": 2, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX });
    create::<Job>(client, "ns", workload("parts", "Never", &parts)).await;
    let cron = json!({ "metadata": { "name": "tick" }, "spec": { "schedule": "* * * * *",
        "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 99, "failedJobsHistoryLimit": 99,
        "jobTemplate": { "spec": { "completions": 1, "parallelism": 1, "backoffLimit": 6,
            "selector": { "matchLabels": { "kind": "tick" } },
            "template": template("tick", "v0", "Never") } } } });
    create::<CronJob>(client, "ns", cron).await;
}

/// Another template and size, in the middle of everything.
async fn change_all(client: &Client) {
    async fn change<K: Kind>(client: &Client, name: &str, size: Option<i32>, image: &str) {
        let patch = json!({ "spec": { "replicas": size,
            "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } });
        client.api::<K>().patch("ns", name, PatchKind::Merge, patch).await.expect("changed");
    }
    change::<Deployment>(client, "deploy", Some(5), "v1").await;
    change::<Deployment>(client, "anew", Some(3), "v1").await;
    change::<ReplicaSet>(client, "alone", Some(1), "v0").await;
    change::<ReplicationController>(client, "old", Some(4), "v0").await;
    change::<StatefulSet>(client, "set", Some(4), "v1").await;
    change::<StatefulSet>(client, "quick", Some(2), "v1").await;
    change::<DaemonSet>(client, "daemon", None, "v1").await;
    change::<DaemonSet>(client, "surge", None, "v1").await;
}

fn label<'a>(pod: &'a Pod, key: &str) -> &'a str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str)
}

async fn pods(client: &Client) -> Vec<Arc<Pod>> {
    client.api::<Pod>().list("ns", ListOptions::default()).await.expect("listed")
}

/// The kubelets. Pods of Jobs end, most of them well: the first two of `job` fail, and all of one index of `parts`.
async fn kubelets(client: &Client, failed: &Cell<usize>) {
    play_kubelet(client).await;
    let api = client.api::<Pod>();
    for pod in pods(client).await {
        let kind = label(&pod, "kind");
        let ends = matches!(kind, "job" | "parts" | "tick");
        if !ends || !podutil::is_ready(&pod) || podutil::is_terminal(&pod) {
            continue;
        }
        let index = label(&pod, "batch.kubernetes.io/job-completion-index");
        let fails = (kind == "job" && failed.get() < 2) || (kind == "parts" && index == "1");
        failed.set(failed.get() + usize::from(kind == "job" && fails));
        let phase = if fails { "Failed" } else { "Succeeded" };
        let _ = api
            .patch_status("ns", name_of(&*pod), PatchKind::Merge, json!({ "status": { "phase": phase } }))
            .await;
    }
}

/// What no moment may show: two daemons on a node, more pods than there may be.
async fn check(client: &Client) {
    let mut live: BTreeMap<(String, String), usize> = BTreeMap::new();
    for pod in pods(client).await.iter().filter(|pod| podutil::is_active(pod)) {
        let kind = label(pod, "kind").to_owned();
        let node = if matches!(kind.as_str(), "daemon" | "surge") { place(pod) } else { String::new() };
        *live.entry((kind, node)).or_default() += 1;
    }
    for ((kind, node), number) in live {
        let most = match kind.as_str() {
            "deploy" => 6,
            "anew" | "alone" => 3,
            "old" | "set" => 4,
            "quick" => 3,
            "daemon" => 1,
            "surge" | "job" | "parts" => 2,
            _ => usize::MAX,
        };
        assert!(number <= most, "{number} pods of {kind} {node}");
    }
}

/// The node that a daemon is made for.
fn place(pod: &Pod) -> String {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    serde_json::to_string(&affinity).expect("JSON")
}

/// What all this comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Pods by kind and image.
    pods: BTreeMap<(String, String), usize>,
    /// Per Job: succeeded and failed, and the same by its pods.
    jobs: BTreeMap<&'static str, [usize; 4]>,
    indexes: (Option<String>, Option<String>),
    claims: usize,
    /// Whether every minute had its Job, and it ended well.
    ticked: bool,
}

async fn outcome(client: &Client) -> Outcome {
    let (all, mut by_image) = (pods(client).await, BTreeMap::new());
    for pod in all.iter().filter(|pod| label(pod, "kind") != "tick") {
        let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone());
        *by_image.entry((label(pod, "kind").to_owned(), image.unwrap_or_default())).or_default() += 1;
    }
    let jobs_api = client.api::<Job>();
    let number = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX);
    let mut jobs = BTreeMap::new();
    for name in ["job", "parts"] {
        let status = jobs_api.get("ns", name).await.expect("there").status.clone().unwrap_or_default();
        let of = |phase: &str| {
            all.iter().filter(|pod| label(pod, "kind") == name && podutil::phase(pod) == phase).count()
        };
        let counted = [number(status.succeeded), number(status.failed), of("Succeeded"), of("Failed")];
        jobs.insert(name, counted);
    }
    let parts = jobs_api.get("ns", "parts").await.expect("there").status.clone().unwrap_or_default();
    let claims = client.api::<PersistentVolumeClaim>().list("ns", ListOptions::default()).await;
    let ticks = jobs_api.list("ns", ListOptions::default()).await.expect("listed");
    let ticks: Vec<_> = ticks.iter().filter(|job| name_of(&***job).starts_with("tick-")).collect();
    let done = |job: &&&Arc<Job>| job.status.as_ref().and_then(|status| status.succeeded) == Some(1);
    let minutes: Vec<i64> =
        ticks.iter().filter_map(|job| name_of(&***job).rsplit('-').next()?.parse().ok()).collect();
    let gapless = minutes.iter().max().zip(minutes.iter().min());
    let gapless = gapless.is_some_and(|(last, first)| last - first + 1 == minutes.len() as i64);
    Outcome {
        pods: by_image,
        jobs,
        indexes: (parts.completed_indexes, parts.failed_indexes),
        claims: claims.expect("listed").len(),
        ticked: gapless && ticks.iter().filter(done).count() == ticks.len(),
    }
}

fn wanted() -> Outcome {
    let pods = [
        ("alone", "v0", 1),
        ("anew", "v1", 3),
        ("daemon", "v1", 3),
        ("deploy", "v1", 5),
        ("job", "v0", 7),
        ("old", "v0", 4),
        ("parts", "v0", 5),
        ("quick", "v1", 2),
        ("set", "v1", 4),
        ("surge", "v1", 3),
    ];
    Outcome {
        pods: pods.map(|(kind, image, n)| ((kind.to_owned(), image.to_owned()), n)).into(),
        jobs: [("job", [5, 2, 5, 2]), ("parts", [3, 2, 3, 2])].into(),
        indexes: (Some("0,2,3".to_owned()), Some("1".to_owned())),
        claims: 4,
        ticked: true,
    }
}

async fn comes_to_rest(client: &Client, failed: &Cell<usize>) {
    for _ in 0..600 {
        kubelets(client, failed).await;
        if outcome(client).await == wanted() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(outcome(client).await, wanted());
}

async fn history(seed: u64) {
    let mut rng = seeded(seed);
    let clock = test_clock();
    let fake = FakeTransport::new(clock.clone());
    let slow = Arc::new(Slow { inner: fake.clone(), dice: Mutex::new(seeded(seed + 1000)) });
    let (client, failed) = (fake.client(), Cell::new(0));
    create_all(&client).await;
    let begin = || start(&context_over(&Client::new(slow.clone()), clock.clone()));
    let mut tasks = begin();
    let changed = rng.random_range(0..60);
    for step in 0..120 {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1200))).await;
        if step == changed {
            change_all(&client).await;
        }
        if rng.random_range(0..4) == 0 {
            tasks.iter().for_each(JoinHandle::abort);
            tasks = begin();
        }
        if rng.random_range(0..3) > 0 {
            kubelets(&client, &failed).await;
        }
        check(&client).await;
    }
    comes_to_rest(&client, &failed).await;
    // It stays so, but for the minutes that come.
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        kubelets(&client, &failed).await;
        check(&client).await;
    }
    comes_to_rest(&client, &failed).await;
    tasks.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn controllers_restarted_at_random_moments_come_to_the_same_end() {
    for seed in 0..2 {
        history(seed).await;
    }
}
