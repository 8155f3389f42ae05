//! The served resources: each definition with its keys and its part of the watch cache.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use coracle_resources::def::{ResourceDef, Scope, Storage};

use crate::cache::ResourceCache;
use crate::codec;

/// A served resource.
pub(crate) struct Resource {
    /// Its definition.
    pub(crate) def: &'static ResourceDef,
    /// `/registry/<group or core>/<resource>/`.
    pub(crate) prefix: String,
    /// What every encoding begins with; left out of list items.
    pub(crate) head: String,
    /// The current objects.
    pub(crate) cache: ResourceCache,
    selectable: OnceLock<Vec<&'static str>>,
}

impl Resource {
    fn new(def: &'static ResourceDef) -> Self {
        let group = if def.group.is_empty() { "core" } else { def.group };
        let prefix = format!("/registry/{group}/{}/", def.plural);
        let cache = ResourceCache::new(prefix.len());
        Self { def, cache, prefix, head: codec::type_head(def), selectable: OnceLock::new() }
    }

    /// Whether objects live in namespaces.
    pub(crate) fn namespaced(&self) -> bool {
        self.def.scope == Scope::Namespaced
    }

    /// Whether objects are stored (else the kind is virtual).
    pub(crate) fn stored(&self) -> bool {
        self.def.storage == Storage::Stored
    }

    /// The key of an object.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    /// The key prefix of a namespace's objects, or of all (empty namespace).
    pub(crate) fn key_prefix(&self, namespace: &str) -> String {
        if namespace.is_empty() || !self.namespaced() {
            self.prefix.clone()
        } else {
            format!("{}{namespace}/", self.prefix)
        }
    }

    /// Paths of the selectable fields beside name and namespace.
    pub(crate) fn selectable(&self) -> &[&'static str] {
        self.selectable.get_or_init(|| {
            let text = format!("{}\"metadata\":{{}}}}", self.head);
            let Ok(obj) = self.def.strategy.decode_slice(text.as_bytes()) else { return Vec::new() };
            self.def.strategy.selectable(&*obj).into_iter().map(|(path, _)| path).collect()
        })
    }

    /// `deployments.apps`, or `pods`.
    pub(crate) fn qualified(&self) -> String {
        coracle_meta::status::qualified(self.def.group, self.def.plural)
    }
}

/// All served resources.
pub(crate) struct Registry {
    all: Vec<Arc<Resource>>,
    by_group: HashMap<&'static str, HashMap<&'static str, Arc<Resource>>>,
    by_prefix: HashMap<String, Arc<Resource>>,
}

impl Registry {
    /// From the table of definitions.
    pub(crate) fn new(defs: &'static [&'static ResourceDef]) -> Self {
        let all: Vec<Arc<Resource>> = defs.iter().map(|def| Arc::new(Resource::new(def))).collect();
        let mut by_group: HashMap<_, HashMap<_, _>> = HashMap::new();
        let mut by_prefix = HashMap::new();
        for resource in &all {
            by_group.entry(resource.def.group).or_default().insert(resource.def.plural, resource.clone());
            by_prefix.insert(resource.prefix.clone(), resource.clone());
        }
        Self { all, by_group, by_prefix }
    }

    /// All, in the order of the table.
    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.all
    }

    /// The resource of that group and plural.
    pub(crate) fn find(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.by_group.get(group)?.get(resource)
    }

    /// Whether the group is served at all.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        self.by_group.contains_key(group)
    }

    /// The resource that a stored key belongs to.
    pub(crate) fn of_key(&self, key: &str) -> Option<&Arc<Resource>> {
        let mut slashes = key.bytes().enumerate().filter(|(_, b)| *b == b'/').map(|(i, _)| i);
        let end = slashes.nth(3)?;
        self.by_prefix.get(&key[..=end])
    }
}
