//! Spreads a change of a Deployment's size over its ReplicaSets in the middle of a rollout: pure.

use std::cmp::Reverse;

use super::decide::Pass;
use super::util::{DESIRED, MAX, available, number, size};

/// Scales the ReplicaSets to the Deployment's size, each in proportion to its present one.
pub(super) fn proportionally(pass: &mut Pass<'_>) {
    let wanted = pass.numbers.replicas;
    if let Some(only) = active_or_latest(pass) {
        let current = size(&pass.sets[only].set);
        // Two versions never run at once where everything stops first.
        let waits = !pass.numbers.rolling && wanted > current && pass.others_run(Some(only));
        if current != wanted && !waits {
            pass.scale(only, wanted);
        }
        return;
    }
    if is_saturated(pass) {
        for position in pass.old_positions() {
            if size(&pass.sets[position].set) > 0 {
                pass.scale(position, 0);
            }
        }
        return;
    }
    if pass.numbers.rolling {
        spread(pass);
    }
}

/// The one ReplicaSet to scale, if there are not several active ones.
fn active_or_latest(pass: &Pass<'_>) -> Option<usize> {
    let mut active = (0..pass.sets.len()).filter(|i| size(&pass.sets[*i].set) > 0);
    match (active.next(), active.next()) {
        (None, _) => pass.newest.or_else(|| pass.sets.len().checked_sub(1)),
        (only, None) => only,
        _ => None,
    }
}

fn is_saturated(pass: &Pass<'_>) -> bool {
    let wanted = pass.numbers.replicas;
    pass.newest().is_some_and(|set| {
        number(&set.metadata, DESIRED) == Some(i64::from(wanted))
            && size(set) == wanted
            && available(set) == wanted
    })
}

fn spread(pass: &mut Pass<'_>) {
    let numbers = pass.numbers;
    let allowed = if numbers.replicas > 0 { numbers.max() } else { 0 };
    let to_add = allowed - pass.total(size);
    let mut order: Vec<usize> = (0..pass.sets.len()).filter(|i| size(&pass.sets[*i].set) > 0).collect();
    // The biggest first; of equals the newest first when growing, the oldest first when shrinking.
    order.sort_by_key(|i| {
        let age = i64::try_from(*i).unwrap_or(0) * if to_add > 0 { 1 } else { -1 };
        Reverse((size(&pass.sets[*i].set), age))
    });
    let mut added = 0;
    let mut sizes = Vec::with_capacity(order.len());
    for position in &order {
        let share = share(pass, *position, to_add, added);
        sizes.push(size(&pass.sets[*position].set) + share);
        added += share;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (position, size) in order.into_iter().zip(sizes) {
        pass.scale(position, size);
    }
}

/// How many pods more (or fewer) a ReplicaSet gets.
fn share(pass: &Pass<'_>, position: usize, to_add: i32, added: i32) -> i32 {
    let set = &pass.sets[position].set;
    let current = size(set);
    if current == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let allowed = to_add - added;
    let fraction = if pass.numbers.replicas == 0 {
        -current
    } else {
        let annotated = number(&set.metadata, MAX).filter(|max| *max > 0);
        let before = annotated.unwrap_or_else(|| i64::from(pass.status.replicas.unwrap_or(0)));
        if before == 0 {
            return 0;
        }
        let scaled = f64::from(current) * f64::from(pass.numbers.max()) / before as f64;
        scaled.round() as i32 - current
    };
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}
