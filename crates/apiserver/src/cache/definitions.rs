//! Definitions of custom resources as the cache sees them: what they define, and how stored objects are read.

use std::sync::Arc;

use bytes::Bytes;
use coracle_resources::custom;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use tracing::warn;

use super::entry::CacheEntry;
use crate::codec;
use crate::registry::{Registry, Resource};

/// Where definitions are stored.
pub(crate) const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// Their group and plural.
pub(crate) const KIND: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");

/// Serves what these definitions define now (`None`: nothing any more); yields the resources whose objects are to be
/// read anew, because their schema changed.
pub(super) fn define<'e>(
    registry: &Registry,
    changes: impl IntoIterator<Item = (&'e Arc<str>, Option<&'e CacheEntry>)>,
) -> Vec<Arc<Resource>> {
    let versions = |entry: &CacheEntry| match entry.decoded() {
        Ok(obj) => obj
            .downcast::<CustomResourceDefinition>()
            .map_or_else(Vec::new, |crd| custom::of_definition(crd, &entry.encoded())),
        Err(e) => {
            warn!(key = &*entry.key, error = %e, "unreadable definition");
            Vec::new()
        }
    };
    let changes = changes.into_iter().map(|(key, entry)| {
        let name = key.strip_prefix(PREFIX).unwrap_or(key);
        (Arc::from(name), entry.map(versions).unwrap_or_default())
    });
    registry.define(changes.collect())
}

/// A stored object as it is read: pruned and defaulted by the schema of the version it is stored in.
pub(super) fn read(resource: &Resource, entry: CacheEntry) -> CacheEntry {
    let stale = !std::ptr::eq(entry.def, resource.storage);
    let stored = entry.encoded();
    match reshaped(&stored, entry.def) {
        Some(encoded) if encoded != stored => entry.read_as(entry.def, encoded).unlike(Some(stored), true),
        _ => entry.unlike(None, stale),
    }
}

/// An entry as its resource's definition of now has it.
pub(super) fn reread(resource: &Resource, entry: &CacheEntry) -> Option<CacheEntry> {
    let stored = entry.stored.clone().unwrap_or_else(|| entry.encoded());
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
