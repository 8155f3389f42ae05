//! ResourceQuota: recounts what namespaces use, of built-in and custom resources. Admission charges what comes; this
//! controller finds what is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, ApiRequest, ApiResponse, Change, Client, Informer, ListOptions, Reflected, ResourceId, Verb,
    WorkQueue, reflect,
};
use coracle_meta::pod::Resources;
use coracle_meta::quantity::Quantity;
use coracle_meta::quota::Evaluator;
use coracle_meta::{Kind, Object, Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use tokio::task::JoinSet;

use crate::ResourceEntry;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler};
use crate::served::Served;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "resourcequota-controller", workers: 5 };

/// Everything is recounted this often, should a change have been missed.
const RESYNC: Duration = Duration::from_secs(300);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let quotas = cx.informers.get::<ResourceQuota>();
    let client = cx.client(DESCRIPTOR.name);
    let pods = cx.informers.get::<Pod>();
    let services = cx.informers.get::<Service>();
    let claims = cx.informers.get::<PersistentVolumeClaim>();
    let reconciler = Arc::new(Recount {
        quotas: quotas.clone(),
        pods: pods.clone(),
        services: services.clone(),
        claims: claims.clone(),
        api: client.api(),
        client: client.clone(),
        served: cx.served.clone(),
        clock: cx.clock.clone(),
    });
    let by_pods = quotas.clone();
    let (by_services, by_claims) = (quotas.clone(), quotas.clone());
    let controller = Controller::new(DESCRIPTOR)
        .watch(&quotas, |change, enqueue| {
            let news = match change {
                Change::Modified { old, new } => {
                    let hard = |q: &ResourceQuota| q.status.as_ref().and_then(|status| status.hard.clone());
                    old.spec != new.spec || hard(old) != hard(new)
                }
                Change::Added(_) => true,
                Change::Deleted(_) => false,
            };
            if news {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .watch(&pods, move |change, enqueue| {
            let frees = match change {
                Change::Deleted(_) => true,
                Change::Modified { old, new } => {
                    let over = |pod: &Pod| podutil::is_terminal(pod);
                    let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
                    over(old) != over(new) || leaves(old) != leaves(new)
                }
                Change::Added(_) => false,
            };
            if frees {
                wake(&by_pods, change.object().metadata.namespace.as_deref(), enqueue);
            }
        })
        .watch(&services, move |change, enqueue| wake_by(&by_services, change, enqueue))
        .watch(&claims, move |change, enqueue| wake_by(&by_claims, change, enqueue));
    let queue = controller.queue();
    let (served, informer) = (cx.served.clone(), quotas);
    async move {
        tokio::select! {
            () = controller.run(reconciler) => {}
            () = watch_counted(client, served, informer, queue) => {}
        }
    }
    .boxed()
}

fn wake(quotas: &Informer<ResourceQuota>, namespace: Option<&str>, enqueue: &mut dyn FnMut(ObjectKey)) {
    for quota in quotas.list_namespace(namespace.unwrap_or("")) {
        enqueue(ObjectKey::of(&quota.metadata));
    }
}

/// Services and claims free something when they go or change.
fn wake_by<K: Kind>(
    quotas: &Informer<ResourceQuota>,
    change: &Change<K>,
    enqueue: &mut dyn FnMut(ObjectKey),
) {
    if !matches!(change, Change::Added(_)) {
        wake(quotas, change.object().metadata().namespace.as_deref(), enqueue);
    }
}

/// The resources whose objects some quota counts.
fn counted(
    quotas: &[Arc<ResourceQuota>],
    served: &[ResourceEntry],
) -> BTreeSet<(&'static str, &'static str)> {
    let hard = |quota: &Arc<ResourceQuota>| -> Vec<String> {
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        hard.into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let names: BTreeSet<String> = quotas.iter().flat_map(hard).collect();
    let is_counted = |entry: &&ResourceEntry| {
        let evaluator = Evaluator::of(entry.id.group, entry.id.resource);
        entry.namespaced
            && matches!(evaluator, Evaluator::Count(_) | Evaluator::DeviceClaims)
            && names.iter().any(|name| evaluator.covers(name))
    };
    served.iter().filter(is_counted).map(|entry| (entry.id.group, entry.id.resource)).collect()
}

/// Watches, one by one, the resources that quotas count: what is deleted there wakes the namespace's quotas.
async fn watch_counted(
    client: Client,
    served: Served,
    quotas: Informer<ResourceQuota>,
    queue: Arc<WorkQueue<ObjectKey>>,
) {
    let (mut served_changes, mut quota_changes) = (served.changes(), quotas.subscribe());
    let mut watches: HashMap<ResourceId, tokio::task::AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let all = served.all();
        let wanted = counted(&quotas.list(), &all);
        let wanted: Vec<ResourceId> =
            all.iter().map(|e| e.id).filter(|id| wanted.contains(&(id.group, id.resource))).collect();
        watches.retain(|id, handle| {
            let keep = wanted.contains(id);
            if !keep {
                handle.abort();
            }
            keep
        });
        for id in wanted {
            watches.entry(id).or_insert_with(|| {
                let (client, quotas, queue) = (client.clone(), quotas.clone(), queue.clone());
                tasks.spawn(async move {
                    let mut sink = |change: Reflected| {
                        if let Reflected::Deleted(object) = change {
                            wake(&quotas, Some(object.namespace()), &mut |key| queue.add(key));
                        }
                    };
                    reflect(&client, id, "", &ListOptions::default(), &mut sink).await;
                })
            });
        }
        tokio::select! {
            () = Served::next(&mut served_changes) => {}
            changed = quota_changes.next() => if changed.is_none() { return },
        }
    }
}

struct Recount {
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    api: Api<ResourceQuota>,
    client: Client,
    served: Served,
    clock: Clock,
}

fn api(amounts: &Resources) -> BTreeMap<String, ApiQuantity> {
    amounts.iter().map(|(name, amount)| (name.clone(), amount.to_api())).collect()
}

/// The status of a quota, from what is used of what it limits.
fn decide(quota: &ResourceQuota, used: &Resources) -> ResourceQuotaStatus {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let of = |name: &String| (name.clone(), used.get(name).copied().unwrap_or_default());
    let used: Resources = hard.keys().map(of).collect();
    ResourceQuotaStatus {
        hard: (!hard.is_empty()).then_some(hard),
        used: (!used.is_empty()).then(|| api(&used)),
    }
}

/// Whether two statuses mean the same.
fn same(a: &ResourceQuotaStatus, b: &ResourceQuotaStatus) -> bool {
    let amounts = |map: &Option<BTreeMap<String, ApiQuantity>>| -> Resources {
        map.iter().flatten().map(|(name, amount)| (name.clone(), Quantity::from_api(amount))).collect()
    };
    amounts(&a.hard) == amounts(&b.hard) && amounts(&a.used) == amounts(&b.used)
}

#[async_trait]
impl Reconciler for Recount {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(quota) = self.quotas.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        let used = self.used(&quota).await?;
        let status = decide(&quota, &used);
        if !same(quota.status.as_ref().unwrap_or(&ResourceQuotaStatus::default()), &status)
            || quota.status.is_none()
        {
            let changed = ResourceQuota { status: Some(status), ..(*quota).clone() };
            match self.api.update_status(&key.namespace, changed).await {
                Err(status) if status.reason() != Reason::NotFound => return Err(status),
                _ => {}
            }
        }
        Ok(Action::RequeueAfter(RESYNC))
    }
}

impl Recount {
    async fn used(&self, quota: &Arc<ResourceQuota>) -> Result<Resources, Status> {
        let namespace = quota.metadata.namespace.as_deref().unwrap_or("");
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let limits = |evaluator: &Evaluator| hard.keys().any(|name| evaluator.covers(name));
        let mut used = Resources::new();
        let now = self.clock.now();
        let mut add = |evaluator: &Evaluator, object: &dyn Object| {
            if evaluator.in_scope(quota, object) {
                for (name, amount) in evaluator.usage(object, now) {
                    *used.entry(name).or_default() += amount;
                }
            }
        };
        if limits(&Evaluator::Pods) {
            self.pods.list_namespace(namespace).iter().for_each(|pod| add(&Evaluator::Pods, &**pod));
        }
        if limits(&Evaluator::Services) {
            self.services.list_namespace(namespace).iter().for_each(|s| add(&Evaluator::Services, &**s));
        }
        if limits(&Evaluator::Claims) {
            self.claims.list_namespace(namespace).iter().for_each(|c| add(&Evaluator::Claims, &**c));
        }
        let all = self.served.all();
        let counted = counted(std::slice::from_ref(quota), &all);
        for entry in all.iter().filter(|entry| counted.contains(&(entry.id.group, entry.id.resource))) {
            let evaluator = Evaluator::of(entry.id.group, entry.id.resource);
            for object in self.list(entry.id, namespace).await? {
                add(&evaluator, &*object);
            }
        }
        Ok(used)
    }

    /// Objects that are only counted are asked for: no copy of them is kept here.
    async fn list(&self, resource: ResourceId, namespace: &str) -> Result<Vec<Arc<dyn Object>>, Status> {
        if resource == ResourceId::of::<ResourceClaim>() {
            let claims = self.client.api::<ResourceClaim>().list(namespace, ListOptions::default()).await?;
            return Ok(claims.into_iter().map(|claim| claim as Arc<dyn Object>).collect());
        }
        let (namespace, name) = (namespace.to_owned(), String::new());
        let verb = Verb::List(ListOptions::default());
        let request = ApiRequest { resource, namespace, name, subresource: "", verb };
        match self.client.request(request).await {
            Ok(ApiResponse::List { items, .. }) => Ok(items),
            Ok(_) => Err(Status::internal("not a list")),
            // The resource went with its definition.
            Err(status) if status.reason() == Reason::NotFound => Ok(Vec::new()),
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::DeleteOptions;
    use coracle_client::testing::FakeTransport;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;
    use crate::testing::{context_with, eventually};

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_goes_is_recounted() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let entry = ResourceEntry { id: ResourceId::of::<ConfigMap>(), namespaced: true, kind: "ConfigMap" };
        let task = tokio::spawn(run(&context_with(&fake, vec![entry])));
        let quotas = client.api::<ResourceQuota>();
        let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": {
            "pods": "5", "requests.cpu": "2", "count/configmaps": "9", "services": "3" } } });
        let pod = |name: &str| {
            let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c",
                "resources": { "requests": { "cpu": "500m" } } }] } });
            serde_json::from_value::<Pod>(pod).expect("valid")
        };
        let pods = client.api::<Pod>();
        pods.create("ns", pod("a")).await.expect("created");
        pods.create("ns", pod("b")).await.expect("created");
        let map = json!({ "metadata": { "name": "m" } });
        client
            .api::<ConfigMap>()
            .create("ns", serde_json::from_value(map).expect("valid"))
            .await
            .expect("created");
        quotas.create("ns", serde_json::from_value(quota).expect("valid")).await.expect("created");
        let used = |name: &'static str| {
            let quotas = quotas.clone();
            async move {
                let quota = quotas.get("ns", "q").await.expect("there");
                let used = quota.status.as_ref().and_then(|status| status.used.clone()).unwrap_or_default();
                used.get(name).map(|amount| amount.0.clone()).unwrap_or_default()
            }
        };
        eventually(|| async { used("requests.cpu").await == "1" }).await;
        assert_eq!(used("pods").await, "2");
        assert_eq!(used("count/configmaps").await, "1");
        assert_eq!(used("services").await, "0");
        let now = || DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        pods.delete("ns", "a", now()).await.expect("deleted");
        client.api::<ConfigMap>().delete("ns", "m", now()).await.expect("deleted");
        eventually(|| async {
            used("requests.cpu").await == "500m" && used("count/configmaps").await == "0"
        })
        .await;
        task.abort();
    }
}
