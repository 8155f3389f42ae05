//! Tests of the worker: whole lives of pods against a fake API server and a fake runtime.

use std::time::Duration;

use coracle_client::{Body, DeleteOptions, Informers, ListOptions, Verb};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use serde_json::json;

use super::*;
use crate::manager::Pods;
use crate::testing::{FakeRuntime, context};

struct Cluster {
    cx: Arc<Context>,
    api: Arc<coracle_client::testing::FakeTransport>,
    runtime: Arc<FakeRuntime>,
    directory: tempfile::TempDir,
}

fn run(cx: &Arc<Context>, informers: &Informers) {
    let options = ListOptions { field_selector: "spec.nodeName=n1".into(), ..ListOptions::default() };
    let informer = informers.filtered::<Pod>("", options);
    tokio::spawn({
        let cx = cx.clone();
        async move { Pods::default().run(cx, informer).await }
    });
}

fn cluster() -> Cluster {
    let directory = tempfile::tempdir().expect("directory");
    let (cx, api, runtime, informers) = context(directory.path());
    run(&cx, &informers);
    Cluster { cx, api, runtime, directory }
}

impl Cluster {
    async fn create(&self, spec: serde_json::Value) {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .expect("pod");
        self.cx.client.api::<Pod>().create("default", pod).await.expect("created");
    }
    /// Waits until the pod in the API satisfies `claim`.
    async fn wait(&self, what: &str, claim: impl Fn(&Pod) -> bool) -> Arc<Pod> {
        for _ in 0..1000 {
            if let Ok(pod) = self.cx.client.api::<Pod>().get("default", "web").await
                && claim(&pod)
            {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let now = self.cx.client.api::<Pod>().get("default", "web").await;
        panic!("never: {what}; {now:?}");
    }
    async fn events(&self) -> Vec<(String, String)> {
        let events = self.cx.client.api::<Event>().list("default", ListOptions::default()).await;
        let text =
            |e: &Arc<Event>| (e.reason.clone().unwrap_or_default(), e.message.clone().unwrap_or_default());
        events.expect("events").iter().map(text).collect()
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

fn first(pod: &Pod) -> k8s_openapi::api::core::v1::ContainerStatus {
    pod.status.as_ref().and_then(|s| s.container_statuses.clone()).expect("statuses").remove(0)
}

#[tokio::test]
async fn a_pod_runs_restarts_after_a_crash_and_leaves_nothing_when_deleted() {
    let c = cluster();
    c.create(json!({"containers": [{"name": "a", "image": "i:1"}], "terminationGracePeriodSeconds": 1}))
        .await;
    let pod = c.wait("running", |p| phase(p) == "Running" && coracle_meta::pod::is_ready(p)).await;
    assert_eq!(pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()), Some("127.0.0.1"));
    c.runtime.exit("a", 1);
    let pod = c.wait("restarted", |p| first(p).restart_count == 1 && first(p).ready).await;
    let last = first(&pod).last_state.and_then(|s| s.terminated).expect("last state");
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    c.runtime.exit("a", 2);
    let waiting = |p: &Pod| first(p).state.and_then(|s| s.waiting).and_then(|w| w.reason);
    let pod = c.wait("backing off", |p| waiting(p).as_deref() == Some("CrashLoopBackOff")).await;
    let uid = names::uid(&pod).to_owned();
    let events = c.events().await;
    let has = |reason: &str, message: &str| events.iter().any(|e| e.0 == reason && e.1 == message);
    assert!(has("Created", "Container created") && has("Started", "Container started"), "{events:?}");
    let options = DeleteOptions { grace_period_seconds: Some(1), ..DeleteOptions::default() };
    c.cx.client.api::<Pod>().delete("default", "web", options).await.expect("deletion asked");
    for _ in 0..1000 {
        let gone = c.cx.client.api::<Pod>().get("default", "web").await.is_err();
        if gone && c.runtime.count() == (0, 0) && !c.cx.directory(&uid).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", c.runtime.count());
}

#[tokio::test]
async fn a_missing_config_map_holds_the_pod_until_it_appears_and_updates_reach_the_volume() {
    let c = cluster();
    c.create(json!({
        "containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
    }))
    .await;
    c.wait("first status", |p| phase(p) == "Pending").await;
    let map = |value: &str| -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {"name": "cm", "namespace": "default"}, "data": {"k": value}}))
        .expect("map")
    };
    let maps = c.cx.client.api::<ConfigMap>();
    maps.create("default", map("one")).await.expect("created");
    let pod = c.wait("running", |p| phase(p) == "Running").await;
    let mounted = c.runtime.config("a").expect("container");
    assert!(mounted.mounts.iter().any(|m| m.container_path == "/v" && m.readonly));
    let file = c.cx.directory(names::uid(&pod)).join("volumes/kubernetes.io~configmap/v/k");
    assert!(file.starts_with(c.directory.path()));
    assert_eq!(std::fs::read_to_string(&file).expect("file"), "one");
    maps.update("default", map("two")).await.expect("updated");
    for _ in 0..500 {
        if std::fs::read_to_string(&file).is_ok_and(|t| t == "two") {
            let events = c.events().await;
            let text = "MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found";
            assert!(events.iter().any(|e| e.0 == "FailedMount" && e.1 == text), "{events:?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the volume was not renewed");
}

#[tokio::test]
async fn a_pod_that_never_restarts_ends_with_its_containers() {
    let c = cluster();
    c.create(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}]})).await;
    c.wait("running", |p| phase(p) == "Running").await;
    c.runtime.exit("a", 0);
    let pod = c.wait("succeeded", |p| phase(p) == "Succeeded").await;
    let ready = coracle_meta::pod::condition(&pod, "Ready").expect("condition");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("PodCompleted")));
    assert_eq!(
        first(&pod).state.and_then(|s| s.terminated).and_then(|t| t.reason).as_deref(),
        Some("Completed")
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    let writes = c.api.requests().iter().filter(|r| r.subresource == "status").count();
    assert!(writes <= 5, "{writes} status writes");
}

