//! The served resources: each definition with its keys and its part of the watch cache.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use coracle_resources::def::{ResourceDef, Scope, Storage};
use coracle_resources::version::View;

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
    /// The current objects, as stored; shared by all versions of a resource.
    pub(crate) cache: Arc<ResourceCache>,
    selectable: OnceLock<Vec<&'static str>>,
}

impl Resource {
    /// `siblings`: resources made before, among them that of the stored version if this is another one.
    fn new(def: &'static ResourceDef, siblings: &[Arc<Self>]) -> Self {
        let stored = def.stored();
        let group = if stored.group.is_empty() { "core" } else { stored.group };
        let prefix = format!("/registry/{group}/{}/", stored.plural);
        let sibling = siblings.iter().find(|r| r.prefix == prefix);
        let cache = sibling.map_or_else(|| Arc::new(ResourceCache::new(prefix.len())), |r| r.cache.clone());
        Self { def, cache, prefix, head: codec::type_head(def), selectable: OnceLock::new() }
    }

    /// How to show stored objects, if this is not the version that is stored.
    pub(crate) fn view(&self) -> Option<&'static dyn View> {
        self.def.strategy.view()
    }

    /// Whether objects live in namespaces.
    pub(crate) fn namespaced(&self) -> bool {
        self.def.scope == Scope::Namespaced
    }

    /// Whether objects are stored (else the kind is virtual or computed).
    pub(crate) fn stored(&self) -> bool {
        self.def.storage == Storage::Stored
    }

    /// Whether objects are made up at each request.
    pub(crate) fn computed(&self) -> bool {
        self.def.storage == Storage::Computed
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
    /// Versions that are views of another: beside `all`.
    views: Vec<Arc<Resource>>,
    by_group: HashMap<&'static str, HashMap<&'static str, Arc<Resource>>>,
    by_prefix: HashMap<String, Arc<Resource>>,
}

impl Registry {
    /// From the table of definitions.
    pub(crate) fn new(defs: &'static [&'static ResourceDef]) -> Self {
        let (views, own): (Vec<_>, Vec<_>) = defs.iter().partition(|def| def.strategy.view().is_some());
        let all: Vec<Arc<Resource>> = own.into_iter().map(|def| Arc::new(Resource::new(def, &[]))).collect();
        let views: Vec<_> = views.into_iter().map(|def| Arc::new(Resource::new(def, &all))).collect();
        let mut by_group: HashMap<_, HashMap<_, _>> = HashMap::new();
        let mut by_prefix = HashMap::new();
        for resource in &all {
            by_prefix.insert(resource.prefix.clone(), resource.clone());
        }
        for resource in all.iter().chain(&views) {
            let group: &mut HashMap<_, _> = by_group.entry(resource.def.group).or_default();
            group.entry(resource.def.plural).or_insert_with(|| resource.clone());
        }
        Self { all, views, by_group, by_prefix }
    }

    /// All that have objects or answers of their own, in the order of the table.
    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.all
    }

    /// The resource of that group and plural, in the version that is stored if the group has it.
    pub(crate) fn find(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.by_group.get(group)?.get(resource)
    }

    /// The resource of that group and plural as served in a version.
    pub(crate) fn served(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        let found = self.find(group, resource)?;
        if found.def.version == version {
            return Some(found);
        }
        let is = |def: &ResourceDef| (def.group, def.version, def.plural) == (group, version, resource);
        self.views.iter().find(|r| is(r.def))
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
