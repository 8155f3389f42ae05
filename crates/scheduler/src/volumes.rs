//! Claims, volumes and storage classes as the scheduler knows them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The three kinds, by name.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<(String, String), Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
}

fn name(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn key(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), name(meta))
}

impl Volumes {
    /// A claim.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }
    /// A volume.
    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }
    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }
    /// All volumes, by name.
    pub fn all(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.values().cloned().collect()
    }
    /// Takes a claim in.
    pub fn set_claim(&mut self, claim: Arc<PersistentVolumeClaim>) {
        self.claims.insert(key(&claim.metadata), claim);
    }
    /// Forgets a claim.
    pub fn remove_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.claims.remove(&key(&claim.metadata));
    }
    /// Takes a volume in.
    pub fn set_volume(&mut self, volume: Arc<PersistentVolume>) {
        self.volumes.insert(name(&volume.metadata), volume);
    }
    /// Forgets a volume.
    pub fn remove_volume(&mut self, volume: &PersistentVolume) {
        self.volumes.remove(&name(&volume.metadata));
    }
    /// Takes a class in.
    pub fn set_class(&mut self, class: Arc<StorageClass>) {
        self.classes.insert(name(&class.metadata), class);
    }
    /// Forgets a class.
    pub fn remove_class(&mut self, class: &StorageClass) {
        self.classes.remove(&name(&class.metadata));
    }
}
