//! Custom resources: a definition of the cluster as a [`ResourceDef`], so that the generic verbs serve it like a
//! built-in kind.
//!
//! A row is made once per set of names, scope and subresources and lives as long as the process, as the rows of
//! built-in kinds do; what changes more often (schema, columns, conversion) hangs behind its strategy and is
//! replaced when the definition changes. So a definition that is changed a thousand times costs one row.

mod strategy;
mod version;

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::def::{AGE, NAME, ResourceDef, ScalePaths, Scope, Storage, Subresource};
use coracle_meta::object_meta::Recheck;

pub use strategy::CustomStrategy;
pub use version::{Conversion, CustomVersion, Scale, of_definition};

static TEXTS: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);

/// A text that lives as long as the process; the same one for equal texts.
pub fn intern(text: &str) -> &'static str {
    let mut texts = TEXTS.lock();
    if let Some(known) = texts.get(text) {
        return known;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    texts.insert(kept);
    kept
}

fn intern_all(texts: &[String]) -> &'static [&'static str] {
    let kept: Vec<&'static str> = texts.iter().map(|text| intern(text)).collect();
    Box::leak(kept.into_boxed_slice())
}

/// The rows of one server's custom resources, those of definitions gone by among them.
#[derive(Debug, Default)]
pub struct Rows(Mutex<HashMap<String, &'static ResourceDef>>);

impl Rows {
    /// The row of a version; its strategy serves the version from now on.
    pub fn row(&self, version: CustomVersion) -> &'static ResourceDef {
        let key = format!(
            "{}/{}/{}/{}/{}/{:?}/{:?}/{}/{}/{:?}",
            version.group,
            version.version,
            version.plural,
            version.singular,
            version.kind,
            version.short_names,
            version.categories,
            version.namespaced,
            version.status,
            version.scale,
        );
        let mut rows = self.0.lock();
        if let Some(found) = rows.get(&key).copied() {
            if let Some(strategy) = found.strategy.custom() {
                strategy.serve(version);
            }
            return found;
        }
        let made: &'static ResourceDef = Box::leak(Box::new(new_row(version)));
        rows.insert(key, made);
        made
    }
}

fn new_row(version: CustomVersion) -> ResourceDef {
    let subresources: &'static [Subresource] = match (version.status, version.scale.is_some()) {
        (true, true) => &[Subresource::Status, Subresource::Scale],
        (true, false) => &[Subresource::Status],
        (false, true) => &[Subresource::Scale],
        (false, false) => &[],
    };
    let pointer = |path: &str| intern(&path.replace('.', "/"));
    let scale = version.scale.as_ref().map(|scale| ScalePaths {
        spec_replicas: pointer(&scale.spec),
        status_replicas: pointer(&scale.status),
        selector: scale.selector.as_deref().map_or("/-", pointer),
    });
    ResourceDef {
        group: intern(&version.group),
        version: intern(&version.version),
        kind: intern(&version.kind),
        plural: intern(&version.plural),
        singular: intern(&version.singular),
        short_names: intern_all(&version.short_names),
        categories: intern_all(&version.categories),
        scope: if version.namespaced { Scope::Namespaced } else { Scope::Cluster },
        storage: Storage::Stored,
        subresources,
        columns: &[NAME, AGE],
        scale,
        has_generation: false,
        create_on_update: false,
        unconditional_update: false,
        recheck: Recheck::Change,
        recheck_status: Recheck::Change,
        returns_deleted: false,
        orphan_by_default: false,
        hidden_annotations: &[],
        strategy: Box::leak(Box::new(CustomStrategy::new(version))),
    }
}
