//! Shared informers: an indexed, read-only copy of a resource and a stream of its changes.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Weak};

use coracle_meta::{Kind, Object};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::error;

use crate::api::{Client, decode};
use crate::reflector::{Reflected, reflect};
use crate::transport::{ListOptions, ResourceId};

/// What happened to an object.
#[derive(Debug)]
pub enum Change<K> {
    /// It came into being, or was there when the subscription began.
    Added(Arc<K>),
    /// It changed.
    Modified {
        /// Its state before.
        old: Arc<K>,
        /// Its state now.
        new: Arc<K>,
    },
    /// It is gone; this is the last state known.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest state in the change.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Modified { new: object, .. } => object,
        }
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(object) => Self::Added(object.clone()),
            Self::Modified { old, new } => Self::Modified { old: old.clone(), new: new.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

type Key = (String, String);

/// Objects of one index key, by namespace and name.
type Bucket<K> = BTreeMap<Key, Arc<K>>;

struct IndexData<K> {
    name: &'static str,
    keys_of: fn(&K) -> Vec<String>,
    buckets: HashMap<String, Bucket<K>>,
}

impl<K: Kind> IndexData<K> {
    fn insert(&mut self, key: &Key, object: &Arc<K>) {
        for bucket in (self.keys_of)(object) {
            self.buckets.entry(bucket).or_default().insert(key.clone(), object.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for bucket in (self.keys_of)(object) {
            if let Some(objects) = self.buckets.get_mut(&bucket) {
                objects.remove(key);
                if objects.is_empty() {
                    self.buckets.remove(&bucket);
                }
            }
        }
    }
}

struct State<K> {
    objects: BTreeMap<String, BTreeMap<String, Arc<K>>>,
    indices: Vec<IndexData<K>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
    /// Keys applied since the list began, while one runs.
    listed: Option<HashSet<Key>>,
    /// All changes up to this revision are in `objects`.
    revision: u64,
}

fn key_of(object: &dyn Object) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

impl<K: Kind> State<K> {
    fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(&key.0)?.get(&key.1)
    }

    fn publish(&mut self, change: &Change<K>) {
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }

    fn insert(&mut self, key: Key, object: Arc<K>) {
        for index in &mut self.indices {
            index.insert(&key, &object);
        }
        self.objects.entry(key.0).or_default().insert(key.1, object);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<K>> {
        let objects = self.objects.get_mut(&key.0)?;
        let old = objects.remove(&key.1)?;
        if objects.is_empty() {
            self.objects.remove(&key.0);
        }
        for index in &mut self.indices {
            index.remove(key, &old);
        }
        Some(old)
    }

    /// A list is not in revision order: only what comes after it tells how far the store is.
    fn advance(&mut self, version: Option<&str>) {
        if let (false, Some(revision)) = (self.listed.is_some(), version.and_then(|v| v.parse().ok())) {
            self.revision = self.revision.max(revision);
        }
    }

    fn apply(&mut self, key: Key, new: Arc<K>) {
        let change = match self.get(&key) {
            Some(old) if old.metadata().resource_version == new.metadata().resource_version => return,
            Some(old) if old.metadata().uid == new.metadata().uid => {
                Change::Modified { old: old.clone(), new: new.clone() }
            }
            // Deleted and created again while nobody looked.
            Some(_) => {
                self.delete(&key, None);
                Change::Added(new.clone())
            }
            None => Change::Added(new.clone()),
        };
        self.take(&key);
        self.insert(key, new);
        self.publish(&change);
    }

    /// `last` is the state the server reported with the deletion, if it did.
    fn delete(&mut self, key: &Key, last: Option<Arc<K>>) {
        if let Some(old) = self.take(key) {
            self.publish(&Change::Deleted(last.unwrap_or(old)));
        }
    }

    fn reflect(&mut self, change: Reflected) {
        match change {
            Reflected::Listing => self.listed = Some(HashSet::new()),
            Reflected::Applied(object) => {
                let key = key_of(&*object);
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
                let key = key_of(&*object);
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
                let all = self.objects.iter();
                let keys =
                    all.flat_map(|(ns, named)| named.keys().map(move |name| (ns.clone(), name.clone())));
                let gone: Vec<Key> = keys.filter(|key| !listed.contains(key)).collect();
                for key in gone {
                    self.delete(&key, None);
                }
            }
        }
    }
}

struct Shared<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
}

/// The task that feeds a [`Shared`]; ends with the last [`Informer`].
struct Feed<K> {
    shared: Arc<Shared<K>>,
    task: AbortHandle,
}

impl<K> Drop for Feed<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A read-only copy of a resource, kept current by a watch, and the stream of its changes.
///
/// Guarantees: objects are shared (in-process they are the server's own decoded objects: no copy). Changes
/// reach the store and all subscribers in revision order and without gaps; when the watch had to start
/// anew, what vanished meanwhile is reported as [`Change::Deleted`] with its last known state, and an
/// object that was replaced by one of another uid as deleted and added. The store lags behind the API:
/// a write of one's own may not be visible yet.
///
/// Caller must not change what it reads (clone first) and must keep reading its subscriptions.
pub struct Informer<K> {
    feed: Arc<Feed<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { feed: self.feed.clone() }
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Informer")
    }
}

impl<K: Kind> Informer<K> {
    fn start(client: Client, namespace: String, options: ListOptions) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            indices: Vec::new(),
            subscribers: Vec::new(),
            listed: None,
            revision: 0,
        };
        let shared = Arc::new(Shared { state: RwLock::new(state), synced: watch::Sender::new(false) });
        let fed = shared.clone();
        let task = tokio::spawn(async move {
            let mut sink = |change: Reflected| {
                let synced = matches!(change, Reflected::Synced(_));
                fed.state.write().reflect(change);
                if synced {
                    fed.synced.send_replace(true);
                }
            };
            reflect(&client, ResourceId::of::<K>(), &namespace, &options, &mut sink).await;
        });
        Self { feed: Arc::new(Feed { shared, task: task.abort_handle() }) }
    }

    /// One object; `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.feed.shared.state.read().objects.get(namespace)?.get(name).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        let state = self.feed.shared.state.read();
        state.objects.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.feed.shared.state.read();
        state.objects.get(namespace).map(|named| named.values().cloned().collect()).unwrap_or_default()
    }

    /// All changes up to this resourceVersion are in the store. A write of one's own is visible once this
    /// is at least the resourceVersion that the write returned.
    pub fn revision(&self) -> u64 {
        self.feed.shared.state.read().revision
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.feed.shared.synced.borrow()
    }

    /// Waits until the first list is complete: until then the store is missing objects.
    pub async fn wait_synced(&self) {
        // The sender lives in `self`: this cannot fail.
        let _ = self.feed.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// A stream of changes that begins with all present objects as [`Change::Added`].
    pub fn subscribe(&self) -> Subscription<K> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.feed.shared.state.write();
        for object in state.objects.values().flat_map(BTreeMap::values) {
            let _ = sender.send(Change::Added(object.clone()));
        }
        state.subscribers.push(sender);
        drop(state);
        Subscription { receiver, _informer: self.clone() }
    }

    /// The index called `name`, made on first use: `keys_of` tells under which keys an object is found.
    /// Every caller must pass the same function for a name.
    pub fn index(&self, name: &'static str, keys_of: fn(&K) -> Vec<String>) -> Index<K> {
        let mut state = self.feed.shared.state.write();
        let position = state.indices.iter().position(|index| index.name == name).unwrap_or_else(|| {
            let mut index = IndexData { name, keys_of, buckets: HashMap::new() };
            for (namespace, named) in &state.objects {
                for (name, object) in named {
                    index.insert(&(namespace.clone(), name.clone()), object);
                }
            }
            state.indices.push(index);
            state.indices.len() - 1
        });
        drop(state);
        Index { informer: self.clone(), position }
    }
}

