//! ComponentStatus: deprecated, made up at each request. It tells of the store; scheduler and controllers report
//! through their own health endpoints.

use std::sync::Arc;

use bytes::Bytes;
use coracle_client::ListOptions;
use coracle_meta::{Object, Status};
use k8s_openapi::api::core::v1::{ComponentCondition, ComponentStatus};

use super::Outcome;
use super::list::{Page, filter};
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

/// What the store is called there.
const STORE: &str = "etcd-0";

impl Server {
    /// All components.
    pub(crate) async fn list_components(
        &self,
        resource: &Resource,
        opts: &ListOptions,
    ) -> Result<Page, Status> {
        let filter = filter(resource, "", "", opts)?;
        let mut entries = vec![self.component(resource).await];
        entries.retain(|entry| filter.selects(entry));
        Ok(Page { entries, revision: 0, continue_token: String::new(), remaining: None })
    }

    /// One component, or 404.
    pub(crate) async fn get_component(&self, resource: &Resource, name: &str) -> Result<Outcome, Status> {
        if name != STORE {
            return Err(Status::not_found("", resource.def.singular, name));
        }
        Ok(Outcome::of(self.component(resource).await))
    }

    /// The store is in order when it answers a read.
    async fn component(&self, resource: &Resource) -> Arc<CacheEntry> {
        let range = coracle_store::Range { start: "/".to_owned(), limit: 1, ..Default::default() };
        let (status, message, error) = match self.store.range(range).await {
            Ok(_) => ("True", "ok".to_owned(), None),
            Err(e) => ("False", String::new(), Some(e.to_string())),
        };
        let mut component = ComponentStatus::default();
        component.metadata.name = Some(STORE.to_owned());
        component.conditions = Some(vec![ComponentCondition {
            type_: "Healthy".to_owned(),
            status: status.to_owned(),
            message: Some(message).filter(|text| !text.is_empty()),
            error,
        }]);
        let mut encoded = Vec::with_capacity(256);
        component.write_json(&mut encoded);
        Arc::new(CacheEntry::new(Arc::from(STORE), 0, 0, Bytes::from(encoded), resource.def))
    }
}
