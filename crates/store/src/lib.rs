//! The revisioned key-value store: [`Store`] and its bodies. Every body passes the one suite in `contract`.
//!
//! A write transaction gets the next revision; all its changes carry it. History is kept per key until
//! [`Store::compact`], so reads at an old revision and watches from one need nothing else.

pub mod contract;
mod embedded;
mod etcd;
mod memory;
mod sealed;
mod shifted;
pub mod snapshot;
mod watchers;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use embedded::{EmbeddedConfig, EmbeddedStore};
pub use etcd::{EtcdConfig, EtcdStore};
pub use memory::MemoryStore;
pub use sealed::{Opened, Seal, SealedStore};
pub use shifted::ShiftedStore;

/// A point in the store's one totally ordered history. Starts at 1 for an empty store; never reused.
pub type Revision = u64;

/// A key's current (or past) value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value as written.
    pub value: Bytes,
    /// Revision of the write that created the key (since its last deletion).
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
}

/// One change in a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// Writes `value`.
    Put {
        /// The key.
        key: Arc<str>,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key; a no-op when absent.
    Delete {
        /// The key.
        key: Arc<str>,
    },
}

/// A condition on a key that must hold for a transaction to commit.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The key does not exist.
    Absent(Arc<str>),
    /// The key's last write has exactly this revision.
    At(Arc<str>, Revision),
}

/// Conditions and changes, atomic. Keys in `ops` are distinct.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Applied in one revision.
    pub ops: Vec<Op>,
}

/// What [`Store::range`] reads.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// First key, inclusive.
    pub start: String,
    /// End, exclusive. See [`prefix_end`].
    pub end: String,
    /// At most so many entries; 0 means all.
    pub limit: usize,
    /// Read as of this revision; `None` is the newest.
    pub revision: Option<Revision>,
}

/// Result of [`Store::range`].
#[derive(Clone, Debug)]
pub struct RangeResult {
    /// Entries in key order.
    pub entries: Vec<Entry>,
    /// The revision the read is consistent with.
    pub revision: Revision,
    /// Number of entries beyond `limit`.
    pub remaining: usize,
}

/// A committed change, as watchers see it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// The new value; `None` for a deletion.
    pub value: Option<Bytes>,
    /// The value before, if there was one.
    pub previous: Option<Entry>,
    /// Create revision of the new (or deleted) entry.
    pub create_revision: Revision,
    /// The transaction's revision.
    pub revision: Revision,
}

/// Why the store refused or failed an operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition did not hold. `current` is the key's entry now. Re-read and retry, or report a conflict.
    #[error("condition on {key} does not hold")]
    ConditionFailed {
        /// The key whose condition failed.
        key: Arc<str>,
        /// Its entry now.
        current: Option<Entry>,
    },
    /// The revision asked for is compacted; list again.
    #[error("revision {asked} is compacted, oldest is {oldest}")]
    Compacted {
        /// What was asked.
        asked: Revision,
        /// What can be asked at the least.
        oldest: Revision,
    },
    /// The revision asked for lies in the future.
    #[error("revision {asked} is in the future, newest is {newest}")]
    Future {
        /// What was asked.
        asked: Revision,
        /// What there is.
        newest: Revision,
    },
    /// The disk has no room; nothing was written.
    #[error("no space left for the store at {path}: free some disk space, then try again")]
    DiskFull {
        /// The store's directory.
        path: String,
    },
    /// The stored data is damaged.
    #[error("the store at {path} is corrupted: {detail}")]
    Corrupted {
        /// The store's directory.
        path: String,
        /// What was found.
        detail: String,
    },
    /// A later version of this program made the store.
    #[error("the store at {path} has format {found}; this version of coracle knows format {known}")]
    Format {
        /// The store's directory.
        path: String,
        /// The format found.
        found: u64,
        /// The format that this program reads and writes.
        known: u64,
    },
    /// Another process has the store open.
    #[error(
        "the store at {path} is in use by {}",
        holder(*.pid)
    )]
    InUse {
        /// The store's directory.
        path: String,
        /// The process that has it open, if known.
        pid: Option<u32>,
    },
    /// A value cannot be sealed or opened.
    #[error("value of {key}: {why}")]
    Sealed {
        /// The key.
        key: Arc<str>,
        /// Why.
        why: String,
    },
    /// The engine failed otherwise.
    #[error("store: {0}")]
    Engine(String),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Batches of events: each batch is one or more whole transactions, in revision order, without gaps. The
