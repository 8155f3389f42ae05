//! The served resources: each definition with its keys and its part of the watch cache. Those of built-in kinds
//! are there from the start, those of custom resources come and go with their definitions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use coracle_resources::custom::{CustomStrategy, CustomVersion, Rows};
use coracle_resources::def::{ResourceDef, Scope, Storage};
use coracle_resources::version::View;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::cache::ResourceCache;
use crate::codec;
use crate::protobuf;

/// A served resource.
pub(crate) struct Resource {
    /// Its definition.
    pub(crate) def: &'static ResourceDef,
    /// The definition of the version that objects are stored in.
    pub(crate) storage: &'static ResourceDef,
    /// All versions that objects may be stored in.
    versions: Vec<&'static ResourceDef>,
    /// `/registry/<group or core>/<resource>/`.
    pub(crate) prefix: String,
    /// What every encoding begins with; left out of list items.
    pub(crate) head: String,
    /// Whether its objects have a protobuf form.
    pub(crate) protobuf: bool,
    /// The current objects, as stored; shared by all versions of a resource.
    pub(crate) cache: Arc<ResourceCache>,
    selectable: OnceLock<Vec<&'static str>>,
}

fn prefix_of(def: &ResourceDef) -> String {
    let group = if def.group.is_empty() { "core" } else { def.group };
    format!("/registry/{group}/{}/", def.plural)
}

impl Resource {
    /// `siblings`: resources made before, among them that of the stored version if this is another one.
    fn new(def: &'static ResourceDef, siblings: &[Arc<Self>]) -> Self {
        let stored = def.stored();
        let prefix = prefix_of(stored);
        let sibling = siblings.iter().find(|r| r.prefix == prefix);
        let cache = sibling.map_or_else(|| Arc::new(ResourceCache::new(prefix.len())), |r| r.cache.clone());
        let (head, selectable) = (codec::type_head(def), OnceLock::new());
        let protobuf = protobuf::knows(def);
        Self { def, storage: stored, versions: vec![stored], cache, prefix, head, protobuf, selectable }
    }

    /// A version of a custom resource; `versions` are all of them.
    fn custom_version(
        def: &'static ResourceDef,
        versions: &[&'static ResourceDef],
        cache: Arc<ResourceCache>,
    ) -> Self {
        let is_storage =
            |def: &&&'static ResourceDef| def.strategy.custom().is_some_and(|c| c.current().storage);
        let storage = versions.iter().find(is_storage).copied().unwrap_or(def);
        let (prefix, head) = (prefix_of(def), codec::type_head(def));
        let (versions, protobuf, selectable) = (versions.to_vec(), false, OnceLock::new());
        Self { def, storage, versions, prefix, head, protobuf, cache, selectable }
    }

    /// The strategy as that of a custom resource, if it is one.
    pub(crate) fn custom(&self) -> Option<&'static CustomStrategy> {
        self.def.strategy.custom()
    }

    /// Whether objects of more than one version may be stored.
    pub(crate) fn has_versions(&self) -> bool {
        self.versions.len() > 1
    }

    /// The definition of the version that stored bytes have.
    pub(crate) fn version_of(&self, encoded: &[u8]) -> &'static ResourceDef {
        if self.versions.len() == 1 {
            return self.versions[0];
        }
        let said = codec::version_in(encoded);
        let of = |def: &&&'static ResourceDef| said == Some(codec::api_version(def).as_str());
        self.versions.iter().find(of).copied().unwrap_or(self.storage)
    }

    /// The definition of another version of a custom resource, by its `apiVersion`.
    pub(crate) fn version(&self, api_version: &str) -> Option<&'static ResourceDef> {
        self.versions.iter().find(|def| codec::api_version(def) == api_version).copied()
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
    pub(crate) fn selectable(&self) -> Vec<&'static str> {
        if let Some(custom) = self.custom() {
            return custom.current().selectable.iter().map(|(name, _)| *name).collect();
        }
        let names = self.selectable.get_or_init(|| {
            let text = format!("{}\"metadata\":{{}}}}", self.head);
            let Ok(obj) = self.def.strategy.decode_slice(text.as_bytes()) else { return Vec::new() };
            self.def.strategy.selectable(&*obj).into_iter().map(|(path, _)| path).collect()
        });
        names.clone()
    }

    /// `deployments.apps`, or `pods`.
    pub(crate) fn qualified(&self) -> String {
        coracle_meta::status::qualified(self.def.group, self.def.plural)
    }
}

/// All served resources, at one moment.
#[derive(Default)]
struct Served {
    /// All that have objects or answers of their own, in the order of the table.
    all: Vec<Arc<Resource>>,
    /// Other versions of them.
    views: Vec<Arc<Resource>>,
    by_group: HashMap<&'static str, HashMap<&'static str, Arc<Resource>>>,
    by_prefix: HashMap<String, Arc<Resource>>,
    /// The definitions of everything, in the order of the table; custom ones behind.
    defs: Vec<&'static ResourceDef>,
    /// The versions of each definition, by its name.
    customs: BTreeMap<Arc<str>, Vec<Arc<Resource>>>,
    /// Changes with the custom resources.
    generation: u64,
}

