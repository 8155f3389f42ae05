//! The cache as [`ObjectReader`]: for authorizers and admission.

use std::sync::Arc;

use coracle_meta::{Object, ObjectReader};
use coracle_resources::def::Scope;

use super::feed::Cache;
use super::watcher::Filter;

impl ObjectReader for Cache {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<dyn Object>> {
        let resource = self.registry.find(group, resource)?;
        resource.cache.keep_decoded();
        resource.cache.get(&resource.key(namespace, name))?.decoded().ok()
    }

    fn generation(&self, group: &str, resource: &str) -> Option<u64> {
        Some(self.registry.find(group, resource)?.cache.last())
    }

    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<dyn Object>> {
        let Some(resource) = self.registry.find(group, resource) else { return Vec::new() };
        resource.cache.keep_decoded();
        let filter = Filter { key: resource.key_prefix(namespace), ..Filter::default() };
        let snapshot = resource.cache.range(&filter, 0);
        snapshot.entries.iter().filter_map(|e| e.decoded().ok()).collect()
    }

    fn custom_kind(&self, group: &str, version: &str, kind: &str) -> Option<(String, bool)> {
        let served = self.registry.defs();
        let custom = served.iter().filter(|def| def.strategy.custom().is_some());
        let found = custom.into_iter().find(|d| (d.group, d.version, d.kind) == (group, version, kind))?;
        Some((found.plural.to_owned(), found.scope == Scope::Namespaced))
    }
}
