//! The in-memory body, for tests: everything under one lock, nothing durable.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::watchers::{Watchers, below};
use crate::{Condition, Entry, Event, Op, Range, RangeResult, Revision, Store, StoreError, Txn, Watch};

/// A store that lives in memory and ends with the process. For tests and experiments.
#[derive(Debug)]
pub struct MemoryStore(Mutex<Inner>);

#[derive(Debug)]
struct Version {
    revision: Revision,
    create_revision: Revision,
    /// `None`: deleted at `revision`.
    value: Option<Bytes>,
}

#[derive(Debug)]
struct Inner {
    revision: Revision,
    compacted: Revision,
    /// Versions of each key, oldest first.
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    log: VecDeque<Event>,
    watchers: Watchers,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            revision: 1,
            compacted: 1,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            watchers: Watchers::default(),
        })))
    }
}

fn entry_at(key: &Arc<str>, versions: &[Version], revision: Revision) -> Option<Entry> {
    let version = versions.iter().rev().find(|v| v.revision <= revision)?;
    Some(Entry {
        key: key.clone(),
        value: version.value.clone()?,
        create_revision: version.create_revision,
        mod_revision: version.revision,
    })
}

impl Inner {
    fn current(&self, key: &str) -> Option<Entry> {
        let (key, versions) = self.keys.get_key_value(key)?;
        entry_at(key, versions, self.revision)
    }

    fn check(&self, condition: &Condition) -> Result<(), StoreError> {
        let (key, holds, current) = match condition {
            Condition::Absent(key) => {
                let current = self.current(key);
                (key, current.is_none(), current)
            }
            Condition::At(key, revision) => {
                let current = self.current(key);
                (key, current.as_ref().is_some_and(|e| e.mod_revision == *revision), current)
            }
        };
        if holds { Ok(()) } else { Err(StoreError::ConditionFailed { key: key.clone(), current }) }
    }

    fn apply(&mut self, ops: Vec<Op>) -> Vec<Event> {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for op in ops {
            let (key, value) = match op {
                Op::Put { key, value } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            };
            let previous = self.current(&key);
            if value.is_none() && previous.is_none() {
                continue;
            }
            let create_revision = previous.as_ref().map_or(revision, |p| p.create_revision);
            let version = Version { revision, create_revision, value: value.clone() };
            self.keys.entry(key.clone()).or_default().push(version);
            events.push(Event { key, value, previous, create_revision, revision });
        }
        if !events.is_empty() {
            self.revision = revision;
            self.log.extend(events.iter().cloned());
        }
        events
    }

    fn readable(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { asked: revision, oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(StoreError::Future { asked: revision, newest: self.revision });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn revision(&self) -> Revision {
        self.0.lock().revision
    }

    fn compacted(&self) -> Revision {
        self.0.lock().compacted
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.lock().current(key))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let inner = self.0.lock();
        let revision = range.revision.unwrap_or(inner.revision);
        inner.readable(revision)?;
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_str()) };
        let bounds = (Bound::Included(range.start.as_str()), end);
        let mut result = RangeResult { entries: Vec::new(), revision, remaining: 0 };
        if matches!(end, Bound::Excluded(end) if end <= range.start.as_str()) {
            return Ok(result);
        }
        for (key, versions) in inner.keys.range::<str, _>(bounds) {
            let Some(entry) = entry_at(key, versions, revision) else { continue };
            if range.limit > 0 && result.entries.len() == range.limit {
                result.remaining += 1;
            } else {
                result.entries.push(entry);
            }
        }
        Ok(result)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let mut inner = self.0.lock();
        for condition in &txn.conditions {
            inner.check(condition)?;
        }
        let events = inner.apply(txn.ops);
        inner.watchers.publish(events);
        Ok(inner.revision)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let mut inner = self.0.lock();
        inner.readable(after.max(1))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let history: Arc<[Event]> = inner.log.iter().filter(|e| e.revision > after).cloned().collect();
        if let Some(batch) = below(&history, prefix) {
            let _ = sender.send(batch);
        }
        inner.watchers.add(prefix, sender);
        Ok(receiver.into())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if revision <= inner.compacted {
            return Ok(());
        }
        inner.readable(revision)?;
        inner.compacted = revision;
        while inner.log.front().is_some_and(|e| e.revision <= revision) {
            inner.log.pop_front();
        }
        let mut newest: HashMap<Arc<str>, Revision> = HashMap::new();
        for (key, versions) in &inner.keys {
            if let Some(v) = versions.iter().rev().find(|v| v.revision <= revision) {
                let keep = if v.value.is_some() { v.revision } else { v.revision + 1 };
                newest.insert(key.clone(), keep);
            }
        }
        inner.keys.retain(|key, versions| {
            if let Some(keep) = newest.get(key) {
                versions.retain(|v| v.revision >= *keep);
            }
            !versions.is_empty()
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_store_keeps_the_contract() {
        crate::contract::all(|| async { MemoryStore::new() as Arc<dyn Store> }).await;
    }
}
