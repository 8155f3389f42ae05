//! Resource claims: makes the claims that pods' templates ask for, and takes back claims from pods that no longer need
//! them.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Informer, PatchKind};
use coracle_meta::owner::{controller_of, controller_ref, is_controlled_by};
use coracle_meta::{Reason, Status, pod as podutil};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found,
    is_namespace_terminating, name_of, uid_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "resource-claim-controller", workers: 10 };

/// Names, on a claim made for a pod, which of the pod's claims it is.
const CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps an allocated claim until the allocation is taken back.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Longest name that still has room for a hyphen and five characters.
const LONGEST: usize = 57;

/// Starts the part that looks at pods.
pub(crate) fn run_pods(cx: &Context) -> BoxFuture<'static, ()> {
    let (pods, claims) = (cx.informers.get::<Pod>(), cx.informers.get::<ResourceClaim>());
    let templates = cx.informers.get::<ResourceClaimTemplate>();
    let client = cx.client(DESCRIPTOR.name);
    let by_template = pods.index("resource claim template", by_template);
    let reconciler = Arc::new(Pods {
        pods: pods.clone(),
        claims: claims.clone(),
        templates: templates.clone(),
        api: client.api(),
        pod_api: client.api(),
        events: cx.recorder_as(DESCRIPTOR.name, "resource_claim"),
    });
    Controller::new(DESCRIPTOR)
        .watch(&pods, |change, enqueue| {
            if !matches!(change, Change::Deleted(_)) && claims_of(change.object()).next().is_some() {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .watch_owned(&claims, "Pod")
        .watch(&templates, move |change, enqueue| {
            let key = ObjectKey::of(&change.object().metadata).to_string();
            by_template.get(&key).iter().for_each(|pod| enqueue(ObjectKey::of(&pod.metadata)));
        })
        .run(reconciler)
        .boxed()
}

/// Starts the part that looks at claims.
pub(crate) fn run_claims(cx: &Context) -> BoxFuture<'static, ()> {
    let (pods, claims) = (cx.informers.get::<Pod>(), cx.informers.get::<ResourceClaim>());
    let client = cx.client(DESCRIPTOR.name);
    let by_pod = claims.index("pod", users_of);
    let reconciler = Arc::new(Claims {
        pods: pods.clone(),
        claims: claims.clone(),
        api: client.api(),
        pod_api: client.api(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&claims)
        .watch(&pods, move |change, enqueue| {
            if matches!(change, Change::Deleted(_)) || is_done(change.object()) {
                let claims = by_pod.get(uid_of(&**change.object()));
                claims.iter().for_each(|claim| enqueue(ObjectKey::of(&claim.metadata)));
            }
        })
        .run(reconciler)
        .boxed()
}

fn claims_of(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// `namespace/template` of what a pod's claims are made from.
fn by_template(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let names = claims_of(pod).filter_map(|claim| claim.resource_claim_template_name.as_ref());
    names.map(|name| format!("{namespace}/{name}")).collect()
}

/// Uids of the pods that a claim is reserved or made for.
fn users_of(claim: &ResourceClaim) -> Vec<String> {
    let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
    let mut users: Vec<String> = reserved(claim).iter().map(|consumer| consumer.uid.clone()).collect();
    users.extend(owner.map(|owner| owner.uid.clone()));
    users
}

fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or(&[])
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

fn is_protected(claim: &ResourceClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Whether a pod will not run (again).
fn is_done(pod: &Pod) -> bool {
    podutil::is_terminal(pod)
        || (pod.metadata.deletion_timestamp.is_some() && podutil::node_name(pod).is_none())
}

fn is_pod(consumer: &ResourceClaimConsumerReference) -> bool {
    consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or("").is_empty()
}

/// The first part of the name of a claim made for a pod: what is too long is cut from both in proportion.
fn base_name(pod: &str, claim: &str) -> String {
    let whole = pod.len() + 1 + claim.len();
    let part = |name: &str| {
        let to = if whole > LONGEST { name.len() * LONGEST / whole } else { name.len() };
        name[..to].to_owned()
    };
    format!("{}-{}-", part(pod), part(claim))
}

/// The claim that a template asks for.
fn made(pod: &Pod, name: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(CLAIM_NAME.to_owned(), name.to_owned());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base_name(name_of(pod), name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

struct Pods {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    api: Api<ResourceClaim>,
    pod_api: Api<Pod>,
    events: EventRecorder,
}

impl Pods {
    /// The name of the claim that was made for one of a pod's claims; makes it if need be.
    async fn claim(&self, pod: &Pod, wanted: &PodResourceClaim, template: &str) -> Result<String, Status> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let is_it = |claim: &&Arc<ResourceClaim>| {
            let annotations = claim.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(CLAIM_NAME)) == Some(&wanted.name)
                && is_controlled_by(&claim.metadata, uid_of(pod))
        };
        if let Some(known) = self.claims.list_namespace(namespace).iter().find(is_it) {
            return Ok(name_of(&**known).to_owned());
        }
        let Some(template) = self.templates.get(namespace, template) else {
            let why = Status::not_found("resource.k8s.io", "resourceclaimtemplate", template);
            return Err(Status::internal(format!("resource claim template {template:?}: {why}")));
        };
        let claim = self.api.create(namespace, made(pod, &wanted.name, &template)).await?;
        Ok(name_of(&*claim).to_owned())
    }

    /// Reserves allocated claims for a pod that came to its node without the scheduler.
    async fn reserve(&self, pod: &Pod, names: &[String]) -> Result<(), Status> {
        if podutil::node_name(pod).is_none() || is_done(pod) {
            return Ok(());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        for name in names {
            let Some(claim) = self.claims.get(namespace, name) else { continue };
            if !is_allocated(&claim) || reserved(&claim).iter().any(|consumer| consumer.uid == uid_of(pod)) {
                continue;
            }
            let mut new = (*claim).clone();
            let consumer = ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: name_of(pod).to_owned(),
                uid: uid_of(pod).to_owned(),
            };
            new.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
            self.api.update_status(namespace, new).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Pods {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        if pod.metadata.deletion_timestamp.is_some() || is_done(&pod) {
            return Ok(Action::AwaitChange);
        }
        let told =
            pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or(&[]);
        let (mut names, mut new) = (Vec::new(), false);
        let mut statuses = told.to_vec();
        for wanted in claims_of(&pod) {
            if let Some(name) = &wanted.resource_claim_name {
                names.push(name.clone());
            }
            let Some(template) = &wanted.resource_claim_template_name else { continue };
            if let Some(known) = told.iter().find(|status| status.name == wanted.name) {
                names.extend(known.resource_claim_name.clone());
                continue;
            }
            match self.claim(&pod, wanted, template).await {
                Err(status) if is_namespace_terminating(&status) => return Ok(Action::AwaitChange),
                Err(status) => {
                    let message = format!("PodResourceClaim {}: {}", wanted.name, status.message());
                    self.events.event(&*pod, EventType::Warning, "FailedResourceClaimCreation", message);
                    return Err(status);
                }
                Ok(name) => {
                    new = true;
                    names.push(name.clone());
                    let name = Some(name);
                    statuses.push(k8s_openapi::api::core::v1::PodResourceClaimStatus {
                        name: wanted.name.clone(),
                        resource_claim_name: name,
                    });
                }
            }
        }
        if new {
            let patch = json!({ "metadata": { "uid": uid_of(&*pod) },
                "status": { "resourceClaimStatuses": statuses } });
            let outcome =
                self.pod_api.patch_status(&key.namespace, &key.name, PatchKind::Strategic, patch).await;
            ignore_not_found(outcome)?;
        }
        self.reserve(&pod, &names).await?;
        Ok(Action::AwaitChange)
    }
}

struct Claims {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    api: Api<ResourceClaim>,
    pod_api: Api<Pod>,
}

impl Claims {
    /// Whether a consumer still needs the claim. What is not known here is asked of the API before it loses anything.
    async fn needs(
        &self,
        namespace: &str,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, Status> {
        if !is_pod(consumer) {
            return Ok(true);
        }
        let is = |pod: &Pod| uid_of(pod) == consumer.uid && !is_done(pod);
        if let Some(pod) =
            self.pods.get(namespace, &consumer.name).filter(|pod| uid_of(&**pod) == consumer.uid)
        {
            return Ok(is(&pod));
        }
        match self.pod_api.get(namespace, &consumer.name).await {
            Err(status) if status.reason() == Reason::NotFound => Ok(false),
            pod => Ok(is(&*pod?)),
        }
    }

    /// Takes the allocation back, then the finalizer that kept the claim for it.
    async fn release(&self, claim: ResourceClaim) -> Result<(), Status> {
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let written = self.api.update_status(&namespace, claim).await?;
        if is_protected(&written) && !is_allocated(&written) {
            let mut free = (*written).clone();
            free.metadata.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
            ignore_not_found(self.api.update(&namespace, free).await)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        let mut left = Vec::new();
        for consumer in reserved(&claim) {
            if self.needs(&key.namespace, consumer).await? {
                left.push(consumer.clone());
            }
        }
        let (unused, deleted) = (left.is_empty(), claim.metadata.deletion_timestamp.is_some());
        if left.len() < reserved(&claim).len() || (unused && deleted && is_protected(&claim)) {
            let mut new = (*claim).clone();
            let status = new.status.get_or_insert_default();
            status.reserved_for = Some(left).filter(|left| !left.is_empty());
            if unused && is_protected(&claim) {
                status.allocation = None;
            }
            self.release(new).await?;
        }
        let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod" && unused && !deleted);
        if let Some(owner) = owner {
            // Garbage collection takes claims of pods that are gone; this one of pods that stay, but are done.
            let pod = self.pods.get(&key.namespace, &owner.name);
            if pod.is_some_and(|pod| uid_of(&*pod) != owner.uid || is_done(&pod)) {
                let options = DeleteOptions { uid: claim.metadata.uid.clone(), ..DeleteOptions::default() };
                ignore_not_found(self.api.delete(&key.namespace, &key.name, options).await)?;
            }
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::ListOptions;
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;

    use super::*;
    use crate::testing::{context, eventually};

    #[test]
    fn long_names_are_cut_in_proportion() {
        assert_eq!(base_name("pod", "gpu"), "pod-gpu-");
        let long = base_name(&"p".repeat(100), &"c".repeat(20));
        assert_eq!(long, format!("{}-{}-", "p".repeat(47), "c".repeat(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_made_from_its_template_and_goes_when_its_pod_is_done() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let cx = context(&fake);
        let tasks = [tokio::spawn(run_pods(&cx)), tokio::spawn(run_claims(&cx))];
        let (claims, pods) = (client.api::<ResourceClaim>(), client.api::<Pod>());
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "containers": [],
            "resourceClaims": [{ "name": "gpu", "resourceClaimTemplateName": "one" }] } });
        pods.create("ns", serde_json::from_value(pod).expect("a pod")).await.expect("created");
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(
            claims.list("ns", ListOptions::default()).await.expect("listed").is_empty(),
            "no template yet"
        );
        let template = json!({ "metadata": { "name": "one" }, "spec": {
            "metadata": { "labels": { "a": "b" } }, "spec": { "devices": {} } } });
        let template: ResourceClaimTemplate = serde_json::from_value(template).expect("a template");
        client.api::<ResourceClaimTemplate>().create("ns", template).await.expect("created");
        let one =
            || async { claims.list("ns", ListOptions::default()).await.expect("listed").first().cloned() };
        eventually(|| async { one().await.is_some() }).await;
        let name = name_of(&*one().await.expect("made")).to_owned();
        assert!(name.starts_with("p-gpu-"));
        eventually(|| async {
            let pod = pods.get("ns", "p").await.expect("there");
            let told = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_ref()?.first().cloned());
            told.and_then(|told| told.resource_claim_name) == Some(name.clone())
        })
        .await;
        // A scheduler allocates it; the pod is on its node already, so the controller reserves it.
        let allocated = json!({ "metadata": { "finalizers": [FINALIZER] } });
        claims.patch("ns", &name, PatchKind::Merge, allocated).await.expect("changed");
        let allocated = json!({ "status": { "allocation": { "devices": {} } } });
        claims.patch_status("ns", &name, PatchKind::Merge, allocated).await.expect("changed");
        eventually(|| async { one().await.is_some_and(|claim| reserved(&claim).len() == 1) }).await;
        let done = json!({ "status": { "phase": "Succeeded" } });
        pods.patch_status("ns", "p", PatchKind::Merge, done).await.expect("changed");
        eventually(|| async { one().await.is_none() }).await;
        assert_eq!(claims.list("ns", ListOptions::default()).await.expect("listed").len(), 0);
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
