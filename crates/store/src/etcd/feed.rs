//! The one watch on etcd that all watches of the store live on, and how far it has come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::channel::{CallError, Channel, Stream};
use super::messages::{self, KeyValue, WatchEvent, WatchResponse};
use crate::watchers::{Watchers, below};
use crate::{Entry, Event, Revision, StoreError, Watch};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Events kept for watches that begin a little in the past: between reading everything and following it.
const KEPT: usize = 10_000;
/// How long the watch may be silent while a commit waits, before it is asked how far it is.
const SILENCE: Duration = Duration::from_millis(50);
/// How long etcd's word on how far the watch is must have stood before it counts: versions before 3.4.25 and
/// 3.5.8 may say so ahead of the last events (etcd issue 15220).
const SETTLED: Duration = Duration::from_millis(200);
/// How long a commit waits for its own events.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to watch again.
const RETRY: Duration = Duration::from_millis(250);

/// Events since the start, and who wants the next ones.
struct State {
    watchers: Watchers,
    kept: VecDeque<Event>,
    /// Events after this revision are in `kept`.
    kept_after: Revision,
    /// Revision of the last event, or where the feed began.
    last: Revision,
    closed: bool,
}

/// See the module.
pub(super) struct Feed {
    prefix: Arc<str>,
    state: Mutex<State>,
    /// Everything up to here was delivered.
    progress: watch::Sender<Revision>,
    /// Someone waits while the watch is silent.
    ask: Notify,
    /// The oldest revision that etcd still reads, as far as known.
    pub(super) compacted: AtomicU64,
}

impl Feed {
    /// A feed of keys below `prefix` that begins after `start`.
    pub(super) fn new(prefix: &str, start: Revision, compacted: Revision) -> Arc<Self> {
        let state = State {
            watchers: Watchers::default(),
            kept: VecDeque::new(),
            kept_after: start,
            last: start,
            closed: false,
        };
        Arc::new(Self {
            prefix: prefix.into(),
            state: Mutex::new(state),
            progress: watch::Sender::new(start),
            ask: Notify::new(),
            compacted: AtomicU64::new(compacted),
        })
    }

    /// Revision of the newest event delivered; 0 once the feed has ended.
    pub(super) fn last(&self) -> Revision {
        let state = self.state.lock();
        if state.closed { 0 } else { state.last }
    }

    /// Whether everything up to `revision` was delivered.
    pub(super) fn is_at(&self, revision: Revision) -> bool {
        *self.progress.borrow() >= revision
    }

