//! The scheduler at work: one task decides, bindings run beside it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{
    Client, DeleteOptions, EventRecorder, EventType, Informer, Informers, PatchKind, Subscription,
};
use coracle_meta::{Status, pod as meta_pod};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::StorageClass;
use rand::Rng as _;
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::cache::Cache;
use crate::cycle::{Attempt, Cycle, FitError, TieBreak};
use crate::devices::{self, Reservation};
use crate::framework::ClusterEvent;
use crate::plugins;
use crate::pod_info::PodInfo;
use crate::preempt::{self, Budget, Candidate};
use crate::queue::Queue;
use crate::watch::World;

/// Decisions between two looks at what else there is to do on this thread.
const BATCH: usize = 32;
/// Writes of `PodScheduled=False` at one time.
const REPORTS: usize = 64;

/// How the scheduler behaves.
pub struct SchedulerConfig {
    /// Pods with this `schedulerName` are ours.
    pub scheduler_name: String,
    /// Bindings under way at one time.
    pub bindings: usize,
    /// Makes the choice among equally good nodes; random by default.
    pub tie_break: fn() -> TieBreak,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".into(), bindings: 256, tie_break: random }
    }
}

fn random() -> TieBreak {
    Box::new(|n| rand::rng().random_range(0..n))
}

impl fmt::Debug for SchedulerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SchedulerConfig({})", self.scheduler_name)
    }
}

/// Assigns pods to nodes.
///
/// Guarantees: a pod is bound at most once (the API refuses a second binding); a pod without a node is
/// tried again when something happens that could help, and at the latest after five minutes; nothing polls.
#[derive(Debug)]
pub struct Scheduler {
    client: Client,
    clock: Clock,
    config: SchedulerConfig,
}

struct Bound {
    pod: Arc<PodInfo>,
    node: String,
    reservations: Vec<Reservation>,
    result: Result<(), Status>,
}

struct Running {
    client: Client,
    clock: Clock,
    world: World,
    cycle: Cycle,
    recorder: EventRecorder,
    bindings: JoinSet<Bound>,
    reports: JoinSet<()>,
    budgets: Informer<PodDisruptionBudget>,
    claims: Informer<PersistentVolumeClaim>,
    resource_claims: Informer<ResourceClaim>,
}

/// What the scheduler hears of.
struct Ears {
    nodes: Subscription<Node>,
    pods: Subscription<Pod>,
    namespaces: Subscription<Namespace>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
    resource_claims: Subscription<ResourceClaim>,
    device_classes: Subscription<DeviceClass>,
    resource_slices: Subscription<ResourceSlice>,
}

impl Scheduler {
    /// A scheduler that acts through `client`.
    pub fn new(client: Client, clock: Clock, config: SchedulerConfig) -> Self {
        Self { client, clock, config }
    }

    /// Schedules until it is dropped.
    pub async fn run(self) {
        let informers = Informers::new(self.client.clone());
        let (nodes, pods) = (informers.get::<Node>(), informers.get::<Pod>());
        let namespaces = informers.get::<Namespace>();
        let budgets = informers.get::<PodDisruptionBudget>();
        nodes.wait_synced().await;
        pods.wait_synced().await;
        namespaces.wait_synced().await;
        let claims = informers.get::<PersistentVolumeClaim>();
        let (volumes, classes) = (informers.get::<PersistentVolume>(), informers.get::<StorageClass>());
        claims.wait_synced().await;
        volumes.wait_synced().await;
        classes.wait_synced().await;
        let resource_claims = informers.get::<ResourceClaim>();
        let (device_classes, resource_slices) =
            (informers.get::<DeviceClass>(), informers.get::<ResourceSlice>());
        resource_claims.wait_synced().await;
        device_classes.wait_synced().await;
        resource_slices.wait_synced().await;
        let mut ears = Ears {
            nodes: nodes.subscribe(),
            pods: pods.subscribe(),
            namespaces: namespaces.subscribe(),
            claims: claims.subscribe(),
            volumes: volumes.subscribe(),
            classes: classes.subscribe(),
            resource_claims: resource_claims.subscribe(),
            device_classes: device_classes.subscribe(),
            resource_slices: resource_slices.subscribe(),
        };
        let queue = Queue::new(plugins::ALL, plugins::queue_sort());
        let mut running = Running {
            recorder: EventRecorder::new(self.client.clone(), "default-scheduler", self.clock.clone()),
            world: World { cache: Cache::default(), queue, scheduler_name: self.config.scheduler_name },
            cycle: Cycle::new(plugins::ALL, (self.config.tie_break)()),
            client: self.client,
            clock: self.clock,
            bindings: JoinSet::new(),
            reports: JoinSet::new(),
            budgets,
            claims,
            resource_claims,
        };
        loop {
            running.catch_up(&mut ears);
            let mut idle = false;
            for _ in 0..BATCH {
                while running.bindings.len() >= self.config.bindings {
                    running.next_binding().await;
                }
                let Some(pod) = running.world.queue.pop(running.clock.now()) else {
                    idle = true;
                    break;
                };
                running.decide(pod).await;
            }
            if !idle {
                tokio::task::yield_now().await;
            } else if !running.wait(&mut ears).await {
                return;
            }
        }
    }
}

