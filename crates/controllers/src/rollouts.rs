//! A limit of the rollouts that go on at once in the whole cluster, first come first served; off unless asked for.
//!
//! A rollout is the change of a Deployment, StatefulSet or DaemonSet from one template to another while pods of the old
//! one run. One that waits is left as it is: its size still follows its spec, and pods that fail are replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{EventRecorder, EventType, WorkQueue};
use coracle_meta::Object;
use coracle_stdx::Clock;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::runtime::ObjectKey;

/// After a start, so long it is looked which rollouts go on before others may begin.
const SETTLE: SignedDuration = SignedDuration::from_secs(2);

/// How far a workload's change of template has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All pods have the template, or the rollout has failed or is paused: it holds nobody up.
    Idle,
    /// Pods of the old template only; since the given time, where it is known.
    Due(Option<Timestamp>),
    /// Pods of both.
    Begun,
}

/// Whether a rollout may go on now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Goes,
    /// Behind so many others; asked again after a while, or when one of them is over.
    Waits(usize),
}

/// Kind and name of a workload.
type Id = (&'static str, ObjectKey);

#[derive(Debug)]
struct Entry {
    since: Timestamp,
    goes: bool,
    /// Whether its waiting was told.
    told: bool,
}

/// The rollouts that go on and those that wait. Clones share them.
#[derive(Clone)]
pub(crate) struct Rollouts(Arc<Shared>);

struct Shared {
    limit: usize,
    clock: Clock,
    opens: Timestamp,
    entries: Mutex<BTreeMap<Id, Entry>>,
    queues: Mutex<BTreeMap<&'static str, Arc<WorkQueue<ObjectKey>>>>,
}

impl fmt::Debug for Rollouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rollouts({})", self.0.limit)
    }
}

impl Rollouts {
    /// At most `limit` at once; 0 is no limit.
    pub(crate) fn new(limit: usize, clock: Clock) -> Self {
        let opens = clock.now().checked_add(SETTLE).unwrap_or(Timestamp::MAX);
        Self(Arc::new(Shared { limit, clock, opens, entries: Mutex::default(), queues: Mutex::default() }))
    }

    /// Where the workloads of a kind are waked when it is their turn.
    pub(crate) fn wakes(&self, kind: &'static str, queue: Arc<WorkQueue<ObjectKey>>) {
        self.0.queues.lock().insert(kind, queue);
    }

    /// A workload that is gone.
    pub(crate) fn forget(&self, kind: &'static str, key: &ObjectKey) {
        self.leave(&(kind, key.clone()));
    }

    /// Tells where a workload is, and whether it may go on.
    pub(crate) fn turn(&self, kind: &'static str, key: &ObjectKey, progress: Progress) -> Turn {
        if self.0.limit == 0 {
            return Turn::Goes;
        }
        let (id, now) = ((kind, key.clone()), self.0.clock.now());
        let since = match progress {
            Progress::Idle => {
                self.leave(&id);
                return Turn::Goes;
            }
            Progress::Due(since) => since.unwrap_or(now),
            Progress::Begun => Timestamp::MIN,
        };
        let mut entries = self.0.entries.lock();
        let entry = entries.entry(id.clone()).or_insert(Entry { since, goes: false, told: false });
        // What has begun is not stopped, also where a restart finds more of them than there may be.
        entry.goes |= progress == Progress::Begun;
        if entry.goes {
            return Turn::Goes;
        }
        let place = (entry.since, id.clone());
        let going = entries.values().filter(|entry| entry.goes).count();
        let before = entries.iter().filter(|(id, e)| !e.goes && (e.since, (*id).clone()) < place).count();
        let goes = now >= self.0.opens && before == 0 && going < self.0.limit;
        match entries.get_mut(&id) {
            Some(entry) if goes => entry.goes = true,
            _ => return Turn::Waits(going + before),
        }
        if going + 1 < self.0.limit {
            self.wake(&entries);
        }
        Turn::Goes
    }

    /// Tells of a workload, once, that it waits; how long until it asks again.
    pub(crate) fn tell(
        &self,
        kind: &'static str,
        object: &dyn Object,
        events: &EventRecorder,
        before: usize,
    ) -> Duration {
        let id = (kind, ObjectKey::of(object.meta()));
        let mut entries = self.0.entries.lock();
        if let Some(entry) =
            entries.get_mut(&id).filter(|entry| !entry.told && self.0.clock.now() >= self.0.opens)
        {
            entry.told = true;
            let limit = self.0.limit;
            let message = format!("Waiting for {before} other rollouts: at most {limit} go on at once");
            events.event(object, EventType::Normal, "RolloutWaiting", message);
        }
        Duration::try_from(SETTLE).unwrap_or_default()
    }

