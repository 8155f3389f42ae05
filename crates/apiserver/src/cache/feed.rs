//! The whole cache and the task that applies the store's events to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use coracle_meta::Object;
use coracle_stdx::pack::gently;
use coracle_store::{Event, Range, Store, StoreError, Watch, prefix_end};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::error;

use super::definitions;
use super::entry::CacheEntry;
use super::watcher::Filter;
use crate::codec;
use crate::registry::{Registry, Resource};

/// Everything stored lies below.
const ROOT: &str = "/registry/";
/// Decoded objects on their way through the store; more than this are leftovers and dropped.
const PENDING: usize = 16_384;

/// Keys and objects by the address of their encoding.
type Pending = HashMap<usize, (Arc<str>, Box<dyn Object>)>;

/// The objects of all resources, current with the store.
pub(crate) struct Cache {
    /// The resources and their objects.
    pub(crate) registry: Registry,
    applied: AtomicU64,
    advanced: Notify,
    pending: Mutex<Pending>,
}

impl Cache {
    /// An empty cache.
    pub(crate) fn new(registry: Registry) -> Self {
        let (applied, advanced) = (AtomicU64::new(0), Notify::new());
        Self { registry, applied, advanced, pending: Mutex::default() }
    }

    /// Reads all stored objects; returns the watch that continues from there.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn load(&self, store: &dyn Store) -> Result<Watch, StoreError> {
        let range = Range { start: ROOT.into(), end: prefix_end(ROOT), ..Range::default() };
        let result = store.range(range).await?;
        // Definitions of custom resources first: they tell what the rest is.
        let (definitions, rest): (Vec<_>, Vec<_>) =
            result.entries.into_iter().partition(|e| e.key.starts_with(definitions::PREFIX));
        self.load_all(definitions, result.revision);
        self.define_all();
        self.load_all(rest, result.revision);
        self.applied.store(result.revision, Ordering::Release);
        store.watch(ROOT, result.revision).await
    }

    fn load_all(&self, stored: Vec<coracle_store::Entry>, revision: u64) {
        let mut per: HashMap<String, (Arc<Resource>, Vec<CacheEntry>)> = HashMap::new();
        for e in stored {
            let Some(resource) = self.registry.of_key(&e.key) else { continue };
            let entry = self.entry(&resource, &e.key, &e.value, e.mod_revision, true);
            let of = per.entry(resource.prefix.clone()).or_insert_with(|| (resource, Vec::new()));
            of.1.push(entry);
        }
        for resource in self.registry.all() {
            let entries = per.remove(resource.prefix.as_str()).map(|(_, e)| e).unwrap_or_default();
            resource.cache.load(entries.into_iter(), revision);
        }
    }

    /// Applies events until the store closes.
    pub(crate) async fn follow(&self, mut watch: Watch) {
        while let Some(batch) = watch.recv().await {
            self.apply(&batch);
        }
    }

    fn apply(&self, batch: &[Event]) {
        for event in batch {
            let Some(resource) = self.registry.of_key(&event.key) else { continue };
            let defines = event.key.starts_with(definitions::PREFIX);
            let new = event.value.as_ref().map(|value| {
                let claimed = self.claim(value, &event.key);
                let fresh = claimed.is_none();
                let entry = self.entry(&resource, &event.key, value, event.revision, fresh);
                if let Some(obj) = claimed {
                    if resource.cache.keeps_decoded() || defines {
                        entry.set_decoded(obj);
                    } else {
                        entry.set_facts(&*obj);
                    }
                }
                Arc::new(entry)
            });
            resource.cache.apply(&event.key, new.clone(), event.revision);
            if defines {
                self.reread(definitions::define(&self.registry, [(&event.key, new.as_deref())]));
            }
        }
        if let Some(last) = batch.last() {
            self.applied.fetch_max(last.revision, Ordering::AcqRel);
        }
        self.advanced.notify_waiters();
    }

    /// The entry of a stored value; `fresh`: it was not written through this process, so that a custom resource
    /// may have to be pruned and defaulted.
    pub(crate) fn entry(
        &self,
        resource: &Resource,
        key: &Arc<str>,
        value: &Bytes,
        revision: u64,
        fresh: bool,
    ) -> CacheEntry {
        let encoded = codec::splice(value, revision);
        let prefix = resource.cache.prefix_len();
        let def = if resource.custom().is_some() { resource.version_of(&encoded) } else { resource.def };
        let entry = CacheEntry::new(key.clone(), prefix, revision, encoded, def);
        match resource.custom() {
            Some(_) if fresh => definitions::read(resource, entry),
            _ => entry.unlike(None, codec::is_unsettled(value)),
        }
    }

    /// Leaves the decoded form of a value that is about to be committed, so that nobody decodes it again.
    pub(crate) fn announce(&self, value: &Bytes, key: &Arc<str>, obj: Box<dyn Object>) {
        let mut pending = self.pending.lock();
        if pending.len() > PENDING {
            pending.clear();
        }
        pending.insert(value.as_ptr() as usize, (key.clone(), obj));
    }

    /// Takes back what was left by [`Cache::announce`].
    pub(crate) fn claim(&self, value: &Bytes, key: &str) -> Option<Box<dyn Object>> {
        let (of, obj) = self.pending.lock().remove(&(value.as_ptr() as usize))?;
        (*of == *key).then_some(obj)
    }

    /// The revision up to which everything is applied.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until the cache has applied `revision`.
    pub(crate) async fn wait_for(&self, revision: u64) {
        if self.applied() >= revision {
            return;
        }
        loop {
            let advanced = self.advanced.notified();
            tokio::pin!(advanced);
            advanced.as_mut().enable();
            if self.applied() >= revision {
                return;
            }
            advanced.await;
        }
    }

    /// Serves the custom resources that are defined in the store. Their definitions are not kept decoded: they are
    /// large, and hardly anybody reads them.
    fn define_all(&self) {
        let Some(resource) = self.registry.find(definitions::KIND.0, definitions::KIND.1) else { return };
        let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
        let entries = resource.cache.range(&filter, 0).entries;
        let changes = entries.iter().map(|entry| (&entry.key, Some(&**entry)));
        self.reread(definitions::define(&self.registry, changes));
        entries.iter().for_each(|entry| entry.let_go());
    }

    fn reread(&self, changed: Vec<Arc<Resource>>) {
        for resource in changed {
            resource.cache.reread(&|entry| definitions::reread(&resource, entry));
        }
    }

    /// Packs the objects that nobody has read since the last call, a few at a time: requests come first. Secrets are
    /// left alone: a dictionary keeps some objects' texts after their end.
    pub(crate) async fn pack(&self, only_new: bool) {
        for resource in self.registry.all() {
            if (resource.def.group, resource.def.plural) == ("", "secrets") {
                continue;
            }
            let resting = resource.cache.resting(only_new);
            let Some(dictionary) = resource.cache.dictionary(&resting) else { continue };
            gently(&resting, |entry| entry.rest(&dictionary)).await;
        }
    }

    /// Drops window events that no watch will ask for any more.
    pub(crate) fn trim(&self) {
        let now = tokio::time::Instant::now();
        for resource in self.registry.all() {
            resource.cache.trim(now);
        }
    }
}

/// Runs [`Cache::follow`] and reports its end, which only a closed store brings about.
pub(crate) async fn run(cache: Arc<Cache>, watch: Watch) {
    cache.follow(watch).await;
    error!("the store closed its watch: the cache no longer follows");
}
