//! Which pods go first when a ReplicaSet shrinks: pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use coracle_meta::pod as podutil;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What decides, in this order; the smaller goes first.
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Active pods of the same family on the same node: the fuller node loses first.
    crowd: usize,
    ready_since: Option<Timestamp>,
    restarts: (i32, i32),
    created: Option<Timestamp>,
    uid: String,
}

fn rank(pod: &Pod, crowds: &HashMap<&str, usize>) -> Rank {
    let node = podutil::node_name(pod);
    let phase = match podutil::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    let ready = podutil::condition(pod, "Ready").filter(|c| c.status == "True");
    Rank {
        assigned: node.is_some(),
        phase,
        ready: ready.is_some(),
        cost: cost.and_then(|c| c.parse().ok()).unwrap_or(0),
        crowd: node.and_then(|n| crowds.get(n)).copied().unwrap_or(0),
        ready_since: ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0),
        restarts: restarts(pod),
        created: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The most restarts of a container, and of a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let most = |statuses: Option<&Vec<ContainerStatus>>| {
        statuses.into_iter().flatten().map(|s| s.restart_count).max().unwrap_or(0)
    };
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    (most(status.and_then(|s| s.container_statuses.as_ref())), most(init))
}

/// Ages are compared by order of magnitude, so that among pods of like age the victim is arbitrary.
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |t: Option<Timestamp>| {
        let age = t.map_or(0, |t| now.duration_since(t).as_nanos()).max(0);
        if age == 0 { -1 } else { i64::from(age.ilog2()) }
    };
    magnitude(a).cmp(&magnitude(b))
}

fn compare(a: &Rank, b: &Rank, now: Timestamp) -> Ordering {
    let first = a
        .assigned
        .cmp(&b.assigned)
        .then(a.phase.cmp(&b.phase))
        .then(a.ready.cmp(&b.ready))
        .then(a.cost.cmp(&b.cost))
        .then(b.crowd.cmp(&a.crowd));
    if first.is_ne() {
        return first;
    }
    if a.ready && b.ready && a.ready_since != b.ready_since {
        return younger_first(a.ready_since, b.ready_since, now).then(a.uid.cmp(&b.uid));
    }
    let second = b.restarts.cmp(&a.restarts);
    if second.is_ne() {
        return second;
    }
    if a.created != b.created {
        return younger_first(a.created, b.created, now).then(a.uid.cmp(&b.uid));
    }
    Ordering::Equal
}

/// The `count` active pods of `owned` to delete. `related` are all pods of the owner's family.
pub(super) fn victims(
    owned: &[Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut crowds: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| podutil::is_active(pod)) {
        if let Some(node) = podutil::node_name(pod) {
            *crowds.entry(node).or_default() += 1;
        }
    }
    let active = owned.iter().filter(|pod| podutil::is_active(pod));
    let mut ranked: Vec<(Rank, &Arc<Pod>)> = active.map(|pod| (rank(pod, &crowds), pod)).collect();
    if count < ranked.len() {
        ranked.sort_by(|(a, _), (b, _)| compare(a, b, now));
    }
    ranked.into_iter().take(count).map(|(_, pod)| pod.clone()).collect()
}
