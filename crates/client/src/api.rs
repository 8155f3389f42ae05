//! The typed client: [`Client`] and [`Api`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use coracle_meta::{Kind, Object, Status};
use serde_json::Value;

use crate::remote::Fetched;
use crate::transport::{
    ApiRequest, ApiResponse, Body, DeleteOptions, ListOptions, PatchKind, ResourceId, Transport, Verb,
    WatchStream, WriteOptions,
};

/// One identity's way to the API. Cheap to clone; clones share the transport.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    manager: Arc<str>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A client that sends everything through `transport`.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, manager: Arc::from("") }
    }

    /// The same client, whose writes name `manager` as their `fieldManager`.
    #[must_use]
    pub fn with_manager(mut self, manager: &str) -> Self {
        self.manager = Arc::from(manager);
        self
    }

    /// Typed access to the kind `K`.
    pub fn api<K: Kind>(&self) -> Api<K> {
        Api { client: self.clone(), kind: PhantomData }
    }

    /// Sends a request for any resource.
    ///
    /// # Errors
    /// The server's Status; 503 when it could not be reached.
    pub async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        self.transport.request(request).await
    }

    /// Watches any resource; see [`Transport::watch`]. Most callers want an [`crate::Informer`] instead.
    ///
    /// # Errors
    /// As [`Transport::watch`].
    pub async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status> {
        self.transport.watch(resource, namespace, options, send_initial_events).await
    }

    /// GETs a path that is none of the served resources, such as one of a metrics API; `query` is encoded.
    ///
    /// # Errors
    /// As [`Transport::read`].
    pub async fn read(&self, path: &str, query: &str) -> Result<Value, Status> {
        self.transport.read(path, query).await
    }

    /// The write options of this client: its field manager, nothing else.
    pub fn write_options(&self) -> WriteOptions {
        WriteOptions { field_manager: self.manager.to_string(), ..WriteOptions::default() }
    }
}

/// The verbs of one kind. `namespace` is empty for cluster-scoped kinds and for lists over all namespaces.
///
/// Guarantees: an object that the transport hands over as a `K` is returned as is (shared, not copied);
/// any other representation is decoded once. Nothing is retried.
#[derive(Clone, Debug)]
pub struct Api<K> {
    client: Client,
    kind: PhantomData<fn() -> K>,
}

/// The object as a `K`: shared if it is one, else decoded from its JSON form.
///
/// # Errors
/// 500 when the JSON form is not a `K`.
pub fn decode<K: Kind>(object: Arc<dyn Object>) -> Result<Arc<K>, Status> {
    if object.downcast::<K>().is_some() {
        let shared = object.into_any_arc().downcast::<K>();
        return shared.map_err(|_| Status::internal("object changed its type"));
    }
    if let Some(fetched) = object.downcast::<Fetched>() {
        return fetched.decode().map(Arc::new);
    }
    let what = object.gvk().kind;
    serde_json::from_value(object.to_value()).map(Arc::new).map_err(|e| {
        Status::internal(format!("{what} {:?} does not decode as {}: {e}", object.name(), K::KIND))
    })
}

