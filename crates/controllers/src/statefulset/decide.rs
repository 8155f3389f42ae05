//! What a StatefulSet does next: pure. The order of its pods is kept here.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{int_or_percent, pod as podutil};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};

use super::identity::{
    Owners, claims, in_range, is_stale, new_pod, ordinal, owners, repaired, replicas, revision, start,
};
use crate::pods::{available_at, is_available};
use crate::runtime::name_of;

/// A revision by name, with its template.
#[derive(Clone, Copy)]
pub(super) struct Revision<'a> {
    pub name: &'a str,
    pub template: &'a PodTemplateSpec,
}

/// What a decision is made from.
pub(super) struct View<'a> {
    pub set: &'a Arc<StatefulSet>,
    /// Pods that the set owns.
    pub pods: &'a [Arc<Pod>],
    pub current: Revision<'a>,
    pub update: Revision<'a>,
    pub collisions: i32,
    /// Whether pods may be replaced by ones of the update.
    pub may_roll: bool,
    /// A claim of the set's namespace by name.
    pub claims: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub now: Timestamp,
}

/// Something to do.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Make the pod, its claims first.
    Create(Box<Pod>),
    Delete(Arc<Pod>),
    /// Put identity and storage of a pod right.
    Repair(Box<Pod>),
    /// Make the claims of a pod that waits for them, and put their owners right.
    Claims(Arc<Pod>),
    /// Put the owners of a pod's claims right.
    Owners(Arc<Pod>),
}

/// What to do, in this order, and what the status says.
#[derive(Debug)]
pub(super) struct Plan {
    pub acts: Vec<Act>,
    pub status: StatefulSetStatus,
    /// When a ready pod becomes available next.
    pub next: Option<Duration>,
}

/// Whether the pods may be dealt with all at once.
pub(super) fn is_parallel(set: &StatefulSet) -> bool {
    let policy = set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref());
    policy == Some("Parallel")
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// A number of the set, and the pod that has it.
struct Seat {
    ordinal: i32,
    pod: Option<Arc<Pod>>,
}

enum Next {
    GoOn,
    /// The rest must wait.
    Stop,
}

struct Pass<'a> {
    view: &'a View<'a>,
    parallel: bool,
    min_ready: i32,
    acts: Vec<Act>,
}

/// One pass.
pub(super) fn decide(view: &View<'_>) -> Plan {
    let set = view.set;
    let mut seats: Vec<Seat> = (0..replicas(set).max(0))
        .map(|offset| Seat { ordinal: start(set).saturating_add(offset), pod: None })
        .collect();
    let mut condemned: Vec<(i32, Arc<Pod>)> = Vec::new();
    for pod in view.pods {
        match ordinal(set, pod) {
            Some(number) if in_range(set, number) => {
                let seat = usize::try_from(number - start(set)).ok().and_then(|i| seats.get_mut(i));
                if let Some(seat) = seat {
                    seat.pod = Some(pod.clone());
                }
            }
            Some(number) => condemned.push((number, pod.clone())),
            None => {}
        }
    }
    condemned.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let mut status = status(view, &seats, &condemned);
    let mut pass = Pass {
        view,
        parallel: is_parallel(set),
        min_ready: set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
        acts: Vec::new(),
    };
    let next = pass.next_available(view.pods);
    if set.metadata.deletion_timestamp.is_none() {
        let deleted = pass.run(&seats, &condemned);
        status.current_replicas = count(status.current_replicas.unwrap_or(0) - deleted);
        complete(set, &mut status);
    }
    Plan { acts: pass.acts, status, next }
}

