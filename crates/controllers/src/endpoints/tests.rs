//! Tests of the Endpoints decision, and of both controllers over the in-memory transport.

use coracle_client::testing::FakeTransport;
use coracle_client::{ListOptions, PatchKind};
use coracle_stdx::Clock;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::*;
use crate::testing::{context, eventually};

fn service() -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "ns" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    }))
    .expect("a service")
}

fn pod(name: &str, ip: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "ns", "labels": { "app": "web" } },
        "spec": { "nodeName": "n1", "containers": [] }, "status": { "phase": "Running", "podIP": ip },
    }))
    .expect("a pod")
}

#[test]
fn ready_and_unready_addresses_share_a_subset_and_are_sorted() {
    let mut ready = pod("b", "10.0.0.20");
    ready.status.as_mut().expect("status").conditions =
        serde_json::from_value(json!([{ "type": "Ready", "status": "True" }])).expect("conditions");
    let pods = [Arc::new(pod("a", "10.0.0.3")), Arc::new(ready), Arc::new(pod("c", "10.0.0.1"))];
    let wanted = decide(&service(), &pods, None).expect("written");
    let subsets = wanted.subsets.clone().expect("subsets");
    assert_eq!(subsets.len(), 1);
    let ips = |list: &Option<Vec<EndpointAddress>>| {
        list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ips(&subsets[0].addresses), ["10.0.0.20"]);
    assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.1", "10.0.0.3"]);
    assert!(decide(&service(), &pods, Some(&wanted)).is_none());
}

#[tokio::test(start_paused = true)]
async fn both_controllers_follow_readiness() {
    let fake = FakeTransport::new(Clock::system());
    let (client, cx) = (fake.client(), context(&fake));
    let tasks = [tokio::spawn(run(&cx)), tokio::spawn(slices::run(&cx))];
    client.api::<Service>().create("ns", service()).await.expect("created");
    let pods = client.api::<Pod>();
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        pods.create("ns", pod(name, ip)).await.expect("created");
    }
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    pods.patch_status("ns", "a", PatchKind::Merge, ready).await.expect("patched");
    let (endpoints, slices) = (client.api::<Endpoints>(), client.api::<EndpointSlice>());
    eventually(|| async {
        let Ok(found) = endpoints.get("ns", "web").await else { return false };
        let slices = slices.list("ns", ListOptions::default()).await.expect("listed");
        let subset = found.subsets.as_ref().map(|subsets| subsets[0].clone()).unwrap_or_default();
        let endpoints: Vec<_> = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).collect();
        let ready = endpoints.iter().filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
        subset.addresses.is_some_and(|a| a.len() == 1)
            && subset.not_ready_addresses.is_some_and(|a| a.len() == 1)
            && (slices.len(), endpoints.len(), ready.count()) == (1, 2, 1)
    })
    .await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
