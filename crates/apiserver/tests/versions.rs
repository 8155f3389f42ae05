//! Resources in several versions: written through one, read through another.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::Cluster;

const V1: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const V2: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
const APPLY: &str = "?fieldManager=a";

fn autoscaler(version: &str, rest: Value) -> Value {
    let mut spec = json!({
        "maxReplicas": 5, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" },
    });
    for (key, value) in rest.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({ "apiVersion": version, "kind": "HorizontalPodAutoscaler", "metadata": { "name": "h" }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_written_in_one_version_is_read_in_the_other() {
    let cluster = Cluster::start().await;
    let body = autoscaler("autoscaling/v1", json!({ "targetCPUUtilizationPercentage": 50 }));
    let made = cluster.post(V1, &body).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    assert_eq!(made.json()["apiVersion"], "autoscaling/v1");
    let v2 = cluster.get(&format!("{V2}/h")).await.json();
    assert_eq!(v2["apiVersion"], "autoscaling/v2");
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    // Fields are owned as the request names them.
    let owned = &v2["metadata"]["managedFields"][0];
    assert_eq!(owned["apiVersion"], "autoscaling/v1");
    assert!(owned["fieldsV1"]["f:spec"].get("f:targetCPUUtilizationPercentage").is_some(), "{owned}");
    let list = cluster.get(V1).await.json();
    assert_eq!(list["apiVersion"], "autoscaling/v1");
    assert_eq!(list["items"][0]["spec"]["targetCPUUtilizationPercentage"], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patch_through_a_version_works_on_its_fields() {
    let cluster = Cluster::start().await;
    cluster.post(V2, &autoscaler("autoscaling/v2", json!({}))).await;
    let patch = json!({ "spec": { "targetCPUUtilizationPercentage": 33 } });
    let patched = cluster.patch(&format!("{V1}/h"), "merge-patch+json", &patch).await;
    assert_eq!(patched.json()["spec"]["targetCPUUtilizationPercentage"], 33);
    let v2 = cluster.get(&format!("{V2}/h")).await.json();
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 33);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applier_may_change_to_another_version() {
    let cluster = Cluster::start().await;
    let apply = async |base: &str, body: Value| {
        cluster.patch(&format!("{base}/h{APPLY}"), "apply-patch+yaml", &body).await
    };
    let metrics = json!([{ "type": "Resource", "resource": { "name": "cpu",
        "target": { "type": "Utilization", "averageUtilization": 80 } } }]);
    apply(V2, autoscaler("autoscaling/v2", json!({ "metrics": metrics }))).await;
    let answer =
        apply(V1, autoscaler("autoscaling/v1", json!({ "targetCPUUtilizationPercentage": 50 }))).await;
    assert_eq!(answer.code, StatusCode::OK, "{}", answer.json());
    let v2 = cluster.get(&format!("{V2}/h")).await.json();
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    let managers = v2["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers.len(), 1, "{managers:?}");
    assert_eq!(managers[0]["apiVersion"], "autoscaling/v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_of_a_version_shows_writes_of_another() {
    let cluster = Cluster::start().await;
    let target = "/apis/events.k8s.io/v1/namespaces/default/events?watch=1&fieldSelector=regarding.name%3Dp";
    let mut response = cluster.open(Method::GET, target, &[], "").await;
    for name in ["other", "p"] {
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("e-{name}") },
            "involvedObject": { "kind": "Pod", "name": name, "namespace": "default" }, "message": "it happened",
        });
        let made = cluster.post("/api/v1/namespaces/default/events", &event).await;
        assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    }
    let frame = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    let seen: Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!(seen["type"], "ADDED");
    let object = &seen["object"];
    assert_eq!((&object["apiVersion"], &object["note"]), (&json!("events.k8s.io/v1"), &json!("it happened")));
    assert_eq!(object["regarding"]["name"], "p");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_rules_of_events_hold_in_their_own_group_only() {
    let cluster = Cluster::start().await;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "e" },
        "regarding": { "kind": "Pod", "name": "p", "namespace": "default" },
    });
    let refused = cluster.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY);
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("eventTime: Required value"), "{message}");
}
