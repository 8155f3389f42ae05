//! The scheduler against a fake API: what clients see.

use std::time::Duration;

use coracle_client::Client;
use coracle_client::testing::FakeTransport;
use coracle_meta::pod::condition;
use coracle_meta::{Reason, Status};
use coracle_scheduler::{Scheduler, SchedulerConfig};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

async fn add_node(client: &Client, name: &str, cpu: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
    client.api::<Node>().create("", serde_json::from_value(node).expect("node")).await.expect("create");
}

async fn add_pod(client: &Client, name: &str, spec: Value) {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
    let metadata = json!({"name": name, "namespace": "default"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    client.api::<Pod>().create("default", serde_json::from_value(pod).expect("pod")).await.expect("create");
}

async fn until(client: &Client, name: &str, what: impl Fn(&Pod) -> bool) -> Pod {
    for _ in 0..600 {
        let pod = client.api::<Pod>().get("default", name).await.expect("get");
        if what(&pod) {
            return (*pod).clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} did not get there: {:?}", client.api::<Pod>().get("default", name).await);
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

async fn events(client: &Client, reason: &str) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let all = client.api::<Event>().list("", Default::default()).await.expect("list");
    all.iter().filter(|e| e.reason.as_deref() == Some(reason)).filter_map(|e| e.message.clone()).collect()
}

fn start() -> (std::sync::Arc<FakeTransport>, Client, tokio::task::JoinHandle<()>) {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let task = tokio::spawn(Scheduler::new(fake.client(), Clock::system(), SchedulerConfig::default()).run());
    (fake, client, task)
}

#[tokio::test]
async fn a_pod_without_room_says_why_and_is_bound_when_a_node_comes() {
    let (_fake, client, task) = start();
    add_node(&client, "small", "500m").await;
    add_pod(&client, "p", json!({})).await;
    let waiting = until(&client, "p", |p| condition(p, "PodScheduled").is_some()).await;
    let scheduled = condition(&waiting, "PodScheduled").expect("condition");
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 Preemption is not helpful for scheduling.";
    assert_eq!((scheduled.status.as_str(), scheduled.reason.as_deref()), ("False", Some("Unschedulable")));
    assert_eq!(scheduled.message.as_deref(), Some(message));
    assert_eq!(events(&client, "FailedScheduling").await, [message]);
    add_node(&client, "large", "4").await;
    let bound = until(&client, "p", |p| !node_of(p).is_empty()).await;
    assert_eq!(node_of(&bound), "large");
    assert_eq!(events(&client, "Scheduled").await, ["Successfully assigned default/p to large"]);
    task.abort();
}

#[tokio::test]
async fn only_pods_that_name_this_scheduler_are_bound() {
    let (_fake, client, task) = start();
    add_node(&client, "n", "4").await;
    add_pod(&client, "theirs", json!({"schedulerName": "other"})).await;
    add_pod(&client, "ours", json!({"schedulerName": "default-scheduler"})).await;
    until(&client, "ours", |p| node_of(p) == "n").await;
    let theirs = client.api::<Pod>().get("default", "theirs").await.expect("get");
    assert_eq!(node_of(&theirs), "");
    task.abort();
}

#[tokio::test]
async fn a_failed_binding_gives_the_room_back_and_is_tried_again() {
    let (fake, client, task) = start();
    add_node(&client, "n", "1").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The creation of the pod goes first; the failure is planned in between by a pod that never fits.
    add_pod(&client, "p", json!({"schedulingGates": [{"name": "g"}]})).await;
    fake.fail_next("pods", Status::new(503, Reason::ServiceUnavailable, "try later", None));
    let ungate = json!({"spec": {"schedulingGates": null}});
    let failed =
        client.api::<Pod>().patch("default", "p", coracle_client::PatchKind::Merge, ungate.clone()).await;
    failed.expect_err("the planned failure hit the patch");
    let pods = client.api::<Pod>();
    pods.patch("default", "p", coracle_client::PatchKind::Merge, ungate).await.expect("patch");
    fake.fail_next("pods", Status::new(503, Reason::ServiceUnavailable, "try later", None));
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let bound = until(&client, "p", |p| node_of(p) == "n").await;
    assert_eq!(node_of(&bound), "n");
    let messages = events(&client, "FailedScheduling").await;
    assert!(messages.iter().all(|m| m.contains("try later")), "{messages:?}");
    task.abort();
}

#[tokio::test]
async fn room_freed_by_a_deletion_goes_to_a_waiting_pod() {
    let (_fake, client, task) = start();
    add_node(&client, "n", "1").await;
    add_pod(&client, "first", json!({})).await;
    until(&client, "first", |p| node_of(p) == "n").await;
    add_pod(&client, "second", json!({})).await;
    until(&client, "second", |p| condition(p, "PodScheduled").is_some()).await;
    let now = coracle_client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    client.api::<Pod>().delete("default", "first", now).await.expect("delete");
    until(&client, "second", |p| node_of(p) == "n").await;
    task.abort();
}

#[tokio::test]
async fn a_more_important_pod_takes_the_room_of_a_less_important_one() {
    let (_fake, client, task) = start();
    add_node(&client, "n", "1").await;
    add_pod(&client, "low", json!({"priority": 1})).await;
    until(&client, "low", |p| node_of(p) == "n").await;
    add_pod(&client, "high", json!({"priority": 1000})).await;
    let low = until(&client, "low", |p| p.metadata.deletion_timestamp.is_some()).await;
    let said = condition(&low, "DisruptionTarget").expect("the condition");
    assert_eq!(said.reason.as_deref(), Some("PreemptionByScheduler"));
    let waiting = until(&client, "high", |p| condition(p, "PodScheduled").is_some()).await;
    let status = waiting.status.clone().unwrap_or_default();
    assert_eq!(status.nominated_node_name.as_deref(), Some("n"));
    let message = condition(&waiting, "PodScheduled").and_then(|c| c.message.clone());
    assert_eq!(message.as_deref(), Some("0/1 nodes are available: 1 Insufficient cpu."));
    assert_eq!(events(&client, "Preempted").await.len(), 1);
    let now = coracle_client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    client.api::<Pod>().delete("default", "low", now).await.expect("delete");
    until(&client, "high", |p| node_of(p) == "n").await;
    task.abort();
}

#[tokio::test]
async fn a_pod_goes_where_its_claim_gets_a_device_and_the_claim_says_which() {
    use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};

    let (_fake, client, task) = start();
    add_node(&client, "plain", "4").await;
    add_node(&client, "gpu", "4").await;
    let slice = json!({ "metadata": { "name": "s" }, "spec": { "driver": "gpu.example.com", "nodeName": "gpu",
        "pool": { "name": "gpu", "generation": 1, "resourceSliceCount": 1 }, "devices": [{ "name": "card0" }] } });
    let class = json!({ "metadata": { "name": "gpu" }, "spec": {} });
    let claim = |name: &str| {
        json!({ "metadata": { "name": name, "namespace": "default" }, "spec": { "devices": {
            "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu" } }] } } })
    };
    let wants = |claim: &str| json!({ "resourceClaims": [{ "name": "c", "resourceClaimName": claim }] });
    add_pod(&client, "p", wants("card")).await;
    let waiting = until(&client, "p", |p| condition(p, "PodScheduled").is_some()).await;
    let message = condition(&waiting, "PodScheduled").and_then(|c| c.message.clone()).unwrap_or_default();
    assert!(message.contains("resourceclaim.resource.k8s.io \"card\" not found"), "{message}");
    client
        .api::<DeviceClass>()
        .create("", serde_json::from_value(class).expect("class"))
        .await
        .expect("create");
    client
        .api::<ResourceSlice>()
        .create("", serde_json::from_value(slice).expect("slice"))
        .await
        .expect("create");
    let claims = client.api::<ResourceClaim>();
    for name in ["card", "late"] {
        claims.create("default", serde_json::from_value(claim(name)).expect("claim")).await.expect("create");
    }
    until(&client, "p", |p| node_of(p) == "gpu").await;
    let written = claims.get("default", "card").await.expect("get");
    let written = serde_json::to_value(&*written).expect("JSON");
    assert_eq!(written["status"]["allocation"]["devices"]["results"][0]["device"], "card0");
    assert_eq!(written["status"]["reservedFor"][0]["name"], "p");
    assert_eq!(written["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    add_pod(&client, "q", wants("late")).await;
    let told = |p: &Pod| condition(p, "PodScheduled").and_then(|c| c.message.clone());
    let refused = until(&client, "q", |p| told(p).is_some()).await;
    let message = told(&refused).unwrap_or_default();
    assert!(message.contains("2 cannot allocate all claims"), "{message}");
    task.abort();
}
