//! The embedded body: fjall below, one writer that commits in groups, an index of current revisions.
//!
//! Values are on the disk only; in memory lives, per current key, its create and mod revision. A group of
//! transactions costs one flush. Format: `layout`; why fjall: docs/adr/0001-store-engine.md.

mod damage;
mod disk;
mod layout;
mod lock;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as channel;
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use self::disk::Disk;
use self::layout::{Kind, Record, Slot};
use self::lock::DirectoryLock;
use self::writer::Request;
use crate::snapshot::{SnapshotError, SnapshotInfo};
use crate::watchers::{Watchers, below};
use crate::{Entry, Event, Range, RangeResult, Revision, Store, StoreError, Txn, Watch};

/// Log records that a compaction or the replay of a watch handles at a time.
const CHUNK: usize = 1000;
/// From so many entries on, a range is read in one scan instead of one lookup per entry.
const SCAN_FROM: usize = 64;

/// Where the store lives.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The directory; made when absent.
    pub dir: PathBuf,
}

/// The store in a directory of this machine.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    requests: Option<channel::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What readers, watchers and the writer share.
struct Shared {
    disk: Disk,
    state: RwLock<State>,
    /// Locked before `state` where both are.
    watchers: Mutex<Watchers>,
    compacted: AtomicU64,
    /// One compaction at a time.
    compacting: Mutex<()>,
    _lock: DirectoryLock,
}

/// The present.
struct State {
    index: BTreeMap<Arc<str>, Slot>,
    revision: Revision,
}

impl EmbeddedStore {
    /// Opens the store in `config.dir`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Corrupted`], [`StoreError::DiskFull`], engine failures.
    pub fn open(config: EmbeddedConfig) -> Result<Arc<Self>, StoreError> {
        let dir = config.dir;
        std::fs::create_dir_all(&dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { path: dir.display().to_string() }
            }
            _ => StoreError::Engine(format!("cannot make {}: {e}", dir.display())),
        })?;
        let lock = DirectoryLock::acquire(&dir)?;
        let (disk, found) = Disk::open(&dir)?;
        let shared = Arc::new(Shared {
            disk,
            state: RwLock::new(State { index: found.index, revision: found.revision }),
            watchers: Mutex::new(Watchers::default()),
            compacted: AtomicU64::new(found.compacted),
            compacting: Mutex::new(()),
            _lock: lock,
        });
        let (requests, receiver) = channel::channel();
        let theirs = shared.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(&theirs, &receiver))
            .map_err(|e| StoreError::Engine(format!("cannot start the store's writer: {e}")))?;
        Ok(Arc::new(Self { shared, requests: Some(requests), writer: Some(writer) }))
    }
}

impl EmbeddedStore {
    /// Makes a store in `dir`, which must have none, of entries of another: they keep their revisions, and the store
    /// is at `revision`, with no history before. Those who know the old one have to list again.
    ///
    /// # Errors
    /// [`SnapshotError::NotEmpty`], what the entries' source says, and engine failures. The directory is then as it
    /// was.
    pub fn restore(
        dir: &Path,
        revision: Revision,
        entries: impl Iterator<Item = std::io::Result<Entry>>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        if std::fs::read_dir(dir).is_ok_and(|mut found| found.next().is_some()) {
            return Err(SnapshotError::NotEmpty(format!("files in {}", dir.display())));
        }
        std::fs::create_dir_all(dir)?;
        let restored = Self::fill(dir, revision, entries);
        if restored.is_err() {
            let _ = std::fs::remove_dir_all(dir);
        }
        restored
    }