/// A view of an informer's objects by a key derived from them, such as a pod's node.
pub struct Index<K> {
    informer: Informer<K>,
    position: usize,
}

impl<K> fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Index")
    }
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { informer: self.informer.clone(), position: self.position }
    }
}

impl<K: Kind> Index<K> {
    /// How many objects are found under `key`.
    pub fn count(&self, key: &str) -> usize {
        let state = self.informer.feed.shared.state.read();
        let index = state.indices.get(self.position);
        index.and_then(|index| index.buckets.get(key)).map_or(0, BTreeMap::len)
    }

    /// The objects found under `key`, ordered by namespace and name.
    pub fn get(&self, key: &str) -> Vec<Arc<K>> {
        let state = self.informer.feed.shared.state.read();
        let index = state.indices.get(self.position);
        index
            .and_then(|index| index.buckets.get(key))
            .map(|bucket| bucket.values().cloned().collect())
            .unwrap_or_default()
    }
}

/// A stream of an informer's changes; it keeps the informer going. Unread changes wait in memory.
#[derive(Debug)]
pub struct Subscription<K> {
    receiver: mpsc::UnboundedReceiver<Change<K>>,
    _informer: Informer<K>,
}

impl<K> Subscription<K> {
    /// The next change. `None` once the informer was stopped with its runtime. Cancel safe.
    pub async fn next(&mut self) -> Option<Change<K>> {
        self.receiver.recv().await
    }

