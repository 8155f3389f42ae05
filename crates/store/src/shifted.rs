//! A store whose revisions are another's, moved on by a fixed number. etcd counts its revisions itself: what is
//! restored into a younger one than it was saved from would get revisions anew that clients have seen already, and a
//! watch from one of those would miss everything until etcd has caught up.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Condition, Entry, Event, Op, Range, RangeResult, Revision, Store, StoreError, Txn, Watch};

/// Where the number is kept: no object's key, as those begin with a slash.
const KEY: &str = "!revisions";

/// A store around another.
pub struct ShiftedStore {
    inner: Arc<dyn Store>,
    shift: Revision,
}

impl std::fmt::Debug for ShiftedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShiftedStore").field("shift", &self.shift).finish_non_exhaustive()
    }
}

impl ShiftedStore {
    /// The store with the revisions that it is to have: those of `inner`, unless [`ShiftedStore::begin`] moved them on.
    ///
    /// # Errors
    /// The store's; the number in it is none.
    pub async fn over(inner: Arc<dyn Store>) -> Result<Arc<dyn Store>, StoreError> {
        let Some(entry) = inner.get(KEY).await? else { return Ok(inner) };
        let text = String::from_utf8_lossy(&entry.value);
        let unreadable = |e| StoreError::Engine(format!("{KEY} is {text:?}: {e}"));
        Ok(Arc::new(Self { shift: text.parse().map_err(unreadable)?, inner }))
    }

    /// The store with revisions from behind `beyond` on, for ever. Nobody else may have it open.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin(inner: Arc<dyn Store>, beyond: Revision) -> Result<Arc<dyn Store>, StoreError> {
        let shift = beyond.saturating_sub(inner.newest().await?);
        if shift > 0 {
            let op = Op::Put { key: KEY.into(), value: Bytes::from(shift.to_string()) };
            inner.commit(Txn { conditions: vec![Condition::Absent(KEY.into())], ops: vec![op] }).await?;
        }
        Self::over(inner).await
    }

    /// A revision as the other store has it.
    fn inwards(&self, revision: Revision) -> Result<Revision, StoreError> {
        let compacted = || StoreError::Compacted { asked: revision, oldest: self.compacted() };
        // 0 is the beginning of a store that is not moved on, and of no other.
        revision.checked_sub(self.shift).filter(|inner| *inner > 0 || self.shift == 0).ok_or_else(compacted)
    }

    fn failed(&self, error: StoreError) -> StoreError {
        let on = |revision: Revision| revision + self.shift;
        match error {
            StoreError::ConditionFailed { key, current } => {
                StoreError::ConditionFailed { key, current: current.map(|e| moved(e, self.shift)) }
            }
            StoreError::Compacted { asked, oldest } => {
                StoreError::Compacted { asked: on(asked), oldest: on(oldest) }
            }
            StoreError::Future { asked, newest } => {
                StoreError::Future { asked: on(asked), newest: on(newest) }
            }
            other => other,
        }
    }
}

fn moved(mut entry: Entry, shift: Revision) -> Entry {
    entry.create_revision += shift;
    entry.mod_revision += shift;
    entry
}

#[async_trait]
impl Store for ShiftedStore {
    fn revision(&self) -> Revision {
        self.inner.revision() + self.shift
    }

    async fn newest(&self) -> Result<Revision, StoreError> {
        Ok(self.inner.newest().await? + self.shift)
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted() + self.shift
    }

    fn shared(&self) -> bool {
        self.inner.shared()
    }

    fn copies(&self, key: &str) -> bool {
        self.inner.copies(key)
    }

