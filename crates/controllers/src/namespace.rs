//! Namespace: empties a namespace that is being deleted, pods first, then lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, ApiRequest, ApiResponse, Change, Client, DeleteOptions, Informer, ListOptions, Verb,
};
use coracle_meta::{Object, Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::ResourceEntry;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found};
use crate::served::Served;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "namespace-controller", workers: 10 };

const FINALIZER: &str = "kubernetes";
/// How soon to look again whether the content is gone, where no event tells.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (namespaces, pods) = (cx.informers.get::<Namespace>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Reconcile {
        namespaces: namespaces.clone(),
        api: client.api(),
        client,
        served: cx.served.clone(),
        clock: cx.clock.clone(),
    });
    let terminating = namespaces.clone();
    Controller::new(DESCRIPTOR)
        .watch(&namespaces, |change, enqueue| {
            if is_terminating(change.object()) {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .watch(&pods, move |change, enqueue| {
            let Change::Deleted(pod) = change else { return };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            if terminating.get("", namespace).is_some_and(|namespace| is_terminating(&namespace)) {
                enqueue(ObjectKey::new("", namespace));
            }
        })
        .run(reconciler)
        .boxed()
}

/// Whether nothing may be created in the namespace any more.
pub(crate) fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

struct Reconcile {
    namespaces: Informer<Namespace>,
    api: Api<Namespace>,
    client: Client,
    served: Served,
    clock: Clock,
}

/// What is left in a namespace, and what could not be deleted.
#[derive(Debug, Default)]
struct Remains {
    /// Objects by `resource.group`.
    counts: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
    /// Why it is not known what else may be there.
    discovery: Option<String>,
}

impl Remains {
    fn note(&mut self, entry: &ResourceEntry, items: &[Arc<dyn Object>]) {
        if items.is_empty() {
            return;
        }
        *self.counts.entry(format!("{}.{}", entry.id.resource, entry.id.group)).or_default() += items.len();
        for finalizer in items.iter().flat_map(|item| item.meta().finalizers.iter().flatten()) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.failures.is_empty() && self.discovery.is_none()
    }
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(namespace) = self.namespaces.get("", &key.name) else { return Ok(Action::AwaitChange) };
        if !is_terminating(&namespace) || !has_finalizer(&namespace) {
            return Ok(Action::AwaitChange);
        }
        let remains = self.empty(&key.name).await;
        let status = decide(&namespace, &remains, self.clock.now());
        let mut current = (*namespace).clone();
        if namespace.status.as_ref() != Some(&status) {
            current.status = Some(status);
            match self.api.update_status("", current).await {
                Err(status) if status.reason() == Reason::NotFound => return Ok(Action::AwaitChange),
                outcome => current = (*outcome?).clone(),
            }
        }
        if !remains.is_empty() {
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        let spec = current.spec.get_or_insert_default();
        spec.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
        ignore_not_found(self.api.update_subresource("", "finalize", current).await)?;
        Ok(Action::AwaitChange)
    }
}

fn has_finalizer(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    finalizers.into_iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

impl Reconcile {
    /// Deletes what can be deleted now; what remains. Pods go first: they may need the rest to end well.
    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        let is_pod = |entry: &&ResourceEntry| entry.id.group.is_empty() && entry.id.resource == "pods";
        let all = self.served.all_now().await.unwrap_or_else(|status| {
            remains.discovery = Some(status.to_string());
            self.served.all()
        });
        let (pods, others): (Vec<_>, Vec<_>) = all.iter().filter(|entry| entry.namespaced).partition(is_pod);
        for entries in [pods, others] {
            for entry in entries {
                if let Err(status) = self.delete_all(namespace, entry, &mut remains).await {
                    remains.failures.push(format!("{}: {status}", entry.id.resource));
                }
            }
            if !remains.counts.is_empty() || !remains.failures.is_empty() {
                break;
            }
        }
        remains
    }

    async fn delete_all(
        &self,
        namespace: &str,
        entry: &ResourceEntry,
        remains: &mut Remains,
    ) -> Result<(), Status> {
        if self.list(namespace, entry).await?.is_empty() {
            return Ok(());
        }
        let options =
            DeleteOptions { propagation_policy: Some("Background".to_owned()), ..DeleteOptions::default() };
        let verb = Verb::DeleteCollection(options, ListOptions::default());
        ignore_not_found(self.send(namespace, entry, verb).await)?;
        remains.note(entry, &self.list(namespace, entry).await?);
        Ok(())
    }

    async fn send(&self, namespace: &str, entry: &ResourceEntry, verb: Verb) -> Result<ApiResponse, Status> {
        let (namespace, name) = (namespace.to_owned(), String::new());
        self.client.request(ApiRequest { resource: entry.id, namespace, name, subresource: "", verb }).await
    }

    async fn list(&self, namespace: &str, entry: &ResourceEntry) -> Result<Vec<Arc<dyn Object>>, Status> {
        match self.send(namespace, entry, Verb::List(ListOptions::default())).await {
            Ok(ApiResponse::List { items, .. }) => Ok(items),
            Ok(ApiResponse::Object(_) | ApiResponse::Status(_)) => Err(Status::internal("not a list")),
            // The resource went with its definition.
            Err(status) if status.reason() == Reason::NotFound => Ok(Vec::new()),
            Err(status) => Err(status),
        }
    }
}

/// Objects by what they have in common, as a message: `a has 1 resource instances, b has …`.
fn enumerate(counts: &BTreeMap<String, usize>, verb: &str) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(what, count)| format!("{what} {verb} {count} resource instances")).collect();
    parts.join(", ")
}

