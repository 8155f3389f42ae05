//! The work queue: keys to work on, each at most once in the queue and never by two workers at once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use coracle_stdx::Backoff;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// When a delayed key is due; the number keeps keys of one instant apart.
type Due = (Instant, u64);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there once its worker is done.
    dirty: HashSet<T>,
    working: HashSet<T>,
    delayed: BTreeMap<Due, T>,
    due_of: HashMap<T, Due>,
    next_number: u64,
    failures: Backoff<T>,
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Whether a worker should be woken.
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Moves what is due to the ready keys.
    fn mature(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due_of.remove(&key);
            self.add(key);
        }
    }

    fn delay(&mut self, key: T, at: Instant) {
        if let Some(due) = self.due_of.get(&key) {
            if due.0 <= at {
                return;
            }
            let due = *due;
            self.delayed.remove(&due);
        }
        let due = (at, self.next_number);
        self.next_number += 1;
        self.delayed.insert(due, key.clone());
        self.due_of.insert(key, due);
    }
}

/// A queue of keys for a set of workers.
///
/// Guarantees: a key is queued at most once however often it is added; a key that is added while a worker
/// has it is queued again when that worker calls [`WorkQueue::done`]; keys come out in the order they went
/// in. Nothing runs in the background: waiting workers keep the timers.
///
/// Caller must call [`WorkQueue::done`] for every key got.
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

impl<T> fmt::Debug for WorkQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkQueue")
    }
}

impl<T: Clone + Eq + Hash> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    /// An empty queue; failing keys wait 5 ms, doubling up to 1000 s.
    pub fn new() -> Self {
        Self::with_backoff(Duration::from_millis(5), Duration::from_secs(1000))
    }

    /// An empty queue whose failing keys wait `base`, doubling up to `max`.
    pub fn with_backoff(base: Duration, max: Duration) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeMap::new(),
            due_of: HashMap::new(),
            next_number: 0,
            failures: Backoff::new(base, max),
        };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    /// Queues a key now.
    pub fn add(&self, key: T) {
        if self.state.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Queues a key after a while; if it waits already, the earlier time holds.
    pub fn add_after(&self, key: T, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        self.state.lock().delay(key, Instant::now() + wait);
        self.wake.notify_one();
    }

    /// Queues a key after its back-off, and counts a failure of it.
    pub fn add_rate_limited(&self, key: T) {
        let wait = self.state.lock().failures.next(key.clone());
        self.add_after(key, wait);
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.reset(key);
    }

    /// Failures of a key since it was last forgotten.
    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.failures(key)
    }

    /// Keys ready to be worked on.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key; waits for one. Cancel safe.
    pub async fn get(&self) -> T {
        loop {
            let due = {
                let mut state = self.state.lock();
                state.mature(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first_key_value().map(|(due, _)| due.0)
            };
            match due {
                None => self.wake.notified().await,
                Some(at) => tokio::select! {
                    () = self.wake.notified() => (),
                    () = tokio::time::sleep_until(at) => (),
                },
            }
        }
    }

    /// Ends the work on a key; if it was added meanwhile, it is queued again.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        if state.working.remove(key) && state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_worked_on_comes_back_after_done() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, "a");
        queue.add("a");
        assert!(queue.is_empty());
        queue.done(&"a");
        assert_eq!(queue.get().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_comes_out_at_the_earliest_time_asked_for() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(60));
        queue.add_after("late", Duration::from_secs(20));
        queue.add_after("late", Duration::from_secs(90));
        queue.add_rate_limited("soon");
        assert_eq!(queue.get().await, "soon");
        assert_eq!(queue.get().await, "late");
        assert_eq!(start.elapsed().as_secs(), 20);
    }

    #[tokio::test]
    async fn waiting_workers_share_the_keys() {
        let queue = std::sync::Arc::new(WorkQueue::new());
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        (0..4).for_each(|key| queue.add(key));
        let mut got = Vec::new();
        for worker in workers {
            got.push(worker.await.expect("worker ends"));
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
    }
}
