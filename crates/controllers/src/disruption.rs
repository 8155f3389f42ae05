//! Disruption: tells for every PodDisruptionBudget how many of its pods may be evicted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, ApiRequest, ApiResponse, Change, Client, EventRecorder, EventType, Informer, PatchKind, Verb,
};
use coracle_meta::owner::controller_of;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status, int_or_percent, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use crate::runtime::{Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, name_of};
use crate::served::Served;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "disruption-controller", workers: 2 };
const COMPONENT: &str = "controllermanager";

/// How long an evicted pod may take to be deleted before it counts as not evicted.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);
/// A pod that was to be disrupted and lives on for this long is not going to be.
const STALE: SignedDuration = SignedDuration::from_secs(120);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (budgets, pods) = (cx.informers.get::<PodDisruptionBudget>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let owners = Owners {
        sets: cx.informers.get(),
        deployments: cx.informers.get(),
        stateful: cx.informers.get(),
        controllers: cx.informers.get(),
        client: client.clone(),
        served: cx.served.clone(),
    };
    let reconciler = Arc::new(Budgets {
        budgets: budgets.clone(),
        pods: pods.clone(),
        api: client.api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
        clock: cx.clock.clone(),
        owners,
    });
    let (selecting, events) = (budgets.clone(), reconciler.events.clone());
    Controller::new(DESCRIPTOR)
        .watch_primary(&budgets)
        .watch(&pods, move |change, enqueue| {
            let woken = wake_budgets(&selecting, change, enqueue);
            if let (Some(message), false) =
                (ambiguity(change.object(), &woken), matches!(change, Change::Deleted(_)))
            {
                events.event(&**change.object(), EventType::Warning, "MultiplePodDisruptionBudgets", message);
            }
        })
        .run(reconciler)
        .boxed()
}