impl Pass<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready, self.view.now)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !is_leaving(pod)
    }

    fn next_available(&self, pods: &[Arc<Pod>]) -> Option<Duration> {
        let times = pods.iter().filter_map(|pod| available_at(pod, self.min_ready));
        let wait = times.filter(|at| *at > self.view.now).min()?.duration_since(self.view.now);
        Some(Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(10))
    }

    /// How many pods of the current revision go for the update.
    fn run(&mut self, seats: &[Seat], condemned: &[(i32, Arc<Pod>)]) -> i32 {
        for seat in seats {
            if matches!(self.fill(seat), Next::Stop) && !self.parallel {
                return 0;
            }
        }
        for (_, pod) in condemned {
            if self.has_wrong_owners(pod) {
                self.acts.push(Act::Owners(pod.clone()));
            }
        }
        if matches!(self.remove(seats, condemned), Next::Stop) {
            return 0;
        }
        self.update(seats)
    }

    /// Sees to it that a seat is taken by a healthy pod of its own.
    fn fill(&mut self, seat: &Seat) -> Next {
        let Some(pod) = &seat.pod else { return self.create(seat.ordinal) };
        if podutil::is_terminal(pod) {
            if !is_leaving(pod) {
                self.acts.push(Act::Delete(pod.clone()));
            }
            return Next::Stop;
        }
        if matches!(podutil::phase(pod), "" | "Pending") && self.lacks_claims(seat.ordinal, pod) {
            self.acts.push(Act::Claims(pod.clone()));
        }
        let running = podutil::phase(pod) == "Running" && podutil::is_ready(pod) && self.is_available(pod);
        if !self.parallel && (is_leaving(pod) || !running) {
            return Next::Stop;
        }
        if let Some(repaired) = repaired(self.view.set, pod, seat.ordinal) {
            self.acts.push(Act::Repair(Box::new(repaired)));
        } else if self.has_wrong_owners(pod) {
            self.acts.push(Act::Owners(pod.clone()));
        }
        Next::GoOn
    }

    fn create(&mut self, ordinal: i32) -> Next {
        let view = self.view;
        let strategy = view.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let kept = match rolling {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") => 0,
            None => view.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0),
        };
        let old = i64::from(ordinal) < i64::from(start(view.set)) + i64::from(kept);
        let revision = if old { view.current } else { view.update };
        let pod = new_pod(view.set, revision.template, revision.name, ordinal);
        let claims = claims(view.set, ordinal);
        let held = |claim: &PersistentVolumeClaim| {
            (view.claims)(name_of(claim)).is_some_and(|claim| is_stale(view.set, &claim, &pod))
        };
        if !claims.iter().any(held) {
            self.acts.push(Act::Create(Box::new(pod)));
        }
        Next::Stop
    }

    fn lacks_claims(&self, ordinal: i32, pod: &Pod) -> bool {
        let claims = claims(self.view.set, ordinal);
        claims.iter().any(|claim| (self.view.claims)(name_of(claim)).is_none()) || self.has_wrong_owners(pod)
    }

    fn has_wrong_owners(&self, pod: &Pod) -> bool {
        let Some(ordinal) = ordinal(self.view.set, pod) else { return false };
        let claims = claims(self.view.set, ordinal);
        let mut known = claims.iter().filter_map(|claim| (self.view.claims)(name_of(claim)));
        known.any(|claim| owners(self.view.set, &claim, pod) != Owners::Right)
    }

    /// Removes pods with too high (or too low) numbers, the highest first.
    fn remove(&mut self, seats: &[Seat], condemned: &[(i32, Arc<Pod>)]) -> Next {
        let in_order = condemned.iter().rev().map(|(_, pod)| pod);
        let mut unhealthy = in_order.filter(|pod| !self.is_healthy(pod)).map(|pod| uid(pod)).take(1);
        let blocked = seats.iter().any(|seat| seat.pod.as_ref().is_none_or(|pod| !self.is_healthy(pod)));
        let first_unhealthy = if blocked { None } else { unhealthy.next() };
        let mut outcome = Next::GoOn;
        for (_, pod) in condemned {
            if is_leaving(pod) {
                if self.parallel {
                    continue;
                }
                return Next::Stop;
            }
            let ready = podutil::phase(pod) == "Running" && podutil::is_ready(pod) && self.is_available(pod);
            // A finished pod never gets ready: waiting for it would be for ever.
            let over = podutil::is_terminal(pod);
            if !self.parallel && !ready && !over && first_unhealthy.as_deref() != Some(&uid(pod)) {
                return Next::Stop;
            }
            self.acts.push(Act::Delete(pod.clone()));
            outcome = Next::Stop;
            if !self.parallel {
                return outcome;
            }
        }
        // In parallel, the removal does not hold the update up.
        if self.parallel { Next::GoOn } else { outcome }
    }

    /// Removes pods of older revisions, the highest number first, as many as may be missing.
    fn update(&mut self, seats: &[Seat]) -> i32 {
        let view = self.view;
        let strategy = view.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        if !view.may_roll || strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return 0;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        let partition = usize::try_from(partition).unwrap_or(0);
        let mut targets = seats.iter().skip(partition).rev();
        // Finished pods are on their way already.
        let behind =
            |pod: &Pod| revision(pod) != view.update.name && !is_leaving(pod) && !podutil::is_terminal(pod);
        let victims: Vec<Arc<Pod>> = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
            // The first one that is behind, unless one above it is not there yet.
            None => {
                let is_done =
                    |seat: &Seat| seat.pod.as_ref().is_some_and(|pod| !behind(pod) && self.is_healthy(pod));
                let next = targets.find(|seat| !is_done(seat)).and_then(|seat| seat.pod.as_ref());
                next.filter(|pod| behind(pod)).cloned().into_iter().collect()
            }
            Some(allowed) => {
                let allowed = int_or_percent(allowed, i64::from(replicas(view.set)), false).unwrap_or(1);
                let is_missing = |s: &&Seat| s.pod.as_ref().is_none_or(|pod| !self.is_healthy(pod));
                let missing = seats.iter().filter(is_missing).count();
                let left = usize::try_from(allowed.max(1)).unwrap_or(1).saturating_sub(missing);
                let pods = targets.filter_map(|seat| seat.pod.as_ref());
                pods.filter(|pod| behind(pod)).take(left).cloned().collect()
            }
        };
        let current = victims.iter().filter(|pod| revision(pod) == view.current.name).count();
        self.acts.extend(victims.into_iter().map(Act::Delete));
        i32::try_from(current).unwrap_or(0)
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// Zero is left out, as upstream's `omitempty` does.
fn count(number: i32) -> Option<i32> {
    (number > 0).then_some(number)
}

