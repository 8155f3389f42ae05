//! DaemonSet: one pod on every node that its template allows.

mod decide;
mod placing;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventType, Informer};
use coracle_meta::owner::controller_ref;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::claim::{Claimant, carry_out, claim};
use crate::pods::{BURST, LAG, PodControl, wake_adopters};
use crate::revisions::{REVISION_HASH, Revisions, Subject};
use crate::rollouts::{Progress, Rollouts, Turn};
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, is_namespace_terminating,
    name_of, uid_of,
};
use crate::sweep::Sweep;
use decide::{Plan, View};
use placing::{Wish, new_pod, wish};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "daemon-set-controller", workers: 2 };
/// The name under which it records events.
const COMPONENT: &str = "daemonset-controller";

/// First wait before a failed pod is replaced on the same node, and the longest one.
const BACKOFF: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(1), SignedDuration::from_secs(900));

/// The kind, among those that roll out.
const KIND: &str = "DaemonSet";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (sets, nodes) = (cx.informers.get::<DaemonSet>(), cx.informers.get::<Node>());
    let (pods, revisions) = (cx.informers.get::<Pod>(), cx.informers.get::<ControllerRevision>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Daemons {
        control: PodControl::new(cx, DESCRIPTOR.name, COMPONENT),
        sweep: Sweep::default(),
        revisions: Revisions::new(&revisions, client.api()),
        sets: sets.clone(),
        nodes: nodes.clone(),
        api: client.api(),
        clock: cx.clock.clone(),
        backoff: Mutex::default(),
        rollouts: cx.rollouts.clone(),
    });
    let (selecting, hosted) = (sets.clone(), sets.clone());
    let controller = Controller::new(DESCRIPTOR);
    cx.rollouts.wakes(KIND, controller.queue());
    controller
        .watch_primary(&sets)
        .watch_owned(&pods, "DaemonSet")
        .watch(&pods, move |change, enqueue| {
            wake_adopters(&selecting, |set: &DaemonSet| selector_of(set).ok(), change, enqueue);
        })
        .watch(&nodes, move |change, enqueue| wake_by_node(&hosted, change, enqueue))
        .watch_owned(&revisions, "DaemonSet")
        .run(reconciler)
        .boxed()
}

fn selector_of(set: &DaemonSet) -> Result<LabelSelector, String> {
    set.spec.as_ref().map_or(Ok(LabelSelector::nothing()), |spec| LabelSelector::from_api(&spec.selector))
}

/// A node wakes the DaemonSets that want something else of it than before.
fn wake_by_node(sets: &Informer<DaemonSet>, change: &Change<Node>, enqueue: Enqueue<'_>) {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    if let Change::Modified { old, new } = change
        && old.metadata.labels == new.metadata.labels
        && taints(old) == taints(new)
    {
        return;
    }
    for set in sets.list() {
        let wakes = match change {
            Change::Added(node) => wish(&set, node) == Wish::Run,
            Change::Modified { old, new } => wish(&set, old) != wish(&set, new),
            Change::Deleted(_) => true,
        };
        if wakes {
            enqueue(ObjectKey::of(&set.metadata));
        }
    }
}

/// Whether the controller itself replaces pods of an older template.
fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

/// How far the change to a revision has come.
fn progress(pods: &[Arc<Pod>], hash: &str, update: &ControllerRevision) -> Progress {
    let is_new = |pod: &&Arc<Pod>| {
        pod.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(REVISION_HASH))
            .is_some_and(|own| own == hash)
    };
    let (new, old): (Vec<_>, Vec<_>) = pods.iter().filter(|pod| !podutil::is_terminal(pod)).partition(is_new);
    match (old.is_empty(), new.is_empty()) {
        (true, _) => Progress::Idle,
        (false, true) => Progress::Due(update.metadata.creation_timestamp.as_ref().map(|time| time.0)),
        (false, false) => Progress::Begun,
    }
}

/// Whether all pods are of a revision and ready.
fn all_ready(pods: &[Arc<Pod>], revision: &ControllerRevision) -> bool {
    let hash = |meta: &ObjectMeta| meta.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH)).cloned();
    let wanted = hash(&revision.metadata);
    let is = |pod: &Arc<Pod>| podutil::is_ready(pod) && hash(&pod.metadata) == wanted;
    !pods.is_empty() && wanted.is_some() && pods.iter().all(is)
}

/// By DaemonSet, generation and node: when a failed pod was replaced last, and for how long it is not again.
type Backoffs = HashMap<(String, i64, String), (Timestamp, SignedDuration)>;

struct Daemons {
    control: PodControl,
    sweep: Sweep,
    revisions: Revisions,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    api: Api<DaemonSet>,
    clock: Clock,
    backoff: Mutex<Backoffs>,
    rollouts: Rollouts,
}