    fn fill(
        dir: &Path,
        revision: Revision,
        entries: impl Iterator<Item = std::io::Result<Entry>>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let _lock = DirectoryLock::acquire(dir)?;
        let (disk, _) = Disk::open(dir)?;
        let mut info = SnapshotInfo { revision, keys: 0 };
        let mut batch = disk.batch();
        for entry in entries {
            let entry = entry?;
            disk.set(&mut batch, &entry);
            info.revision = info.revision.max(entry.mod_revision);
            info.keys += 1;
            if info.keys.is_multiple_of(CHUNK as u64) {
                disk.commit(std::mem::replace(&mut batch, disk.batch()))?;
            }
        }
        disk.commit(batch)?;
        disk.set_compacted(info.revision)?;
        disk.write_acknowledged(info.revision);
        Ok(info)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Shared {
    fn readable(&self, revision: Revision, newest: Revision) -> Result<(), StoreError> {
        let oldest = self.compacted.load(Ordering::Acquire);
        if revision < oldest {
            return Err(StoreError::Compacted { asked: revision, oldest });
        }
        if revision > newest {
            return Err(StoreError::Future { asked: revision, newest });
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let lookup = || self.state.read().index.get_key_value(key).map(|(k, s)| (k.clone(), *s));
        let mut found = lookup();
        while let Some((key, slot)) = found {
            if let Some(value) = self.disk.value(&key, slot)? {
                let Slot { create, modified } = slot;
                return Ok(Some(Entry { key, value, create_revision: create, mod_revision: modified }));
            }
            // Replaced and compacted between the two reads; else it is really gone.
            found = lookup();
            if found.as_ref().is_some_and(|(_, again)| *again == slot) {
                return Err(self.missing(&key, slot));
            }
        }
        Ok(None)
    }

    fn missing(&self, key: &str, slot: Slot) -> StoreError {
        self.disk.corrupted(format!("the value of {key} at {} is missing", slot.modified))
    }

    /// A range of the present: names from the index, values from the disk.
    fn range_now(&self, range: &Range) -> Result<RangeResult, StoreError> {
        let state = self.state.read();
        let mut result = RangeResult { entries: Vec::new(), revision: state.revision, remaining: 0 };
        let end = match range.end.as_str() {
            "" => Bound::Unbounded,
            end if end <= range.start.as_str() => return Ok(result),
            end => Bound::Excluded(end),
        };
        let mut wanted: Vec<(Arc<str>, Slot)> = Vec::new();
        for (key, slot) in state.index.range::<str, _>((Bound::Included(range.start.as_str()), end)) {
            if range.limit > 0 && wanted.len() == range.limit {
                result.remaining += 1;
            } else {
                wanted.push((key.clone(), *slot));
            }
        }
        // Taken under the lock: what the index names is in the snapshot, and no compaction can remove it.
        let snapshot = self.disk.snapshot();
        drop(state);
        let entry = |(key, slot): (Arc<str>, Slot), value| Entry {
            key,
            value,
            create_revision: slot.create,
            mod_revision: slot.modified,
        };
        if wanted.len() < SCAN_FROM {
            for (key, slot) in wanted {
                let value = self.disk.value_in(&snapshot, &key, slot)?;
                let value = value.ok_or_else(|| self.missing(&key, slot))?;
                result.entries.push(entry((key, slot), value));
            }
            return Ok(result);
        }
        result.entries.reserve(wanted.len());
        let next = std::cell::RefCell::new(wanted.into_iter().peekable());
        let visit = |_: &str, _, _, value: Option<_>| {
            let mut next = next.borrow_mut();
            if let Some(value) = value
                && let Some(found) = next.next()
            {
                result.entries.push(entry(found, value));
            }
            next.peek().is_some()
        };
        let is_next =
            |key: &str, slot: Slot| next.borrow_mut().peek().is_some_and(|(k, s)| *s == slot && &**k == key);
        self.disk.scan(&snapshot, &range.start, &range.end, visit, is_next)?;
        match next.into_inner().next() {
            Some((key, slot)) => Err(self.missing(&key, slot)),
            None => Ok(result),
        }
    }

    /// A range of the past: of each key the newest version that is not younger than `revision`.
    fn range_at(&self, range: &Range, revision: Revision) -> Result<RangeResult, StoreError> {
        let snapshot = self.disk.snapshot();
        self.readable(revision, self.state.read().revision)?;
        let mut wanted: Vec<(Arc<str>, Slot)> = Vec::new();
        let mut result = RangeResult { entries: Vec::new(), revision, remaining: 0 };
        if !range.end.is_empty() && range.end <= range.start {
            return Ok(result);
        }
        let mut candidate: Option<(Arc<str>, Slot, Kind)> = None;
        let mut settle = |candidate: Option<(Arc<str>, Slot, Kind)>| {
            if let Some((key, slot, Kind::Put)) = candidate {
                if range.limit > 0 && wanted.len() == range.limit {
                    result.remaining += 1;
                } else {
                    wanted.push((key, slot));
                }
            }
        };
        let visit = |key: &str, slot: Slot, kind, _| {
            // On the disk a key comes before itself with a zero byte, which is how pages begin.
            if slot.modified > revision || key < range.start.as_str() {
                return true;
            }
            match &mut candidate {
                Some((known, newest, newest_kind)) if &**known == key => {
                    (*newest, *newest_kind) = (slot, kind);
                }
                other => settle(other.replace((key.into(), slot, kind))),
            }
            true
        };
        self.disk.scan(&snapshot, &range.start, &range.end, visit, |_, _| false)?;
        settle(candidate);
        for (key, slot) in wanted {
            let value = self.disk.value_in(&snapshot, &key, slot)?;
            let value = value.ok_or_else(|| self.missing(&key, slot))?;
            let Slot { create, modified } = slot;
            result.entries.push(Entry { key, value, create_revision: create, mod_revision: modified });
        }
        Ok(result)
    }

    /// Events of `after < revision <= until` below `prefix`, sent in chunks of whole transactions.
    fn replay(
        &self,
        prefix: &str,
        mut after: Revision,
        until: Revision,
        sender: &mpsc::UnboundedSender<Arc<[Event]>>,
    ) -> Result<(), StoreError> {
        let snapshot = self.disk.snapshot();
        self.readable(after, until)?;
        while after < until {
            let records = self.disk.records(&snapshot, after, until, CHUNK)?;
            let Some(last) = records.last() else { break };
            after = last.revision;
            let below_prefix = records.iter().filter(|r| r.key.starts_with(prefix));
            let events: Result<Vec<Event>, _> = below_prefix.map(|r| self.event(&snapshot, r)).collect();
            let events: Arc<[Event]> = events?.into();
            if let Some(batch) = below(&events, prefix) {
                let _ = sender.send(batch);
            }
        }
        Ok(())
    }

    fn event(&self, snapshot: &fjall::Snapshot, record: &Record) -> Result<Event, StoreError> {
        let load = |slot: Slot| {
            let value = self.disk.value_in(snapshot, &record.key, slot)?;
            value.ok_or_else(|| self.missing(&record.key, slot))
        };
        let previous = match record.previous_slot() {
            None => None,
            Some(slot) => Some(Entry {
                key: record.key.clone(),
                value: load(slot)?,
                create_revision: slot.create,
                mod_revision: slot.modified,
            }),
        };
        Ok(Event {
            key: record.key.clone(),
            value: if record.kind == Kind::Put { Some(load(record.slot())?) } else { None },
            previous,
            create_revision: record.create,
            revision: record.revision,
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let after = after.max(1);
        let newest = self.state.read().revision;
        self.readable(after, newest)?;
        // The long part without a lock; what was committed meanwhile, with the writer held back.
        self.replay(prefix, after, newest, &sender)?;
        let mut watchers = self.watchers.lock();
        let until = self.state.read().revision;
        if newest < until {
            self.replay(prefix, newest, until, &sender)?;
        }
        watchers.add(prefix, sender);
        Ok(receiver.into())
    }

    fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let _one = self.compacting.lock();
        if revision <= self.compacted.load(Ordering::Acquire) {
            return Ok(());
        }
        self.readable(revision, self.state.read().revision)?;
        // First the promise, then the cleaning: a crash in between leaves garbage, which the next
        // compaction finds at the front of the log.
        self.disk.set_compacted(revision)?;
        self.compacted.store(revision, Ordering::Release);
        let mut done = 0;
        while done < revision {
            let records = self.disk.records(&self.disk.snapshot(), done, revision, CHUNK)?;
            let Some(last) = records.last() else { break };
            done = last.revision;
            self.disk.forget(&records)?;
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let shared = shared.clone();
    let task = tokio::task::spawn_blocking(move || work(&shared));
    task.await.map_err(|e| StoreError::Engine(format!("a read was interrupted: {e}")))?
}

#[async_trait]
impl Store for EmbeddedStore {
    fn revision(&self) -> Revision {
        self.shared.state.read().revision
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted.load(Ordering::Acquire)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.shared.get(key)
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        blocking(&self.shared, move |shared| match range.revision {
            None => shared.range_now(&range),
            Some(revision) => shared.range_at(&range, revision),
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(Request { txn, reply }).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let prefix = prefix.to_owned();
        blocking(&self.shared, move |shared| shared.watch(&prefix, after)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        blocking(&self.shared, move |shared| shared.compact(revision)).await
    }

    async fn rest(&self) -> Result<(), StoreError> {
        if !self.shared.disk.should_rest() {
            return Ok(());
        }
        blocking(&self.shared, |shared| shared.disk.rest()).await
    }
}
