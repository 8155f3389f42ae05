//! The seam between components and the API server.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_meta::{Object, Status};
use futures::stream::BoxStream;
use serde_json::Value;

/// A served resource, e.g. `apps`/`v1`/`deployments`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResourceId {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural.
    pub resource: &'static str,
}

impl ResourceId {
    /// The resource of a built-in kind.
    pub const fn of<K: k8s_openapi::Resource>() -> Self {
        Self { group: K::GROUP, version: K::VERSION, resource: K::URL_PATH_SEGMENT }
    }
}

/// The four patch types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes strategic merge.
    Strategic,
    /// Server-side apply; `fieldManager` required.
    Apply,
}

/// Selectors and paging of a list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Label selector text.
    pub label_selector: String,
    /// Field selector text.
    pub field_selector: String,
    /// Page size; 0 means all.
    pub limit: usize,
    /// Continue token of the page before.
    pub continue_token: String,
    /// `resourceVersion`; empty for the newest.
    pub resource_version: String,
    /// `resourceVersionMatch`.
    pub resource_version_match: String,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// `fieldManager`.
    pub field_manager: String,
    /// `force` (apply only).
    pub force: bool,
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `fieldValidation`: empty, `Ignore`, `Warn` or `Strict`.
    pub field_validation: String,
}

/// Options of delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`.
    pub grace_period_seconds: Option<i64>,
    /// `preconditions.uid`.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`.
    pub resource_version: Option<String>,
    /// `propagationPolicy`: `Orphan`, `Background`, `Foreground`.
    pub propagation_policy: Option<String>,
    /// `dryRun=All`.
    pub dry_run: bool,
}

/// What to do, with what.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the verbs of the API")]
pub enum Verb {
    Get,
    List(ListOptions),
    Create(Body, WriteOptions),
    Update(Body, WriteOptions),
    Patch(PatchKind, Value, WriteOptions),
    Delete(DeleteOptions),
    DeleteCollection(DeleteOptions, ListOptions),
}

/// An object on its way to the server.
#[derive(Clone, Debug)]
pub enum Body {
    /// Decoded, shared.
    Object(Arc<dyn Object>),
    /// JSON.
    Json(Value),
}

/// A request for a resource.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    /// Which resource.
    pub resource: ResourceId,
    /// Namespace, or empty (cluster-scoped, or all namespaces).
    pub namespace: String,
    /// Name, or empty.
    pub name: String,
    /// Subresource path, or empty.
    pub subresource: &'static str,
    /// What to do.
    pub verb: Verb,
}

/// What came back.
#[derive(Clone, Debug)]
pub enum ApiResponse {
    /// One object.
    Object(Arc<dyn Object>),
    /// A list with its resourceVersion and continue token (empty at the end).
    List {
        /// The objects in key order.
        items: Vec<Arc<dyn Object>>,
        /// `metadata.resourceVersion`.
        resource_version: String,
        /// `metadata.continue`.
        continue_token: String,
    },
    /// A Status (success), as deletions return.
    Status(Value),
}

/// A change of a watched resource.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the event types of the API")]
pub enum WatchEvent {
    Added(Arc<dyn Object>),
    Modified(Arc<dyn Object>),
    Deleted(Arc<dyn Object>),
    /// All up to this resourceVersion was sent.
    Bookmark {
        resource_version: String,
        /// Ends the initial events of a watch started with `send_initial_events`.
        initial_events_end: bool,
    },
}

/// Ends with an error when the server cut the watch off; the caller starts again.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

/// Carries requests to an API server under one identity. Authentication is the transport's matter;
/// authorization and admission happen at the server for every request, in-process too.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// One request, one answer.
    ///
    /// # Errors
    /// The server's Status; 503 when it could not be reached.
    async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status>;

    /// Watches a resource. With `send_initial_events` the stream begins with all present objects as
    /// `Added`, then a bookmark with `initial_events_end`; else it begins after `options.resource_version`.
    ///
    /// # Errors
    /// As [`Transport::request`]; 410 when the version is too old.
    async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status>;

    /// GETs a path that is none of the served resources, e.g. `/apis/metrics.k8s.io/v1beta1/nodes`; `query` is
    /// the encoded query string. The answer is the body as JSON.
    ///
    /// # Errors
    /// As [`Transport::request`]; 404 when nothing is served there.
    async fn read(&self, _path: &str, _query: &str) -> Result<Value, Status> {
        Err(Status::no_such_path())
    }
}
