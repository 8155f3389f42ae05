//! Follows the ConfigMaps and Secrets that pods refer to, each by its own watch, and tells the pods of
//! changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use coracle_client::{Informers, ListOptions};
use coracle_meta::Kind;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// A ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    secret: bool,
    namespace: String,
    name: String,
}

impl Reference {
    /// A ConfigMap.
    pub fn config_map(namespace: &str, name: &str) -> Self {
        Self { secret: false, namespace: namespace.to_owned(), name: name.to_owned() }
    }
    /// A Secret.
    pub fn secret(namespace: &str, name: &str) -> Self {
        Self { secret: true, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// Called when an object that a pod refers to has changed.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Entry {
    pods: HashMap<String, Notify>,
    task: Option<AbortHandle>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Who refers to what. With the node authorizer a kubelet may watch such an object only by its name, and only
/// while a pod of its node refers to it: so there is one watch for each.
pub struct Objects {
    informers: Informers,
    entries: Arc<Mutex<HashMap<Reference, Entry>>>,
}

impl Objects {
    /// Nothing followed yet.
    pub fn new(informers: Informers) -> Self {
        Self { informers, entries: Arc::default() }
    }

    /// From now on `notify` is called when one of `references` changes; replaces what `uid` followed before.
    pub fn follow(&self, uid: &str, references: &BTreeSet<Reference>, notify: &Notify) {
        let mut entries = self.entries.lock();
        entries.retain(|reference, entry| {
            if !references.contains(reference) {
                entry.pods.remove(uid);
            }
            !entry.pods.is_empty()
        });
        for reference in references {
            let entry = entries.entry(reference.clone()).or_default();
            entry.pods.insert(uid.to_owned(), notify.clone());
            if entry.task.is_none() {
                entry.task = Some(if reference.secret {
                    self.watch::<Secret>(reference)
                } else {
                    self.watch::<ConfigMap>(reference)
                });
            }
        }
    }

    /// `uid` is gone.
    pub fn forget(&self, uid: &str) {
        self.follow(uid, &BTreeSet::new(), &(Arc::new(|| {}) as Notify));
    }

    fn watch<K: Kind>(&self, reference: &Reference) -> AbortHandle {
        let options = ListOptions {
            field_selector: format!("metadata.name={}", reference.name),
            ..ListOptions::default()
        };
        let informer = self.informers.filtered::<K>(&reference.namespace, options);
        let entries = Arc::downgrade(&self.entries);
        let reference = reference.clone();
        let task = tokio::spawn(async move {
            let mut changes = informer.subscribe();
            while changes.next().await.is_some() {
                let Some(entries) = entries.upgrade() else { return };
                let pods: Vec<Notify> = {
                    let entries = entries.lock();
                    entries.get(&reference).map(|e| e.pods.values().cloned().collect()).unwrap_or_default()
                };
                for notify in pods {
                    notify();
                }
            }
        });
        task.abort_handle()
    }
}