fn status(view: &View<'_>, seats: &[Seat], condemned: &[(i32, Arc<Pod>)]) -> StatefulSetStatus {
    let min_ready = view.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let pods = seats.iter().filter_map(|seat| seat.pod.as_ref()).chain(condemned.iter().map(|(_, pod)| pod));
    let (mut all, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    for pod in pods {
        all += 1;
        if podutil::phase(pod) == "Running" && podutil::is_ready(pod) {
            ready += 1;
            available += i32::from(is_available(pod, min_ready, view.now));
        }
        if !is_leaving(pod) {
            current += i32::from(revision(pod) == view.current.name);
            updated += i32::from(revision(pod) == view.update.name);
        }
    }
    StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        replicas: all,
        ready_replicas: count(ready),
        available_replicas: Some(available),
        current_replicas: count(current),
        updated_replicas: count(updated),
        current_revision: Some(view.current.name.to_owned()),
        update_revision: Some(view.update.name.to_owned()),
        collision_count: Some(view.collisions),
        conditions: view.set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

/// Once all pods are of the new revision and ready, it is the current one.
fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolls = strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    let wanted = replicas(set);
    let all = |number: Option<i32>| number.unwrap_or(0) == wanted;
    if rolls && status.replicas == wanted && all(status.updated_replicas) && all(status.ready_replicas) {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
}
