//! Tests of the ReplicaSet's decisions, and of the whole controller over the in-memory transport.

use coracle_client::DeleteOptions;
use coracle_client::testing::FakeTransport;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::testing::{context, eventually};

fn set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": "web", "namespace": "ns", "uid": "set-uid" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": "i" }] },
            },
        },
    }))
    .expect("a set")
}

fn pod(name: &str, status: Value) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": "web" } },
            "spec": { "nodeName": "n1", "containers": [] }, "status": status,
        }))
        .expect("a pod"),
    )
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn ready(name: &str, since: i64) -> Arc<Pod> {
    let mut pod = (*pod(name, json!({ "phase": "Running" }))).clone();
    let condition = PodCondition {
        type_: "Ready".into(),
        status: "True".into(),
        last_transition_time: Some(Time(at(since))),
        ..PodCondition::default()
    };
    pod.status.get_or_insert_default().conditions = Some(vec![condition]);
    Arc::new(pod)
}

#[test]
fn finished_pods_are_replaced_and_surplus_is_removed() {
    let running = pod("a", json!({ "phase": "Running" }));
    let failed = pod("b", json!({ "phase": "Failed" }));
    assert_eq!(decide::scale(&set(2), &[running.clone(), failed]), Scale::Up(1));
    assert_eq!(decide::scale(&set(1), std::slice::from_ref(&running)), Scale::Keep);
    assert_eq!(decide::scale(&set(0), &[running]), Scale::Down(1));
}

#[test]
fn a_ready_pod_is_available_only_after_min_ready_seconds() {
    let mut set = set(1);
    set.spec.as_mut().expect("spec").min_ready_seconds = Some(10);
    let (status, next) = decide::status(&set, &[ready("a", 100)], None, at(104));
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), None));
    assert_eq!(next.map(|wait| wait.as_secs()), Some(6));
    let (status, next) = decide::status(&set, &[ready("a", 100)], None, at(110));
    assert_eq!((status.available_replicas, next), (Some(1), None));
}

#[test]
fn pending_pods_go_before_ready_ones_and_young_before_old() {
    let pods = [ready("old", 0), ready("young", 99_000), pod("pending", json!({ "phase": "Pending" }))];
    let gone = rank::victims(&pods, &[], 2, at(100_000));
    let names: Vec<&str> = gone.iter().map(|pod| name_of(&**pod)).collect();
    assert_eq!(names, ["pending", "young"]);
}

#[tokio::test(start_paused = true)]
async fn makes_exactly_the_pods_asked_for_adopts_orphans_and_replaces_deleted_ones() {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let pods = client.api::<Pod>();
    pods.create("ns", (*pod("orphan", json!({}))).clone()).await.expect("created");
    let task = tokio::spawn(run(&context(&fake)));
    let sets = client.api::<ReplicaSet>();
    sets.create("ns", set(3)).await.expect("created");
    let count = || async { pods.list("ns", Default::default()).await.expect("listed").len() };
    eventually(|| async {
        let set = sets.get("ns", "web").await.expect("there");
        count().await == 3 && set.status.as_ref().is_some_and(|s| s.replicas == 3)
    })
    .await;
    let orphan = pods.get("ns", "orphan").await.expect("there");
    assert!(controller_of(&orphan.metadata).is_some());
    pods.delete("ns", "orphan", DeleteOptions { grace_period_seconds: Some(0), ..Default::default() })
        .await
        .expect("deleted");
    eventually(|| async { count().await == 3 && pods.get("ns", "orphan").await.is_err() }).await;
    let changed =
        ReplicaSet { metadata: sets.get("ns", "web").await.expect("there").metadata.clone(), ..set(1) };
    sets.update("ns", changed).await.expect("updated");
    eventually(|| async { count().await == 1 }).await;
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_replication_controller_keeps_its_pods_and_tells_their_number() {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let task = tokio::spawn(run_replication(&context(&fake)));
    let api = client.api::<ReplicationController>();
    let template = set(2).spec.and_then(|spec| spec.template);
    let controller = json!({
        "apiVersion": "v1", "kind": "ReplicationController",
        "metadata": { "name": "web", "namespace": "ns" },
        "spec": { "replicas": 2, "selector": { "app": "web" }, "template": template },
    });
    api.create("ns", serde_json::from_value(controller).expect("valid")).await.expect("created");
    let pods = client.api::<Pod>();
    eventually(|| async {
        let all = pods.list("ns", Default::default()).await.expect("listed");
        let status = api.get("ns", "web").await.expect("there").status.clone();
        let owner = |p: &Arc<Pod>| controller_of(&p.metadata).map(|o| o.kind.clone());
        all.len() == 2
            && all.iter().all(|p| owner(p).as_deref() == Some("ReplicationController"))
            && status.is_some_and(|s| s.replicas == 2 && s.fully_labeled_replicas == Some(2))
    })
    .await;
    task.abort();
}
