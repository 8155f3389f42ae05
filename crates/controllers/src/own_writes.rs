//! Remembers one's own writes until an informer shows them, so that nothing is made twice.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::runtime::ObjectKey;

/// By key worked on: the revision of the last write for it.
#[derive(Debug, Default)]
pub(crate) struct OwnWrites(Mutex<HashMap<ObjectKey, u64>>);

impl OwnWrites {
    /// Remembers a write that returned this metadata.
    pub(crate) fn note(&self, key: &ObjectKey, written: &ObjectMeta) {
        let revision = written.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut writes = self.0.lock();
        let last = writes.entry(key.clone()).or_default();
        *last = revision.max(*last);
    }

    /// Whether a store that is current up to `revision` shows all that was written for the key.
    pub(crate) fn visible(&self, key: &ObjectKey, revision: u64) -> bool {
        let mut writes = self.0.lock();
        let visible = writes.get(key).is_none_or(|last| *last <= revision);
        if visible {
            writes.remove(key);
        }
        visible
    }
}
