//! The last steps of every write: encode, commit, and the entry that answers the request.

use std::sync::Arc;

use coracle_meta::{Object, Status};
use coracle_resources::custom::Conversion;
use coracle_store::{Condition, Op, StoreError, Txn};
use tracing::error;

use crate::cache::CacheEntry;
use crate::codec;
use crate::registry::Resource;
use crate::server::Server;

/// Largest stored object, as with upstream's etcd limit.
const MAX_OBJECT: usize = 1_500_000 + 73_000;

/// Why a commit did not happen.
pub(crate) enum Refused {
    /// The key's condition did not hold. The object comes back for another try.
    Condition(Box<dyn Object>),
    /// Anything else.
    Failed(Status),
}

/// How an object is put in its place.
#[derive(Clone, Copy)]
pub(crate) struct Put {
    /// The revision that it replaces; none for a new key.
    pub(crate) expected: Option<u64>,
    /// The next write of the very same object counts as a change, see `Strategy::settle`.
    pub(crate) unsettled: bool,
}

impl Put {
    /// In the place of a revision.
    pub(crate) fn over(revision: u64) -> Self {
        Self { expected: Some(revision), unsettled: false }
    }
}

/// Maps a store failure to what clients see.
pub(crate) fn store_status(e: &StoreError) -> Status {
    match e {
        StoreError::Compacted { asked, oldest } => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        StoreError::DiskFull { .. } => {
            error!(error = %e, "write refused");
            Status::new(507, coracle_meta::Reason::Unknown, e.to_string(), None)
        }
        StoreError::Closed => Status::unavailable("the store is closed"),
        _ => {
            error!(error = %e, "store failed");
            Status::internal(e)
        }
    }
}

/// A custom resource as it would come back from the store: without what the storage version does not have.
fn through_storage(resource: &Resource, obj: &mut dyn Object) -> Result<Option<bytes::Bytes>, Status> {
    let (Some(own), Some(storage)) = (resource.custom(), resource.storage.strategy.custom()) else {
        return Ok(None);
    };
    if std::ptr::eq(resource.def, resource.storage) || own.current().conversion != Conversion::None {
        return Ok(None);
    }
    obj.meta_mut().resource_version = None;
    let mut value = obj.to_value();
    for version in [storage, own] {
        version.prune(&mut value, true).map_err(Status::internal)?;
    }
    codec::encode_value(resource.def, &value, 2048).map(Some)
}

impl Server {
    /// Writes an object.
    pub(crate) async fn put(
        &self,
        resource: &Resource,
        key: Arc<str>,
        mut obj: Box<dyn Object>,
        put: Put,
    ) -> Result<Arc<CacheEntry>, Refused> {
        let of_request = resource.custom().is_some().then(|| obj.clone_object());
        if let Some(stored) = self.in_storage_version(resource, &*obj).await.map_err(Refused::Failed)? {
            obj = stored;
        }
        let mut value = self.fields.encode(resource.storage, &mut *obj, 2048).map_err(Refused::Failed)?;
        if put.unsettled {
            value = codec::unsettled(&value);
        }
        if value.len() > MAX_OBJECT {
            let (size, max) = (value.len(), MAX_OBJECT);
            let why = format!("etcdserver: request is too large ({size} bytes, at most {max})");
            return Err(Refused::Failed(Status::too_large(why)));
        }
        let condition = match put.expected {
            None => Condition::Absent(key.clone()),
            Some(revision) => Condition::At(key.clone(), revision),
        };
        let op = Op::Put { key: key.clone(), value: value.clone() };
        self.cache.announce(&value, &key, obj);
        match self.store.commit(Txn { conditions: vec![condition], ops: vec![op] }).await {
            Ok(revision) => {
                // A store that hands the cache bytes of its own: nobody claims these.
                if self.store.copies(&key) {
                    drop(self.cache.claim(&value, &key));
                }
                let written = self.written(resource, &key, &value, revision);
                self.in_version(resource, written).await.map_err(Refused::Failed)
            }
            Err(e) => {
                let obj = self.cache.claim(&value, &key);
                Err(match (e, of_request.or(obj)) {
                    (StoreError::ConditionFailed { .. }, Some(obj)) => Refused::Condition(obj),
                    (StoreError::ConditionFailed { .. }, None) => {
                        Refused::Failed(Status::internal("object lost on its way to the store"))
                    }
                    (e, _) => Refused::Failed(store_status(&e)),
                })
            }
        }
    }

    /// Whether what is stored should be written again though nothing changes.
    pub(crate) async fn out_of_date(&self, entry: &CacheEntry) -> Result<bool, Refused> {
        let stale = entry.stale
            || self.store.stale(&entry.key).await.map_err(|e| Refused::Failed(store_status(&e)))?;
        Ok(stale)
    }

    /// The entry of a value just committed: the cache's own, or the same bytes if it is not there yet.
    fn written(&self, resource: &Resource, key: &Arc<str>, value: &[u8], revision: u64) -> Arc<CacheEntry> {
        match resource.cache.get(key) {
            Some(entry) if entry.revision == revision => entry,
            _ => {
                let def = if resource.custom().is_some() { resource.storage } else { resource.def };
                let (encoded, prefix) = (codec::splice(value, revision), resource.cache.prefix_len());
                let entry = CacheEntry::new(key.clone(), prefix, revision, encoded, def);
                Arc::new(entry.unlike(None, codec::is_unsettled(value)))
            }
        }
    }

    /// The entry that a dry run answers with: as it would be stored, at the old revision, the one that the client
    /// named, or none.
    pub(crate) fn imagined(
        &self,
        resource: &Resource,
        key: Arc<str>,
        obj: &mut dyn Object,
        revision: Option<u64>,
    ) -> Result<Arc<CacheEntry>, Status> {
        let value = match through_storage(resource, obj)? {
            Some(value) => value,
            None => self.fields.encode(resource.def, obj, 2048)?,
        };
        let encoded = codec::splice_named(&value, revision);
        let prefix = resource.cache.prefix_len();
        Ok(Arc::new(CacheEntry::new(key, prefix, revision.unwrap_or(0), encoded, resource.def)))
    }

    /// Removes an object at a revision; the entry as the deletion event carries it.
    pub(crate) async fn remove(&self, entry: &Arc<CacheEntry>) -> Result<u64, Option<Status>> {
        let conditions = vec![Condition::At(entry.key.clone(), entry.revision)];
        let ops = vec![Op::Delete { key: entry.key.clone() }];
        match self.store.commit(Txn { conditions, ops }).await {
            Ok(revision) => Ok(revision),
            Err(StoreError::ConditionFailed { .. }) => Err(None),
            Err(e) => Err(Some(store_status(&e))),
        }
    }
}