#[async_trait]
impl Reconciler for Daemons {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            let remembered = || self.control.remembered() + self.backoff.lock().len();
            if self.sweep.is_due(remembered()) {
                let known: BTreeSet<String> =
                    self.sets.list().iter().filter_map(|set| set.metadata.uid.clone()).collect();
                self.backoff.lock().retain(|(uid, ..), _| known.contains(uid));
                self.control.retain(&known);
                self.sweep.done(remembered());
            }
            self.rollouts.forget(KIND, key);
            return Ok(Action::AwaitChange);
        };
        let Some(spec) = &set.spec else { return Ok(Action::AwaitChange) };
        let selector = LabelSelector::from_api(&spec.selector).map_err(Status::bad_request)?;
        if selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.events.event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(Action::AwaitChange);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::AwaitChange);
        }
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let subject = Subject {
            owner: &set,
            selector: &selector,
            template: &spec.template,
            collisions,
            hash_label: REVISION_HASH,
            is_ready: &|revision| {
                let pods = self.control.controlled(uid_of(&*set));
                all_ready(&pods, revision)
            },
        };
        let history = self.revisions.sync(&subject, &self.api).await?;
        let labels = history.update.metadata.labels.as_ref();
        let hash = labels.and_then(|labels| labels.get(REVISION_HASH)).cloned();
        let hash = hash.unwrap_or_else(|| name_of(&*history.update).to_owned());
        let sees_own_writes = self.control.sees_own_writes(uid_of(&*set));
        let candidates = self.control.candidates(uid_of(&*set), &key.namespace);
        let claimed = claim(&Claimant { owner: &set.metadata, selector: &selector }, candidates);
        let owned = carry_out(claimed, &*set, controller_ref(&*set), &self.api, &self.control.api).await?;
        let nodes = self.nodes.list();
        let view = View::new(&set, &nodes, &owned, &hash, self.clock.now());
        let (mut failure, mut again) = (None, None);
        if sees_own_writes {
            let progress =
                if rolls(&set) { progress(&owned, &hash, &history.update) } else { Progress::Idle };
            let turn = self.rollouts.turn(KIND, key, progress);
            let plan = self.plan(&view, turn == Turn::Goes);
            again = plan.again;
            if let Turn::Waits(before) = turn {
                let later = self.rollouts.tell(KIND, &*set, &self.control.events, before);
                again = Some(again.map_or(later, |other: Duration| other.min(later)));
            }
            failure = self.carry_out(&set, plan, &hash).await;
            let hashes = owned.iter().filter_map(|pod| pod.metadata.labels.as_ref()?.get(REVISION_HASH));
            let used: BTreeSet<&String> = hashes.collect();
            let is_live = |r: &Arc<ControllerRevision>| {
                let hash = r.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
                hash.is_some_and(|hash| used.contains(hash))
                    || r.metadata.name == history.update.metadata.name
            };
            let live = history.all.iter().filter(|r| is_live(r)).map(|r| name_of(&**r).to_owned()).collect();
            self.revisions.truncate(&key.namespace, &history, &live, spec.revision_history_limit).await?;
        }
        let (status, next) = decide::status(&view, sees_own_writes, history.collisions);
        self.store(&set, status).await?;
        if let Some(status) = failure.filter(|status| !is_namespace_terminating(status)) {
            return Err(status);
        }
        let lag = (!sees_own_writes).then_some(LAG);
        let wait = [next, again, lag].into_iter().flatten().min();
        Ok(wait.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Daemons {
    fn plan(&self, view: &View<'_>, may_roll: bool) -> Plan {
        let generation = view.set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        let uid = uid_of(&**view.set).to_owned();
        let mut backoffs = self.backoff.lock();
        let mut may_replace =
            |node: &str| may_replace(&mut backoffs, (uid.clone(), generation, node.to_owned()), view.now);
        let plan = decide::manage(view, &mut may_replace);
        if plan.is_empty() && rolls(view.set) && may_roll {
            return Plan { again: plan.again, ..decide::rolling_update(view) };
        }
        plan
    }

    async fn carry_out(&self, set: &Arc<DaemonSet>, plan: Plan, hash: &str) -> Option<Status> {
        for (kind, reason, message) in plan.happenings {
            self.control.events.event(&**set, kind, reason, message);
        }
        let pods = plan.create.iter().take(BURST).map(|node| new_pod(set, node, hash)).collect();
        let (_, failed) = self.control.create_all(&**set, pods).await;
        let victims = &plan.delete[..plan.delete.len().min(BURST)];
        failed.or(self.control.delete_all(&**set, victims).await)
    }

    async fn store(
        &self,
        set: &Arc<DaemonSet>,
        status: k8s_openapi::api::apps::v1::DaemonSetStatus,
    ) -> Result<(), Status> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = DaemonSet { status: Some(status), ..(**set).clone() };
        match self.api.update_status(set.metadata.namespace.as_deref().unwrap_or(""), changed).await {
            Err(status) if status.reason() == Reason::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// Counts the replacement of a failed pod; how long to wait if the last one was too short ago.
fn may_replace(backoffs: &mut Backoffs, key: (String, i64, String), now: Timestamp) -> Option<Duration> {
    let (first, longest) = BACKOFF;
    let next = match backoffs.get(&key) {
        None => first,
        Some((last, wait)) => {
            let over = now.duration_since(*last);
            if over < *wait {
                return Duration::try_from(*wait - over).ok();
            }
            if over > longest * 2 { first } else { (*wait * 2).min(longest) }
        }
    };
    backoffs.insert(key, (now, next));
    None
}

#[cfg(test)]
mod tests;
