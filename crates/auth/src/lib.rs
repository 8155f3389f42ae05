//! Who asks and whether they may: authenticators and authorizers.

pub mod bootstrap;
pub mod csr;
mod jwt;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod service_account;
pub mod static_token;
pub mod user;
pub mod x509;

use std::sync::Arc;

pub use user::{Attributes, Authenticator, AuthnError, Authorizer, Credentials, Decision, UserInfo};

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
