//! Volume protection: a claim that a pod uses, and a volume that a claim is bound to, stay until they are let go.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, Index, Informer};
use coracle_meta::{Status, pod as podutil};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use crate::finalizer::{self, Finalizer};
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of};

pub(crate) const CLAIMS: Descriptor = Descriptor { name: "pvc-protection-controller", workers: 1 };
pub(crate) const VOLUMES: Descriptor = Descriptor { name: "pv-protection-controller", workers: 1 };

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// Names of the claims that a pod uses: named ones, and those made for its ephemeral volumes.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let name = |volume: &k8s_openapi::api::core::v1::Volume| match (
        &volume.persistent_volume_claim,
        &volume.ephemeral,
    ) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", name_of(pod), volume.name)),
        (None, None) => None,
    };
    volumes.filter_map(name).collect()
}

/// Pods by `namespace/claim`.
pub(crate) fn pods_by_claim(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    claims_of(pod).into_iter().map(|claim| format!("{namespace}/{claim}")).collect()
}

/// Starts the controller of claims.
pub(crate) fn run_claims(cx: &Context) -> BoxFuture<'static, ()> {
    let (claims, pods) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<Pod>());
    let api = cx.client(CLAIMS.name).api::<PersistentVolumeClaim>();
    let reconciler = Arc::new(Claims {
        claims: claims.clone(),
        by_claim: pods.index("claim", pods_by_claim),
        pods: cx.client(CLAIMS.name).api(),
        api,
    });
    Controller::new(CLAIMS)
        .watch_primary(&claims)
        .watch(&pods, |change, enqueue| {
            let pod = change.object();
            let done = matches!(change, Change::Deleted(_)) || podutil::is_terminal(pod);
            if done {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
                claims_of(pod).iter().for_each(|claim| enqueue(ObjectKey::new(namespace, claim)));
            }
        })
        .run(reconciler)
        .boxed()
}

/// Starts the controller of volumes.
pub(crate) fn run_volumes(cx: &Context) -> BoxFuture<'static, ()> {
    let volumes = cx.informers.get::<PersistentVolume>();
    let reconciler = Arc::new(Volumes { volumes: volumes.clone(), api: cx.client(VOLUMES.name).api() });
    Controller::new(VOLUMES).watch_primary(&volumes).run(reconciler).boxed()
}

struct Claims {
    claims: Informer<PersistentVolumeClaim>,
    by_claim: Index<Pod>,
    pods: Api<Pod>,
    api: Api<PersistentVolumeClaim>,
}

/// Whether the pod holds its claims: it has not ended, and it is on a node or may still come there.
fn holds(pod: &Pod) -> bool {
    !podutil::is_terminal(pod) && podutil::node_name(pod).is_some()
}

#[async_trait]
impl Reconciler for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        let mut used =
            self.by_claim.get(&format!("{}/{}", key.namespace, key.name)).iter().any(|pod| holds(pod));
        if !used && finalizer::decide(&claim.metadata, CLAIM_FINALIZER, false) == Finalizer::Remove {
            // Only the API knows of pods that came a moment ago.
            let pods = self.pods.list(&key.namespace, coracle_client::ListOptions::default()).await?;
            used = pods.iter().any(|pod| holds(pod) && claims_of(pod).contains(&key.name));
        }
        let change = finalizer::decide(&claim.metadata, CLAIM_FINALIZER, used);
        finalizer::carry_out(&self.api, &claim, CLAIM_FINALIZER, &change).await?;
        Ok(Action::AwaitChange)
    }
}

struct Volumes {
    volumes: Informer<PersistentVolume>,
    api: Api<PersistentVolume>,
}

#[async_trait]
impl Reconciler for Volumes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let change = finalizer::decide(&volume.metadata, VOLUME_FINALIZER, phase == Some("Bound"));
        finalizer::carry_out(&self.api, &volume, VOLUME_FINALIZER, &change).await?;
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::DeleteOptions;
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use serde_json::json;

    use super::*;
    use crate::testing::{context, eventually};

    #[tokio::test(start_paused = true)]
    async fn a_claim_stays_while_a_pod_uses_it() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run_claims(&context(&fake)));
        let (claims, pods) = (client.api::<PersistentVolumeClaim>(), client.api::<Pod>());
        let claim = json!({ "metadata": { "name": "data" }, "spec": {} });
        claims.create("ns", serde_json::from_value(claim).expect("valid")).await.expect("created");
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "containers": [],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] } });
        pods.create("ns", serde_json::from_value(pod).expect("valid")).await.expect("created");
        let finalizers = || async {
            claims.get("ns", "data").await.map(|c| c.metadata.finalizers.clone().unwrap_or_default().len())
        };
        eventually(|| async { finalizers().await.is_ok_and(|n| n == 1) }).await;
        claims.delete("ns", "data", DeleteOptions::default()).await.expect("deleted");
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(finalizers().await.is_ok(), "in use");
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        pods.delete("ns", "p", now).await.expect("deleted");
        eventually(|| async { finalizers().await.is_err() }).await;
        task.abort();
    }
}
