//! Tokens of OpenID Connect providers, as flags or an AuthenticationConfiguration describe them.

mod claims;
pub mod config;
mod keys;
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
use keys::Keys;

pub use validate::{Compiled, validate};

/// The claims of a token.
type Claims = Map<String, Value>;

/// How long a token may be used before it begins to count, for clocks that differ.
const LEEWAY: i64 = 300;

/// Algorithms that flags may name.
pub const ALGORITHMS: [&str; 9] =
    ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

/// Takes the tokens of one provider.
pub struct Oidc {
    config: JwtAuthenticator,
    compiled: Compiled,
    algorithms: Vec<String>,
    keys: Keys,
    clock: Clock,
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
        let keys = Keys::new(remote, &config.issuer);
        Self { config, compiled, algorithms, keys, clock }
    }

    async fn verify(&self, token: &str) -> Result<UserInfo, AuthnError> {
        let unverified = |why: String| AuthnError(format!("oidc: verify token: {why}"));
        let claims = self.keys.verify(token, &self.algorithms).await?;
        self.check(&claims).map_err(unverified)?;
        claims::user(&self.config, &self.compiled, &claims).map_err(AuthnError)
    }

    /// Audience and times.
    fn check(&self, claims: &Claims) -> Result<(), String> {
        let audiences = &self.config.issuer.audiences;
        let of: Vec<String> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        if !audiences.iter().any(|a| of.contains(a)) {
            return Err(match audiences.as_slice() {
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
        if issuer(token).as_deref() != Some(self.config.issuer.url.as_str()) {
            return Ok(None);
        }
        self.verify(token).await.map(Some)
    }
}

/// Whom a token says that it is of; nothing has been checked.
fn issuer(token: &str) -> Option<String> {
    let parts: Vec<&str> = token.split('.').collect();
    let [_, payload, _] = parts.as_slice() else { return None };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let issuer = claims.get("iss")?.as_str()?;
    Some(if issuer == "accounts.google.com" { format!("https://{issuer}") } else { issuer.to_owned() })
}

#[cfg(test)]
mod tests;