    fn leave(&self, id: &Id) {
        let mut entries = self.0.entries.lock();
        if entries.remove(id).is_some() {
            self.wake(&entries);
        }
    }

    /// Wakes those that wait: one of them is next.
    fn wake(&self, entries: &BTreeMap<Id, Entry>) {
        let queues = self.0.queues.lock();
        for (kind, key) in entries.iter().filter(|(_, entry)| !entry.goes).map(|(id, _)| id) {
            if let Some(queue) = queues.get(kind) {
                queue.add(key.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use rand::Rng as _;

    use super::*;
    use crate::testing::seeded;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn gate(limit: usize) -> (Rollouts, Arc<AtomicI64>) {
        let second = Arc::new(AtomicI64::new(0));
        let source = second.clone();
        (Rollouts::new(limit, Clock::from_fn(move || at(source.load(Ordering::Relaxed)))), second)
    }

    fn key(n: usize) -> ObjectKey {
        ObjectKey::new("ns", &format!("w{n:02}"))
    }

    fn due(second: i64) -> Progress {
        Progress::Due(Some(at(second)))
    }

    #[test]
    fn the_first_to_come_goes_first_and_an_end_wakes_those_that_wait() {
        let (gate, second) = gate(1);
        let queue = Arc::new(WorkQueue::new());
        gate.wakes("Deployment", queue.clone());
        assert_eq!(
            gate.turn("Deployment", &key(1), due(9)),
            Turn::Waits(0),
            "just started: who else is there?"
        );
        assert_eq!(gate.turn("StatefulSet", &key(2), due(5)), Turn::Waits(0));
        second.store(10, Ordering::Relaxed);
        assert_eq!(gate.turn("Deployment", &key(1), due(9)), Turn::Waits(1), "the other waits longer");
        assert_eq!(gate.turn("StatefulSet", &key(2), due(5)), Turn::Goes);
        assert_eq!(gate.turn("StatefulSet", &key(2), Progress::Begun), Turn::Goes);
        assert_eq!(gate.turn("Deployment", &key(1), due(9)), Turn::Waits(1));
        assert_eq!(gate.turn("StatefulSet", &key(2), Progress::Idle), Turn::Goes);
        assert_eq!(queue.len(), 1);
        assert_eq!(gate.turn("Deployment", &key(1), due(9)), Turn::Goes);
        gate.forget("Deployment", &key(1));
        assert_eq!(gate.turn("Deployment", &key(3), due(11)), Turn::Goes);
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let (gate, _) = gate(0);
        assert!((0..9).all(|n| gate.turn("DaemonSet", &key(n), due(0)) == Turn::Goes));
    }

    #[test]
    fn in_any_order_no_more_than_the_limit_go_on_and_all_get_their_turn_in_order() {
        let mut random = seeded(13);
        for _ in 0..200 {
            let limit = random.random_range(1..4);
            let (gate, second) = gate(limit);
            second.store(10, Ordering::Relaxed);
            let (mut begun, mut done, mut order) = (Vec::new(), 0, Vec::new());
            // All ask once, so that all are known; then they ask in any order.
            let mut waiting: Vec<usize> = (0..12).collect();
            gate.turn("Deployment", &key(99), Progress::Begun);
            for n in &waiting {
                if gate.turn("Deployment", &key(*n), due(i64::try_from(*n).expect("few"))) == Turn::Goes {
                    begun.push(*n);
                    order.push(*n);
                }
            }
            waiting.retain(|n| !begun.contains(n));
            gate.forget("Deployment", &key(99));
            while done < 12 {
                if !begun.is_empty() && random.random_range(0..3) == 0 {
                    let over = begun.swap_remove(random.random_range(0..begun.len()));
                    gate.turn("Deployment", &key(over), Progress::Idle);
                    done += 1;
                }
                if !waiting.is_empty() {
                    let n = waiting[random.random_range(0..waiting.len())];
                    if gate.turn("Deployment", &key(n), due(i64::try_from(n).expect("few"))) == Turn::Goes {
                        waiting.retain(|w| *w != n);
                        begun.push(n);
                        order.push(n);
                    }
                }
                assert!(begun.len() <= limit, "{} of {limit}", begun.len());
            }
            assert!(order.is_sorted(), "{order:?}");
        }
    }
}
