//! Ephemeral volumes: makes the claims of pods' own volumes; they go with the pod.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Informer};
use coracle_meta::owner::{controller_ref, is_controlled_by};
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, is_namespace_terminating, name_of, uid_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "ephemeral-volume-controller", workers: 2 };

/// Starts the controller. Its keys are pods.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (pods, claims) = (cx.informers.get::<Pod>(), cx.informers.get::<PersistentVolumeClaim>());
    let reconciler = Arc::new(Ephemeral {
        pods: pods.clone(),
        claims: claims.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, "ephemeral_volume"),
    });
    Controller::new(DESCRIPTOR)
        .watch(&pods, |change, enqueue| {
            let pod = change.object();
            if matches!(change, Change::Added(_)) && !wanted(pod).is_empty() {
                enqueue(ObjectKey::of(&pod.metadata));
            }
        })
        .watch_owned(&claims, "Pod")
        .run(reconciler)
        .boxed()
}

/// The claims that a pod's own volumes need.
fn wanted(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        let meta = template.metadata.clone().unwrap_or_default();
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", name_of(pod), volume.name)),
                namespace: pod.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: meta.annotations,
                owner_references: Some(vec![controller_ref(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        })
    };
    volumes.filter_map(claim).collect()
}

struct Ephemeral {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    api: Api<PersistentVolumeClaim>,
    events: EventRecorder,
}

#[async_trait]
impl Reconciler for Ephemeral {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Action::AwaitChange);
        }
        for claim in wanted(&pod) {
            let name = name_of(&claim).to_owned();
            if let Some(known) = self.claims.get(&key.namespace, &name) {
                if !is_controlled_by(&known.metadata, uid_of(&*pod)) {
                    return Err(Status::internal(format!(
                        "PVC \"{}/{name}\" was not created for pod \"{}/{}\" (pod is not owner)",
                        key.namespace, key.namespace, key.name
                    )));
                }
                continue;
            }
            match self.api.create(&key.namespace, claim).await {
                Ok(_) => {}
                Err(status) if status.reason() == Reason::AlreadyExists => return Err(status),
                Err(status) if is_namespace_terminating(&status) => return Ok(Action::AwaitChange),
                Err(status) => {
                    let message =
                        format!("ephemeral volume controller failed to create PVC {name}: {status}");
                    self.events.event(
                        &*pod,
                        EventType::Warning,
                        "EphemeralVolumeClaimCreationFailed",
                        message,
                    );
                    return Err(status);
                }
            }
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_own_volume_gets_a_claim_that_the_pod_owns() {
        let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" }, "spec": { "containers": [],
            "volumes": [{ "name": "scratch", "ephemeral": { "volumeClaimTemplate": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "accessModes": ["ReadWriteOnce"] } } } }] } });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let claims = wanted(&pod);
        assert_eq!(claims.len(), 1);
        assert_eq!(name_of(&claims[0]), "p-scratch");
        assert!(is_controlled_by(&claims[0].metadata, "u"));
    }
}
