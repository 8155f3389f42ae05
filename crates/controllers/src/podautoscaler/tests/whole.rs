//! The controller on an API server in memory, with metrics served beside it.

use std::sync::Arc;

use coracle_client::testing::FakeTransport;
use coracle_client::{ApiRequest, Body, ResourceId, Verb, WriteOptions};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

use crate::ResourceEntry;
use crate::runtime::Context;
use crate::testing::{context_with, eventually, test_clock};

/// A custom resource with a scale; the fake keeps one document for the object and its scale.
const WIDGETS: ResourceId = ResourceId { group: "example.com", version: "v1", resource: "widgets" };

struct Story {
    fake: Arc<FakeTransport>,
    _controller: tokio::task::JoinHandle<()>,
}

async fn story(autoscaler: Value, replicas: i32) -> Story {
    let clock = test_clock();
    let fake = FakeTransport::new(clock.clone());
    let entry = ResourceEntry { id: WIDGETS, namespaced: true, kind: "Widget" };
    let widget = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "w" },
        "spec": { "replicas": replicas }, "status": { "replicas": replicas, "selector": "app=w" },
    });
    let verb = Verb::Create(Body::Json(widget), WriteOptions::default());
    let (namespace, name, subresource) = ("ns".to_owned(), "w".to_owned(), "");
    let create = ApiRequest { resource: WIDGETS, namespace, name, subresource, verb };
    fake.client().request(create).await.expect("created");
    for n in 0..replicas {
        let pod = json!({
            "metadata": { "name": format!("w{n}"), "labels": { "app": "w" } },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }] },
            "status": { "phase": "Running", "startTime": "1960-01-01T00:00:00Z", "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": "1960-01-01T00:00:00Z" }] },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        fake.client().api::<Pod>().create("ns", pod).await.expect("created");
    }
    let autoscaler: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": { "name": "h" }, "spec": autoscaler,
    }))
    .expect("an autoscaler");
    fake.client().api().create("ns", autoscaler).await.expect("created");
    let cx = Context { clock, ..context_with(&fake, vec![entry]) };
    let task = tokio::spawn(super::super::run(&cx));
    Story { fake, _controller: task }
}

fn spec(metric: Value) -> Value {
    json!({
        "minReplicas": 1, "maxReplicas": 10, "metrics": [metric],
        "scaleTargetRef": { "apiVersion": "example.com/v1", "kind": "Widget", "name": "w" },
    })
}

impl Story {
    /// The pods' use of CPU, as the metrics API tells it.
    fn use_cpu(&self, amounts: &[&str]) {
        let pod = |(n, amount): (usize, &&str)| {
            json!({ "metadata": { "name": format!("w{n}") }, "timestamp": "1970-01-01T00:00:00Z", "window": "15s",
                "containers": [{ "name": "c", "usage": { "cpu": amount } }] })
        };
        let items: Vec<Value> = amounts.iter().enumerate().map(pod).collect();
        self.fake.serve_path("/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods", json!({ "items": items }));
    }

