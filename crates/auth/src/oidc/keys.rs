//! The keys of a provider: found through its discovery document, asked for again when a token names another one.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Claims;
use super::signed::Signed;
use crate::remote::{Exchange, Remote};

/// Longest wait for one document.
pub(super) const WAIT: Duration = Duration::from_secs(30);
/// The provider is not asked again before that.
const PAUSE: Duration = Duration::from_secs(10);
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Why a token is not believed.
#[derive(Debug, PartialEq)]
pub(super) enum Unverified {
    /// The provider has not been reached yet.
    NoKeys,
    /// What is wrong with the token.
    Token(String),
}

/// The keys of a provider.
pub(super) struct Keys {
    remote: Arc<dyn Remote>,
    issuer: String,
    discovery: String,
    known: RwLock<Option<Arc<JwkSet>>>,
    /// When the provider was asked last: one asks for all who wait.
    asked: Mutex<Option<Instant>>,
}

impl Keys {
    /// Of the provider at `issuer`, which describes itself at `discovery`, or at the well-known place.
    pub(super) fn new(remote: Arc<dyn Remote>, issuer: &str, discovery: &str) -> Self {
        crate::jwt::install();
        let discovery = match discovery {
            "" => format!("{}{WELL_KNOWN}", issuer.trim_end_matches('/')),
            url => url.to_owned(),
        };
        Self {
            remote,
            issuer: issuer.to_owned(),
            discovery,
            known: RwLock::default(),
            asked: Mutex::default(),
        }
    }

    /// The claims of a token that one of the keys has signed.
    pub(super) async fn verify(&self, token: &str, algorithms: &[String]) -> Result<Claims, Unverified> {
        let signed = Signed::read(token).map_err(Unverified::Token)?;
        let algorithm = &signed.algorithm;
        if !algorithms.contains(algorithm) {
            return Err(Unverified::Token(format!(
                "oidc: id token signed with unsupported algorithm, expected {algorithms:?} got {algorithm:?}"
            )));
        }
        let mut seen = self.known.read().clone();
        if seen.as_ref().is_some_and(|set| one_signed(set, &signed)) {
            return signed.claims().map_err(Unverified::Token);
        }
        // The key may be a new one.
        if let Err(why) = self.ask(seen.as_ref()).await {
            tracing::warn!(issuer = self.issuer, %why, "cannot read the keys of a token provider");
            if seen.is_none() {
                return Err(Unverified::NoKeys);
            }
        }
        seen = self.known.read().clone();
        if seen.as_ref().is_some_and(|set| one_signed(set, &signed)) {
            return signed.claims().map_err(Unverified::Token);
        }
        let why = "failed to verify signature: failed to verify id token signature";
        Err(Unverified::Token(why.to_owned()))
    }

    /// Knows the keys from here on, if the provider tells them.
    pub(super) async fn ready(&self) -> Result<(), String> {
        let known = self.known.read().clone();
        if known.is_some() {
            return Ok(());
        }
        let asked = self.ask(None).await;
        asked.map_err(|why| format!("{:?} is not initialized: {why}", self.issuer))
    }

    /// Asks the provider, unless someone has meanwhile, or a moment ago.
    async fn ask(&self, seen: Option<&Arc<JwkSet>>) -> Result<(), String> {
        let mut asked = self.asked.lock().await;
        let known = self.known.read().clone();
        let same = match (&known, seen) {
            (Some(known), Some(seen)) => Arc::ptr_eq(known, seen),
            (known, seen) => known.is_none() == seen.is_none(),
        };
        if !same {
            return Ok(());
        }
        if asked.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err("asked a moment ago".to_owned());
        }
        *asked = Some(Instant::now());
        let about = self.document(&self.discovery).await?;
        let says = about["issuer"].as_str().unwrap_or("");
        if says != self.issuer {
            let own = &self.issuer;
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {own:?} got {says:?}"
            ));
        }
        let url = about["jwks_uri"].as_str().ok_or("provider did not return JWKS URL")?;
        let set = self.document(url).await?;
        // Keys of kinds that are not known do not spoil the others.
        let keys = set["keys"].as_array().into_iter().flatten();
        let keys = keys.filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok()).collect();
        *self.known.write() = Some(Arc::new(JwkSet { keys }));
        Ok(())
    }

    async fn document(&self, url: &str) -> Result<Value, String> {
        let asked = tokio::time::timeout(WAIT, self.remote.exchange(url, Exchange::Get(None))).await;
        let failed = |why: String| format!("Get {url:?}: {why}");
        match asked.map_err(|_| failed("context deadline exceeded".to_owned()))?.map_err(failed)? {
            (200, body) => serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}")),
            (code, body) => Err(format!("{code}: {}", String::from_utf8_lossy(&body))),
        }
    }
}

/// Whether a key that may be meant has signed the token.
fn one_signed(set: &JwkSet, token: &Signed<'_>) -> bool {
    let meant = |key: &Jwk| token.key.is_none() || key.common.key_id == token.key;
    set.keys.iter().any(|key| meant(key) && token.is_signed_by(key))
}