impl<K: Kind> Api<K> {
    /// The client this came from.
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn send(
        &self,
        namespace: &str,
        name: &str,
        subresource: &'static str,
        verb: Verb,
    ) -> Result<ApiResponse, Status> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let resource = ResourceId::of::<K>();
        self.client.request(ApiRequest { resource, namespace, name, subresource, verb }).await
    }

    async fn send_one(
        &self,
        namespace: &str,
        name: &str,
        subresource: &'static str,
        verb: Verb,
    ) -> Result<Arc<K>, Status> {
        match self.send(namespace, name, subresource, verb).await? {
            ApiResponse::Object(object) => decode(object),
            ApiResponse::List { .. } | ApiResponse::Status(_) => {
                Err(Status::internal(format!("the server did not answer with a {}", K::KIND)))
            }
        }
    }

    /// Reads one object.
    ///
    /// # Errors
    /// The server's Status; 404 when absent.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, Status> {
        self.send_one(namespace, name, "", Verb::Get).await
    }

    /// Reads all objects that `options` select, following continue tokens to the end.
    ///
    /// # Errors
    /// The server's Status.
    pub async fn list(&self, namespace: &str, options: ListOptions) -> Result<Vec<Arc<K>>, Status> {
        let mut options = options;
        let mut all = Vec::new();
        loop {
            match self.send(namespace, "", "", Verb::List(options.clone())).await? {
                ApiResponse::List { items, continue_token, .. } => {
                    all.reserve(items.len());
                    for item in items {
                        all.push(decode(item)?);
                    }
                    if continue_token.is_empty() {
                        return Ok(all);
                    }
                    options.continue_token = continue_token;
                }
                ApiResponse::Object(_) | ApiResponse::Status(_) => {
                    return Err(Status::internal("the server did not answer with a list"));
                }
            }
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The server's Status; 409 `AlreadyExists`.
    pub async fn create(&self, namespace: &str, object: K) -> Result<Arc<K>, Status> {
        let name = object.metadata().name.clone().unwrap_or_default();
        let verb = Verb::Create(Body::Object(Arc::new(object)), self.client.write_options());
        self.send_one(namespace, &name, "", verb).await
    }

    async fn put(&self, namespace: &str, sub: &'static str, object: K) -> Result<Arc<K>, Status> {
        let name = object.metadata().name.clone().unwrap_or_default();
        let verb = Verb::Update(Body::Object(Arc::new(object)), self.client.write_options());
        self.send_one(namespace, &name, sub, verb).await
    }

    /// Replaces an object; its `resourceVersion`, if any, must be the stored one.
    ///
    /// # Errors
    /// The server's Status; 409 `Conflict` when stale.
    pub async fn update(&self, namespace: &str, object: K) -> Result<Arc<K>, Status> {
        self.put(namespace, "", object).await
    }

    /// Replaces an object's status; its `resourceVersion`, if any, must be the stored one.
    ///
    /// # Errors
    /// The server's Status; 409 `Conflict` when stale.
    pub async fn update_status(&self, namespace: &str, object: K) -> Result<Arc<K>, Status> {
        self.put(namespace, "status", object).await
    }

    /// Replaces a subresource of the object that has the object's own shape, e.g. `finalize`.
    ///
    /// # Errors
    /// The server's Status; 409 `Conflict` when stale.
    pub async fn update_subresource(
        &self,
        namespace: &str,
        subresource: &'static str,
        object: K,
    ) -> Result<Arc<K>, Status> {
        self.put(namespace, subresource, object).await
    }

    /// Changes an object by a patch.
    ///
    /// # Errors
    /// The server's Status.
    pub async fn patch(
        &self,
        namespace: &str,
        name: &str,
        kind: PatchKind,
        patch: Value,
    ) -> Result<Arc<K>, Status> {
        self.send_one(namespace, name, "", Verb::Patch(kind, patch, self.client.write_options())).await
    }

    /// Changes an object's status by a patch (whose root is the object).
    ///
    /// # Errors
    /// The server's Status.
    pub async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        kind: PatchKind,
        patch: Value,
    ) -> Result<Arc<K>, Status> {
        self.send_one(namespace, name, "status", Verb::Patch(kind, patch, self.client.write_options())).await
    }

    /// Asks for an object's deletion; it may stay for finalizers or a grace period.
    ///
    /// # Errors
    /// The server's Status; 404 when absent, 409 when a precondition fails.
    pub async fn delete(&self, namespace: &str, name: &str, options: DeleteOptions) -> Result<(), Status> {
        self.send(namespace, name, "", Verb::Delete(options)).await.map(drop)
    }

    /// Creates at a subresource, e.g. `binding`, `eviction`, `token`.
    ///
    /// # Errors
    /// The server's Status.
    pub async fn create_subresource(
        &self,
        namespace: &str,
        name: &str,
        subresource: &'static str,
        body: Value,
    ) -> Result<ApiResponse, Status> {
        let verb = Verb::Create(Body::Json(body), self.client.write_options());
        self.send(namespace, name, subresource, verb).await
    }
}