    async fn stale(&self, key: &str) -> Result<bool, StoreError> {
        self.inner.stale(key).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.inner.get(key).await?.map(|entry| moved(entry, self.shift)))
    }

    async fn range(&self, mut range: Range) -> Result<RangeResult, StoreError> {
        range.revision = range.revision.map(|revision| self.inwards(revision)).transpose()?;
        let mut result = self.inner.range(range).await.map_err(|e| self.failed(e))?;
        result.revision += self.shift;
        result.entries = result.entries.into_iter().map(|entry| moved(entry, self.shift)).collect();
        Ok(result)
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, StoreError> {
        for condition in &mut txn.conditions {
            if let Condition::At(_, at) = condition {
                // Nothing has a revision from before the beginning.
                *at = at.checked_sub(self.shift).unwrap_or(i64::MAX.unsigned_abs());
            }
        }
        let revision = self.inner.commit(txn).await.map_err(|e| self.failed(e))?;
        Ok(revision + self.shift)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let (after, shift) = (self.inwards(after)?, self.shift);
        let watch = self.inner.watch(prefix, after).await.map_err(|e| self.failed(e))?;
        let on = move |event: &Event| {
            let mut event = event.clone();
            event.revision += shift;
            event.create_revision += shift;
            event.previous = event.previous.map(|entry| moved(entry, shift));
            event
        };
        Ok(watch.map(move |batch| batch.iter().map(on).collect()))
    }

    async fn rest(&self) -> Result<(), StoreError> {
        self.inner.rest().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        match revision.checked_sub(self.shift) {
            None | Some(0) => Ok(()),
            Some(revision) => self.inner.compact(revision).await.map_err(|e| self.failed(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    fn put(key: &str, value: &'static str, at: Option<Revision>) -> Txn {
        let conditions = at.map_or_else(Vec::new, |at| vec![Condition::At(key.into(), at)]);
        Txn {
            conditions,
            ops: vec![Op::Put { key: key.into(), value: Bytes::from_static(value.as_bytes()) }],
        }
    }

    #[tokio::test]
    async fn a_store_that_is_not_moved_on_keeps_the_contract() {
        let make =
            || async { Arc::new(ShiftedStore { inner: MemoryStore::new(), shift: 0 }) as Arc<dyn Store> };
        crate::contract::all(make).await;
    }

    #[tokio::test]
    async fn revisions_go_on_behind_those_of_before_everywhere_and_after_opening_again() {
        let inner = MemoryStore::new();
        inner.commit(put("/a", "0", None)).await.unwrap();
        let store = ShiftedStore::begin(inner.clone(), 1000).await.unwrap();
        let first = store.commit(put("/a", "1", None)).await.unwrap();
        assert!(first > 1000 && store.revision() == first && store.newest().await.unwrap() == first);
        let entry = store.get("/a").await.unwrap().unwrap();
        assert_eq!((entry.mod_revision, entry.create_revision <= 1000), (first, true));
        let mut watch = store.watch("/", first).await.unwrap();
        let second = store.commit(put("/a", "2", Some(first))).await.unwrap();
        let event = &watch.recv().await.unwrap()[0];
        let before = event.previous.as_ref().map(|e| e.mod_revision);
        assert_eq!((event.revision, before, second), (second, Some(first), first + 1));
        let refused = store.commit(put("/a", "3", Some(7))).await;
        assert!(
            matches!(refused, Err(StoreError::ConditionFailed { current: Some(e), .. }) if e.mod_revision == second)
        );
        for early in [1, 7, 900] {
            assert!(
                matches!(store.watch("/", early).await, Err(StoreError::Compacted { asked, .. }) if asked == early)
            );
        }
        let all = |revision| Range { start: "/".into(), end: "0".into(), revision, ..Range::default() };
        let old = store.range(all(Some(first))).await.unwrap();
        assert_eq!((old.revision, old.entries[0].mod_revision, old.entries.len()), (first, first, 1));
        assert!(matches!(store.range(all(Some(5))).await, Err(StoreError::Compacted { .. })));
        store.compact(second).await.unwrap();
        assert_eq!(store.compacted(), second);
        let again = ShiftedStore::over(inner.clone()).await.unwrap();
        assert_eq!(again.revision(), second);
        let plain = ShiftedStore::over(MemoryStore::new()).await.unwrap();
        assert_eq!(plain.revision(), 1, "a store that was not restored is as it is");
    }
}
