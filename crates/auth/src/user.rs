//! The identity of a request and the traits that establish and check it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use coracle_meta::Status;
use serde_json::{Value, json};

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name, e.g. `system:node:worker-1`.
    pub name: String,
    /// Unique id; often empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// As `UserInfo` of authentication.k8s.io/v1, in reviews and in the audit log: what is empty is left out.
    pub fn to_json(&self) -> Value {
        let mut out = json!({ "username": self.name });
        if !self.uid.is_empty() {
            out["uid"] = self.uid.clone().into();
        }
        if !self.groups.is_empty() {
            out["groups"] = self.groups.clone().into();
        }
        if !self.extra.is_empty() {
            out["extra"] = json!(self.extra);
        }
        out
    }

    /// A user of the given groups; `system:authenticated` is added.
    pub fn authenticated(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        Self { name: name.into(), groups, ..Self::default() }
    }
    /// `system:anonymous` in `system:unauthenticated`.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }
    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What a request shows to prove its identity.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The verified client certificate (DER), if TLS presented one that chains to the client CA.
    pub client_cert: Option<Vec<u8>>,
    /// The bearer token, if sent.
    pub bearer: Option<String>,
}

/// Credentials were shown but are not valid: 401.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthnError(pub String);

/// Establishes an identity.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `Ok(None)`: these credentials are not of this authenticator's kind; the next one is asked.
    ///
    /// # Errors
    /// The credentials are of its kind but invalid or expired.
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError>;

    /// Checks a token for any of `wanted` audiences, as a TokenReview asks; also tells which of them it
    /// serves. Tokens without audiences serve `own`, those of the API server.
    ///
    /// # Errors
    /// The token is of its kind but invalid, expired, or for other audiences.
    async fn review(
        &self,
        token: &str,
        wanted: &[String],
        own: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        let credentials = Credentials { client_cert: None, bearer: Some(token.to_owned()) };
        let served: Vec<String> = wanted.iter().filter(|a| own.contains(a)).cloned().collect();
        match self.authenticate(&credentials).await? {
            Some(_) if served.is_empty() => Err(AuthnError("invalid bearer token".into())),
            user => Ok(user.map(|user| (user, served))),
        }
    }
}

/// What a request wants to do, as authorizers see it.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// Who.
    pub user: UserInfo,
    /// `get`, `list`, `create` …; for non-resource requests the lower-case HTTP method.
    pub verb: String,
    /// Whether this is a request for a resource (else only `path` counts).
    pub is_resource: bool,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Object name, or empty.
    pub name: String,
    /// URL path.
    pub path: String,
    /// `fieldSelector` of a list, watch or deletecollection, as sent; else empty. A selector of
    /// `metadata.name` alone also sets `name`.
    pub field_selector: String,
    /// `labelSelector` of the same, as sent.
    pub label_selector: String,
}

impl Attributes {
    /// The refusal of such a request: `User "x" cannot list resource "pods" in API group "" in the namespace "y"`.
    pub fn forbidden(&self, reason: &str) -> Status {
        let a = self;
        let user = &a.user.name;
        let mut why = if a.is_resource {
            let resource = match a.subresource.as_str() {
                "" => a.resource.clone(),
                sub => format!("{}/{sub}", a.resource),
            };
            let place = match a.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            format!(
                "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}",
                a.verb, a.group
            )
        } else {
            format!("User {user:?} cannot {} path {:?}", a.verb, a.path)
        };
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        Status::forbidden(&a.group, &a.resource, &a.name, &why)
    }
}

/// An authorizer's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request may go on.
    Allow,
    /// The request is refused; no further authorizer is asked.
    Deny,
    /// The next authorizer is asked; refused when none is left.
    NoOpinion,
}

/// Decides whether a request may proceed: from shared in-memory objects, or by asking a server elsewhere.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// The decision and its reason (may be empty). One that is remote blocks the thread: use
    /// [`Authorizer::ask`] where that can be awaited.
    fn authorize(&self, attributes: &Attributes) -> (Decision, String);
    /// Whether it asks a server elsewhere.
    fn is_remote(&self) -> bool {
        false
    }
    /// As [`Authorizer::authorize`], without blocking.
    async fn ask(&self, attributes: &Attributes) -> (Decision, String) {
        self.authorize(attributes)
    }
    /// The rules that `user` has in `namespace`, for SelfSubjectRulesReview: (resource rules, non-resource
    /// rules, incomplete).
    fn rules_for(
        &self,
        _user: &UserInfo,
        _namespace: &str,
    ) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        (Vec::new(), Vec::new(), true)
    }
}

/// A resource rule of a rules review.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "fields as in authorization.k8s.io/v1 ResourceRule")]
pub struct ResourceRule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
}

/// A non-resource rule of a rules review.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "fields as in authorization.k8s.io/v1 NonResourceRule")]
pub struct NonResourceRule {
    pub verbs: Vec<String>,
    pub paths: Vec<String>,
}

/// Waits for a future where nothing can be awaited, such as within the evaluation of an expression.
pub(crate) fn wait<T: Send>(future: impl Future<Output = T> + Send) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let handle = Handle::current();
    if handle.runtime_flavor() == RuntimeFlavor::MultiThread {
        return tokio::task::block_in_place(|| handle.block_on(future));
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(future))
        });
        match waiting.join() {
            Ok(Ok(done)) => done,
            Ok(Err(e)) => panic!("no runtime to wait in: {e}"),
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    })
}
