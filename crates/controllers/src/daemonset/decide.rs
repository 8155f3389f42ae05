//! Which pods a DaemonSet makes and removes, and what its status says: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::EventType;
use coracle_meta::{int_or_percent, pod as podutil};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::placing::{Wish, is_updated, target, wish};
use crate::pods::{available_at, is_available};
use crate::runtime::name_of;

/// What a decision is made from.
pub(super) struct View<'a> {
    pub set: &'a Arc<DaemonSet>,
    pub nodes: Vec<(Arc<Node>, Wish)>,
    /// Pods by the node they are on or meant for.
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Of the present template.
    pub hash: &'a str,
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    pub happenings: Vec<(EventType, &'static str, String)>,
    /// When to look again for pods whose removal was put off.
    pub again: Option<Duration>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

/// Whether a failed pod on a node may be replaced now; else how long to wait.
pub(super) type MayReplace<'a> = &'a mut dyn FnMut(&str) -> Option<Duration>;

/// The new and the old pod of a node.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

fn oldest_first(pods: &mut [Arc<Pod>]) {
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    pods.sort_by(|a, b| {
        let bound = |pod: &Pod| podutil::node_name(pod).is_none();
        bound(a)
            .cmp(&bound(b))
            .then_with(|| created(a).cmp(&created(b)))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
}

impl<'a> View<'a> {
    pub(super) fn new(
        set: &'a Arc<DaemonSet>,
        nodes: &[Arc<Node>],
        pods: &[Arc<Pod>],
        hash: &'a str,
        now: Timestamp,
    ) -> Self {
        let nodes = nodes.iter().map(|node| (node.clone(), wish(set, node))).collect();
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        // Finished pods that are being deleted wait for others; there is nothing left to do about them.
        let counts =
            |pod: &&Arc<Pod>| !podutil::is_terminal(pod) || pod.metadata.deletion_timestamp.is_none();
        for pod in pods.iter().filter(counts) {
            if let Some(node) = target(pod) {
                by_node.entry(node).or_default().push(pod.clone());
            }
        }
        by_node.values_mut().for_each(|pods| oldest_first(pods));
        Self { set, nodes, pods: by_node, hash, now }
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready(), self.now)
    }

    fn desired(&self) -> usize {
        self.nodes.iter().filter(|(_, wish)| *wish == Wish::Run).count()
    }

    /// How many nodes may have two pods, and how many none, while pods are replaced.
    fn limits(&self) -> (usize, usize) {
        let desired = self.desired();
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.filter(|s| s.type_.as_deref() != Some("OnDelete"));
        let rolling = rolling.and_then(|s| s.rolling_update.as_ref());
        let resolve = |value: Option<&IntOrString>, default: i32| {
            let default = IntOrString::Int(default);
            let total = i64::try_from(desired).unwrap_or(i64::MAX);
            let number = int_or_percent(value.unwrap_or(&default), total, true).unwrap_or(0);
            usize::try_from(number).unwrap_or(0)
        };
        let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), 0);
        let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// The one new and the one old pod of a node that live; `None` when there are more.
    fn pair(&self, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let slot = if is_updated(self.set, pod, self.hash) { &mut new } else { &mut old };
            if slot.replace(pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }
}

/// One pod where one belongs, none where none does.
pub(super) fn manage(view: &View<'_>, may_replace: MayReplace<'_>) -> Plan {
    let mut plan = Plan::default();
    let surges = view.limits().0 > 0;
    for (node, wish) in &view.nodes {
        let name = name_of(&**node);
        let pods = view.pods.get(name).map(Vec::as_slice).unwrap_or_default();
        match wish {
            Wish::Run if pods.is_empty() => plan.create.push(name.to_owned()),
            Wish::Leave => {
                let live = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
                plan.delete.extend(live.cloned());
            }
            Wish::Run | Wish::Keep => {
                let running = discard_finished(name, pods, may_replace, &mut plan);
                if !surges {
                    plan.delete.extend(running.into_iter().skip(1));
                } else if running.len() <= 1 {
                    if running.is_empty() && *wish == Wish::Run {
                        plan.create.push(name.to_owned());
                    }
                } else {
                    prune_surge(view, &running, &mut plan);
                }
            }
        }
    }
    // Pods meant for nodes that are gone are never scheduled, and nobody else removes them.
    let known: BTreeSet<&str> = view.nodes.iter().map(|(node, _)| name_of(&**node)).collect();
    for (node, pods) in &view.pods {
        if !known.contains(node.as_str()) {
            plan.delete.extend(pods.iter().filter(|pod| podutil::node_name(pod).is_none()).cloned());
        }
    }
    plan
}

/// Removes the finished pods of a node; those that still run, the oldest first.
fn discard_finished(
    node: &str,
    pods: &[Arc<Pod>],
    may_replace: MayReplace<'_>,
    plan: &mut Plan,
) -> Vec<Arc<Pod>> {
    let mut running = Vec::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = || format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or(""), name_of(&**pod));
        match podutil::phase(pod) {
            "Failed" => match may_replace(node) {
                Some(wait) => plan.again = Some(plan.again.map_or(wait, |again| again.min(wait))),
                None => {
                    let message =
                        format!("Found failed daemon pod {} on node {node}, will try to kill it", name());
                    plan.happenings.push((EventType::Warning, "FailedDaemonPod", message));
                    plan.delete.push(pod.clone());
                }
            },
            "Succeeded" => {
                let message =
                    format!("Found succeeded daemon pod {} on node {node}, will try to delete it", name());
                plan.happenings.push((EventType::Normal, "SucceededDaemonPod", message));
                plan.delete.push(pod.clone());
            }
            _ => running.push(pod.clone()),
        }
    }
    running
}