/// channel is unbounded; a consumer that falls behind holds memory, so the API server's cache is the only
/// consumer and never waits. Ends when the store closes.
pub struct Watch {
    batches: mpsc::UnboundedReceiver<Batch>,
    /// What the consumer's side still has to do to a batch.
    change: Option<Box<dyn Fn(Batch) -> Batch + Send + Sync>>,
}

type Batch = Arc<[Event]>;

impl From<mpsc::UnboundedReceiver<Batch>> for Watch {
    fn from(batches: mpsc::UnboundedReceiver<Batch>) -> Self {
        Self { batches, change: None }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("waiting", &self.batches.len()).finish_non_exhaustive()
    }
}

impl Watch {
    /// The next batch; `None` when the store has closed.
    pub async fn recv(&mut self) -> Option<Batch> {
        let batch = self.batches.recv().await?;
        Some(self.changed(batch))
    }

    /// The next batch, if there is one.
    pub fn try_recv(&mut self) -> Option<Batch> {
        let batch = self.batches.try_recv().ok()?;
        Some(self.changed(batch))
    }

    fn changed(&self, batch: Batch) -> Batch {
        match &self.change {
            Some(change) => change(batch),
            None => batch,
        }
    }

    /// The watch with every batch changed when it is taken.
    fn map(self, change: impl Fn(Batch) -> Batch + Send + Sync + 'static) -> Self {
        let Self { batches, change: before } = self;
        let change: Box<dyn Fn(Batch) -> Batch + Send + Sync> = match before {
            None => Box::new(change),
            Some(before) => Box::new(move |batch| change(before(batch))),
        };
        Self { batches, change: Some(change) }
    }
}

/// The store.
///
/// Guarantees: an acknowledged commit survives `kill -9` and power loss; revisions are dense and totally
/// ordered; a commit's events reach every open watch before the commit is acknowledged.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest committed revision.
    fn revision(&self) -> Revision;
    /// The newest revision that anyone has committed, once its events have reached every open watch. Differs from
    /// [`Store::revision`] where several processes share the store: a read that must not be stale asks this.
    ///
    /// # Errors
    /// Engine failures.
    async fn newest(&self) -> Result<Revision, StoreError> {
        Ok(self.revision())
    }
    /// The oldest revision that can still be read or watched from.
    fn compacted(&self) -> Revision;
    /// Whether other processes may write to it too.
    fn shared(&self) -> bool {
        false
    }
    /// Whether events of this key carry a copy of what was committed, and not the very bytes.
    fn copies(&self, _key: &str) -> bool {
        self.shared()
    }
    /// Whether the stored form of a key's value is out of date, so that it should be written again as it is.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn stale(&self, _key: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
    /// The current entry of a key.
    ///
    /// # Errors
    /// Engine failures only; absence is `None`.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Entries of a key range, at one revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`], engine failures.
    async fn range(&self, range: Range) -> Result<RangeResult, StoreError>;
    /// Applies a transaction; returns its revision once it is durable. A transaction without effect (only
    /// deletions of absent keys) returns the current revision.
    ///
    /// # Errors
    /// [`StoreError::ConditionFailed`] and engine failures; nothing was written then.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;
    /// Events of keys below `prefix` with revision > `after`: first history, then live.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `after` is older than what is kept.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
    /// Forgets history before `revision` (entries current at `revision` stay readable).
    ///
    /// # Errors
    /// Engine failures.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
    /// Told every few seconds: once writes have become few, memory that a burst of them took can be given back.
    ///
    /// # Errors
    /// Engine failures; nothing is lost then.
    async fn rest(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The exclusive end of the range of all keys that begin with `prefix`.
pub fn prefix_end(prefix: &str) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    // Keys are ASCII paths: the last byte can always be raised without leaving UTF-8.
    if let Some(last) = bytes.last_mut() {
        *last = last.saturating_add(1).min(0x7f);
    }
    String::from_utf8(bytes).unwrap_or_default()
}