    /// The next change, if one waits already.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        self.receiver.try_recv().ok()
    }
}

/// An informer in the registry.
struct Kept {
    /// An `Informer<K>`, or for a filtered one a `Weak<Feed<K>>`.
    informer: Box<dyn Any + Send + Sync>,
    is_alive: Box<dyn Fn() -> bool + Send + Sync>,
}

/// By kind, namespace, label selector and field selector.
type Registry = HashMap<(TypeId, String, String, String), Kept>;

/// The informers of one identity: one per kind and selection, shared by all who ask, started on first use.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    /// Informers of whole kinds are kept; filtered ones live as long as somebody holds them.
    kept: Arc<Mutex<Registry>>,
}

impl fmt::Debug for Informers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Informers")
    }
}

impl Informers {
    /// Informers that read through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Arc::default() }
    }

    /// The informer of all objects of a kind. Call within a tokio runtime: the first call starts the watch.
    pub fn get<K: Kind>(&self) -> Informer<K> {
        let key = (TypeId::of::<K>(), String::new(), String::new(), String::new());
        let mut kept = self.kept.lock();
        if let Some(informer) = kept.get(&key).and_then(|k| k.informer.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::start(self.client.clone(), String::new(), ListOptions::default());
        kept.insert(key, Kept { informer: Box::new(informer.clone()), is_alive: Box::new(|| true) });
        informer
    }

    /// The informer of the objects in `namespace` (empty: all) that the selectors of `options` pick.
    /// It ends with its last holder. Call within a tokio runtime.
    pub fn filtered<K: Kind>(&self, namespace: &str, options: ListOptions) -> Informer<K> {
        let (labels, fields) = (options.label_selector.clone(), options.field_selector.clone());
        if namespace.is_empty() && labels.is_empty() && fields.is_empty() {
            return self.get();
        }
        let key = (TypeId::of::<K>(), namespace.to_owned(), labels, fields);
        let mut kept = self.kept.lock();
        let known = kept.get(&key).and_then(|k| k.informer.downcast_ref::<Weak<Feed<K>>>());
        if let Some(feed) = known.and_then(Weak::upgrade) {
            return Informer { feed };
        }
        let informer = Informer::start(self.client.clone(), namespace.to_owned(), options);
        kept.retain(|_, kept| (kept.is_alive)());
        let weak = Arc::downgrade(&informer.feed);
        let watched = weak.clone();
        let is_alive = Box::new(move || watched.strong_count() > 0);
        kept.insert(key, Kept { informer: Box::new(weak), is_alive });
        informer
    }
}
