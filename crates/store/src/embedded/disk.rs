//! The engine below: fjall's keyspaces, opened small, with errors in the store's words.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable, Snapshot,
};

use super::damage;
use super::layout::{Kind, Record, Slot, log_key, number, parse_version_key, version_key};
use crate::{Entry, Revision, StoreError};

/// Version of the layout; a store of another one is refused.
const FORMAT: u64 = 1;
/// Caches and memtables are small on purpose: the API server's watch cache already holds what is current.
const BLOCK_CACHE: u64 = 2 << 20;
const VERSIONS_MEMTABLE: u64 = 8 << 20;
const LOG_MEMTABLE: u64 = 2 << 20;
const META_MEMTABLE: u64 = 64 << 10;
/// From so many bytes on, the memtables are emptied when there is time.
const WORTH_RESTING: u64 = 1 << 20;
/// Free bytes that are never written into, so that the engine can still compact and delete on a full disk.
pub(super) const RESERVE: u64 = 32 << 20;

/// The opened engine.
pub(super) struct Disk {
    path: PathBuf,
    database: Database,
    versions: Keyspace,
    log: Keyspace,
    meta: Keyspace,
    /// The newest acknowledged revision, written after each flush: a lower bound that what is found at the
    /// next start must reach.
    acknowledged: File,
    unrested: Unrested,
}

/// Bytes written since the engine's memtables were last emptied.
#[derive(Default)]
struct Unrested {
    now: AtomicU64,
    /// At the last look.
    then: AtomicU64,
    /// The memtables were emptied, and the engine still holds them.
    emptied: AtomicBool,
}

impl Unrested {
    /// Whether there is much, and little of it is new.
    fn is_settled(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        let then = self.then.swap(now, Ordering::Relaxed);
        now >= WORTH_RESTING && now.saturating_sub(then) < WORTH_RESTING / 8
    }
}

/// What a start finds.
pub(super) struct Recovered {
    pub(super) index: BTreeMap<Arc<str>, Slot>,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
}

/// Changes of one flush.
pub(super) struct Batch {
    changes: fjall::OwnedWriteBatch,
    bytes: usize,
}

