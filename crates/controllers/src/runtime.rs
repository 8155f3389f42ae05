//! The controller runtime: watching, queueing, back-off, panics and restarts exist here once; a controller
//! gives a [`Descriptor`], what wakes it, and one function from a key.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Change, Client, EventRecorder, Informer, Informers, WorkQueue};
use coracle_meta::owner::controller_of;
use coracle_meta::{Kind, Object, Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::ControllersConfig;
use crate::rollouts::Rollouts;
use crate::served::Served;

/// Makes a client that acts as the named service account of `kube-system`.
pub type MakeClient = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// What an object is found by. The namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        Self { namespace: part(&meta.namespace), name: part(&meta.name) }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A controller's name, which is also its service account, and how many keys it works on at once.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Upstream's service account name, e.g. `deployment-controller`.
    pub name: &'static str,
    /// Keys worked on at once.
    pub workers: usize,
}

/// What follows a successful reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    AwaitChange,
    /// Once more after this long, unless a change comes first.
    RequeueAfter(Duration),
}

/// Brings the cluster one step closer to what an object asks for.
///
/// Guarantees to the implementer: never called for one key twice at once; called again, with back-off, after
/// an error or a panic; called only after the informers it watches are synced.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// Looks at the current state of `key` and acts.
    ///
    /// # Errors
    /// What the API refused; the key is tried again after 5 ms, doubling up to 1000 s.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status>;
}

/// What a controller did so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reconciliations begun.
    pub reconciles: AtomicU64,
    /// Reconciliations that ended with an error.
    pub errors: AtomicU64,
    /// Reconciliations that panicked.
    pub panics: AtomicU64,
}

/// What controllers are made from.
#[derive(Clone)]
pub struct Context {
    /// Settings.
    pub config: Arc<ControllersConfig>,
    /// Informers shared by all controllers.
    pub informers: Informers,
    /// The resources served now.
    pub served: Served,
    /// Which rollouts may go on.
    pub(crate) rollouts: Rollouts,
    /// Clients by service account.
    pub make_client: MakeClient,
    /// The time.
    pub clock: Clock,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}

impl Context {
    /// The client of a controller's own service account.
    pub fn client(&self, name: &str) -> Client {
        (self.make_client)(name)
    }

    /// A recorder that writes as `name`.
    pub fn recorder(&self, name: &str) -> EventRecorder {
        self.recorder_as(name, name)
    }

    /// A recorder that writes as the service account `name` for another component.
    pub fn recorder_as(&self, name: &str, component: &str) -> EventRecorder {
        EventRecorder::new(self.client(name), component, self.clock.clone())
    }
}

type Source = Box<dyn FnOnce(Arc<WorkQueue<ObjectKey>>) -> BoxFuture<'static, ()> + Send>;

/// A controller under construction: what wakes it. [`Controller::run`] then works for ever.
pub struct Controller {
    descriptor: Descriptor,
    queue: Arc<WorkQueue<ObjectKey>>,
    sources: Vec<Source>,
    syncs: Vec<BoxFuture<'static, ()>>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({})", self.descriptor.name)
    }
}

/// Where a source puts the keys to work on.
pub type Enqueue<'a> = &'a mut dyn FnMut(ObjectKey);

impl Controller {
    /// A controller that nothing wakes yet.
    pub fn new(descriptor: Descriptor) -> Self {
        Self {
            descriptor,
            queue: Arc::default(),
            sources: Vec::new(),
            syncs: Vec::new(),
            counters: Arc::default(),
        }
    }

    /// The controller's queue, for keys that come from elsewhere.
    pub fn queue(&self) -> Arc<WorkQueue<ObjectKey>> {
        self.queue.clone()
    }

