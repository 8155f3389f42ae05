//! Pods that wait for a node: ready to be tried, backing off, or waiting for an event that could help.

use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::framework::{ClusterEvent, PluginDef, QueueSort, Verdict};
use crate::pod_info::PodInfo;

/// First wait after a failure; it doubles with each.
const INITIAL_BACKOFF: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait after a failure.
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// A pod that waited this long for an event is tried anyway.
const PATIENCE: SignedDuration = SignedDuration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be tried; the number tells the valid heap entry from stale ones.
    Active(u64),
    Backoff(Timestamp),
    Unschedulable(Timestamp),
    Gated,
    /// Popped: being bound.
    InFlight,
}

#[derive(Debug)]
struct Entry {
    info: Arc<PodInfo>,
    added: Timestamp,
    attempts: u32,
    failed: Timestamp,
    wakes_on: u16,
    state: State,
}

/// Highest rank first, then the oldest, then the first to come.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    rank: i64,
    added: std::cmp::Reverse<Timestamp>,
    sequence: std::cmp::Reverse<u64>,
    uid: String,
}

/// The queue. Every method takes the present time.
pub struct Queue {
    plugins: &'static [PluginDef],
    sort: &'static dyn QueueSort,
    entries: HashMap<String, Entry>,
    active: BinaryHeap<Turn>,
    backoff: BTreeSet<(Timestamp, String)>,
    /// Waiting for an event.
    waiting: HashSet<String>,
    sequence: u64,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} pods)", self.entries.len())
    }
}