/// Starts the controller that forgets disruptions that did not happen. Its keys are pods.
pub(crate) fn run_stale(cx: &Context) -> BoxFuture<'static, ()> {
    let pods = cx.informers.get::<Pod>();
    let reconciler = Arc::new(Stale {
        pods: pods.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        clock: cx.clock.clone(),
    });
    Controller::new(DESCRIPTOR)
        .watch(&pods, |change, enqueue| {
            if !matches!(change, Change::Deleted(_)) && disrupted_since(change.object()).is_some() {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

fn selector_of(budget: &PodDisruptionBudget) -> Result<LabelSelector, String> {
    LabelSelector::from_optional_api(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

/// What a pod is told that several budgets select.
fn ambiguity(pod: &Pod, budgets: &[String]) -> Option<String> {
    let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or(""), name_of(pod));
    let chosen = budgets.first().filter(|_| budgets.len() > 1)?;
    Some(format!(
        "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {chosen:?} arbitrarily."
    ))
}

/// A pod wakes the budgets that select it, or did; the names of those that do.
fn wake_budgets(
    budgets: &Informer<PodDisruptionBudget>,
    change: &Change<Pod>,
    enqueue: Enqueue<'_>,
) -> Vec<String> {
    let pod = change.object();
    let old = match change {
        Change::Modified { old, new } if old.metadata.labels != new.metadata.labels => Some(old),
        _ => None,
    };
    let mut selecting = Vec::new();
    for budget in budgets.list_namespace(pod.metadata.namespace.as_deref().unwrap_or("")) {
        let selector = selector_of(&budget);
        let selects =
            |pod: &Pod| selector.as_ref().is_ok_and(|s| s.matches_option(pod.metadata.labels.as_ref()));
        if selects(pod) {
            selecting.push(name_of(&*budget).to_owned());
        }
        if selects(pod) || old.is_some_and(|old| selects(old)) {
            enqueue(ObjectKey::of(&budget.metadata));
        }
    }
    selecting
}

/// Finds how many pods their owners want.
struct Owners {
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    client: Client,
    served: Served,
}

impl Owners {
    /// The uid and size of what manages the pods of `owner`: of its own owner if that is a Deployment.
    async fn scale(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, Status> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let is = |meta: &ObjectMeta| meta.uid.as_deref() == Some(owner.uid.as_str());
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let Some(set) = self.sets.get(namespace, &owner.name).filter(|set| is(&set.metadata)) else {
                    return Ok(None);
                };
                let parent = controller_of(&set.metadata).filter(|parent| parent.kind == "Deployment");
                let parent = parent.and_then(|parent| {
                    let deployment = self.deployments.get(namespace, &parent.name)?;
                    (deployment.metadata.uid.as_ref() == Some(&parent.uid)).then_some(deployment)
                });
                Ok(Some(match parent {
                    Some(deployment) => (
                        deployment.metadata.uid.clone().unwrap_or_default(),
                        deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
                    ),
                    None => {
                        (owner.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))
                    }
                }))
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful.get(namespace, &owner.name).filter(|set| is(&set.metadata));
                let size = |set: Arc<StatefulSet>| set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                Ok(set.map(|set| (owner.uid.clone(), size(set))))
            }
            ("", "ReplicationController") => {
                let rc = self.controllers.get(namespace, &owner.name).filter(|rc| is(&rc.metadata));
                let size =
                    |rc: Arc<ReplicationController>| rc.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                Ok(rc.map(|rc| (owner.uid.clone(), size(rc))))
            }
            _ => self.scale_of_other(namespace, group, owner).await,
        }
    }

    async fn scale_of_other(
        &self,
        namespace: &str,
        group: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, Status> {
        let Some(entry) = self.served.find(group, &owner.kind) else { return Ok(None) };
        let request = ApiRequest {
            resource: entry.id,
            namespace: namespace.to_owned(),
            name: owner.name.clone(),
            subresource: "scale",
            verb: Verb::Get,
        };
        match self.client.request(request).await {
            Ok(ApiResponse::Object(scale)) => {
                let size = scale.to_value().pointer("/spec/replicas").and_then(serde_json::Value::as_i64);
                Ok(Some((owner.uid.clone(), size.and_then(|n| i32::try_from(n).ok()).unwrap_or(0))))
            }
            Err(status) if status.reason() == Reason::NotFound => {
                let name = coracle_meta::status::qualified(entry.id.group, entry.id.resource);
                Err(Status::internal(format!("{name} does not implement the scale subresource")))
            }
            Ok(_) => Ok(None),
            Err(status) => Err(status),
        }
    }
}

struct Budgets {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    api: Api<PodDisruptionBudget>,
    events: EventRecorder,
    clock: Clock,
    owners: Owners,
}

/// How many pods a budget is about, how many of them must be healthy, and those that nobody manages.
#[derive(Debug, Default)]
struct Expected {
    pods: i32,
    healthy: i32,
    unmanaged: bool,
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// What a budget demands; `scale` is the number of pods that the owners want.
fn demand(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> Result<(i32, i32), String> {
    let Some(spec) = &budget.spec else { return Ok((0, 0)) };
    let resolve = |value: &IntOrString| {
        int_or_percent(value, i64::from(scale), true).map(|n| i32::try_from(n).unwrap_or(i32::MAX))
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(missing), _) => Ok((scale, (scale - resolve(missing)?).max(0))),
        (None, Some(IntOrString::Int(least))) => Ok((count(pods), *least)),
        (None, Some(least)) => Ok((scale, resolve(least)?)),
        (None, None) => Ok((0, 0)),
    }
}

/// Whether the owners' sizes matter to a budget.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    ok: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let value = if ok { "True" } else { "False" };
    let observed = status.observed_generation.unwrap_or(0);
    let all = status.conditions.get_or_insert_default();
    let known = all.iter().position(|c| c.type_ == "DisruptionAllowed");
    let since =
        known.map(|at| &all[at]).filter(|c| c.status == value).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since.unwrap_or(Time(now)),
        observed_generation: (observed > 0).then_some(observed),
    };
    match known {
        Some(at) => all[at] = new,
        None => all.push(new),
    }
}

/// The status of a budget, and the pods that should have been deleted and were not.
fn decide(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: &Expected,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Vec<Arc<Pod>>, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let disrupted = old.disrupted_pods.clone().unwrap_or_default();
    let (mut waiting, mut late, mut again): (BTreeMap<String, Time>, Vec<Arc<Pod>>, Option<Duration>) =
        (BTreeMap::new(), Vec::new(), None);
    let mut healthy = 0;
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        if let Some(since) = disrupted.get(name_of(&**pod)) {
            let left = DELETION_TIMEOUT - now.duration_since(since.0);
            match Duration::try_from(left) {
                Ok(left) => {
                    waiting.insert(name_of(&**pod).to_owned(), since.clone());
                    again = Some(again.map_or(left, |again| again.min(left)));
                    continue;
                }
                Err(_) => late.push(pod.clone()),
            }
        }
        healthy += i32::from(podutil::is_ready(pod));
    }
    let allowed = if expected.pods <= 0 { 0 } else { (healthy - expected.healthy).max(0) };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.pods),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!waiting.is_empty()).then_some(waiting),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    set_condition(&mut status, allowed > 0, reason, "", now);
    (status, late, again.map(|wait| wait + Duration::from_secs(1)))
}

