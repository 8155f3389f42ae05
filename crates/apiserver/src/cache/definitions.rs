//! Definitions of custom resources as the cache sees them: what they define, and how stored objects are read.

use std::sync::Arc;

use bytes::Bytes;
use coracle_resources::custom;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use tracing::warn;

use super::entry::CacheEntry;
use super::watcher::Filter;
use crate::codec;
use crate::registry::{Registry, Resource};

/// Where definitions are stored.
pub(crate) const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// Their group and plural.
pub(crate) const KIND: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");

/// Serves what is defined; yields the resources whose objects are to be read anew, because their definition
/// changed.
pub(super) fn define(registry: &Registry) -> Vec<Arc<Resource>> {
    let Some(definitions) = registry.find(KIND.0, KIND.1) else { return Vec::new() };
    definitions.cache.keep_decoded();
    let filter = Filter { key: definitions.prefix.clone(), ..Filter::default() };
    let entries = definitions.cache.range(&filter, 0).entries;
    let sources = |registry: &Registry| -> Vec<(Arc<Resource>, (String, i64))> {
        let all = registry.all().into_iter();
        all.filter_map(|r| r.custom().map(|c| c.current().source.clone()).map(|source| (r, source))).collect()
    };
    let before = sources(registry);
    let versions = entries.iter().filter_map(|entry| {
        let obj = entry
            .decoded()
            .map_err(|e| warn!(key = &*entry.key, error = %e, "unreadable definition"))
            .ok()?;
        let crd = obj.into_any_arc().downcast::<CustomResourceDefinition>().ok()?;
        Some(custom::of_definition(&crd)).filter(|versions| !versions.is_empty())
    });
    registry.define(versions.collect());
    let changed = sources(registry)
        .into_iter()
        .filter(|(resource, source)| before.iter().any(|(r, s)| r.prefix == resource.prefix && s != source));
    changed.map(|(resource, _)| resource).collect()
}

/// A stored object as it is read: pruned and defaulted by the schema of the version it is stored in.
pub(super) fn read(resource: &Resource, entry: CacheEntry) -> CacheEntry {
    let stale = !std::ptr::eq(entry.def, resource.storage);
    match reshaped(&entry.encoded, entry.def) {
        Some(encoded) if encoded != entry.encoded => {
            entry.read_as(entry.def, encoded).unlike(Some(entry.encoded.clone()), true)
        }
        _ => entry.unlike(None, stale),
    }
}

/// An entry as its resource's definition of now has it.
pub(super) fn reread(resource: &Resource, entry: &CacheEntry) -> Option<CacheEntry> {
    let stored = entry.stored.clone().unwrap_or_else(|| entry.encoded.clone());
    let def = resource.version_of(&stored);
    let plain = entry.read_as(def, stored).unlike(None, false);
    Some(read(resource, plain))
}

fn reshaped(encoded: &[u8], def: &'static coracle_resources::def::ResourceDef) -> Option<Bytes> {
    let strategy = def.strategy.custom()?;
    let mut value: Value = serde_json::from_slice(encoded).ok()?;
    let before = value.clone();
    strategy.prune(&mut value, true).ok()?;
    strategy.set_defaults(&mut value);
    if value == before {
        return None;
    }
    let revision = value.get_mut("metadata")?.as_object_mut()?.remove("resourceVersion");
    let revision = revision.as_ref().and_then(Value::as_str).and_then(|r| r.parse().ok()).unwrap_or(0);
    let made = codec::encode_value(def, &value, encoded.len()).ok()?;
    Some(codec::splice(&made, revision))
}