fn wait(attempts: u32) -> SignedDuration {
    let seconds = INITIAL_BACKOFF.as_secs() << attempts.saturating_sub(1).min(16);
    SignedDuration::from_secs(seconds).min(MAX_BACKOFF)
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

impl Queue {
    /// An empty queue.
    pub fn new(plugins: &'static [PluginDef], sort: &'static dyn QueueSort) -> Self {
        Self {
            plugins,
            sort,
            entries: HashMap::new(),
            active: BinaryHeap::new(),
            backoff: BTreeSet::new(),
            waiting: HashSet::new(),
            sequence: 0,
        }
    }

    fn is_gated(&self, pod: &PodInfo) -> bool {
        let asked = self.plugins.iter().filter_map(|p| p.pre_enqueue);
        asked.map(|p| p.pre_enqueue(pod)).any(|v| v != Verdict::Success)
    }

    /// Puts the entry into a state, and out of the one before.
    fn enter(&mut self, uid: &str, state: State) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match entry.state {
            State::Backoff(until) => drop(self.backoff.remove(&(until, uid.to_owned()))),
            State::Unschedulable(_) => drop(self.waiting.remove(uid)),
            State::Active(_) | State::Gated | State::InFlight => {}
        }
        entry.state = state;
        match state {
            State::Backoff(until) => drop(self.backoff.insert((until, uid.to_owned()))),
            State::Unschedulable(_) => drop(self.waiting.insert(uid.to_owned())),
            State::Active(sequence) => self.active.push(Turn {
                rank: self.sort.rank(&entry.info),
                added: std::cmp::Reverse(entry.added),
                sequence: std::cmp::Reverse(sequence),
                uid: uid.to_owned(),
            }),
            State::Gated | State::InFlight => {}
        }
    }

    fn activate(&mut self, uid: &str) {
        self.sequence += 1;
        self.enter(uid, State::Active(self.sequence));
    }

    /// To the active pods, after what is left of the back-off.
    fn requeue(&mut self, uid: &str, now: Timestamp) {
        let Some(entry) = self.entries.get(uid) else { return };
        let until = later(entry.failed, wait(entry.attempts));
        if entry.attempts > 0 && until > now {
            self.enter(uid, State::Backoff(until));
        } else {
            self.activate(uid);
        }
    }

    /// Takes a pod in, new or changed. `relevant`: whether anything but its status changed.
    pub fn set(&mut self, info: Arc<PodInfo>, relevant: bool, now: Timestamp) {
        let gated = self.is_gated(&info);
        let uid = info.uid.clone();
        let Some(entry) = self.entries.get_mut(&uid) else {
            let entry =
                Entry { info, added: now, attempts: 0, failed: now, wakes_on: 0, state: State::Gated };
            self.entries.insert(uid.clone(), entry);
            if !gated {
                self.activate(&uid);
            }
            return;
        };
        entry.info = info;
        let wakes = relevant && entry.wakes_on & ClusterEvent::PodUpdate.bit() != 0;
        match entry.state {
            State::Gated if !gated => self.activate(&uid),
            State::Unschedulable(_) if wakes => self.requeue(&uid, now),
            _ => {}
        }
    }

    /// Forgets a pod: it is bound, or gone.
    pub fn remove(&mut self, uid: &str) {
        self.enter(uid, State::InFlight);
        self.entries.remove(uid);
    }

    /// The pod as it is known now.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|e| &e.info)
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Timestamp) -> Option<Arc<PodInfo>> {
        self.wake_due(now);
        while let Some(turn) = self.active.pop() {
            let valid = |e: &&mut Entry| e.state == State::Active(turn.sequence.0);
            if let Some(entry) = self.entries.get_mut(&turn.uid).filter(valid) {
                entry.state = State::InFlight;
                return Some(entry.info.clone());
            }
        }
        None
    }

    fn wake_due(&mut self, now: Timestamp) {
        while let Some((until, uid)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.activate(&uid);
        }
        let tired = |uid: &&String| {
            let state = self.entries.get(*uid).map(|e| e.state);
            matches!(state, Some(State::Unschedulable(since)) if later(since, PATIENCE) <= now)
        };
        let tired: Vec<String> = self.waiting.iter().filter(tired).cloned().collect();
        tired.iter().for_each(|uid| self.requeue(uid, now));
    }

    /// No node takes a popped pod: it waits for one of these events.
    pub fn unschedulable(&mut self, uid: &str, wakes_on: u16, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(uid) {
            (entry.attempts, entry.failed, entry.wakes_on) = (entry.attempts + 1, now, wakes_on);
            self.enter(uid, State::Unschedulable(now));
        }
    }

    /// Binding a popped pod failed: it is tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(uid) {
            (entry.attempts, entry.failed) = (entry.attempts + 1, now);
            self.requeue(uid, now);
        }
    }

    /// Something happened that may help the pods whose rejecting plugins wait for it.
    pub fn happened(&mut self, event: ClusterEvent, now: Timestamp) {
        let helped = |uid: &&String| self.entries.get(*uid).is_some_and(|e| e.wakes_on & event.bit() != 0);
        let helped: Vec<String> = self.waiting.iter().filter(helped).cloned().collect();
        helped.iter().for_each(|uid| self.requeue(uid, now));
    }

    /// When the queue must be looked at again though nothing happens.
    pub fn deadline(&self) -> Option<Timestamp> {
        let back = self.backoff.first().map(|(until, _)| *until);
        let since = self.waiting.iter().filter_map(|uid| match self.entries.get(uid)?.state {
            State::Unschedulable(since) => Some(later(since, PATIENCE)),
            _ => None,
        });
        since.chain(back).min()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::framework::events;
    use crate::plugins;

    fn queue() -> Queue {
        Queue::new(plugins::ALL, plugins::queue_sort())
    }

    fn pod(uid: &str, priority: i64) -> Arc<PodInfo> {
        let mut pod = plugins::testing::pod(json!({"priority": priority}));
        pod.uid = uid.into();
        Arc::new(pod)
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).expect("time")
    }

    fn popped(queue: &mut Queue, now: i64) -> Option<String> {
        queue.pop(at(now)).map(|p| p.uid.clone())
    }

    #[test]
    fn higher_priority_comes_first_then_the_older() {
        let mut queue = queue();
        for (uid, priority, time) in [("late", 0, 2), ("early", 0, 1), ("high", 9, 3)] {
            queue.set(pod(uid, priority), true, at(time));
        }
        let order: Vec<String> = std::iter::from_fn(|| popped(&mut queue, 5)).collect();
        assert_eq!(order, ["high", "early", "late"]);
    }

    #[test]
    fn a_rejected_pod_waits_for_an_event_of_its_plugins_and_backs_off_ever_longer() {
        let mut queue = queue();
        let wakes = events(&[ClusterEvent::NodeAdd]);
        queue.set(pod("a", 0), true, at(0));
        let mut now = 0;
        for (attempt, backoff) in [1, 2, 4, 8, 10, 10].into_iter().enumerate() {
            assert_eq!(popped(&mut queue, now).as_deref(), Some("a"), "attempt {attempt}");
            queue.unschedulable("a", wakes, at(now));
            queue.happened(ClusterEvent::AssignedPodDelete, at(now));
            assert_eq!(popped(&mut queue, now + 60_000), None, "not an event of its plugins");
            queue.happened(ClusterEvent::NodeAdd, at(now));
            assert_eq!(queue.deadline(), Some(at(now + backoff * 1000)));
            assert_eq!(popped(&mut queue, now + backoff * 1000 - 1), None);
            now += backoff * 1000;
        }
        assert!(popped(&mut queue, now).is_some());
        queue.unschedulable("a", wakes, at(now));
        queue.happened(ClusterEvent::NodeAdd, at(now + 20_000));
        assert!(popped(&mut queue, now + 20_000).is_some(), "the back-off is over when the event comes");
    }

    #[test]
    fn a_forgotten_pod_is_tried_after_five_minutes() {
        let mut queue = queue();
        queue.set(pod("a", 0), true, at(0));
        queue.pop(at(0));
        queue.unschedulable("a", 0, at(0));
        assert_eq!(queue.deadline(), Some(at(300_000)));
        assert_eq!(popped(&mut queue, 299_999), None);
        assert_eq!(popped(&mut queue, 300_000).as_deref(), Some("a"));
    }

    #[test]
    fn a_gated_pod_enters_when_its_gates_are_gone() {
        let mut queue = queue();
        let gated = plugins::testing::pod(json!({"schedulingGates": [{"name": "g"}]}));
        queue.set(Arc::new(gated), true, at(0));
        assert_eq!(popped(&mut queue, 0), None);
        queue.set(Arc::new(plugins::testing::pod(json!({}))), true, at(1));
        assert_eq!(popped(&mut queue, 1).as_deref(), Some("u"));
    }

    #[test]
    fn removed_pods_are_never_popped() {
        let mut queue = queue();
        queue.set(pod("a", 0), true, at(0));
        queue.set(pod("b", 0), true, at(0));
        queue.remove("a");
        assert_eq!(popped(&mut queue, 0).as_deref(), Some("b"));
        queue.failed("b", at(0));
        queue.remove("b");
        assert_eq!(popped(&mut queue, 60_000), None);
        assert_eq!(queue.deadline(), None);
    }
}
