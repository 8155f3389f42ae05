//! An [`ObjectReader`] over a plain map, for the tests of this crate.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::{Object, ObjectReader};
use parking_lot::Mutex;

type Key = (String, String, String, String);

#[derive(Default)]
pub(crate) struct Objects(Mutex<BTreeMap<Key, Arc<dyn Object>>>);

impl Objects {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    pub(crate) fn put<K: k8s_openapi::Resource + Object>(&self, object: K) {
        self.put_as(K::URL_PATH_SEGMENT, Arc::new(object));
    }
    pub(crate) fn put_as(&self, resource: &str, object: Arc<dyn Object>) {
        let key = (object.gvk().group, resource.into(), object.namespace().into(), object.name().into());
        self.0.lock().insert(key, object);
    }
    pub(crate) fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        self.0.lock().remove(&(group.into(), resource.into(), namespace.into(), name.into()));
    }
    /// With upstream's bootstrap policy.
    pub(crate) fn bootstrapped() -> Arc<Self> {
        let objects = Self::new();
        for object in crate::bootstrap::objects() {
            let resource = format!("{}s", object.gvk().kind.to_lowercase());
            objects.put_as(&resource, object.into());
        }
        objects
    }
}

impl ObjectReader for Objects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<dyn Object>> {
        self.0.lock().get(&(group.into(), resource.into(), namespace.into(), name.into())).cloned()
    }
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<dyn Object>> {
        let all = self.0.lock();
        let wanted = all.iter().filter(|((g, r, ns, _), _)| {
            g == group && r == resource && (namespace.is_empty() || ns == namespace)
        });
        wanted.map(|(_, object)| object.clone()).collect()
    }
}
