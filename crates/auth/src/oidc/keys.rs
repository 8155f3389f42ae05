//! The keys of a provider: found through its discovery document, asked for again when a token names another one.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{DecodingKey, Validation};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Claims;
use super::config::Issuer;
use crate::remote::Remote;
use crate::user::AuthnError;

/// Longest wait for one document.
const WAIT: Duration = Duration::from_secs(30);
/// The provider is not asked again before that.
const PAUSE: Duration = Duration::from_secs(10);
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

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
    pub(super) fn new(remote: Arc<dyn Remote>, issuer: &Issuer) -> Self {
        crate::jwt::install();
        let discovery = match issuer.discovery_url.as_str() {
            "" => format!("{}{WELL_KNOWN}", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        Self {
            remote,
            issuer: issuer.url.clone(),
            discovery,
            known: RwLock::default(),
            asked: Mutex::default(),
        }
    }

    /// The claims of a token that one of the keys has signed.
    pub(super) async fn verify(&self, token: &str, algorithms: &[String]) -> Result<Claims, AuthnError> {
        let unverified = |why: String| AuthnError(format!("oidc: verify token: {why}"));
        let header = jsonwebtoken::decode_header(token)
            .map_err(|e| unverified(format!("oidc: malformed jwt: {e}")))?;
        let algorithm = format!("{:?}", header.alg);
        if !algorithms.contains(&algorithm) {
            let why = format!(
                "oidc: id token signed with unsupported algorithm, expected {algorithms:?} got {algorithm:?}"
            );
            return Err(unverified(why));
        }
        let mut validation = Validation::new(header.alg);
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        validation.required_spec_claims.clear();
        let kid = header.kid.as_deref();
        let mut seen = self.known.read().clone();
        if let Some(claims) = seen.as_ref().and_then(|set| decode(token, set, kid, &validation)) {
            return Ok(claims);
        }
        // The key may be a new one.
        if let Err(why) = self.ask(seen.as_ref()).await {
            tracing::warn!(issuer = self.issuer, %why, "cannot read the keys of a token provider");
            if seen.is_none() {
                return Err(AuthnError("oidc: authenticator not initialized".to_owned()));
            }
        }
        seen = self.known.read().clone();
        let claims = seen.as_ref().and_then(|set| decode(token, set, kid, &validation));
        claims.ok_or_else(|| {
            unverified("failed to verify signature: failed to verify id token signature".into())
        })
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
        let asked = tokio::time::timeout(WAIT, self.remote.exchange(url, None)).await;
        let failed = |why: String| format!("Get {url:?}: {why}");
        match asked.map_err(|_| failed("context deadline exceeded".to_owned()))?.map_err(failed)? {
            (200, body) => serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}")),
            (code, body) => Err(format!("{code}: {}", String::from_utf8_lossy(&body))),
        }
    }
}

/// The claims, if a key that may be meant has signed them.
fn decode(token: &str, set: &JwkSet, kid: Option<&str>, validation: &Validation) -> Option<Claims> {
    let meant = |key: &&Jwk| kid.is_none() || key.common.key_id.as_deref() == kid;
    set.keys.iter().filter(meant).find_map(|key| {
        let key = DecodingKey::from_jwk(key).ok()?;
        jsonwebtoken::decode::<Claims>(token, &key, validation).ok().map(|data| data.claims)
    })
}
