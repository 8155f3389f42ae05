//! Shared informers: an indexed, read-only copy of a resource and a stream of its changes.

mod held;
mod state;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use coracle_meta::Kind;
use coracle_stdx::pack::{Lexicon, Rounds, gently};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use self::held::Held;
use self::state::{IndexData, State};
use crate::api::Client;
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

struct Shared<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
    /// Something was read or has changed since objects were packed, or was in use then.
    awake: AtomicBool,
    woken: Notify,
}

impl<K: Kind> Shared<K> {
    fn wake(&self) {
        if !self.awake.load(Ordering::Relaxed) && !self.awake.swap(true, Ordering::Relaxed) {
            self.woken.notify_one();
        }
    }

    /// The objects that nobody has asked for since the last call, of those that are not packed, or were never.
    fn resting(&self, only_new: bool) -> Vec<Arc<Held<K>>> {
        self.awake.store(false, Ordering::Relaxed);
        let state = self.state.read();
        let decoded = state.all().filter(|held| !held.is_packed());
        let rests = |held: &&Arc<Held<K>>| (!only_new || held.is_new()) && held.is_unread();
        let (resting, awake): (Vec<_>, Vec<_>) = decoded.partition(rests);
        if !awake.is_empty() {
            self.wake();
        }
        resting.into_iter().cloned().collect()
    }

    /// Packs objects when nobody asks for them for a while, a few at a time. Secrets are left alone: a dictionary
    /// keeps some objects' texts after their end.
    async fn keep_packed(&self) {
        if K::KIND == "Secret" {
            return std::future::pending().await;
        }
        let (mut lexicon, mut rounds) = (Lexicon::default(), Rounds::default());
        loop {
            self.woken.notified().await;
            let only_new = rounds.next().await;
            let resting = self.resting(only_new);
            let count = self.state.read().all().count();
            let Some(dictionary) = lexicon.dictionary(count, &resting, |held| held.sample()) else {
                continue;
            };
            gently(&resting, |held| held.pack(&dictionary)).await;
        }
    }
}

