//! get: from the cache, after it has caught up with all acknowledged writes.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{Reason, Status};
use serde_json::json;

use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

/// How long a read waits for a revision from the future.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

impl Server {
    /// Waits until the cache shows every acknowledged write, also those of other API servers on the same store.
    ///
    /// # Errors
    /// 500 when the store does not say what is newest.
    pub(crate) async fn fresh(&self) -> Result<(), Status> {
        let newest = self.store.newest().await.map_err(Status::internal)?;
        self.cache.wait_for(newest).await;
        Ok(())
    }

    /// One object, or 404.
    pub(crate) async fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<CacheEntry>, Status> {
        self.fresh().await?;
        let entry = self.present(resource, namespace, name)?;
        self.in_version(resource, entry).await
    }

    /// One object of the cache as it is, in the version of the resource, if it is there.
    pub(crate) async fn look(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<CacheEntry>>, Status> {
        match resource.cache.get(&resource.key(namespace, name)) {
            Some(entry) => self.in_version(resource, entry).await.map(Some),
            None => Ok(None),
        }
    }

    /// One object of the cache as it is, or 404.
    pub(crate) fn present(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<CacheEntry>, Status> {
        resource
            .cache
            .get(&resource.key(namespace, name))
            .ok_or_else(|| Status::not_found(resource.def.group, resource.def.plural, name))
    }

    /// Waits until `revision` has been reached; gives up with 504 after a few seconds.
    pub(crate) async fn reach(&self, revision: u64) -> Result<(), Status> {
        if tokio::time::timeout(FUTURE_WAIT, self.cache.wait_for(revision)).await.is_ok() {
            return Ok(());
        }
        let current = self.cache.applied();
        let message = format!("Timeout: Too large resource version: {revision}, current: {current}");
        let details = json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        });
        Err(Status::new(504, Reason::Timeout, message, Some(details)))
    }
}

/// Reads a `resourceVersion` option; empty is `None`.
///
/// # Errors
/// The text of Go's number parser.
pub(crate) fn parse_revision(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(n) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(Some(n)),
        _ => Err(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        )),
    }
}