impl Running {
    /// Takes in what has arrived, without waiting.
    fn catch_up(&mut self, ears: &mut Ears) {
        let now = self.clock.now();
        while let Some(change) = ears.namespaces.try_next() {
            self.world.namespace(&change);
        }
        while let Some(change) = ears.classes.try_next() {
            self.world.class(&change, now);
        }
        while let Some(change) = ears.volumes.try_next() {
            self.world.volume(&change, now);
        }
        while let Some(change) = ears.claims.try_next() {
            self.world.claim(&change, now);
        }
        while let Some(change) = ears.device_classes.try_next() {
            self.world.device_class(&change, now);
        }
        while let Some(change) = ears.resource_slices.try_next() {
            self.world.resource_slice(&change, now);
        }
        while let Some(change) = ears.resource_claims.try_next() {
            self.world.resource_claim(&change, now);
        }
        while let Some(change) = ears.nodes.try_next() {
            self.world.node(&change, now);
        }
        while let Some(change) = ears.pods.try_next() {
            self.world.pod(&change, now);
        }
        while let Some(bound) = self.bindings.try_join_next() {
            self.bound(bound.ok());
        }
        while self.reports.try_join_next().is_some() {}
    }

    /// Waits for the next thing that could give work. False when the informers have ended.
    async fn wait(&mut self, ears: &mut Ears) -> bool {
        let now = self.clock.now();
        let timer = self.world.queue.deadline().map(|at| {
            let left = at.duration_since(now);
            Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(1))
        });
        let pause = async {
            match timer {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = ears.nodes.next() => match change {
                Some(change) => self.world.node(&change, self.clock.now()),
                None => return false,
            },
            change = ears.claims.next() => match change {
                Some(change) => self.world.claim(&change, self.clock.now()),
                None => return false,
            },
            change = ears.volumes.next() => match change {
                Some(change) => self.world.volume(&change, self.clock.now()),
                None => return false,
            },
            change = ears.classes.next() => match change {
                Some(change) => self.world.class(&change, self.clock.now()),
                None => return false,
            },
            change = ears.device_classes.next() => match change {
                Some(change) => self.world.device_class(&change, self.clock.now()),
                None => return false,
            },
            change = ears.resource_slices.next() => match change {
                Some(change) => self.world.resource_slice(&change, self.clock.now()),
                None => return false,
            },
            change = ears.resource_claims.next() => match change {
                Some(change) => self.world.resource_claim(&change, self.clock.now()),
                None => return false,
            },
            change = ears.namespaces.next() => match change {
                Some(change) => self.world.namespace(&change),
                None => return false,
            },
            change = ears.pods.next() => match change {
                Some(change) => self.world.pod(&change, self.clock.now()),
                None => return false,
            },
            Some(bound) = self.bindings.join_next() => self.bound(bound.ok()),
            () = pause => {}
        }
        true
    }

    async fn next_binding(&mut self) {
        if let Some(bound) = self.bindings.join_next().await {
            self.bound(bound.ok());
        }
    }

