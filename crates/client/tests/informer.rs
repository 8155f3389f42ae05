//! What informers promise, checked over the in-memory transport.

use std::collections::BTreeMap;

use coracle_client::testing::FakeTransport;
use coracle_client::{Change, DeleteOptions, Informers, ListOptions, PatchKind};
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([("v".into(), value.into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("k".into(), value.into())])),
        ..ConfigMap::default()
    }
}

fn text(change: &Change<ConfigMap>) -> String {
    let name = change.object().metadata.name.clone().unwrap_or_default();
    match change {
        Change::Added(_) => format!("+{name}"),
        Change::Modified { .. } => format!("~{name}"),
        Change::Deleted(_) => format!("-{name}"),
    }
}

#[tokio::test(start_paused = true)]
async fn subscribers_see_present_objects_then_changes_in_order() {
    let fake = FakeTransport::new(Clock::system());
    let api = fake.client().api::<ConfigMap>();
    api.create("ns", config_map("a", "1")).await.expect("created");
    let informer = Informers::new(fake.client()).get::<ConfigMap>();
    informer.wait_synced().await;
    let mut changes = informer.subscribe();
    let b = api.create("ns", config_map("b", "1")).await.expect("created");
    api.patch("ns", "a", PatchKind::Merge, json!({"data": {"k": "2"}})).await.expect("patched");
    api.delete("ns", "b", DeleteOptions::default()).await.expect("deleted");
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(text(&changes.next().await.expect("a change")));
    }
    assert_eq!(seen, ["+a", "+b", "~a", "-b"]);
    assert!(informer.get("ns", "b").is_none());
    assert!(
        informer.revision() > b.metadata.resource_version.as_ref().expect("set").parse().expect("number")
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_misses_nothing_whether_resumed_or_listed_again() {
    let fake = FakeTransport::new(Clock::system());
    let api = fake.client().api::<ConfigMap>();
    for name in ["a", "b"] {
        api.create("ns", config_map(name, "1")).await.expect("created");
    }
    let informer = Informers::new(fake.client()).get::<ConfigMap>();
    informer.wait_synced().await;
    let mut changes = informer.subscribe();
    for compacted in [false, true] {
        while changes.try_next().is_some() {}
        fake.cut_watches(&Status::unavailable("restarting"));
        api.delete("ns", "a", DeleteOptions::default()).await.expect("deleted");
        api.delete("ns", "b", DeleteOptions::default()).await.expect("deleted");
        api.create("ns", config_map("b", "2")).await.expect("created");
        if compacted {
            fake.compact();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(text(&changes.next().await.expect("a change")));
        }
        seen.sort();
        assert_eq!(seen, ["+b", "-a", "-b"], "compacted: {compacted}");
        api.create("ns", config_map("a", "1")).await.expect("created");
        assert_eq!(text(&changes.next().await.expect("a change")), "+a");
    }
}

#[tokio::test(start_paused = true)]
async fn a_filtered_informer_follows_objects_into_and_out_of_its_selection() {
    let fake = FakeTransport::new(Clock::system());
    let api = fake.client().api::<ConfigMap>();
    let selector = ListOptions { label_selector: "v=1".into(), ..ListOptions::default() };
    let informers = Informers::new(fake.client());
    let informer = informers.filtered::<ConfigMap>("ns", selector.clone());
    let index = informer.index("value", |cm| cm.data.iter().flat_map(|d| d.values().cloned()).collect());
    informer.wait_synced().await;
    let mut changes = informer.subscribe();
    api.create("ns", config_map("a", "1")).await.expect("created");
    assert_eq!(text(&changes.next().await.expect("a change")), "+a");
    assert_eq!(index.get("1").len(), 1);
    let stale = api.get("ns", "a").await.expect("there");
    api.update("ns", config_map("a", "2")).await.expect("updated");
    assert_eq!(text(&changes.next().await.expect("a change")), "-a");
    assert!(index.get("1").is_empty());
    let conflict = api.update("ns", (*stale).clone()).await.expect_err("stale");
    assert_eq!(conflict.reason(), Reason::Conflict);
}
