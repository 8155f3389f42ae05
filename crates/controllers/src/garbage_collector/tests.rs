//! Tests of garbage collection over the in-memory transport.

use coracle_client::testing::FakeTransport;
use coracle_client::{Api, ResourceId};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::*;
use crate::testing::{context_with, eventually};

struct Fixture {
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// ConfigMaps own Secrets.
fn fixture() -> Fixture {
    let fake = FakeTransport::new(Clock::system());
    let entry = |id, kind| ResourceEntry { id, namespaced: true, kind };
    let resources =
        vec![entry(ResourceId::of::<ConfigMap>(), "ConfigMap"), entry(ResourceId::of::<Secret>(), "Secret")];
    let task = tokio::spawn(run(&context_with(&fake, resources)));
    Fixture { maps: fake.client().api(), secrets: fake.client().api(), task }
}

impl Fixture {
    async fn owner(&self, name: &str) -> String {
        let map = json!({ "metadata": { "name": name } });
        let map = self.maps.create("ns", serde_json::from_value(map).expect("valid")).await;
        map.expect("created").metadata.uid.clone().expect("set")
    }

    async fn dependent(&self, name: &str, owners: &[(&str, &str)]) {
        let reference = |(name, uid): &(&str, &str)| {
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid,
                "blockOwnerDeletion": true })
        };
        let owners: Vec<Value> = owners.iter().map(reference).collect();
        let secret = json!({ "metadata": { "name": name, "ownerReferences": owners } });
        let secret = serde_json::from_value(secret).expect("valid");
        self.secrets.create("ns", secret).await.expect("created");
    }

    async fn delete(&self, name: &str, policy: &str) {
        let options =
            DeleteOptions { propagation_policy: Some(policy.to_owned()), ..DeleteOptions::default() };
        self.maps.delete("ns", name, options).await.expect("deleted");
    }

    async fn owners_of(&self, name: &str) -> Option<usize> {
        let secret = self.secrets.get("ns", name).await.ok()?;
        Some(secret.metadata.owner_references.as_ref().map_or(0, Vec::len))
    }
}

#[tokio::test(start_paused = true)]
async fn a_dependent_goes_with_its_last_owner() {
    let f = fixture();
    let (a, b) = (f.owner("a").await, f.owner("b").await);
    f.dependent("both", &[("a", &a), ("b", &b)]).await;
    f.dependent("only", &[("a", &a)]).await;
    f.delete("a", "Background").await;
    eventually(|| async { f.owners_of("only").await.is_none() && f.owners_of("both").await == Some(1) })
        .await;
    f.delete("b", "Background").await;
    eventually(|| async { f.owners_of("both").await.is_none() }).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_deleted_in_the_foreground_goes_after_its_dependents() {
    let f = fixture();
    let a = f.owner("a").await;
    f.dependent("held", &[("a", &a)]).await;
    let hold = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
    f.secrets.patch("ns", "held", PatchKind::Merge, hold).await.expect("patched");
    f.delete("a", "Foreground").await;
    let leaving =
        || async { f.secrets.get("ns", "held").await.is_ok_and(|s| s.metadata.deletion_timestamp.is_some()) };
    eventually(leaving).await;
    assert!(f.maps.get("ns", "a").await.is_ok());
    let free = json!({ "metadata": { "finalizers": null } });
    f.secrets.patch("ns", "held", PatchKind::Merge, free).await.expect("patched");
    eventually(|| async { f.maps.get("ns", "a").await.is_err() }).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_lose_their_owner_and_live_on() {
    let f = fixture();
    let a = f.owner("a").await;
    f.dependent("free", &[("a", &a)]).await;
    f.delete("a", "Orphan").await;
    eventually(|| async { f.maps.get("ns", "a").await.is_err() }).await;
    assert_eq!(f.owners_of("free").await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_never_was_does_not_keep_its_dependents() {
    let f = fixture();
    f.owner("a").await;
    f.dependent("lost", &[("a", "another-uid")]).await;
    eventually(|| async { f.owners_of("lost").await.is_none() }).await;
}
