//! Tokens kept in Secrets of type `kubernetes.io/service-account-token`: without an end, good for as long as the Secret
//! holds them and the account exists.

use std::collections::BTreeSet;

use coracle_meta::ObjectReader;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{TokenIssuer, user, user_name};
use crate::user::{AuthnError, UserInfo};

/// Who issues these tokens, by their own word.
pub(super) const ISSUER: &str = "kubernetes/serviceaccount";
/// Since when a token has been out of use, where it has.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// The day on which a token was used last, as upstream's API server notes it.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
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

/// A Secret whose token has been used on a day that it does not show yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LegacyUse {
    /// Of the Secret.
    pub namespace: String,
    /// Of the Secret.
    pub name: String,
    /// Of the Secret.
    pub uid: String,
    /// The day, as the value of the label.
    pub day: String,
}

impl LegacyUse {
    /// What is to be merged into the Secret. Another Secret of that name, with another uid, refuses it.
    pub fn patch(&self) -> Value {
        json!({ "metadata": { "uid": self.uid, "labels": { LAST_USED: self.day } } })
    }
}

/// Uses of tokens in Secrets that have not been written down. Somebody is to wait for them.
#[derive(Debug, Default)]
pub struct LegacyUses {
    noted: Mutex<BTreeSet<LegacyUse>>,
    woken: Notify,
}

impl LegacyUses {
    /// Waits for uses; each is told once.
    pub async fn next(&self) -> BTreeSet<LegacyUse> {
        loop {
            let noted = std::mem::take(&mut *self.noted.lock());
            if !noted.is_empty() {
                return noted;
            }
            self.woken.notified().await;
        }
    }

    /// Notes that the token of a Secret is used now, unless the Secret shows that already.
    fn note(&self, secret: &Secret, now: Timestamp) {
        let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
        let (today, tomorrow) = (day(now), day(now + SignedDuration::from_hours(24)));
        let shown = secret.metadata.labels.as_ref().and_then(|labels| labels.get(LAST_USED));
        // Another server's clock may be ahead.
        if shown.is_some_and(|shown| *shown == today || *shown == tomorrow) {
            return;
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &secret.metadata;
        let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
        if self.noted.lock().insert(LegacyUse { namespace, name, uid, day: today }) {
            self.woken.notify_one();
        }
    }
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
    (uses, now): (&LegacyUses, Timestamp),
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
    let own = account.meta().uid.as_deref().unwrap_or("");
    if own != uid {
        return Err(AuthnError(format!("ServiceAccount UID ({own}) does not match claim ({uid})")));
    }
    uses.note(secret, now);
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
