//! Releases pods that no Job counts any more, because it is gone or over: the finalizer would keep them for ever.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, Index, Informer, PatchKind};
use coracle_meta::owner::controller_of;
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::tally::{FINALIZER, finished, is_tracked};
use super::{DESCRIPTOR, is_foreign};
use crate::claim::owner_keys;
use crate::runtime::{Action, Context, Controller, ObjectKey, Reconciler, name_of, uid_of};

/// Starts the controller. Its keys are pods.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (jobs, pods) = (cx.informers.get::<Job>(), cx.informers.get::<Pod>());
    let by_owner = pods.index("controller", owner_keys);
    let reconciler =
        Arc::new(Orphans { jobs: jobs.clone(), pods: pods.clone(), api: cx.client(DESCRIPTOR.name).api() });
    let owned: Index<Pod> = by_owner;
    Controller::new(DESCRIPTOR)
        .watch(&jobs, move |change, enqueue| {
            let job = change.object();
            let over = job.status.as_ref().is_some_and(|status| finished(status).is_some());
            if matches!(change, Change::Deleted(_)) || over {
                for pod in owned.get(uid_of(&**job)).iter().filter(|pod| is_tracked(pod)) {
                    enqueue(ObjectKey::of(&pod.metadata));
                }
            }
        })
        .watch(&pods, |change, enqueue| {
            let pod = change.object();
            if !matches!(change, Change::Deleted(_)) && is_tracked(pod) {
                enqueue(ObjectKey::of(&pod.metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

/// Takes the finalizer from a pod; one that is gone is no failure.
pub(super) async fn remove_finalizer(api: &Api<Pod>, pod: &Pod) -> Result<(), Status> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let meta = json!({ "$deleteFromPrimitiveList/finalizers": [FINALIZER], "uid": pod.metadata.uid });
    match api.patch(namespace, name_of(pod), PatchKind::Strategic, json!({ "metadata": meta })).await {
        // A conflict is about the uid: the pod is gone, and another one has its name.
        Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) => Err(status),
        _ => Ok(()),
    }
}

struct Orphans {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    api: Api<Pod>,
}

#[async_trait]
impl Reconciler for Orphans {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name).filter(|pod| is_tracked(pod)) else {
            return Ok(Action::AwaitChange);
        };
        let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job");
        let job = owner.and_then(|owner| {
            let job = self.jobs.get(&key.namespace, &owner.name)?;
            (uid_of(&*job) == owner.uid).then_some(job)
        });
        let counted = job.is_some_and(|job| {
            is_foreign(&job) || job.status.as_ref().is_none_or(|status| finished(status).is_none())
        });
        if counted {
            return Ok(Action::AwaitChange);
        }
        remove_finalizer(&self.api, &pod).await?;
        Ok(Action::AwaitChange)
    }
}
