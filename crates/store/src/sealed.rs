//! Values that are sealed (encrypted) on their way into a store, and opened on their way out. Values that are not
//! to be sealed pass through as they are.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::error;

use crate::{Entry, Event, Op, Range, RangeResult, Revision, Store, StoreError, Txn, Watch};

/// A value that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What was sealed.
    pub value: Bytes,
    /// It was not sealed as it would be now: write it again.
    pub stale: bool,
}

/// Seals and opens values. The key is part of what is sealed: a value does not open under another.
pub trait Seal: Send + Sync + 'static {
    /// Whether values of this key are, or were, sealed.
    fn covers(&self, key: &str) -> bool;
    /// The sealed value; `None` when values of this key are stored as they are.
    ///
    /// # Errors
    /// Why it cannot be sealed. Nothing is written then.
    fn seal(&self, key: &str, value: &[u8]) -> Result<Option<Bytes>, String>;
    /// The value as it was before it was sealed.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn open(&self, key: &str, stored: &Bytes) -> Result<Opened, String>;
}

/// A store whose values are sealed.
pub struct SealedStore {
    inner: Arc<dyn Store>,
    seal: Arc<dyn Seal>,
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedStore").field("revision", &self.inner.revision()).finish_non_exhaustive()
    }
}

fn unreadable(key: &str, why: String) -> StoreError {
    StoreError::Sealed { key: key.into(), why }
}

fn opened(seal: &dyn Seal, mut entry: Entry) -> Result<Entry, StoreError> {
    entry.value = seal.open(&entry.key, &entry.value).map_err(|why| unreadable(&entry.key, why))?.value;
    Ok(entry)
}

/// The event with opened values; `None` for one that cannot be opened: who follows keeps what was before.
fn event(seal: &dyn Seal, event: &Event) -> Option<Event> {
    let open = |key: &Arc<str>, value: &Bytes| {
        let opened = seal.open(key, value).map(|o| o.value);
        opened.map_err(|why| error!(%key, %why, "a stored value cannot be opened")).ok()
    };
    let mut event = event.clone();
    if let Some(value) = &mut event.value {
        *value = open(&event.key, value)?;
    }
    if let Some(previous) = &mut event.previous {
        previous.value = open(&previous.key, &previous.value)?;
    }
    Some(event)
}

impl SealedStore {
    /// A store around another.
    pub fn new(inner: Arc<dyn Store>, seal: Arc<dyn Seal>) -> Arc<Self> {
        Arc::new(Self { inner, seal })
    }

    fn failed(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::ConditionFailed { key, current: Some(current) } => match opened(&*self.seal, current)
            {
                Ok(current) => StoreError::ConditionFailed { key, current: Some(current) },
                Err(unreadable) => unreadable,
            },
            other => other,
        }
    }
}

#[async_trait]
impl Store for SealedStore {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    async fn newest(&self) -> Result<Revision, StoreError> {
        self.inner.newest().await
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    fn shared(&self) -> bool {
        self.inner.shared()
    }

    fn copies(&self, key: &str) -> bool {
        self.inner.copies(key) || self.seal.covers(key)
    }

    async fn stale(&self, key: &str) -> Result<bool, StoreError> {
        if !self.seal.covers(key) {
            return Ok(false);
        }
        let Some(entry) = self.inner.get(key).await? else { return Ok(false) };
        Ok(self.seal.open(key, &entry.value).map_err(|why| unreadable(key, why))?.stale)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.inner.get(key).await?;
        entry.map(|entry| opened(&*self.seal, entry)).transpose()
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let mut result = self.inner.range(range).await?;
        for entry in &mut result.entries {
            let value = self.seal.open(&entry.key, &entry.value);
            entry.value = value.map_err(|why| unreadable(&entry.key, why))?.value;
        }
        Ok(result)
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, StoreError> {
        for op in &mut txn.ops {
            if let Op::Put { key, value } = op
                && let Some(sealed) = self.seal.seal(key, value).map_err(|why| unreadable(key, why))?
            {
                *value = sealed;
            }
        }
        self.inner.commit(txn).await.map_err(|error| self.failed(error))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let watch = self.inner.watch(prefix, after).await?;
        let seal = self.seal.clone();
        Ok(watch.map(move |batch| {
            if !batch.iter().any(|e| seal.covers(&e.key)) {
                return batch;
            }
            batch.iter().filter_map(|e| event(&*seal, e)).collect()
        }))
    }

    async fn rest(&self) -> Result<(), StoreError> {
        self.inner.rest().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    /// Seals by turning every bit of values below `/k/` and `/registry/`, and naming the key.
    struct Turned;

    impl Seal for Turned {
        fn covers(&self, key: &str) -> bool {
            !key.starts_with("/open/")
        }
        fn seal(&self, key: &str, value: &[u8]) -> Result<Option<Bytes>, String> {
            let turned = |value: &[u8]| value.iter().map(|b| !b).collect::<Vec<u8>>();
            Ok(self.covers(key).then(|| [key.as_bytes(), b"\n", &turned(value)].concat().into()))
        }
        fn open(&self, key: &str, stored: &Bytes) -> Result<Opened, String> {
            if !self.covers(key) {
                return Ok(Opened { value: stored.clone(), stale: false });
            }
            let rest = stored.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n"));
            let rest = rest.ok_or("sealed under another key")?;
            Ok(Opened { value: rest.iter().map(|b| !b).collect(), stale: false })
        }
    }

    #[tokio::test]
    async fn sealed_store_keeps_the_contract() {
        let make = || async { SealedStore::new(MemoryStore::new(), Arc::new(Turned)) as Arc<dyn Store> };
        crate::contract::all(make).await;
    }

    #[tokio::test]
    async fn what_is_stored_is_sealed_and_does_not_open_under_another_key() {
        let inner = MemoryStore::new();
        let store = SealedStore::new(inner.clone(), Arc::new(Turned));
        let put = |key: &str, value: &'static [u8]| Txn {
            conditions: Vec::new(),
            ops: vec![Op::Put { key: key.into(), value: Bytes::from_static(value) }],
        };
        store.commit(put("/k/a", b"secret")).await.unwrap();
        store.commit(put("/open/a", b"plain")).await.unwrap();
        let raw = inner.get("/k/a").await.unwrap().unwrap();
        assert!(!raw.value.windows(6).any(|w| w == b"secret"));
        assert_eq!(inner.get("/open/a").await.unwrap().unwrap().value, "plain");
        assert_eq!(store.get("/k/a").await.unwrap().unwrap().value, "secret");
        let moved =
            Txn { conditions: Vec::new(), ops: vec![Op::Put { key: "/k/b".into(), value: raw.value }] };
        inner.commit(moved).await.unwrap();
        assert!(matches!(store.get("/k/b").await, Err(StoreError::Sealed { .. })));
    }
}