/// Two pods may share a node only while the new one becomes available and the old one still is ready.
fn prune_surge(view: &View<'_>, running: &[Arc<Pod>], plan: &mut Plan) {
    let (mut new, mut old): (Option<&Arc<Pod>>, Option<&Arc<Pod>>) = (None, None);
    for pod in running {
        let slot = if is_updated(view.set, pod, view.hash) { &mut new } else { &mut old };
        match slot {
            None => *slot = Some(pod),
            Some(_) => plan.delete.push(pod.clone()),
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!podutil::is_ready(old) || view.available(new))
    {
        plan.delete.push(old.clone());
    }
}

/// Replaces pods of older templates, within the limits.
pub(super) fn rolling_update(view: &View<'_>) -> Plan {
    let (surge, unavailable) = view.limits();
    if surge == 0 { replace_in_place(view, unavailable) } else { replace_by_surge(view, surge) }
}

/// All nodes that want a pod or have one.
fn occupied<'a>(view: &'a View<'_>) -> impl Iterator<Item = (&'a str, &'a [Arc<Pod>])> {
    let mut all: BTreeMap<&str, &[Arc<Pod>]> =
        view.pods.iter().map(|(node, pods)| (node.as_str(), pods.as_slice())).collect();
    for (node, wish) in &view.nodes {
        if *wish == Wish::Run {
            all.entry(name_of(&**node)).or_default();
        }
    }
    all.into_iter()
}

fn replace_in_place(view: &View<'_>, max_unavailable: usize) -> Plan {
    let (mut missing, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
    for (_, pods) in occupied(view) {
        match view.pair(pods) {
            None | Some((None, None) | (Some(_), Some(_))) => missing += 1,
            Some((Some(new), None)) => missing += usize::from(!view.available(new)),
            Some((None, Some(old))) if view.available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                missing += 1;
                broken.push(old.clone());
            }
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(missing));
    broken.extend(candidates);
    Plan { delete: broken, ..Plan::default() }
}

fn replace_by_surge(view: &View<'_>, max_surge: usize) -> Plan {
    let (mut plan, mut surging, mut available) = (Plan::default(), 0, 0);
    let (mut candidates, mut displaced) = (Vec::new(), Vec::new());
    let wishes: BTreeMap<&str, Wish> = view.nodes.iter().map(|(n, wish)| (name_of(&**n), *wish)).collect();
    for (node, pods) in occupied(view) {
        let Some((new, old)) = view.pair(pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|pod| view.available(pod)));
        let runs = wishes.get(node) == Some(&Wish::Run);
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) => match (view.available(old), runs) {
                (false, false) => plan.delete.push(old.clone()),
                (false, true) => plan.create.push(node.to_owned()),
                (true, false) => displaced.push(old.clone()),
                (true, true) => candidates.push(node.to_owned()),
            },
            (Some(new), Some(_)) if !view.available(new) => surging += 1,
            (Some(_), Some(old)) => plan.delete.push(old.clone()),
        }
    }
    displaced.truncate(available.saturating_sub(view.desired()));
    plan.delete.extend(displaced);
    candidates.truncate(max_surge.saturating_sub(surging));
    plan.create.extend(candidates);
    plan
}

/// The status, and when a ready pod becomes available next. `observed`: whether this generation was acted on.
pub(super) fn status(
    view: &View<'_>,
    observed: bool,
    collisions: i32,
) -> (DaemonSetStatus, Option<Duration>) {
    let mut status = DaemonSetStatus::default();
    let (mut available, mut updated) = (0, 0);
    let mut next: Option<Duration> = None;
    for (node, wish) in &view.nodes {
        let pods = view.pods.get(name_of(&**node)).map(Vec::as_slice).unwrap_or_default();
        if *wish != Wish::Run {
            status.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(oldest) = pods.first() else { continue };
        status.current_number_scheduled += 1;
        if podutil::is_ready(oldest) {
            status.number_ready += 1;
            available += i32::from(view.available(oldest));
        }
        for at in
            pods.iter().filter_map(|pod| available_at(pod, view.min_ready())).filter(|at| *at > view.now)
        {
            let wait = Duration::try_from(at.duration_since(view.now)).unwrap_or_default();
            next = Some(next.map_or(wait, |next| next.min(wait)));
        }
        updated += i32::from(is_updated(view.set, oldest, view.hash));
    }
    let some = |count: i32| (count != 0).then_some(count);
    let old = view.set.status.clone().unwrap_or_default();
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = some(updated);
    status.observed_generation =
        if observed { view.set.metadata.generation } else { old.observed_generation };
    status.collision_count = if collisions == 0 { old.collision_count } else { Some(collisions) };
    status.conditions = old.conditions;
    (status, next.map(|wait| wait + Duration::from_millis(10)))
}