    async fn replicas(&self) -> i64 {
        let (namespace, name) = ("ns".to_owned(), "w".to_owned());
        let get = ApiRequest { resource: WIDGETS, namespace, name, subresource: "", verb: Verb::Get };
        match self.fake.client().request(get).await {
            Ok(coracle_client::ApiResponse::Object(widget)) => {
                widget.to_value().pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(-1)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn autoscaler(&self) -> Value {
        let found = self.fake.client().api::<HorizontalPodAutoscaler>().get("ns", "h").await;
        serde_json::to_value(&*found.expect("there")).expect("JSON")
    }

    /// `Type=Status/Reason` of the conditions.
    async fn conditions(&self) -> Vec<String> {
        let autoscaler = self.autoscaler().await;
        let one = |c: &Value| {
            let text = |key: &str| c[key].as_str().unwrap_or("").to_owned();
            format!("{}={}/{}", text("type"), text("status"), text("reason"))
        };
        autoscaler["status"]["conditions"].as_array().into_iter().flatten().map(one).collect()
    }

    async fn said(&self, reason: &str) -> Option<String> {
        let events = self.fake.client().api::<Event>().list("ns", <_>::default()).await.expect("listed");
        let found = events.iter().find(|e| e.reason.as_deref() == Some(reason));
        found.and_then(|e| e.message.clone())
    }
}

fn cpu(percent: i32) -> Value {
    json!({ "type": "Resource", "resource": { "name": "cpu",
        "target": { "type": "Utilization", "averageUtilization": percent } } })
}

#[tokio::test(start_paused = true)]
async fn load_scales_a_custom_resource_up_and_idleness_down_after_the_window() {
    let story = story(spec(cpu(50)), 2).await;
    story.use_cpu(&["100m", "100m"]);
    eventually(|| async { story.replicas().await == 4 }).await;
    eventually(|| async { story.said("SuccessfulRescale").await.is_some() }).await;
    let said = story.said("SuccessfulRescale").await;
    assert_eq!(
        said.as_deref(),
        Some("New size: 4; reason: cpu resource utilization (percentage of request) above target")
    );
    let conditions = [
        "AbleToScale=True/SucceededRescale",
        "ScalingActive=True/ValidMetricFound",
        "ScalingLimited=False/DesiredWithinRange",
    ];
    eventually(|| async { story.conditions().await == conditions }).await;
    let status = story.autoscaler().await["status"].clone();
    assert_eq!((&status["currentReplicas"], &status["desiredReplicas"]), (&json!(2), &json!(4)));
    let current = &status["currentMetrics"][0]["resource"]["current"];
    assert_eq!(current, &json!({ "averageUtilization": 100, "averageValue": "100m" }));
    // Two idle pods are half of what is there; the recommendation of four holds for five minutes.
    story.use_cpu(&["10m", "10m"]);
    let begun = tokio::time::Instant::now();
    eventually(|| async { story.conditions().await[0] == "AbleToScale=True/ScaleDownStabilized" }).await;
    for _ in 0..20 {
        eventually(|| async { true }).await;
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    }
    assert!(begun.elapsed().as_secs() >= 300);
    eventually(|| async { story.replicas().await == 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn without_figures_nothing_is_scaled_and_the_reason_is_told() {
    let story = story(spec(cpu(50)), 2).await;
    eventually(|| async { story.said("FailedComputeMetricsReplicas").await.is_some() }).await;
    let why = "unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: the server \
               could not find the requested resource (get pods.metrics.k8s.io)";
    let said = story.said("FailedGetResourceMetric").await;
    assert_eq!(said, Some(format!("failed to get cpu utilization: {why}")));
    let said = story.said("FailedComputeMetricsReplicas").await;
    let whole = format!(
        "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get \
         cpu utilization: {why}"
    );
    assert_eq!(said, Some(whole));
    eventually(|| async {
        story.conditions().await
            == ["AbleToScale=True/SucceededGetScale", "ScalingActive=False/FailedGetResourceMetric"]
    })
    .await;
    assert_eq!(story.replicas().await, 2);
}

#[tokio::test(start_paused = true)]
async fn custom_and_external_metrics_are_asked_of_their_apis() {
    let pods = json!({ "type": "Pods", "pods": { "metric": { "name": "hits" },
        "target": { "type": "AverageValue", "averageValue": "10" } } });
    let queue = json!({ "type": "External", "external": { "metric": { "name": "queue" },
        "target": { "type": "AverageValue", "averageValue": "30" } } });
    let mut both = spec(pods);
    both["metrics"].as_array_mut().expect("a list").push(queue);
    let story = story(both, 2).await;
    eventually(|| async { story.said("FailedGetPodsMetric").await.is_some() }).await;
    let said = story.said("FailedGetPodsMetric").await.expect("said");
    assert!(said.ends_with("no custom metrics API (custom.metrics.k8s.io) registered"), "{said}");
    story.fake.serve_path("/apis/custom.metrics.k8s.io", json!({ "versions": [{ "version": "v1beta1" }] }));
    let item = |name: &str, value: &str| json!({ "describedObject": { "name": name }, "value": value });
    story.fake.serve_path(
        "/apis/custom.metrics.k8s.io/v1beta1/namespaces/ns/pods/*/hits",
        json!({ "items": [item("w0", "15"), item("w1", "14500m")] }),
    );
    // One metric is enough to scale up.
    eventually(|| async { story.replicas().await == 3 }).await;
    let values = json!({ "items": [{ "value": "100" }, { "value": "41" }] });
    story.fake.serve_path("/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue", values);
    eventually(|| async { story.replicas().await == 5 }).await;
    let status = story.autoscaler().await["status"].clone();
    assert_eq!(status["currentMetrics"][0]["pods"]["current"]["averageValue"], "14750m");
}

#[tokio::test(start_paused = true)]
async fn a_target_scaled_to_zero_is_left_alone_and_one_out_of_bounds_is_brought_back() {
    let idle = story(spec(cpu(50)), 0).await;
    eventually(|| async {
        idle.conditions().await
            == ["AbleToScale=True/SucceededGetScale", "ScalingActive=False/ScalingDisabled"]
    })
    .await;
    assert_eq!(idle.replicas().await, 0);
    let many = story(spec(cpu(50)), 12).await;
    eventually(|| async { many.replicas().await == 10 }).await;
    eventually(|| async { many.said("SuccessfulRescale").await.is_some() }).await;
    let said = many.said("SuccessfulRescale").await;
    assert_eq!(
        said.as_deref(),
        Some("New size: 10; reason: Current number of replicas above Spec.MaxReplicas")
    );
}

#[tokio::test(start_paused = true)]
async fn pods_that_two_autoscalers_claim_are_scaled_by_neither() {
    let story = story(spec(cpu(50)), 2).await;
    story.use_cpu(&["50m", "50m"]);
    eventually(|| async { !story.conditions().await.is_empty() }).await;
    let second: HorizontalPodAutoscaler =
        serde_json::from_value(json!({ "metadata": { "name": "i" }, "spec": spec(cpu(10)) }))
            .expect("an autoscaler");
    story.fake.client().api().create("ns", second).await.expect("created");
    eventually(|| async { story.said("AmbiguousSelector").await.is_some() }).await;
    let said = story.said("AmbiguousSelector").await;
    assert_eq!(
        said.as_deref(),
        Some("pods by selector app=w are controlled by multiple HPAs: [{h ns} {i ns}]")
    );
    // What was read before says nothing of now.
    eventually(|| async { story.autoscaler().await["status"]["currentMetrics"].is_null() }).await;
    assert_eq!(story.replicas().await, 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_target_is_told_and_looked_for_again() {
    let mut spec = spec(cpu(50));
    spec["scaleTargetRef"]["kind"] = "Gadget".into();
    let story = story(spec, 1).await;
    eventually(|| async { story.said("FailedGetScale").await.is_some() }).await;
    let said = story.said("FailedGetScale").await;
    assert_eq!(said.as_deref(), Some("no matches for kind \"Gadget\" in group \"example.com\""));
    eventually(|| async { story.conditions().await == ["AbleToScale=False/FailedGetScale"] }).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_metric_cannot_be_read_is_named() {
    let object = json!({ "apiVersion": "example.com/v1", "kind": "Widget", "name": "w" });
    let rate = json!({ "type": "Object", "object": { "metric": { "name": "rate" }, "describedObject": object,
        "target": { "type": "Value", "value": "10" } } });
    let story = story(spec(rate), 1).await;
    eventually(|| async { story.said("FailedGetObjectMetric").await.is_some() }).await;
    let said = story.said("FailedGetObjectMetric").await.expect("said");
    let wanted =
        "unable to get metric rate: Widget on ns w/unable to fetch metrics from custom metrics API: ";
    assert!(said.starts_with(wanted), "{said}");
}
