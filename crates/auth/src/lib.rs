//! Who asks and whether they may: authenticators and authorizers.

pub mod abac;
pub mod always;
pub mod authz_config;
pub mod authz_webhook;
pub mod bootstrap;
pub mod bootstrap_token;
pub mod csr;
mod front_proxy;
pub mod impersonation;
mod jwt;
pub mod node;
pub mod oidc;
pub mod pki;
pub mod private_key;
pub mod rbac;
mod remote;
pub mod service_account;
pub mod static_token;
pub mod token_webhook;
pub mod user;
pub mod x509;

use std::sync::Arc;

pub use front_proxy::FrontProxy;
pub use remote::{Exchange, Remote};
pub use user::{
    Attributes, Authenticator, AuthnError, Authorizer, Credentials, Decision, NonResourceRule, ResourceRule,
    UserInfo,
};

/// The group that may do everything.
pub const SYSTEM_MASTERS: &str = "system:masters";

/// Asks the authenticators in order; the first that knows the credentials decides. `Ok(None)`: nothing was
/// shown, the request is anonymous.
///
/// # Errors
/// Credentials were shown and none of the authenticators accepted them.
pub async fn authenticate(
    authenticators: &[Arc<dyn Authenticator>],
    credentials: &Credentials,
) -> Result<Option<UserInfo>, AuthnError> {
    let mut refused = None;
    for authenticator in authenticators {
        match authenticator.authenticate(credentials).await {
            Ok(Some(user)) => return Ok(Some(user)),
            Ok(None) => {}
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    match refused {
        Some(e) => Err(e),
        None if credentials.bearer.as_deref().is_some_and(|t| !t.is_empty()) => {
            Err(AuthnError("invalid bearer token".into()))
        }
        None => Ok(None),
    }
}

/// As [`authorize`], awaiting those that ask servers elsewhere.
pub async fn ask(authorizers: &[Arc<dyn Authorizer>], attributes: &Attributes) -> (Decision, String) {
    if attributes.user.in_group(SYSTEM_MASTERS) {
        return (Decision::Allow, String::new());
    }
    let mut reasons: Vec<String> = Vec::new();
    for authorizer in authorizers {
        let (decision, reason) = if authorizer.is_remote() {
            authorizer.ask(attributes).await
        } else {
            authorizer.authorize(attributes)
        };
        if decision != Decision::NoOpinion {
            return (decision, reason);
        }
        if !reason.is_empty() {
            reasons.push(reason);
        }
    }
    (Decision::NoOpinion, reasons.join("\n"))
}

/// Asks the authorizers in order until one allows or denies. Reasons of those without an opinion are
/// joined, one per line, as upstream does.
pub fn authorize(authorizers: &[Arc<dyn Authorizer>], attributes: &Attributes) -> (Decision, String) {
    if attributes.user.in_group(SYSTEM_MASTERS) {
        return (Decision::Allow, String::new());
    }
    let mut reasons: Vec<String> = Vec::new();
    for authorizer in authorizers {
        let (decision, reason) = authorizer.authorize(attributes);
        if decision != Decision::NoOpinion {
            return (decision, reason);
        }
        if !reason.is_empty() {
            reasons.push(reason);
        }
    }
    (Decision::NoOpinion, reasons.join("\n"))
}

#[cfg(test)]
mod testing;
