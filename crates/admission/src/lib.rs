//! The admission chain: one file per plugin, listed in order in [`plugins`].

mod chain;
pub mod plugins;

use std::sync::Arc;

use async_trait::async_trait;
use coracle_auth::UserInfo;
use coracle_meta::{Object, ObjectReader, Status};
use coracle_resources::def::ResourceDef;

pub use chain::Chain;
pub use plugins::plugins;

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

impl Request<'_> {
    /// Whether this concerns the resource `plural` of `group` itself, not a subresource.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.subresource.is_empty() && self.resource.group == group && self.resource.plural == plural
    }

    /// The new object as `K`, to change.
    pub fn object_mut<K: 'static>(&mut self) -> Option<&mut K> {
        self.object.as_deref_mut().and_then(|obj| obj.downcast_mut())
    }

    /// The new object as `K`.
    pub fn object_as<K: 'static>(&self) -> Option<&K> {
        self.object.as_deref().and_then(|obj| obj.downcast())
    }

    /// The present object as `K`.
    pub fn old_as<K: 'static>(&self) -> Option<&K> {
        self.old.and_then(|obj| obj.downcast())
    }

    /// The name that messages use: the request's, else the object's name or generateName, else `Unknown`.
    pub fn shown_name(&self) -> String {
        let meta = self.object.as_deref().map(|obj| obj.meta());
        let candidates = [
            Some(self.name),
            meta.and_then(|m| m.name.as_deref()),
            meta.and_then(|m| m.generate_name.as_deref()),
        ];
        let name = candidates.into_iter().flatten().find(|name| !name.is_empty());
        name.unwrap_or("Unknown").to_owned()
    }

    /// The refusal that upstream's `admission.NewForbidden` makes.
    pub fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(self.resource.group, self.resource.plural, &self.shown_name(), why)
    }
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