#[async_trait]
impl Reconciler for Budgets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else {
            return Ok(Action::AwaitChange);
        };
        let selector = selector_of(&budget).map_err(Status::bad_request)?;
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector.matches_option(pod.metadata.labels.as_ref()));
        if pods.is_empty() {
            self.events.event(&*budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = self.clock.now();
        let expected = match self.expected(&budget, &pods).await {
            Ok(expected) => expected,
            Err(status) => {
                let message = format!("Failed to calculate the number of expected pods: {status}");
                let reason = "CalculateExpectedPodCountFailed";
                self.events.event(&*budget, EventType::Warning, reason, message);
                let mut failed = budget.status.clone().unwrap_or_default();
                failed.disruptions_allowed = Some(0);
                set_condition(&mut failed, false, "SyncFailed", &status.to_string(), now);
                return self.store(&budget, failed).await;
            }
        };
        if expected.unmanaged {
            self.tell_unmanaged(&budget);
        }
        let (status, late, again) = decide(&budget, &pods, &expected, now);
        for pod in late {
            let namespace = &key.namespace;
            let message =
                format!("Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't");
            self.events.event(&*pod, EventType::Warning, "NotDeleted", message);
        }
        self.store(&budget, status).await?;
        Ok(again.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Budgets {
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<Expected, Status> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut unmanaged = false;
        if needs_scale(budget) {
            for pod in pods {
                let Some(owner) = controller_of(&pod.metadata) else {
                    unmanaged = true;
                    continue;
                };
                if !seen.insert(owner.uid.clone()) {
                    continue;
                }
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
                let Some((uid, size)) = self.owners.scale(namespace, owner).await? else {
                    return Err(Status::internal(format!(
                        "found no controllers for pod {:?}",
                        name_of(&**pod)
                    )));
                };
                scales.insert(uid, size);
            }
        }
        let scale = scales.values().sum();
        let (pods, healthy) = demand(budget, pods.len(), scale).map_err(Status::bad_request)?;
        Ok(Expected { pods, healthy, unmanaged })
    }

    fn tell_unmanaged(&self, budget: &PodDisruptionBudget) {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let labels = selector.and_then(|s| s.match_labels.as_ref());
        let labels: String = labels.into_iter().flatten().map(|(k, v)| format!("{k}: {v},")).collect();
        let selector = format!(
            "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{}},}}"
        );
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
             result, the status of the PDB cannot be calculated correctly, which may result in undefined \
             behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an \
             integer value."
        );
        self.events.event(budget, EventType::Warning, "UnmanagedPods", message);
    }

    async fn store(
        &self,
        budget: &Arc<PodDisruptionBudget>,
        status: PodDisruptionBudgetStatus,
    ) -> Result<Action, Status> {
        if budget.status.as_ref() != Some(&status) {
            let namespace = budget.metadata.namespace.as_deref().unwrap_or("");
            let changed = PodDisruptionBudget { status: Some(status), ..(**budget).clone() };
            match self.api.update_status(namespace, changed).await {
                Err(status) if status.reason() != Reason::NotFound => return Err(status),
                _ => {}
            }
        }
        Ok(Action::AwaitChange)
    }
}

/// Since when a pod that lives is said to be about to be disrupted.
fn disrupted_since(pod: &Pod) -> Option<Timestamp> {
    if !podutil::is_active(pod) {
        return None;
    }
    let said = podutil::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    (said.reason.as_deref() != Some("TerminationByKubelet")).then_some(())?;
    said.last_transition_time.as_ref().map(|t| t.0)
}

struct Stale {
    pods: Informer<Pod>,
    api: Api<Pod>,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Stale {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        let Some(since) = disrupted_since(&pod) else { return Ok(Action::AwaitChange) };
        let now = self.clock.now();
        let left = STALE - now.duration_since(since);
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Action::RequeueAfter(left));
        }
        let at = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        let condition = json!({ "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
            "observedGeneration": pod.metadata.generation, "lastTransitionTime": at });
        let patch =
            json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
        match self.api.patch_status(&key.namespace, &key.name, PatchKind::Strategic, patch).await {
            Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) => Err(status),
            _ => Ok(Action::AwaitChange),
        }
    }
}

#[cfg(test)]
mod tests;