impl Disk {
    /// Opens or creates the engine and rebuilds the index.
    pub(super) fn open(dir: &Path) -> Result<(Self, Recovered), StoreError> {
        let failed = |e| damage::translate(dir, e);
        let builder = Database::builder(dir.join("data"))
            .cache_size(BLOCK_CACHE)
            .worker_threads(1)
            .max_cached_files(Some(64))
            .max_journaling_size(64 << 20)
            .manual_journal_persist(true);
        // The engine panics at some kinds of damage.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.open()));
        let database = opened.map_err(|why| damage::panicked(dir, &*why))?.map_err(failed)?;
        let plain = |memtable| KeyspaceCreateOptions::default().max_memtable_size(memtable);
        let blobs = KvSeparationOptions::default().file_target_size(16 << 20);
        let versions = || plain(VERSIONS_MEMTABLE).with_kv_separation(Some(blobs));
        let versions = database.keyspace("versions", versions).map_err(failed)?;
        let log = database.keyspace("log", || plain(LOG_MEMTABLE)).map_err(failed)?;
        let meta = database.keyspace("meta", || plain(META_MEMTABLE)).map_err(failed)?;
        let acknowledged = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("acknowledged"))
            .map_err(|e| damage::translate(dir, e.into()))?;
        let disk = Self {
            path: dir.to_owned(),
            database,
            versions,
            log,
            meta,
            acknowledged,
            unrested: Unrested::default(),
        };
        disk.check_format()?;
        let recovered = disk.recover()?;
        Ok((disk, recovered))
    }

    fn check_format(&self) -> Result<(), StoreError> {
        match self.meta_number("format")? {
            Some(FORMAT) => Ok(()),
            None => {
                self.meta.insert("format", FORMAT.to_be_bytes()).map_err(|e| self.failed(e))?;
                self.database.persist(PersistMode::SyncAll).map_err(|e| self.failed(e))
            }
            Some(found) => {
                Err(StoreError::Format { path: self.path.display().to_string(), found, known: FORMAT })
            }
        }
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        let compacted = self.meta_number("compacted")?.unwrap_or(1);
        let mut index = BTreeMap::new();
        let mut newest = compacted.max(1);
        let mut last: Option<(Arc<str>, Slot, Kind)> = None;
        for guard in self.versions.iter() {
            let bytes = guard.key().map_err(|e| self.failed(e))?;
            let (key, slot, kind) =
                parse_version_key(&bytes).ok_or_else(|| self.damaged("a version's key"))?;
            newest = newest.max(slot.modified);
            match &mut last {
                Some((known, newest_slot, newest_kind)) if &**known == key => {
                    (*newest_slot, *newest_kind) = (slot, kind);
                }
                _ => {
                    if let Some((key, slot, Kind::Put)) = last.replace((key.into(), slot, kind)) {
                        index.insert(key, slot);
                    }
                }
            }
        }
        if let Some((key, slot, Kind::Put)) = last {
            index.insert(key, slot);
        }
        let logged = self.check_log(compacted)?;
        if logged < newest && newest > compacted {
            return Err(self.corrupted(format!("revision {newest} is stored, the log ends at {logged}")));
        }
        newest = newest.max(logged);
        if let Some(acknowledged) = self.read_acknowledged()
            && acknowledged > newest
        {
            return Err(self.corrupted(format!(
                "revision {acknowledged} was acknowledged, but the data end at revision {newest}: {} is \
                 damaged, cut off or gone",
                damage::journals(&self.path)
            )));
        }
        Ok(Recovered { index, revision: newest, compacted })
    }

    /// The newest revision in the log, which has every revision since the last compaction.
    fn check_log(&self, compacted: Revision) -> Result<Revision, StoreError> {
        let mut logged = compacted;
        for guard in self.log.range(log_key(compacted.saturating_add(1), 0)..) {
            let key = guard.key().map_err(|e| self.failed(e))?;
            let revision = key.get(..8).and_then(number).ok_or_else(|| self.damaged("a log key"))?;
            if revision > logged + 1 {
                return Err(self.corrupted(format!(
                    "revisions {} to {} are missing: {} is damaged",
                    logged + 1,
                    revision - 1,
                    damage::journals(&self.path)
                )));
            }
            logged = revision;
        }
        Ok(logged)
    }

    fn read_acknowledged(&self) -> Option<Revision> {
        let mut bytes = [0; 16];
        self.acknowledged.read_exact_at(&mut bytes, 0).ok()?;
        let revision = number(&bytes[..8])?;
        (number(&bytes[8..])? == !revision).then_some(revision)
    }

    /// Notes a revision as acknowledged. Not flushed: a bound that lags behind is still a bound.
    pub(super) fn write_acknowledged(&self, revision: Revision) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&revision.to_be_bytes());
        bytes[8..].copy_from_slice(&(!revision).to_be_bytes());
        let _ = self.acknowledged.write_all_at(&bytes, 0);
    }

    /// Free bytes of the file system; `None` when it cannot tell.
    pub(super) fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(super) fn disk_full(&self) -> StoreError {
        StoreError::DiskFull { path: self.path.display().to_string() }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.database.snapshot()
    }

    /// One version's value; `None` when it is compacted away.
    pub(super) fn value(&self, key: &str, slot: Slot) -> Result<Option<Bytes>, StoreError> {
        let found = self.versions.get(version_key(key, slot, Kind::Put)).map_err(|e| self.failed(e))?;
        Ok(found.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// One version's value as of a snapshot.
    pub(super) fn value_in(&self, at: &Snapshot, key: &str, slot: Slot) -> Result<Option<Bytes>, StoreError> {
        let found = at.get(&self.versions, version_key(key, slot, Kind::Put)).map_err(|e| self.failed(e))?;
        Ok(found.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// All versions whose keys lie in `start..end`, in order; `value` tells whether to load the value.
    pub(super) fn scan(
        &self,
        at: &Snapshot,
        start: &str,
        end: &str,
        mut visit: impl FnMut(&str, Slot, Kind, Option<Bytes>) -> bool,
        wanted: impl Fn(&str, Slot) -> bool,
    ) -> Result<(), StoreError> {
        let from = std::ops::Bound::Included(start.as_bytes());
        let to = match end {
            "" => std::ops::Bound::Unbounded,
            end => std::ops::Bound::Excluded(end.as_bytes()),
        };
        for guard in at.range::<&[u8], _>(&self.versions, (from, to)) {
            let load = |key: &fjall::UserKey| {
                parse_version_key(key).is_some_and(|(key, slot, kind)| kind == Kind::Put && wanted(key, slot))
            };
            let (bytes, value) = guard.into_inner_if(load).map_err(|e| self.failed(e))?;
            let (key, slot, kind) =
                parse_version_key(&bytes).ok_or_else(|| self.damaged("a version's key"))?;
            if !visit(key, slot, kind, value.map(|v| Bytes::copy_from_slice(&v))) {
                break;
            }
        }
        Ok(())
    }

    /// Log records with `after < revision <= until`, at least `limit` of them if there are so many, and
    /// always whole transactions.
    pub(super) fn records(
        &self,
        at: &Snapshot,
        after: Revision,
        until: Revision,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut records: Vec<Record> = Vec::new();
        let range = log_key(after.saturating_add(1), 0)..log_key(until.saturating_add(1), 0);
        for guard in at.range(&self.log, range) {
            let (key, value) = guard.into_inner().map_err(|e| self.failed(e))?;
            let record = Record::decode(&key, &value).ok_or_else(|| self.damaged("a log record"))?;
            if records.len() >= limit && records.last().is_some_and(|last| last.revision != record.revision) {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }

    pub(super) fn batch(&self) -> Batch {
        Batch { changes: self.database.batch(), bytes: 0 }
    }

    /// Adds one change to a batch.
    pub(super) fn add(&self, batch: &mut Batch, record: &Record, value: Option<&[u8]>) {
        let key = version_key(&record.key, record.slot(), record.kind);
        let value = value.unwrap_or_default();
        batch.bytes += key.len() + value.len();
        batch.changes.insert(&self.versions, key, value);
        batch.changes.insert(&self.log, record.encode_key(), record.encode_value());
    }

    /// Adds an entry to a batch that has no history.
    pub(super) fn set(&self, batch: &mut Batch, entry: &Entry) {
        let slot = Slot { create: entry.create_revision, modified: entry.mod_revision };
        batch.changes.insert(&self.versions, version_key(&entry.key, slot, Kind::Put), &*entry.value);
    }

    /// Writes a batch and flushes it.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.unrested.now.fetch_add(batch.bytes as u64, Ordering::Relaxed);
        batch.changes.durability(Some(PersistMode::SyncData)).commit().map_err(|e| self.failed(e))
    }

    /// Whether there is something to do for [`Disk::rest`], and time for it.
    pub(super) fn should_rest(&self) -> bool {
        self.unrested.is_settled() || self.unrested.emptied.load(Ordering::Relaxed)
    }

    /// Moves what the memtables hold to the disk. It is in the journal already: this is for the memory alone. The
    /// engine lets go of memtables with the next one that it moves, of whichever keyspace: a second call moves the
    /// smallest.
    pub(super) fn rest(&self) -> Result<(), StoreError> {
        let again = self.unrested.emptied.fetch_not(Ordering::Relaxed);
        if again {
            self.meta.insert("rested", []).map_err(|e| self.failed(e))?;
            return self.meta.rotate_memtable().map(drop).map_err(|e| self.failed(e));
        }
        self.unrested.now.store(0, Ordering::Relaxed);
        for keyspace in [&self.versions, &self.log] {
            keyspace.rotate_memtable().map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    /// Forgets what the given records superseded, and the records.
    pub(super) fn forget(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut batch = self.database.batch();
        for record in records {
            if let Some(previous) = record.previous_slot() {
                batch.remove(&self.versions, version_key(&record.key, previous, Kind::Put));
            }
            if record.kind == Kind::Delete {
                batch.remove(&self.versions, version_key(&record.key, record.slot(), Kind::Delete));
            }
            batch.remove(&self.log, record.encode_key());
        }
        batch.commit().map_err(|e| self.failed(e))
    }

    /// Records durably that history before `revision` is gone.
    pub(super) fn set_compacted(&self, revision: Revision) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(&self.meta, "compacted", revision.to_be_bytes());
        batch.commit().map_err(|e| self.failed(e))
    }

    fn meta_number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let Some(value) = self.meta.get(name).map_err(|e| self.failed(e))? else { return Ok(None) };
        number(&value).map(Some).ok_or_else(|| self.damaged(name))
    }

    fn damaged(&self, what: &str) -> StoreError {
        self.corrupted(format!("{what} has the wrong shape"))
    }

    pub(super) fn corrupted(&self, detail: String) -> StoreError {
        StoreError::Corrupted { path: self.path.display().to_string(), detail }
    }

    fn failed(&self, error: fjall::Error) -> StoreError {
        damage::translate(&self.path, error)
    }
}
