//! The admission chain: one file per plugin, listed in order in [`plugins`].

mod chain;
pub mod plugins;
mod policy;
mod reinvocation;
mod webhook;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use coracle_auth::{Attributes, Decision, UserInfo};
use coracle_meta::{Object, ObjectReader, Status};
use coracle_resources::def::ResourceDef;
use k8s_openapi::api::admissionregistration::v1::MatchCondition;
use serde_json::{Value, json};

pub use chain::Chain;
pub use plugins::{chosen, plugins};
pub use reinvocation::Reinvocation;
pub use webhook::{CallError, Target as HookTarget};

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

impl Operation {
    /// As upstream writes it: `CREATE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
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
    /// What the audit log is to note, by key; plugins add.
    pub annotations: Vec<(String, String)>,
    /// What else the client asked for.
    pub options: &'a Options,
    /// What is to be asked again because the object changed behind it.
    pub reinvocation: Reinvocation,
}

/// What a request asks for beside the object. Webhooks and policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `fieldManager` of a write.
    pub field_manager: String,
    /// `fieldValidation` of a write.
    pub field_validation: String,
    /// `force` of an apply.
    pub force: Option<bool>,
    /// It is a PATCH, which differs from a PUT in the kind of its options alone.
    pub patch: bool,
    /// `gracePeriodSeconds` of a deletion.
    pub grace_period_seconds: Option<i64>,
    /// `propagationPolicy` of a deletion.
    pub propagation_policy: Option<String>,
}

impl Options {
    /// The options object as AdmissionReviews carry it; null for connections.
    pub fn to_value(&self, operation: Operation, dry_run: bool) -> Value {
        let kind = match operation {
            Operation::Create => "CreateOptions",
            Operation::Update if self.patch => "PatchOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        let mut out = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
        if dry_run {
            out["dryRun"] = json!(["All"]);
        }
        if operation == Operation::Delete {
            if let Some(seconds) = self.grace_period_seconds {
                out["gracePeriodSeconds"] = seconds.into();
            }
            if let Some(policy) = &self.propagation_policy {
                out["propagationPolicy"] = policy.clone().into();
            }
            return out;
        }
        if let Some(force) = self.force {
            out["force"] = force.into();
        }
        for (key, text) in
            [("fieldManager", &self.field_manager), ("fieldValidation", &self.field_validation)]
        {
            if !text.is_empty() {
                out[key] = text.clone().into();
            }
        }
        out
    }
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

    /// Notes something for the audit log; the first note of a key stays.
    pub fn annotate(&mut self, key: &str, value: String) {
        if !self.annotations.iter().any(|(k, _)| k == key) {
            self.annotations.push((key.to_owned(), value));
        }
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
    /// The server around the chain, once it runs.
    pub host: Arc<OnceLock<Weak<dyn Host>>>,
    /// Evaluates the match conditions of webhooks.
    pub conditions: Option<Arc<dyn MatchConditions>>,
}

/// Evaluates match conditions, which are written in CEL.
pub trait MatchConditions: Send + Sync {
    /// Whether all conditions hold for the request; `review` is its AdmissionRequest as JSON.
    ///
    /// # Errors
    /// Why a condition cannot be evaluated, when no other one is false.
    fn hold(
        &self,
        env: &Environment,
        request: &Request<'_>,
        conditions: &[MatchCondition],
        review: &Value,
    ) -> Result<bool, String>;
}

impl Environment {
    /// Without a server around it.
    pub fn new(reader: Arc<dyn ObjectReader>, clock: coracle_stdx::Clock) -> Self {
        Self { reader, clock, host: Arc::default(), conditions: Some(Arc::new(policy::Conditions)) }
    }

    /// The server, while it runs.
    pub fn host(&self) -> Option<Arc<dyn Host>> {
        self.host.get()?.upgrade()
    }
}

/// A webhook that was asked, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookAsked<'a> {
    /// Its name.
    pub name: &'a str,
    /// `admit` or `validating`, as upstream labels them.
    pub step: &'static str,
    /// What the request does.
    pub operation: Operation,
    /// What came of it.
    pub outcome: HookOutcome,
    /// How long it took.
    pub took: Duration,
}

/// What came of asking a webhook; codes are those of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// It let the request pass.
    Passed,
    /// It refused, with this code.
    Refused(u16),
    /// It could not be asked, which refused the request.
    FailedClosed(u16),
    /// It could not be asked, and the request passed all the same.
    FailedOpen(u16),
    /// The request could not be shown to it, or its patch not be applied.
    Internal,
}

/// What plugins ask of the server that they run in.
#[async_trait]
pub trait Host: Send + Sync {
    /// Notes how long a plugin took in a pass (`admit` or `validate`), and whether it refused.
    fn observed(
        &self,
        _plugin: &'static str,
        _operation: Operation,
        _pass: &'static str,
        _refused: bool,
        _took: Duration,
    ) {
    }

    /// Writes the status of an object at its resourceVersion, as the server itself.
    ///
    /// # Errors
    /// 409 when the object has changed; else the refusal.
    async fn update_status(&self, group: &str, plural: &str, obj: Box<dyn Object>) -> Result<(), Status>;

    /// The JSON of an object as clients of `def`'s version see it.
    ///
    /// # Errors
    /// 500 when it cannot be converted.
    fn show(&self, def: &ResourceDef, obj: &dyn Object) -> Result<Value, Status>;

    /// Reads JSON of `def`'s version as the object that is stored, with defaults.
    ///
    /// # Errors
    /// 400 when it does not decode.
    fn read(&self, def: &ResourceDef, value: Value) -> Result<Box<dyn Object>, Status>;

    /// Notes that a webhook was asked.
    fn observed_webhook(&self, _asked: &HookAsked<'_>) {}

    /// Posts a body to a webhook and returns the answer's body.
    ///
    /// # Errors
    /// Why that failed.
    async fn call(&self, target: &HookTarget, body: Vec<u8>, timeout: Duration)
    -> Result<Vec<u8>, CallError>;

    /// `object`, JSON of `def`'s version, with an apply configuration merged into it.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    fn merge(&self, def: &ResourceDef, object: Value, configuration: &Value) -> Result<Value, String>;

    /// Whether a user may do something.
    fn authorize(&self, attributes: &Attributes) -> (Decision, String);
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