    async fn decide(&mut self, pod: Arc<PodInfo>) {
        match self.cycle.schedule(&pod, &self.world.cache) {
            Ok(slot) => {
                let Some(node) = self.world.cache.node(slot) else { return };
                let reservations = match plugins::reservations(&pod, &self.world.cache, node) {
                    Ok(reservations) => reservations,
                    Err(why) => {
                        warn!(pod = pod.name, namespace = pod.namespace, why, "no devices after all");
                        return self.world.queue.failed(&pod.uid, self.clock.now());
                    }
                };
                let node = node.name.clone();
                for Reservation { claim, devices } in &reservations {
                    if let Some(devices) = devices {
                        self.world.cache.devices_mut().assume(claim, devices.clone());
                    }
                }
                let delayed = plugins::delayed_claims(&pod, &self.world.cache);
                self.world.cache.assume(pod.clone(), &node);
                let (client, claims) = (self.client.clone(), self.claims.clone());
                let (resource_claims, now) = (self.resource_claims.clone(), self.clock.now());
                self.bindings.spawn(async move {
                    let bind = async {
                        bind_volumes(&client, &claims, &pod, &node, &delayed).await?;
                        devices::bind(&client, &resource_claims, &pod, &reservations, now).await?;
                        plugins::binder().bind(&client, &pod, &node).await
                    };
                    let result = bind.await;
                    if result.is_err() {
                        devices::unreserve(&client, &pod, &reservations).await;
                    }
                    Bound { pod, node, reservations, result }
                });
            }
            Err(fit) => self.refused(pod, fit).await,
        }
    }

    /// No node takes the pod: perhaps others give way.
    async fn refused(&mut self, pod: Arc<PodInfo>, mut fit: FitError) {
        let mut nominated = None;
        if let Some(claim) = plugins::claim_to_free(&pod, &self.world.cache) {
            let client = self.client.clone();
            self.reports.spawn(async move { devices::free(&client, &claim).await });
        }
        if let Some(why) = preempt::ineligible(&pod, &self.world.cache) {
            fit.attempt = Attempt::NotEligible(why);
        } else if fit.nodes > 0 {
            let budgets: Vec<Budget> = self.budgets.list().iter().map(|b| Budget::new(b)).collect();
            match preempt::find(&self.cycle, &pod, &self.world.cache, &budgets) {
                Ok(candidate) => {
                    fit.attempt = Attempt::Succeeded;
                    self.make_room(&pod, &candidate).await;
                    nominated = Some(candidate.node);
                }
                Err(reasons) => {
                    fit.attempt = Attempt::Failed(reasons);
                    // Room that was kept is of no use any more.
                    if self.world.cache.nomination(&pod.uid).is_some() {
                        self.world.cache.forget_nomination(&pod.uid);
                        nominated = Some(String::new());
                    }
                }
            }
        }
        self.reject(&pod, &fit, nominated).await;
    }

    /// Lets the victims go and keeps their room.
    async fn make_room(&mut self, pod: &Arc<PodInfo>, candidate: &Candidate) {
        let node = candidate.node.clone();
        self.world.cache.nominate(pod.clone(), &node);
        for victim in &candidate.victims {
            if victim.leaving {
                continue;
            }
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.recorder.event(victim.pod().as_ref(), EventType::Normal, "Preempted", message);
            while self.reports.len() >= REPORTS {
                self.reports.join_next().await;
            }
            let (client, victim, now) = (self.client.clone(), victim.clone(), self.clock.now());
            self.reports.spawn(async move { let_go(&client, &victim, now).await });
        }
    }

    async fn reject(&mut self, pod: &PodInfo, fit: &FitError, nominated: Option<String>) {
        let message = fit.to_string();
        debug!(pod = pod.name, namespace = pod.namespace, message, "unschedulable");
        self.world.queue.unschedulable(&pod.uid, fit.wakes_on, self.clock.now());
        self.report(pod, "Unschedulable", message, nominated).await;
    }

