//! The writer: one thread that commits groups of waiting transactions, one flush per group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::error;

use super::Shared;
use super::disk::{Batch, RESERVE};
use super::layout::{Kind, Record, Slot};
use crate::{Condition, Entry, Event, Op, Revision, StoreError, Txn};

/// A transaction on its way to the writer.
pub(super) struct Request {
    pub(super) txn: Txn,
    pub(super) reply: oneshot::Sender<Result<Revision, StoreError>>,
}

/// A group is closed at so many transactions or bytes, so that no waiter sees an unbounded flush.
const GROUP_TRANSACTIONS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;

/// Runs until all senders are gone.
pub(super) fn run(shared: &Shared, requests: &Receiver<Request>) {
    while let Some(group) = next_group(requests) {
        commit(shared, group);
    }
}

fn next_group(requests: &Receiver<Request>) -> Option<Vec<Request>> {
    let first = requests.recv().ok()?;
    // With idle processors this returns at once. With none, those who are about to write come first: fewer flushes,
    // each of which costs as much as the handling of a write.
    std::thread::yield_now();
    let mut bytes = size(&first.txn);
    let mut group = vec![first];
    while group.len() < GROUP_TRANSACTIONS && bytes < GROUP_BYTES {
        match requests.try_recv() {
            Ok(request) => {
                bytes += size(&request.txn);
                group.push(request);
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
        }
    }
    Some(group)
}

fn size(txn: &Txn) -> usize {
    txn.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum()
}

/// A key's state inside a group that is not flushed yet.
#[derive(Clone)]
enum Pending {
    Present(Slot, Bytes),
    Absent,
}

/// A group being put together: what it changes, on top of the index.
struct Group<'a> {
    shared: &'a Shared,
    batch: Batch,
    pending: HashMap<Arc<str>, Pending>,
    events: Vec<Event>,
    revision: Revision,
    watched: bool,
    /// Free bytes of the disk less what this group takes.
    free: u64,
}

fn commit(shared: &Shared, requests: Vec<Request>) {
    let mut group = Group {
        shared,
        batch: shared.disk.batch(),
        pending: HashMap::new(),
        events: Vec::new(),
        revision: shared.state.read().revision,
        watched: !shared.watchers.lock().is_empty(),
        free: shared.disk.free().unwrap_or(u64::MAX),
    };
    let mut answers = Vec::with_capacity(requests.len());
    for Request { txn, reply } in requests {
        answers.push((reply, group.apply(txn)));
    }
    let flushed = group.finish();
    for (reply, answer) in answers {
        let answer = match &flushed {
            Ok(()) => answer,
            Err(e) => Err(e.clone()),
        };
        let _ = reply.send(answer);
    }
}

impl Group<'_> {
    /// The key's slot now, as of this group.
    fn slot(&self, key: &str) -> Option<Slot> {
        match self.pending.get(key) {
            Some(Pending::Present(slot, _)) => Some(*slot),
            Some(Pending::Absent) => None,
            None => self.shared.state.read().index.get(key).copied(),
        }
    }

    fn entry(&self, key: &Arc<str>) -> Result<Option<Entry>, StoreError> {
        let Some(slot) = self.slot(key) else { return Ok(None) };
        let value = match self.pending.get(key) {
            Some(Pending::Present(_, value)) => value.clone(),
            _ => self.shared.disk.value(key, slot)?.ok_or_else(|| {
                self.shared.disk.corrupted(format!("the value of {key} at {} is missing", slot.modified))
            })?,
        };
        Ok(Some(Entry { key: key.clone(), value, create_revision: slot.create, mod_revision: slot.modified }))
    }

    fn apply(&mut self, txn: Txn) -> Result<Revision, StoreError> {
        self.check(&txn.conditions)?;
        self.reserve(&txn)?;
        let revision = self.revision + 1;
        // What fails must leave the group as it was: previous entries are read before anything changes.
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let (key, value) = match op {
                Op::Put { key, value } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            };
            let slot = self.slot(&key);
            if value.is_none() && slot.is_none() {
                continue;
            }
            let previous = if self.watched { self.entry(&key)? } else { None };
            changes.push((key, value, slot, previous));
        }
        if changes.is_empty() {
            return Ok(self.revision);
        }
        self.revision = revision;
        for (n, (key, value, before, previous)) in (0u32..).zip(changes) {
            let kind = if value.is_some() { Kind::Put } else { Kind::Delete };
            let create = before.map_or(revision, |s| s.create);
            let record = Record {
                revision,
                n,
                kind,
                create,
                previous: before.map_or(0, |s| s.modified),
                key: key.clone(),
            };
            self.shared.disk.add(&mut self.batch, &record, value.as_deref());
            let pending = match &value {
                Some(value) => Pending::Present(record.slot(), value.clone()),
                None => Pending::Absent,
            };
            self.pending.insert(key.clone(), pending);
            if self.watched {
                self.events.push(Event { key, value, previous, create_revision: create, revision });
            }
        }
        Ok(revision)
    }

    fn check(&self, conditions: &[Condition]) -> Result<(), StoreError> {
        for condition in conditions {
            let (key, holds) = match condition {
                Condition::Absent(key) => (key, self.slot(key).is_none()),
                Condition::At(key, revision) => {
                    (key, self.slot(key).is_some_and(|slot| slot.modified == *revision))
                }
            };
            if !holds {
                return Err(StoreError::ConditionFailed { key: key.clone(), current: self.entry(key)? });
            }
        }
        Ok(())
    }

    /// Refuses what would eat the reserve. Deletions may use most of it: they are the way out.
    fn reserve(&mut self, txn: &Txn) -> Result<(), StoreError> {
        let puts = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        let floor = if puts { RESERVE } else { RESERVE / 4 };
        // Twice: once in the journal, once in the tables.
        let need = 2 * (size(txn) as u64 + 256 * txn.ops.len() as u64);
        if !txn.ops.is_empty() && self.free.saturating_sub(need) < floor {
            return Err(self.shared.disk.disk_full());
        }
        self.free = self.free.saturating_sub(need);
        Ok(())
    }

    /// Flushes, then shows the group to readers and watchers, in this order.
    fn finish(self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.shared.disk.commit(self.batch) {
            error!(error = %e, "a group of transactions could not be written");
            return Err(e);
        }
        self.shared.disk.write_acknowledged(self.revision);
        let mut watchers = self.shared.watchers.lock();
        {
            let mut state = self.shared.state.write();
            for (key, pending) in self.pending {
                match pending {
                    Pending::Present(slot, _) => {
                        state.index.insert(key, slot);
                    }
                    Pending::Absent => {
                        state.index.remove(&key);
                    }
                }
            }
            state.revision = self.revision;
        }
        watchers.publish(self.events);
        Ok(())
    }
}
