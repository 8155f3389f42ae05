//! What an informer holds: the objects by namespace and name, and its indices.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_meta::{Kind, Object};
use tokio::sync::mpsc;
use tracing::error;

use super::Change;
use super::held::{Held, Key};
use crate::api::decode;
use crate::reflector::Reflected;

/// The objects by a key that is derived from them.
pub(super) struct IndexData<K> {
    pub(super) name: &'static str,
    keys_of: fn(&K) -> Vec<String>,
    /// Each sorted by namespace and name.
    buckets: HashMap<String, Vec<Arc<Held<K>>>>,
}

impl<K: Kind> IndexData<K> {
    pub(super) fn new(name: &'static str, keys_of: fn(&K) -> Vec<String>) -> Self {
        Self { name, keys_of, buckets: HashMap::new() }
    }

    pub(super) fn insert(&mut self, held: &Arc<Held<K>>, object: &K) {
        for key in (self.keys_of)(object) {
            let bucket = self.buckets.entry(key).or_default();
            match bucket.binary_search_by(|other| other.key.cmp(&held.key)) {
                Ok(at) => bucket[at] = held.clone(),
                Err(at) => bucket.insert(at, held.clone()),
            }
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for name in (self.keys_of)(object) {
            let Some(bucket) = self.buckets.get_mut(&name) else { continue };
            if let Ok(at) = bucket.binary_search_by(|other| other.key.cmp(key)) {
                bucket.remove(at);
            }
            if bucket.is_empty() {
                self.buckets.remove(&name);
            }
        }
    }

    pub(super) fn bucket(&self, key: &str) -> &[Arc<Held<K>>] {
        self.buckets.get(key).map_or(&[], Vec::as_slice)
    }
}

/// Objects of a namespace by name.
type Named<K> = BTreeMap<Arc<str>, Arc<Held<K>>>;

pub(super) struct State<K> {
    objects: BTreeMap<Arc<str>, Named<K>>,
    pub(super) indices: Vec<IndexData<K>>,
    pub(super) subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
    /// Keys applied since the list began, while one runs.
    listed: Option<HashSet<Key>>,
    /// All changes up to this revision are in `objects`.
    pub(super) revision: u64,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            indices: Vec::new(),
            subscribers: Vec::new(),
            listed: None,
            revision: 0,
        }
    }
}

impl<K: Kind> State<K> {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Held<K>>> {
        self.objects.get(namespace)?.get(name)
    }

    /// All objects, ordered by namespace and name.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Held<K>>> {
        self.objects.values().flat_map(BTreeMap::values)
    }

    /// Those of a namespace, ordered by name.
    pub(super) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Held<K>>> {
        self.objects.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// The key of an object; its namespace is shared with the others'.
    fn key_of(&self, object: &dyn Object) -> Key {
        let namespace = self.objects.get_key_value(object.namespace());
        let namespace = namespace.map_or_else(|| object.namespace().into(), |(known, _)| known.clone());
        (namespace, object.name().into())
    }

    fn publish(&mut self, change: &Change<K>) {
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }

    fn insert(&mut self, key: Key, object: Arc<K>) {
        let held = Arc::new(Held::new(key.clone(), object.clone()));
        for index in &mut self.indices {
            index.insert(&held, &object);
        }
        self.objects.entry(key.0).or_default().insert(key.1, held);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<K>> {
        let objects = self.objects.get_mut(&key.0)?;
        let held = objects.remove(&key.1)?;
        if objects.is_empty() {
            self.objects.remove(&key.0);
        }
        let old = held.get();
        for index in &mut self.indices {
            match &old {
                Some(old) => index.remove(key, old),
                // It cannot be read, and so does not tell where it stands.
                None => {
                    index.buckets.values_mut().for_each(|bucket| bucket.retain(|other| other.key != *key))
                }
            }
        }
        old
    }

    /// A list is not in revision order: only what comes after it tells how far the store is.
    fn advance(&mut self, version: Option<&str>) {
        if let (false, Some(revision)) = (self.listed.is_some(), version.and_then(|v| v.parse().ok())) {
            self.revision = self.revision.max(revision);
        }
    }

    fn apply(&mut self, key: Key, new: Arc<K>) {
        let known = self.get(&key.0, &key.1);
        if known.is_some_and(|old| old.version.as_deref() == new.metadata().resource_version.as_deref()) {
            return;
        }
        let change = match self.take(&key) {
            Some(old) if old.metadata().uid == new.metadata().uid => {
                Change::Modified { old, new: new.clone() }
            }
            // Deleted and created again while nobody looked.
            Some(old) => {
                self.publish(&Change::Deleted(old));
                Change::Added(new.clone())
            }
            None => Change::Added(new.clone()),
        };
        self.insert(key, new);
        self.publish(&change);
    }

    /// `last` is the state the server reported with the deletion, if it did.
    fn delete(&mut self, key: &Key, last: Option<Arc<K>>) {
        if let Some(old) = self.take(key) {
            self.publish(&Change::Deleted(last.unwrap_or(old)));
        }
    }

    /// Takes in what was seen.
    pub(super) fn reflect(&mut self, change: Reflected) {
        match change {
            Reflected::Listing => self.listed = Some(HashSet::new()),
            Reflected::Applied(object) => {
                let key = self.key_of(&*object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                self.advance(object.meta().resource_version.as_deref());
                match decode(object) {
                    Ok(object) => self.apply(key, object),
                    Err(status) => error!(%status, "informer skips an object"),
                }
            }
            Reflected::Deleted(object) => {
                let key = self.key_of(&*object);
                if let Some(listed) = &mut self.listed {
                    listed.remove(&key);
                }
                self.advance(object.meta().resource_version.as_deref());
                self.delete(&key, decode(object).ok());
            }
            Reflected::Progress(version) => self.advance(Some(&version)),
            Reflected::Synced(version) => {
                let listed = self.listed.take().unwrap_or_default();
                self.advance(Some(&version));
                let all = self.all().map(|held| &held.key);
                let gone: Vec<Key> = all.filter(|key| !listed.contains(*key)).cloned().collect();
                for key in gone {
                    self.delete(&key, None);
                }
            }
        }
    }
}
