//! Watchers that follow the objects through all crashes, each from the revision that it saw last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_testkit::retry;
use serde_json::Value;

use crate::{History, PATH, Place, State, list, name, number, revision};

/// What a watcher has seen.
#[derive(Default)]
struct Seen {
    /// Of the last event.
    last: u64,
    /// The objects, as the first list and the events since have them.
    objects: BTreeMap<String, State>,
    /// The revisions of all events since the last list.
    revisions: BTreeSet<u64>,
    /// Of the last list.
    since: u64,
    relists: u64,
    resumed: u64,
}

/// One client that watches. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Watcher(Arc<Mutex<Seen>>);

impl Watcher {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn relists(&self) -> u64 {
        self.seen().relists
    }

    pub(crate) fn resumed(&self) -> u64 {
        self.seen().resumed
    }

    /// Watches until all is over, from server to server.
    pub(crate) fn run(&self, place: &Place, history: &History) {
        while !history.over() {
            // Whatever ends a watch, the next one goes on where it was.
            if self.follow(place, history).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn follow(&self, place: &Place, history: &History) -> io::Result<()> {
        let last = self.seen().last;
        if last == 0 {
            return self.list_anew(place, history);
        }
        let target = format!("{PATH}?watch=true&allowWatchBookmarks=true&resourceVersion={last}");
        let mut lines = match place.connect()?.follow(&target)? {
            Ok(lines) => lines,
            Err(reply) if reply.code == 410 => return self.list_anew(place, history),
            // It may not be ready yet.
            Err(_) => return Err(io::ErrorKind::NotConnected.into()),
        };
        let mut first = true;
        while let Some(line) = lines.line()? {
            let event: Value = serde_json::from_slice(&line).map_err(io::Error::other)?;
            if event["type"] == "ERROR" {
                assert_eq!(event["object"]["code"], 410, "{event}");
                return self.list_anew(place, history);
            }
            self.apply(&event, history);
            self.seen().resumed += u64::from(std::mem::take(&mut first));
        }
        Ok(())
    }

    fn list_anew(&self, place: &Place, history: &History) -> io::Result<()> {
        let (objects, at) = list(&mut place.connect()?)?;
        let mut seen = self.seen();
        assert!(at >= seen.last, "a list at {at} after an event at {}", seen.last);
        seen.relists += u64::from(seen.last > 0);
        (seen.objects, seen.last, seen.since) = (objects, at, at);
        seen.revisions.clear();
        history.saw(at);
        Ok(())
    }

    fn apply(&self, event: &Value, history: &History) {
        let (kind, object) = (event["type"].as_str().unwrap_or_default(), &event["object"]);
        let at = revision(object);
        let mut seen = self.seen();
        if kind == "BOOKMARK" {
            assert!(at >= seen.last, "a bookmark at {at} after an event at {}", seen.last);
            seen.last = at;
            return;
        }
        assert!(at > seen.last, "an event at {at} after one at {}", seen.last);
        history.happened(at, (kind.to_owned(), name(object), number(object)));
        seen.last = at;
        seen.revisions.insert(at);
        match (kind, number(object)) {
            ("DELETED", _) => drop(seen.objects.remove(&name(object))),
            (_, Some(n)) => drop(seen.objects.insert(name(object), (at, n))),
            _ => {}
        }
    }

    /// Waits until it has seen `mark`, behind which nothing was written; then it must know all there is, and have seen
    /// each acknowledged write since its last list.
    pub(crate) fn verify(&self, mark: u64, objects: &BTreeMap<String, State>, acknowledged: &[u64]) {
        retry("the watcher has seen the last write", 120, || {
            let last = self.seen().last;
            (last >= mark).then_some(()).ok_or_else(|| format!("it is at {last}, the write at {mark}"))
        });
        let seen = self.seen();
        assert_eq!(&seen.objects, objects, "a watcher and a list");
        let missed = acknowledged.iter().find(|at| **at > seen.since && !seen.revisions.contains(at));
        assert_eq!(missed, None, "a watcher missed an acknowledged write");
    }
}
