//! The admission chain: one file per plugin, listed in order in [`plugins`].

use std::sync::Arc;

use async_trait::async_trait;
use coracle_auth::UserInfo;
use coracle_meta::{Object, ObjectReader, Status};
use coracle_resources::def::ResourceDef;

/// What the request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST (also of a subresource).
    Create,
    /// PUT or PATCH.
    Update,
    /// DELETE.
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

/// A request under admission.
pub struct Request<'a> {
    /// What it does.
    pub operation: Operation,
    /// The resource.
    pub resource: &'a ResourceDef,
    /// Subresource path segment, or empty.
    pub subresource: &'a str,
    /// Namespace, or empty.
    pub namespace: &'a str,
    /// Name; may be empty on create with generateName.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The new object (create, update); plugins change it in the mutating pass.
    pub object: Option<&'a mut Box<dyn Object>>,
    /// The object as it is (update, delete).
    pub old: Option<&'a dyn Object>,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Warnings for the client; plugins add.
    pub warnings: Vec<String>,
}

/// What plugins may look at.
#[derive(Clone)]
pub struct Environment {
    /// The cluster's current objects.
    pub reader: Arc<dyn ObjectReader>,
    /// Now.
    pub clock: coracle_stdx::Clock,
}

/// An admission plugin. A plugin implements one or both passes.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Upstream's name, e.g. `ServiceAccount`.
    fn name(&self) -> &'static str;
    /// Whether the plugin looks at such requests at all; cheap.
    fn handles(&self, request: &Request<'_>) -> bool;
    /// Mutating pass.
    ///
    /// # Errors
    /// The refusal to send to the client.
    async fn mutate(&self, _env: &Environment, _request: &mut Request<'_>) -> Result<(), Status> {
        Ok(())
    }
    /// Validating pass, after defaulting and validation.
    ///
    /// # Errors
    /// The refusal to send to the client.
    async fn validate(&self, _env: &Environment, _request: &mut Request<'_>) -> Result<(), Status> {
        Ok(())
    }
}
