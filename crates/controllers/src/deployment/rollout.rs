//! The two strategies, and the removal of old revisions: pure.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::decide::Pass;
use super::util::{REVISION, actual, available, number, size};

/// RollingUpdate: grows the newest ReplicaSet, then shrinks the old ones, within surge and unavailability.
pub(super) fn rolling(pass: &mut Pass<'_>) {
    pass.find_newest(true);
    if grow(pass) || shrink(pass) {
        return;
    }
    clean_up_if_complete(pass);
}

fn grow(pass: &mut Pass<'_>) -> bool {
    let Some(position) = pass.newest else { return false };
    let (numbers, current) = (pass.numbers, size(&pass.sets[position].set));
    let to = if current >= numbers.replicas {
        numbers.replicas
    } else {
        let room = numbers.max() - pass.total(size);
        current + room.clamp(0, numbers.replicas - current)
    };
    current != to && pass.scale(position, to)
}

/// Pods that are available and stay. A ReplicaSet that was just shrunk may still tell of those that go: they must not
/// be counted on a second time.
fn lasting(set: &ReplicaSet) -> i32 {
    available(set).min(size(set))
}

fn shrink(pass: &mut Pass<'_>) -> bool {
    let numbers = pass.numbers;
    if pass.old().all(|p| size(&p.set) == 0) {
        return false;
    }
    let min_available = numbers.replicas - numbers.max_unavailable;
    let unavailable = pass.newest().map_or(0, |set| size(set) - lasting(set));
    let most = pass.total(size) - min_available - unavailable;
    if most <= 0 {
        return false;
    }
    // Pods that are not available anyway go first.
    let mut gone = 0;
    for position in pass.old_positions() {
        let set = &pass.sets[position].set;
        let by = (size(set) - available(set)).min(most - gone);
        if by > 0 {
            let to = size(set) - by;
            pass.scale(position, to);
            gone += by;
        }
    }
    let cleaned = gone;
    let spare = pass.total(lasting) - min_available;
    let mut gone = 0;
    for position in pass.old_positions() {
        let current = size(&pass.sets[position].set);
        let by = current.min(spare - gone);
        if by > 0 {
            pass.scale(position, current - by);
            gone += by;
        }
    }
    cleaned + gone > 0
}

/// Recreate: no pod of the new revision before the last one of the old is gone.
pub(super) fn recreate(pass: &mut Pass<'_>) {
    pass.find_newest(false);
    let active: Vec<usize> =
        pass.old_positions().into_iter().filter(|i| size(&pass.sets[*i].set) > 0).collect();
    let scaled_down = !active.is_empty();
    for position in active {
        pass.scale(position, 0);
    }
    if scaled_down || pass.others_run(pass.newest) {
        return;
    }
    if pass.newest.is_none() {
        pass.find_newest(true);
    }
    if let Some(position) = pass.newest {
        let wanted = pass.numbers.replicas;
        if size(&pass.sets[position].set) != wanted {
            pass.scale(position, wanted);
        }
    }
    clean_up_if_complete(pass);
}

fn clean_up_if_complete(pass: &mut Pass<'_>) {
    if pass.is_complete(&pass.deployment.status.clone().unwrap_or_default()) {
        clean_up(pass);
    }
}

/// Removes the oldest revisions beyond the history limit.
pub(super) fn clean_up(pass: &mut Pass<'_>) {
    let limit = pass.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return };
    let mut old: Vec<usize> = pass.old_positions();
    old.retain(|i| pass.sets[*i].set.metadata.deletion_timestamp.is_none());
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|i| number(&pass.sets[*i].set.metadata, REVISION).unwrap_or(0));
    for position in old.into_iter().take(surplus) {
        let set = &pass.sets[position].set;
        let observed = set.status.as_ref().and_then(|status| status.observed_generation);
        if actual(set) == 0 && size(set) == 0 && set.metadata.generation <= observed {
            pass.delete(position);
        }
    }
}