fn objects<'a, K: Kind>(held: impl Iterator<Item = &'a Arc<Held<K>>>) -> Vec<Arc<K>> {
    held.filter_map(|held| held.get()).collect()
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
/// Guarantees: objects are shared (in-process they are the server's own decoded objects: no copy); those that nobody
/// asks for or keeps for a while are packed, and decoded for the next who asks (ADR 20). Changes
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
        let shared = Arc::new(Shared {
            state: RwLock::default(),
            synced: watch::Sender::new(false),
            awake: AtomicBool::new(false),
            woken: Notify::new(),
        });
        let fed = shared.clone();
        let task = tokio::spawn(async move {
            let mut sink = |change: Reflected| {
                let synced = matches!(change, Reflected::Synced(_));
                fed.state.write().reflect(change);
                fed.wake();
                if synced {
                    fed.synced.send_replace(true);
                }
            };
            tokio::select! {
                () = reflect(&client, ResourceId::of::<K>(), &namespace, &options, &mut sink) => (),
                () = fed.keep_packed() => (),
            }
        });
        Self { feed: Arc::new(Feed { shared, task: task.abort_handle() }) }
    }

    fn shared(&self) -> &Shared<K> {
        self.feed.shared.wake();
        &self.feed.shared
    }

    /// One object; `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared().state.read().get(namespace, name)?.get()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        objects(self.shared().state.read().all())
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        objects(self.shared().state.read().of_namespace(namespace))
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
        let mut state = self.shared().state.write();
        for object in objects(state.all()) {
            let _ = sender.send(Change::Added(object));
        }
        state.subscribers.push(sender);
        drop(state);
        Subscription { receiver, _informer: self.clone() }
    }

    /// The index called `name`, made on first use: `keys_of` tells under which keys an object is found.
    /// Every caller must pass the same function for a name.
    pub fn index(&self, name: &'static str, keys_of: fn(&K) -> Vec<String>) -> Index<K> {
        let mut state = self.shared().state.write();
        let position = state.indices.iter().position(|index| index.name == name).unwrap_or_else(|| {
            let mut index = IndexData::new(name, keys_of);
            for held in state.all() {
                if let Some(object) = held.get() {
                    index.insert(held, &object);
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
        state.indices.get(self.position).map_or(0, |index| index.bucket(key).len())
    }

    /// The objects found under `key`, ordered by namespace and name.
    pub fn get(&self, key: &str) -> Vec<Arc<K>> {
        let state = self.informer.shared().state.read();
        state.indices.get(self.position).map_or_else(Vec::new, |index| objects(index.bucket(key).iter()))
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::FakeTransport;
    use crate::transport::{DeleteOptions, PatchKind};

    fn object<K: Kind>(n: usize) -> K {
        let data: Value = (0..20).map(|field| (format!("field-{field}"), json!("dmFsdWU="))).collect();
        let labels = json!({ "half": (n % 2).to_string() });
        let value = json!({ "metadata": { "name": format!("n-{n:02}"), "labels": labels }, "data": data });
        serde_json::from_value(value).expect("an object")
    }

    async fn filled<K: Kind>(fake: &Arc<FakeTransport>) -> Informer<K> {
        for n in 0..40 {
            fake.client().api::<K>().create("ns", object(n)).await.expect("created");
        }
        let informer = Informers::new(fake.client()).get::<K>();
        informer.wait_synced().await;
        informer
    }

    fn packed<K: Kind>(informer: &Informer<K>) -> usize {
        informer.feed.shared.state.read().all().filter(|held| held.is_packed()).count()
    }

    /// Long enough for all that is unused to be packed.
    async fn rest() {
        tokio::time::sleep(std::time::Duration::from_secs(90)).await;
    }

    fn half(map: &ConfigMap) -> Vec<String> {
        map.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_packed_and_is_the_same_for_who_asks_again() {
        let informer = filled::<ConfigMap>(&FakeTransport::new(coracle_stdx::Clock::system())).await;
        let before: Vec<ConfigMap> = informer.list().iter().map(|map| (**map).clone()).collect();
        let index = informer.index("half", half);
        let kept = informer.get("ns", "n-07").expect("there");
        rest().await;
        assert_eq!(packed(&informer), 39, "all but the one that is in use");
        assert!(Arc::ptr_eq(&kept, &informer.get("ns", "n-07").expect("there")));
        let odd: Vec<_> = index.get("1").iter().filter_map(|map| map.metadata.name.clone()).collect();
        assert_eq!((odd.len(), odd[0].as_str(), odd[19].as_str()), (20, "n-01", "n-39"));
        assert_eq!(informer.list().iter().map(|map| (**map).clone()).collect::<Vec<_>>(), before);
        let (one, same) = (informer.get("ns", "n-08"), informer.get("ns", "n-08"));
        assert!(one.zip(same).is_some_and(|(one, same)| Arc::ptr_eq(&one, &same)), "decoded once");
        drop(kept);
        rest().await;
        assert_eq!(packed(&informer), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_a_packed_object_tells_what_it_was_and_moves_it_in_the_indices() {
        let fake = FakeTransport::new(coracle_stdx::Clock::system());
        let informer = filled::<ConfigMap>(&fake).await;
        let (index, api) = (informer.index("half", half), fake.client().api::<ConfigMap>());
        rest().await;
        let mut changes = informer.subscribe();
        for _ in 0..40 {
            assert!(matches!(changes.next().await, Some(Change::Added(_))));
        }
        rest().await;
        assert_eq!(packed(&informer), 40);
        let patch = json!({ "metadata": { "labels": { "half": "2" } } });
        api.patch("ns", "n-03", PatchKind::Merge, patch).await.expect("patched");
        let Some(Change::Modified { old, new }) = changes.next().await else { panic!("no change") };
        assert_eq!((half(&old), half(&new)), (vec!["1".to_owned()], vec!["2".to_owned()]));
        api.delete("ns", "n-05", DeleteOptions::default()).await.expect("deleted");
        let Some(Change::Deleted(last)) = changes.next().await else { panic!("no deletion") };
        assert_eq!(last.data.as_ref().map(std::collections::BTreeMap::len), Some(20));
        assert_eq!((index.count("0"), index.count("1"), index.count("2")), (20, 18, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn secrets_are_never_packed() {
        let informer = filled::<Secret>(&FakeTransport::new(coracle_stdx::Clock::system())).await;
        rest().await;
        assert_eq!(packed(&informer), 0);
    }
}
