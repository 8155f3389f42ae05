//! Tokens of OpenID Connect providers, as flags or an AuthenticationConfiguration describe them.

mod claims;
pub mod config;
mod distributed;
mod keys;
mod signed;
mod validate;

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_stdx::Clock;
use serde_json::{Map, Value};

use crate::remote::Remote;
use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};
use config::JwtAuthenticator;
use distributed::Distributed;
use keys::{Keys, Unverified};

pub use validate::{Compiled, validate};

/// The claims of a token.
type Claims = Map<String, Value>;

/// How long a token may be used before it begins to count, for clocks that differ.
const LEEWAY: i64 = 60;

/// Algorithms that flags may name.
pub const ALGORITHMS: [&str; 9] =
    ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

/// Takes the tokens of one provider.
pub struct Oidc {
    config: JwtAuthenticator,
    compiled: Compiled,
    keys: Arc<Keys>,
    verifier: Verifier,
    /// Groups may be told by another server.
    groups: Option<Distributed>,
}

impl Oidc {
    /// A provider; `remote` trusts the authorities that the configuration names. The provider is asked for its keys
    /// when the first token arrives.
    pub fn new(
        config: JwtAuthenticator,
        compiled: Compiled,
        algorithms: Vec<String>,
        remote: Arc<dyn Remote>,
        clock: Clock,
    ) -> Self {
        let issuer = &config.issuer;
        let keys = Arc::new(Keys::new(remote.clone(), &issuer.url, &issuer.discovery_url));
        let claim = &config.claim_mappings.groups.claim;
        let groups = (!claim.is_empty()).then(|| Distributed::new(claim, remote, &issuer.url, keys.clone()));
        let verifier = Verifier { audiences: issuer.audiences.clone(), algorithms, clock };
        Self { config, compiled, keys, verifier, groups }
    }

    /// Whether the provider's keys are known; asks for them if they are not.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn ready(&self) -> Result<(), String> {
        self.keys.ready().await.map_err(|why| format!("oidc: authenticator for issuer {why}"))
    }

    async fn verify(&self, token: &str) -> Result<UserInfo, AuthnError> {
        let mut claims = self.verifier.verify(&self.keys, token).await.map_err(|why| {
            AuthnError(match why {
                Unverified::NoKeys => "oidc: authenticator not initialized".to_owned(),
                Unverified::Token(why) => format!("oidc: verify token: {why}"),
            })
        })?;
        if let Some(groups) = &self.groups {
            let expanded = groups.expand(&mut claims, &self.verifier).await;
            expanded.map_err(|e| AuthnError(format!("oidc: could not expand distributed claims: {e}")))?;
        }
        claims::user(&self.config, &self.compiled, &claims).map_err(AuthnError)
    }
}

/// What is asked of a token, whoever has signed it.
struct Verifier {
    audiences: Vec<String>,
    algorithms: Vec<String>,
    clock: Clock,
}

impl Verifier {
    /// The claims of a token that one of `keys` has signed, for this server and for now.
    async fn verify(&self, keys: &Keys, token: &str) -> Result<Claims, Unverified> {
        let claims = keys.verify(token, &self.algorithms).await?;
        self.check(&claims).map_err(Unverified::Token)?;
        Ok(claims)
    }

    /// Audience and times.
    fn check(&self, claims: &Claims) -> Result<(), String> {
        let of: Vec<String> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        if !self.audiences.iter().any(|a| of.contains(a)) {
            return Err(match self.audiences.as_slice() {
                [one] => format!("oidc: expected audience {one:?} got {of:?}"),
                many => format!("oidc: expected audience in {many:?} got {of:?}"),
            });
        }
        let now = self.clock.now().as_second();
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds are meant")]
        let second = |name: &str| claims.get(name).and_then(Value::as_f64).map(|t| t as i64);
        let time = |t: i64| jiff::Timestamp::from_second(t).unwrap_or_default();
        let end = second("exp").unwrap_or(0);
        if end < now {
            return Err(format!("oidc: token is expired (Token Expiry: {})", time(end)));
        }
        match second("nbf") {
            Some(begin) if now + LEEWAY < begin => Err(format!(
                "oidc: current time {} before the nbf (not before) time: {}",
                time(now),
                time(begin)
            )),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Authenticator for Oidc {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        let Some(token) = credentials.bearer.as_deref() else { return Ok(None) };
        if issuer(token).ok().as_deref() != Some(self.config.issuer.url.as_str()) {
            return Ok(None);
        }
        self.verify(token).await.map(Some)
    }
}

/// Whom a token says that it is of; nothing has been checked.
fn issuer(token: &str) -> Result<String, String> {
    if token.trim_start().starts_with('{') {
        return Err("token is not compact JWT".to_owned());
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [_, payload, _] = parts.as_slice() else { return Err("malformed token".to_owned()) };
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|e| format!("error decoding token: {e}"))?;
    let claims: Claims =
        serde_json::from_slice(&payload).map_err(|e| format!("while unmarshaling token: {e}"))?;
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or("");
    Ok(if issuer == "accounts.google.com" { format!("https://{issuer}") } else { issuer.to_owned() })
}

#[cfg(test)]
mod tests;
