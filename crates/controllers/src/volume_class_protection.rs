//! Protection of VolumeAttributesClasses: one that a claim or a volume names stays until it is let go.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Informer, ListOptions};
use coracle_meta::Status;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::finalizer::{self, Finalizer};
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of};

const CLASSES: Descriptor = Descriptor { name: "volumeattributesclass-protection-controller", workers: 1 };
const FINALIZER: &str = "kubernetes.io/vac-protection";

/// Names of the classes that a claim has, had until its volume is changed, or is being given.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let asked = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_deref());
    let target = status.and_then(|s| s.modify_volume_status.as_ref());
    let target = target.and_then(|m| m.target_volume_attributes_class_name.as_deref());
    [asked, current, target].into_iter().flatten().collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let classes = cx.informers.get::<VolumeAttributesClass>();
    let client = cx.client(CLASSES.name);
    let reconciler = Arc::new(Classes {
        classes: classes.clone(),
        claims: client.api(),
        volumes: client.api(),
        api: client.api(),
    });
    // What lets go of a class names it no longer: whatever changes, the classes that wait are looked at.
    let waiting = move |enqueue: &mut dyn FnMut(ObjectKey)| {
        let going = classes.list().into_iter().filter(|c| c.metadata.deletion_timestamp.is_some());
        going.for_each(|class| enqueue(ObjectKey::new("", name_of(&*class))));
    };
    let of_volumes = waiting.clone();
    Controller::new(CLASSES)
        .watch_primary(&cx.informers.get::<VolumeAttributesClass>())
        .watch(&cx.informers.get::<PersistentVolumeClaim>(), move |_, enqueue| waiting(enqueue))
        .watch(&cx.informers.get::<PersistentVolume>(), move |_, enqueue| of_volumes(enqueue))
        .run(reconciler)
        .boxed()
}

struct Classes {
    classes: Informer<VolumeAttributesClass>,
    claims: Api<PersistentVolumeClaim>,
    volumes: Api<PersistentVolume>,
    api: Api<VolumeAttributesClass>,
}

#[async_trait]
impl Reconciler for Classes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(class) = self.classes.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let mut used = false;
        if finalizer::decide(&class.metadata, FINALIZER, false) == Finalizer::Remove {
            let name = key.name.as_str();
            let claims = self.claims.list("", ListOptions::default()).await?;
            used = claims.iter().any(|claim| classes_of_claim(claim).contains(&name))
                || self
                    .volumes
                    .list("", ListOptions::default())
                    .await?
                    .iter()
                    .any(|v| class_of_volume(v) == Some(name));
        }
        let change = finalizer::decide(&class.metadata, FINALIZER, used);
        finalizer::carry_out(&self.api, &class, FINALIZER, &change).await?;
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
    async fn a_class_stays_while_a_claim_names_it() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run(&context(&fake)));
        let (classes, claims) =
            (client.api::<VolumeAttributesClass>(), client.api::<PersistentVolumeClaim>());
        let class = json!({ "metadata": { "name": "gold" }, "driverName": "d", "parameters": { "a": "b" } });
        classes.create("", serde_json::from_value(class).expect("valid")).await.expect("created");
        let claim =
            json!({ "metadata": { "name": "data" }, "spec": { "volumeAttributesClassName": "gold" } });
        claims.create("ns", serde_json::from_value(claim).expect("valid")).await.expect("created");
        let finalizers = || async {
            classes.get("", "gold").await.map(|c| c.metadata.finalizers.clone().unwrap_or_default().len())
        };
        eventually(|| async { finalizers().await.is_ok_and(|n| n == 1) }).await;
        classes.delete("", "gold", DeleteOptions::default()).await.expect("deleted");
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(finalizers().await.is_ok(), "in use");
        claims.delete("ns", "data", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { finalizers().await.is_err() }).await;
        task.abort();
    }
}