/// Whether clients see the same of these versions as of those that are served.
fn is_like(known: &[Arc<Resource>], versions: &[CustomVersion]) -> bool {
    let like = |(resource, version): (&Arc<Resource>, &CustomVersion)| {
        resource.custom().is_some_and(|c| c.current().is_like(version))
    };
    known.len() == versions.len() && known.iter().zip(versions).all(like)
}

impl Served {
    fn add(&mut self, resource: Arc<Resource>, is_view: bool) {
        let def = resource.def;
        let group = self.by_group.entry(def.group).or_default();
        group.entry(def.plural).or_insert_with(|| resource.clone());
        if is_view {
            self.views.push(resource);
        } else {
            self.by_prefix.insert(resource.prefix.clone(), resource.clone());
            self.all.push(resource);
        }
    }

    fn served(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        let found = self.by_group.get(group)?.get(resource)?;
        let is = |def: &ResourceDef| (def.group, def.version, def.plural) == (group, version, resource);
        let found =
            if found.def.version == version { found } else { self.views.iter().find(|r| is(r.def))? };
        found.custom().is_none_or(|c| c.current().served).then_some(found)
    }
}

/// All served resources.
pub(crate) struct Registry {
    served: RwLock<Arc<Served>>,
    builtin: &'static [&'static ResourceDef],
    /// The rows of custom resources: this server's own, as two servers may define the same name otherwise.
    rows: Rows,
    /// Custom resources in the version they are stored in, for who follows them.
    customs: watch::Sender<Vec<&'static ResourceDef>>,
    /// Parts of the cache by prefix; they outlive the definition, as stored objects may.
    caches: RwLock<BTreeMap<String, Arc<ResourceCache>>>,
}