    /// Event and condition of a pod that stays without a node.
    /// `nominated` is the node where room is being made; empty for none any more.
    async fn report(
        &mut self,
        pod: &PodInfo,
        reason: &'static str,
        message: String,
        nominated: Option<String>,
    ) {
        let object = pod.pod();
        self.recorder.event(object.as_ref(), EventType::Warning, "FailedScheduling", message.clone());
        let known = meta_pod::condition(&object, "PodScheduled");
        let is = |text: Option<&String>, wanted: &str| text.is_some_and(|t| t == wanted);
        let same_status = known.is_some_and(|c| c.status == "False");
        if nominated.is_none()
            && same_status
            && known.is_some_and(|c| is(c.reason.as_ref(), reason) && is(c.message.as_ref(), &message))
        {
            return;
        }
        let since = known.filter(|_| same_status).and_then(|c| c.last_transition_time.clone());
        let since = since.map_or_else(|| self.clock.now(), |t| t.0);
        // Seconds, as the API writes times.
        let since = jiff::Timestamp::from_second(since.as_second()).unwrap_or(since).to_string();
        let mut condition = json!({"type": "PodScheduled", "status": "False", "lastProbeTime": null,
            "lastTransitionTime": since, "reason": reason, "message": message});
        if let Some(generation) = object.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let mut patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] =
                if node.is_empty() { serde_json::Value::Null } else { node.into() };
        }
        while self.reports.len() >= REPORTS {
            self.reports.join_next().await;
        }
        let (client, namespace, name) = (self.client.clone(), pod.namespace.clone(), pod.name.clone());
        self.reports.spawn(async move {
            let pods = client.api::<Pod>();
            let written = pods.patch_status(&namespace, &name, PatchKind::Strategic, patch).await;
            if let Err(e) = written
                && e.code() != 404
                && e.code() != 409
            {
                warn!(namespace, name, error = %e, "cannot write the pod's condition");
            }
        });
    }

    /// Takes a binding's outcome in.
    fn bound(&mut self, bound: Option<Bound>) {
        // A binding that panicked is found by its pod staying unbound; the informer does not confirm it.
        let Some(Bound { pod, node, reservations, result }) = bound else { return };
        let now = self.clock.now();
        let Err(e) = result else {
            self.world.queue.remove(&pod.uid);
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            self.recorder.event(pod.pod().as_ref(), EventType::Normal, "Scheduled", message);
            return;
        };
        for reservation in reservations.iter().filter(|reservation| reservation.devices.is_some()) {
            self.world.cache.devices_mut().forget(&reservation.claim);
        }
        if !self.world.cache.forget(&pod.uid) {
            // Gone, or bound after all: the informer told.
            return;
        }
        self.world.queue.happened(ClusterEvent::AssignedPodDelete, now);
        if e.code() == 404 {
            self.world.queue.remove(&pod.uid);
            return;
        }
        warn!(pod = pod.name, namespace = pod.namespace, node, error = %e, "binding failed");
        self.world.queue.failed(&pod.uid, now);
        let message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {e}");
        self.recorder.event(pod.pod().as_ref(), EventType::Warning, "FailedScheduling", message);
    }
}

/// Marks a preempted pod and deletes it.
async fn let_go(client: &Client, victim: &PodInfo, now: jiff::Timestamp) {
    let pods = client.api::<Pod>();
    let at = jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": preempt::REASON,
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "observedGeneration": victim.pod().metadata.generation, "lastTransitionTime": at});
    let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
    let (namespace, name) = (victim.namespace.as_str(), victim.name.as_str());
    let gone = |e: &Status| matches!(e.code(), 404 | 409);
    if let Err(e) = pods.patch_status(namespace, name, PatchKind::Strategic, patch).await
        && !gone(&e)
    {
        warn!(namespace, name, error = %e, "cannot mark the pod as preempted");
    }
    let options = DeleteOptions { uid: Some(victim.uid.clone()), ..DeleteOptions::default() };
    if let Err(e) = pods.delete(namespace, name, options).await
        && !gone(&e)
    {
        warn!(namespace, name, error = %e, "cannot delete the preempted pod");
    }
}

/// How long a pod waits for its volumes once it has a node.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

/// Tells claims that wait for their first pod its node, and waits until they are bound.
async fn bind_volumes(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    pod: &PodInfo,
    node: &str,
    delayed: &[String],
) -> Result<(), Status> {
    if delayed.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    for name in delayed {
        let patch = json!({"metadata": {"annotations": {coracle_meta::volume::SELECTED_NODE: node}}});
        client.api::<PersistentVolumeClaim>().patch(&pod.namespace, name, PatchKind::Merge, patch).await?;
    }
    let bound = || {
        let is_bound = |name: &String| {
            claims.get(&pod.namespace, name).is_some_and(|claim| coracle_meta::volume::is_bound(&claim))
        };
        delayed.iter().all(is_bound)
    };
    let wait = async {
        while !bound() {
            if changes.next().await.is_none() {
                return;
            }
        }
    };
    let over = tokio::time::timeout(BIND_TIMEOUT, wait).await;
    match over {
        Ok(()) if bound() => Ok(()),
        _ => Err(Status::timeout("binding volumes: context deadline exceeded")),
    }
}
