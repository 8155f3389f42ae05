//! Tokens kept in Secrets of type `kubernetes.io/service-account-token`: without an end, good for as long as the Secret
//! holds them and the account exists.

use coracle_meta::ObjectReader;
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

use super::{TokenIssuer, user, user_name};
use crate::user::{AuthnError, UserInfo};

/// Who issues these tokens, by their own word.
pub(super) const ISSUER: &str = "kubernetes/serviceaccount";
/// Since when a token has been out of use, where it has.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where in the Secret the token stands.
const TOKEN: &str = "token";

/// What such a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    #[serde(default)]
    sub: String,
}

impl TokenIssuer {
    /// A token without an end for an account, to be kept in the Secret `secret` of its namespace.
    ///
    /// # Panics
    /// Never: [`TokenIssuer::new`] has tried the key.
    pub fn issue_legacy(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> String {
        let claims = Claims {
            iss: ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            uid: uid.to_owned(),
            sub: user_name(namespace, account),
        };
        self.encode(&claims)
    }
}

/// Whether the token is (still) good, and whose it is. Its signature has been checked.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(
    claims: &Claims,
    token: &str,
    objects: &dyn ObjectReader,
) -> Result<UserInfo, AuthnError> {
    let Claims { namespace, secret: secret_name, account: name, uid, .. } = claims;
    let parts = [
        ("sub", &claims.sub),
        ("namespace", namespace),
        ("secretName", secret_name),
        ("serviceAccountName", name),
        ("serviceAccountUID", uid),
    ];
    if let Some((part, _)) = parts.iter().find(|(_, value)| value.is_empty()) {
        return Err(AuthnError(format!("{part} claim is missing")));
    }
    if claims.sub != user_name(namespace, name) {
        return Err(AuthnError("sub claim is invalid".into()));
    }
    let invalidated = || AuthnError("Token has been invalidated".into());
    let object = objects.get("", "secrets", namespace, secret_name).ok_or_else(invalidated)?;
    let secret = object.downcast::<Secret>().ok_or_else(invalidated)?;
    if secret.metadata.deletion_timestamp.is_some() {
        return Err(invalidated());
    }
    let kept = secret.data.as_ref().and_then(|data| data.get(TOKEN));
    if kept.is_none_or(|kept| !same(&kept.0, token.as_bytes())) {
        return Err(AuthnError("Token does not match server's copy".into()));
    }
    let Some(account) = objects.get("", "serviceaccounts", namespace, name) else {
        return Err(AuthnError(format!("serviceaccounts {name:?} not found")));
    };
    if account.meta().deletion_timestamp.is_some() {
        return Err(AuthnError(format!("ServiceAccount {namespace}/{name} has been deleted")));
    }
    let now = account.meta().uid.as_deref().unwrap_or("");
    if now != uid {
        return Err(AuthnError(format!("ServiceAccount UID ({now}) does not match claim ({uid})")));
    }
    let labels = secret.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(INVALID_SINCE)).is_some_and(|since| !since.is_empty()) {
        return Err(AuthnError(format!(
            "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked \
             invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
             '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
        )));
    }
    Ok(user(namespace, name, uid))
}

/// Compares without telling by its time where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