#[tokio::test]
async fn an_absent_image_is_reported_with_its_reasons() {
    let c = cluster();
    c.create(json!({"containers": [
        {"name": "a", "image": "absent:1", "imagePullPolicy": "Never"},
        {"name": "b", "image": "absent:2", "imagePullPolicy": "IfNotPresent"},
    ]}))
    .await;
    let reason = |p: &Pod, i: usize| {
        let all = p.status.as_ref().and_then(|s| s.container_statuses.clone()).unwrap_or_default();
        let state = all.get(i).and_then(|c| c.state.clone());
        state.and_then(|s| s.waiting).and_then(|w| w.reason).unwrap_or_default()
    };
    c.wait("both", |p| reason(p, 0) == "ErrImageNeverPull" && reason(p, 1).contains("Image")).await;
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts_the_container_and_a_restarted_kubelet_adopts_it() {
    let c = cluster();
    c.create(json!({"containers": [{"name": "a", "image": "i:1", "livenessProbe": {
        "exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}}],
        "terminationGracePeriodSeconds": 1}))
        .await;
    let pod = c
        .wait("restarted", |p| p.status.is_some() && phase(p) == "Running" && first(p).restart_count == 1)
        .await;
    assert!(pod.metadata.uid.is_some());
    let events = c.events().await;
    let killed = "Container a failed liveness probe, will be restarted";
    assert!(events.iter().any(|e| e.0 == "Killing" && e.1 == killed), "{events:?}");
    assert!(events.iter().any(|e| e.0 == "Unhealthy" && e.1.starts_with("Liveness probe failed: ")));
}

#[tokio::test]
async fn a_pod_whose_image_changes_stays_ready_while_its_container_is_replaced() {
    let c = cluster();
    c.create(json!({"containers": [{"name": "a", "image": "i:1"}], "terminationGracePeriodSeconds": 1}))
        .await;
    let mut pod = (*c.wait("ready", coracle_meta::pod::is_ready).await).clone();
    let before = c.api.requests().len();
    pod.spec.as_mut().expect("spec").containers[0].image = Some("i:2".into());
    c.cx.client.api::<Pod>().update("default", pod).await.expect("updated");
    c.wait("replaced", |p| first(p).restart_count == 1 && first(p).ready).await;
    let written = c.api.requests().split_off(before).into_iter().filter_map(|r| match r.verb {
        Verb::Update(Body::Object(pod), _) if r.subresource == "status" => {
            pod.into_any_arc().downcast::<Pod>().ok()
        }
        _ => None,
    });
    let written: Vec<_> = written.collect();
    assert!(!written.is_empty());
    for pod in written {
        assert!(coracle_meta::pod::is_ready(&pod), "written in between: {:?}", pod.status);
    }
}

#[tokio::test]
async fn a_new_kubelet_adopts_running_containers_and_kills_those_of_vanished_pods() {
    let directory = tempfile::tempdir().expect("directory");
    let (cx, api, runtime, informers) = context(directory.path());
    let first_pods = {
        let options = ListOptions { field_selector: "spec.nodeName=n1".into(), ..ListOptions::default() };
        let informer = informers.filtered::<Pod>("", options);
        let cx = cx.clone();
        tokio::spawn(async move { Pods::default().run(cx, informer).await })
    };
    let c = Cluster { cx: cx.clone(), api: api.clone(), runtime: runtime.clone(), directory };
    c.create(json!({"containers": [{"name": "a", "image": "i:1"}]})).await;
    let before = c.wait("running", |p| phase(p) == "Running").await;
    first_pods.abort();
    // A sandbox of a pod that the API does not know.
    let mut config = coracle_cri::v1::PodSandboxConfig::default();
    config.labels.insert(names::POD_UID.into(), "vanished".into());
    cx.runtime.run_pod_sandbox(config).await.expect("sandbox");
    let again = Informers::new(api.client());
    run(&cx, &again);
    for _ in 0..500 {
        if runtime.count() == (1, 1) {
            let after = c.wait("still running", |p| phase(p) == "Running").await;
            assert_eq!(first(&after).container_id, first(&before).container_id);
            assert_eq!(first(&after).restart_count, 0);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the orphan stayed: {:?}", runtime.count());
}

#[test]
fn waits_are_printed_as_go_does() {
    let printed: Vec<String> = [10, 80, 300].map(go_seconds).into();
    assert_eq!(printed, ["10s", "1m20s", "5m0s"]);
}
