//! Volume expansion: tells of a claim that asks for more than it has that whoever made its volume must make it
//! larger. No volume that this program makes by itself can grow; CSI drivers' resizers do it on their own.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Informer};
use coracle_meta::Status;
use coracle_meta::quantity::Quantity;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "expand-controller", workers: 10 };
const COMPONENT: &str = "volume_expand";
const STORAGE: &str = "storage";

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

fn asked(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Quantity::parse(&requests.get(STORAGE)?.0).ok()
}

fn has(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    Quantity::parse(&claim.status.as_ref()?.capacity.as_ref()?.get(STORAGE)?.0).ok()
}

/// Whether a change of a claim may mean that its volume has to grow.
fn concerns(change: &Change<PersistentVolumeClaim>) -> bool {
    match change {
        Change::Added(claim) => is_bound(claim),
        Change::Modified { old, new } => is_bound(new) && (asked(new) > asked(old) || has(new) > has(old)),
        Change::Deleted(_) => false,
    }
}

/// Whether a bound claim asks for more than it has of a volume that is its own.
fn waits(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let is_own =
        of.is_some_and(|of| of.namespace == claim.metadata.namespace && of.uid == claim.metadata.uid);
    is_own && asked(claim) > has(claim)
}

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let claims = cx.informers.get::<PersistentVolumeClaim>();
    let reconciler = Arc::new(Expander {
        claims: claims.clone(),
        volumes: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
    });
    Controller::new(DESCRIPTOR)
        .watch(&claims, |change, enqueue| {
            if concerns(change) {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

struct Expander {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Api<PersistentVolume>,
    events: EventRecorder,
}

#[async_trait]
impl Reconciler for Expander {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name).filter(|claim| is_bound(claim)) else {
            return Ok(Action::AwaitChange);
        };
        if asked(&claim) <= has(&claim) {
            return Ok(Action::AwaitChange);
        }
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
        let volume = self.volumes.get("", name).await?;
        if waits(&claim, &volume) {
            let is_csi = volume.spec.as_ref().is_some_and(|s| s.csi.is_some() || s.flex_volume.is_some());
            let kind = if is_csi { EventType::Normal } else { EventType::Warning };
            let message = "waiting for an external controller to expand this PVC";
            self.events.event(&*claim, kind, "ExternalExpanding", message);
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::ListOptions;
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use k8s_openapi::api::core::v1::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{context, eventually};

    fn claim(asked: &str, has: &str) -> Value {
        json!({ "metadata": { "name": "data", "namespace": "ns", "uid": "u" },
            "spec": { "volumeName": "pv", "resources": { "requests": { "storage": asked } } },
            "status": { "phase": "Bound", "capacity": { "storage": has } } })
    }

    fn of<K: coracle_meta::Kind>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn volume(uid: &str) -> PersistentVolume {
        of(json!({ "metadata": { "name": "pv" }, "spec": { "csi": { "driver": "d", "volumeHandle": "h" },
            "claimRef": { "namespace": "ns", "name": "data", "uid": uid } } }))
    }

    #[test]
    fn only_a_claim_that_asks_for_more_of_its_own_volume_waits() {
        assert!(waits(&of(claim("2Gi", "1Gi")), &volume("u")));
        assert!(!waits(&of(claim("1Gi", "1024Mi")), &volume("u")), "it has what it asks for");
        assert!(!waits(&of(claim("2Gi", "1Gi")), &volume("other")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_grows_is_told_who_must_act() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        client.api().create("", volume("u")).await.expect("created");
        let made =
            client.api::<PersistentVolumeClaim>().create("ns", of(claim("1Gi", "1Gi"))).await.expect("made");
        let own = json!({ "spec": { "claimRef": { "uid": made.metadata.uid } } });
        let merge = coracle_client::PatchKind::Merge;
        client.api::<PersistentVolume>().patch("", "pv", merge, own).await.expect("bound");
        let task = tokio::spawn(run(&context(&fake)));
        let more = json!({ "spec": { "resources": { "requests": { "storage": "3Gi" } } } });
        client.api::<PersistentVolumeClaim>().patch("ns", "data", merge, more).await.expect("changed");
        eventually(|| async {
            let events = client.api::<Event>().list("ns", ListOptions::default()).await.expect("listed");
            events.iter().any(|event| event.reason.as_deref() == Some("ExternalExpanding"))
        })
        .await;
        task.abort();
    }
}