    /// What it did so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Lets every change of a kind wake the keys that `keys` names.
    #[must_use]
    pub fn watch<K: Kind>(
        mut self,
        informer: &Informer<K>,
        mut keys: impl FnMut(&Change<K>, Enqueue<'_>) + Send + 'static,
    ) -> Self {
        let (synced, mut changes) = (informer.clone(), informer.subscribe());
        self.syncs.push(async move { synced.wait_synced().await }.boxed());
        self.sources.push(Box::new(move |queue| {
            async move {
                while let Some(change) = changes.next().await {
                    keys(&change, &mut |key| queue.add(key));
                }
            }
            .boxed()
        }));
        self
    }

    /// Lets every change of a kind wake the object's own key.
    #[must_use]
    pub fn watch_primary<K: Kind>(self, informer: &Informer<K>) -> Self {
        self.watch(informer, |change, enqueue| enqueue(ObjectKey::of(change.object().metadata())))
    }

    /// Lets every change of `K` wake its controller, where that is of the kind `owner_kind`; the controller
    /// before too, when it changed.
    #[must_use]
    pub fn watch_owned<K: Kind>(self, informer: &Informer<K>, owner_kind: &'static str) -> Self {
        self.watch(informer, move |change, enqueue| {
            let mut owner = |meta: &ObjectMeta| {
                if let Some(owner) = controller_of(meta).filter(|owner| owner.kind == owner_kind) {
                    enqueue(ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), &owner.name));
                }
            };
            if let Change::Modified { old, new } = change
                && controller_of(old.metadata()) != controller_of(new.metadata())
            {
                owner(old.metadata());
            }
            owner(change.object().metadata());
        })
    }

    /// Works for as long as it is polled.
    pub async fn run(self, reconciler: Arc<dyn Reconciler>) {
        let mut tasks = JoinSet::new();
        for source in self.sources {
            tasks.spawn(source(self.queue.clone()));
        }
        for synced in self.syncs {
            synced.await;
        }
        debug!(controller = self.descriptor.name, "started");
        for _ in 0..self.descriptor.workers {
            let (name, queue) = (self.descriptor.name, self.queue.clone());
            tasks.spawn(work(name, queue, reconciler.clone(), self.counters.clone()));
        }
        // Sources and workers never end by themselves; if one does, the supervisor starts all anew.
        tasks.join_next().await;
    }
}

/// Whether one more failure after so many in a row is worth a warning: the first, then the 2nd, 4th, 8th and so on.
fn is_told(failures: u32) -> bool {
    failures.saturating_add(1).is_power_of_two()
}

async fn work(
    name: &'static str,
    queue: Arc<WorkQueue<ObjectKey>>,
    reconciler: Arc<dyn Reconciler>,
    counters: Arc<Counters>,
) {
    loop {
        let key = queue.get().await;
        counters.reconciles.fetch_add(1, Ordering::Relaxed);
        match AssertUnwindSafe(reconciler.reconcile(&key)).catch_unwind().await {
            Ok(Ok(action)) => {
                queue.forget(&key);
                if let Action::RequeueAfter(wait) = action {
                    queue.add_after(key.clone(), wait);
                }
            }
            Ok(Err(status)) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
                // A conflict is the informer lagging behind: quite normal. What fails on and on is told less and less.
                if status.reason() == Reason::Conflict || !is_told(queue.failures(&key)) {
                    debug!(controller = name, %key, %status, "retrying");
                } else {
                    warn!(controller = name, %key, %status, "reconciliation failed; retrying");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(panic) => {
                counters.panics.fetch_add(1, Ordering::Relaxed);
                let panic = panic_text(&*panic);
                error!(controller = name, %key, panic, "reconciliation panicked; retrying");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

/// Whether the server refused because the namespace is being deleted.
pub fn is_namespace_terminating(status: &Status) -> bool {
    let causes = status.details().and_then(|d| d.get("causes")).and_then(|c| c.as_array());
    causes.into_iter().flatten().any(|cause| cause.get("reason").is_some_and(|r| r == "NamespaceTerminating"))
}

/// Takes `404` for success: what should be gone is gone.
///
/// # Errors
/// All other failures.
pub fn ignore_not_found<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.reason() != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// An object's name, or the empty string.
pub(crate) fn name_of(object: &dyn Object) -> &str {
    object.meta().name.as_deref().unwrap_or("")
}

/// An object's uid, or the empty string.
pub(crate) fn uid_of(object: &dyn Object) -> &str {
    object.meta().uid.as_deref().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::testing::eventually;

    struct Fragile(AtomicU64);

    #[async_trait]
    impl Reconciler for Fragile {
        async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("looked at {key}"),
                1 => Err(Status::unavailable("not now")),
                2 => Ok(Action::RequeueAfter(Duration::from_secs(5))),
                _ => Ok(Action::AwaitChange),
            }
        }
    }

    #[test]
    fn a_failure_that_stays_is_told_less_and_less() {
        let told: Vec<u32> =
            (0..40).filter(|failures| is_told(*failures)).map(|failures| failures + 1).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_panics_or_fails_is_tried_again_and_counted() {
        let fake = FakeTransport::new(Clock::system());
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        };
        fake.client().api::<ConfigMap>().create("ns", map).await.expect("created");
        let informer = Informers::new(fake.client()).get::<ConfigMap>();
        let controller = Controller::new(Descriptor { name: "fragile", workers: 2 }).watch_primary(&informer);
        let (counters, reconciler) = (controller.counters(), Arc::new(Fragile(AtomicU64::new(0))));
        let task = tokio::spawn(controller.run(reconciler.clone()));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        eventually(|| async { count(&counters.reconciles) == 4 }).await;
        assert_eq!((count(&counters.panics), count(&counters.errors)), (1, 1));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(count(&reconciler.0), 4, "nothing runs while nothing changes");
        task.abort();
    }
}