/// The status that tells what deletion waits for.
fn decide(namespace: &Namespace, remains: &Remains, now: Timestamp) -> NamespaceStatus {
    let mut status = namespace.status.clone().unwrap_or_default();
    status.phase = Some("Terminating".to_owned());
    let mut set = |kind: &str, bad: Option<(&str, String)>, good: (&str, &str)| {
        let (value, reason, message) = match bad {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", good.0, good.1.to_owned()),
        };
        set_condition(&mut status, kind, value, reason, message, now);
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        remains.discovery.as_ref().map(|why| ("DiscoveryFailed", why.clone())),
        ("ResourcesDiscovered", "All resources successfully discovered"),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        None,
        ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    );
    let failed = (!remains.failures.is_empty()).then(|| {
        let all = remains.failures.join(", ");
        (
            "ContentDeletionFailed",
            format!("Failed to delete all resource types, {} remaining: {all}", remains.failures.len()),
        )
    });
    set(
        "NamespaceDeletionContentFailure",
        failed,
        ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    );
    let counts = (!remains.counts.is_empty()).then(|| {
        let all = enumerate(&remains.counts, "has");
        ("SomeResourcesRemain", format!("Some resources are remaining: {all}"))
    });
    set("NamespaceContentRemaining", counts, ("ContentRemoved", "All content successfully removed"));
    let finalizers = (!remains.finalizers.is_empty()).then(|| {
        let all = enumerate(&remains.finalizers, "in");
        ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {all}"))
    });
    set(
        "NamespaceFinalizersRemaining",
        finalizers,
        ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    );
    status
}

fn set_condition(
    status: &mut NamespaceStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|c| c.type_ == kind);
    let same = old.filter(|i| conditions[*i].status == value);
    let since = same.and_then(|i| conditions[i].last_transition_time.clone()).unwrap_or(Time(now));
    let new = NamespaceCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(since),
    };
    match old {
        Some(i) => conditions[i] = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_client::{PatchKind, ResourceId};
    use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
    use serde_json::json;

    use super::*;
    use crate::testing::{context_with, eventually};

    #[test]
    fn a_namespace_stays_while_it_is_not_known_what_may_be_in_it() {
        let remains = Remains { discovery: Some("no answer".to_owned()), ..Remains::default() };
        assert!(!remains.is_empty());
        let status = decide(&Namespace::default(), &remains, Timestamp::UNIX_EPOCH);
        let conditions = status.conditions.unwrap_or_default();
        let told = conditions.iter().find(|c| c.type_ == "NamespaceDeletionDiscoveryFailure").expect("told");
        assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("DiscoveryFailed")));
        assert_eq!(told.message.as_deref(), Some("no answer"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_namespace_waits_for_finalizers_and_then_goes() {
        let fake = FakeTransport::new(Clock::system());
        let entry = |id, kind| ResourceEntry { id, namespaced: true, kind };
        let resources = vec![
            entry(ResourceId::of::<Pod>(), "Pod"),
            entry(ResourceId::of::<ConfigMap>(), "ConfigMap"),
            entry(ResourceId::of::<ServiceAccount>(), "ServiceAccount"),
        ];
        let cx = context_with(&fake, resources);
        let client = fake.client();
        let starts = [run, crate::service_account::run, crate::root_ca::run];
        let tasks = starts.map(|start| tokio::spawn(start(&cx)));
        let namespaces = client.api::<Namespace>();
        let namespace = json!({ "metadata": { "name": "ns" }, "spec": { "finalizers": ["kubernetes"] } });
        namespaces.create("", serde_json::from_value(namespace).expect("valid")).await.expect("created");
        let maps = client.api::<ConfigMap>();
        eventually(|| async {
            maps.get("ns", "kube-root-ca.crt").await.is_ok()
                && client.api::<ServiceAccount>().get("ns", "default").await.is_ok()
        })
        .await;
        let held = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
        maps.patch("ns", "kube-root-ca.crt", PatchKind::Merge, held).await.expect("patched");
        namespaces.delete("", "ns", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async {
            let namespace = namespaces.get("", "ns").await.expect("still there");
            let conditions = namespace.status.as_ref().and_then(|status| status.conditions.clone());
            conditions.into_iter().flatten().any(|c| {
                c.type_ == "NamespaceContentRemaining"
                    && c.message.as_deref()
                        == Some("Some resources are remaining: configmaps. has 1 resource instances")
            })
        })
        .await;
        let free = json!({ "metadata": { "finalizers": null } });
        maps.patch("ns", "kube-root-ca.crt", PatchKind::Merge, free).await.expect("patched");
        eventually(|| async { namespaces.get("", "ns").await.is_err() }).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