    /// Waits until everything up to `revision` was delivered.
    ///
    /// # Errors
    /// When the watch does not get there in time.
    pub(super) async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        let mut progress = self.progress.subscribe();
        let waiting = async {
            while tokio::time::timeout(SILENCE, progress.wait_for(|p| *p >= revision)).await.is_err() {
                self.ask.notify_one();
            }
        };
        let late = || StoreError::Engine(format!("the watch on etcd does not reach revision {revision}"));
        tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| late())
    }

    /// A watch from `after`, which the feed has reached.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when events since then are not kept.
    pub(super) fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let mut state = self.state.lock();
        let oldest = state.kept_after.max(self.compacted.load(Ordering::Acquire));
        if state.closed {
            return Err(StoreError::Closed);
        }
        if after.max(1) < oldest {
            return Err(StoreError::Compacted { asked: after, oldest });
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let history: Arc<[Event]> = state.kept.iter().filter(|e| e.revision > after).cloned().collect();
        if let Some(batch) = below(&history, prefix) {
            let _ = sender.send(batch);
        }
        state.watchers.add(prefix, sender);
        Ok(receiver.into())
    }

    fn deliver(&self, events: Vec<Event>, progress: Option<Revision>) {
        let mut state = self.state.lock();
        if let Some(last) = events.last() {
            state.last = last.revision;
        }
        state.kept.extend(events.iter().cloned());
        while state.kept.len() > KEPT {
            if let Some(gone) = state.kept.pop_front() {
                state.kept_after = gone.revision;
            }
        }
        let reached = progress.unwrap_or(0).max(state.last);
        state.watchers.publish(events);
        drop(state);
        self.progress.send_if_modified(|p| reached > std::mem::replace(p, reached.max(*p)));
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.watchers = Watchers::default();
    }

    /// Follows etcd for ever: a broken watch is continued where it broke. Ends only when etcd has forgotten
    /// what comes next; the store is closed then.
    pub(super) async fn run(self: Arc<Self>, channel: Arc<Channel>) {
        let mut broken = false;
        loop {
            let start = *self.progress.borrow() + 1;
            let end = crate::prefix_end(&self.prefix);
            let request = messages::watch(self.prefix.as_bytes(), end.as_bytes(), start);
            match channel.stream(WATCH, &request).await {
                Ok(stream) => {
                    if std::mem::take(&mut broken) {
                        info!(start, "watching etcd again");
                    }
                    match self.follow(stream).await {
                        Ended::Broken(why) => warn!("the watch on etcd broke: {why}"),
                        Ended::Compacted(oldest) => {
                            warn!(start, oldest, "etcd has forgotten events that were not read: start anew");
                            self.close();
                            return;
                        }
                    }
                }
                Err(why) => {
                    if !broken {
                        warn!("cannot watch etcd: {why}");
                    }
                }
            }
            broken = true;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, mut stream: Stream) -> Ended {
        let mut gathered: Vec<WatchEvent> = Vec::new();
        let mut claim = Claim::default();
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                () = self.ask.notified() => {
                    stream.send(&messages::progress());
                    continue;
                }
            };
            let response = match message.map(WatchResponse::parse) {
                Ok(Ok(response)) => response,
                Ok(Err(why)) => return Ended::Broken(CallError::Broken(why)),
                Err(why) => return Ended::Broken(why),
            };
            if response.compact_revision > 0 {
                return Ended::Compacted(response.compact_revision);
            }
            if response.canceled {
                return Ended::Broken(CallError::Broken(response.cancel_reason));
            }
            let told = (!response.created && response.events.is_empty() && gathered.is_empty())
                .then_some(response.revision)
                .and_then(|revision| claim.settled(revision, Instant::now()));
            gathered.extend(response.events);
            if !response.fragment {
                let events =
                    std::mem::take(&mut gathered).into_iter().filter_map(|e| self.event(e)).collect();
                self.deliver(events, told);
            }
        }
    }

    /// An event without our prefix; `None` for a key that cannot be ours.
    fn event(&self, event: WatchEvent) -> Option<Event> {
        let WatchEvent { deleted, kv, previous } = event;
        let previous = previous.and_then(|p| entry(&self.prefix, p));
        let revision = kv.mod_revision;
        let created = if deleted { previous.as_ref()?.create_revision } else { kv.create_revision };
        let now = entry(&self.prefix, kv)?;
        let value: Option<Bytes> = (!deleted).then_some(now.value);
        Some(Event { key: now.key, value, previous, create_revision: created, revision })
    }
}

/// What etcd said first of how far the watch is, until that can be relied on.
#[derive(Default)]
struct Claim(Option<(Revision, Instant)>);

impl Claim {
    /// Takes what etcd says now; what it said long enough ago is so.
    fn settled(&mut self, revision: Revision, now: Instant) -> Option<Revision> {
        match self.0 {
            Some((claimed, since)) if now.duration_since(since) >= SETTLED => {
                self.0 = (revision > claimed).then_some((revision, now));
                Some(claimed)
            }
            Some(_) => None,
            None => {
                self.0 = Some((revision, now));
                None
            }
        }
    }
}

enum Ended {
    Broken(CallError),
    Compacted(Revision),
}

/// An entry with our prefix taken off its key.
pub(super) fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(prefix)?;
    Some(Entry {
        key: key.into(),
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_once_it_has_stood_for_a_while() {
        let (mut claim, start) = (Claim::default(), Instant::now());
        assert_eq!(claim.settled(7, start), None);
        assert_eq!(claim.settled(8, start + SETTLED / 2), None);
        assert_eq!(claim.settled(9, start + SETTLED), Some(7), "not what was said a moment ago");
        assert_eq!(claim.settled(9, start + SETTLED * 2), Some(9));
        assert_eq!(claim.settled(9, start + SETTLED * 2), None, "said anew");
    }
}
