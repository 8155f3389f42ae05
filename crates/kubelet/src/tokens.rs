//! Service account tokens of pods: asked for through the API, kept until four fifths of their life are over.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_client::{ApiResponse, Client};
use coracle_meta::Status;
use coracle_stdx::Clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use parking_lot::Mutex;
use serde_json::json;

use crate::names;
use crate::pod::spec;

/// A token and when to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// Four fifths into its life.
    pub renew_at: Timestamp,
}

/// Pod uid, audience, life.
type Key = (String, String, i64);

/// The tokens of this node's pods.
pub struct Tokens {
    client: Client,
    clock: Clock,
    kept: Mutex<HashMap<Key, Arc<Token>>>,
}

impl Tokens {
    /// No tokens yet.
    pub fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, kept: Mutex::new(HashMap::new()) }
    }

    /// A token of the pod's service account, bound to the pod, that is good for a while.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn get(&self, pod: &Pod, audience: Option<&str>, life: i64) -> Result<Arc<Token>, Status> {
        let key = (names::uid(pod).to_owned(), audience.unwrap_or("").to_owned(), life);
        let now = self.clock.now();
        if let Some(kept) = self.kept.lock().get(&key).filter(|t| t.renew_at > now) {
            return Ok(kept.clone());
        }
        let account =
            spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {},
            "spec": {
                "audiences": audience.iter().collect::<Vec<_>>(),
                "expirationSeconds": life,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": names::name(pod), "uid": names::uid(pod),
                },
            },
        });
        let api = self.client.api::<ServiceAccount>();
        let answer = api.create_subresource(names::namespace(pod), account, "token", request).await?;
        let body = match answer {
            ApiResponse::Object(object) => object.to_value(),
            ApiResponse::Status(value) => value,
            ApiResponse::List { .. } => return Err(Status::internal("a token request returned a list")),
        };
        let token = body["status"]["token"].as_str().filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| Status::internal("a token request returned no token"))?;
        let expires = body["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse().ok());
        let expires: Timestamp = expires.unwrap_or_else(|| crate::pod::after(now, life));
        let whole = expires.duration_since(now);
        let renew_at = now.saturating_add(whole.mul_f64(0.8).max(SignedDuration::from_secs(1)));
        let token = Arc::new(Token { token: token.to_owned(), renew_at: renew_at.unwrap_or(expires) });
        self.kept.lock().insert(key, token.clone());
        Ok(token)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.kept.lock().retain(|key, _| key.0 != uid);
    }
}