impl Registry {
    /// From the table of definitions.
    pub(crate) fn new(defs: &'static [&'static ResourceDef]) -> Self {
        let mut served = Served { defs: defs.to_vec(), ..Served::default() };
        let (views, own): (Vec<_>, Vec<_>) = defs.iter().partition(|def| def.strategy.view().is_some());
        for def in own {
            served.add(Arc::new(Resource::new(def, &[])), false);
        }
        for def in views {
            let view = Resource::new(def, &served.all);
            served.add(Arc::new(view), true);
        }
        let customs = watch::channel(Vec::new()).0;
        Self {
            served: RwLock::new(Arc::new(served)),
            builtin: defs,
            rows: Rows::default(),
            customs,
            caches: RwLock::default(),
        }
    }

    /// Serves what these definitions, by their names, define from now on: each all its versions, or nothing any more.
    /// Yields the resources whose schema is another one than before.
    pub(crate) fn define(&self, changes: Vec<(Arc<str>, Vec<CustomVersion>)>) -> Vec<Arc<Resource>> {
        let before = self.served.read().clone();
        let (mut customs, mut other, mut changed) = (before.customs.clone(), false, Vec::new());
        for (name, versions) in changes {
            let known = customs.get(&name);
            let schema_of = |of: Option<&Vec<Arc<Resource>>>| {
                of.and_then(|r| r.first()?.custom()).map(|c| c.current().source.clone())
            };
            let had = schema_of(known);
            let same = known.is_some_and(|known| is_like(known, &versions));
            let made = self.resources(versions, if same { known } else { None });
            other |= !same;
            let storage = made.iter().find(|r| std::ptr::eq(r.def, r.storage));
            changed.extend(storage.filter(|_| had.is_some() && had != schema_of(Some(&made))).cloned());
            match made.is_empty() {
                true => drop(customs.remove(&name)),
                false => drop(customs.insert(name, made)),
            }
        }
        if other {
            self.publish(&before, customs);
        }
        changed
    }

    /// The resources of all versions of a definition. With `known` they are the same as before, and only what is
    /// behind them is replaced.
    fn resources(
        &self,
        versions: Vec<CustomVersion>,
        known: Option<&Vec<Arc<Resource>>>,
    ) -> Vec<Arc<Resource>> {
        // What is built in stays what it is.
        let built_in = |v: &CustomVersion| {
            self.builtin.iter().any(|def| (def.group, def.plural) == (v.group.as_str(), v.plural.as_str()))
        };
        if versions.iter().any(built_in) {
            return Vec::new();
        }
        let rows: Vec<&'static ResourceDef> = versions.into_iter().map(|v| self.rows.row(v)).collect();
        let Some(first) = rows.first() else { return Vec::new() };
        if let Some(known) = known {
            return known.clone();
        }
        let cache = self.cache_of(&prefix_of(first));
        let made = rows.iter().map(|def| Arc::new(Resource::custom_version(def, &rows, cache.clone())));
        made.collect()
    }

    /// Puts a new table in force.
    fn publish(&self, before: &Served, customs: BTreeMap<Arc<str>, Vec<Arc<Resource>>>) {
        let mut next =
            Served { defs: self.builtin.to_vec(), generation: before.generation + 1, ..Served::default() };
        let is_builtin = |r: &&Arc<Resource>| r.custom().is_none();
        before.all.iter().filter(is_builtin).for_each(|r| next.add(r.clone(), false));
        before.views.iter().filter(is_builtin).for_each(|r| next.add(r.clone(), true));
        for versions in customs.values() {
            let served = |r: &&Arc<Resource>| r.custom().is_some_and(|c| c.current().served);
            next.defs.extend(versions.iter().filter(served).map(|r| r.def));
            let is_storage = |r: &&Arc<Resource>| std::ptr::eq(r.def, r.storage);
            versions.iter().filter(is_storage).for_each(|r| next.add(r.clone(), false));
            versions.iter().filter(|r| !is_storage(r)).for_each(|r| next.add(r.clone(), true));
        }
        let mut rows: Vec<*const ResourceDef> =
            customs.values().flatten().map(|r| std::ptr::from_ref(r.def)).collect();
        rows.sort_unstable();
        for gone in before.customs.values().flatten() {
            if !next.by_prefix.contains_key(&gone.prefix) {
                gone.cache.close();
            }
            if let Some(strategy) = gone.custom()
                && rows.binary_search(&std::ptr::from_ref(gone.def)).is_err()
            {
                strategy.retire();
            }
        }
        let mut told: Vec<&'static ResourceDef> = Vec::new();
        for versions in customs.values() {
            let shown = versions.iter().filter_map(|r| next.by_group.get(r.def.group)?.get(r.def.plural));
            told.extend(
                shown
                    .take(1)
                    .map(|r| r.def)
                    .filter(|d| d.strategy.custom().is_some_and(|c| c.current().served)),
            );
        }
        next.customs = customs;
        *self.served.write() = Arc::new(next);
        self.customs.send_if_modified(|known| {
            let same =
                known.len() == told.len() && known.iter().zip(&told).all(|(a, b)| std::ptr::eq(*a, *b));
            *known = told;
            !same
        });
    }

    /// The custom resources that are served, as they change.
    pub(crate) fn customs(&self) -> watch::Receiver<Vec<&'static ResourceDef>> {
        self.customs.subscribe()
    }

    fn cache_of(&self, prefix: &str) -> Arc<ResourceCache> {
        let mut caches = self.caches.write();
        let cache = caches.entry(prefix.to_owned());
        cache.or_insert_with(|| Arc::new(ResourceCache::new(prefix.len()))).clone()
    }

    /// All that have objects or answers of their own, in the order of the table.
    pub(crate) fn all(&self) -> Vec<Arc<Resource>> {
        self.served.read().all.clone()
    }

    /// The definitions of everything served, built-in ones first.
    pub(crate) fn defs(&self) -> Vec<&'static ResourceDef> {
        self.served.read().defs.clone()
    }

    /// The same, and a number that changes with the custom resources among them.
    pub(crate) fn defs_at(&self) -> (Vec<&'static ResourceDef>, u64) {
        let served = self.served.read();
        (served.defs.clone(), served.generation)
    }

    /// The resource of that group and plural, in the version that is stored if the group has it.
    pub(crate) fn find(&self, group: &str, resource: &str) -> Option<Arc<Resource>> {
        self.served.read().by_group.get(group)?.get(resource).cloned()
    }

    /// The resource of that group and plural as served in a version.
    pub(crate) fn served(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        self.served.read().served(group, version, resource).cloned()
    }

    /// The versions of a group that have custom resources.
    pub(crate) fn custom_versions(&self, group: &str) -> BTreeSet<String> {
        let served = self.served.read();
        let custom = served.defs.iter().filter(|def| def.group == group && def.strategy.custom().is_some());
        custom.map(|def| def.version.to_owned()).collect()
    }

    /// Whether the group is served at all.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        self.served.read().by_group.contains_key(group)
    }

    /// Whether the group is one of custom resources.
    pub(crate) fn is_custom_group(&self, group: &str) -> bool {
        !self.builtin.iter().any(|def| def.group == group)
    }

    /// The resource that a stored key belongs to.
    pub(crate) fn of_key(&self, key: &str) -> Option<Arc<Resource>> {
        let mut slashes = key.bytes().enumerate().filter(|(_, b)| *b == b'/').map(|(i, _)| i);
        let end = slashes.nth(3)?;
        self.served.read().by_prefix.get(&key[..=end]).cloned()
    }
}
