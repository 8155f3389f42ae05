//! Claims that are not in the token but at another server, which gives them in a token of its own.
//!
//! Source: OpenID Connect Core 1.0, section 5.6.2.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::keys::Keys;
use super::{Claims, Verifier, issuer};
use crate::remote::{Exchange, Remote};

/// Most providers whose keys are kept: more than that is somebody who makes names up.
const PROVIDERS: usize = 64;

/// Where a claim is.
#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    endpoint: String,
    /// Shown there, if there is one.
    #[serde(default)]
    access_token: String,
}

/// Fetches one claim where a token says that it is.
pub(super) struct Distributed {
    claim: String,
    remote: Arc<dyn Remote>,
    own: (String, Arc<Keys>),
    others: Mutex<HashMap<String, Arc<Keys>>>,
}

impl Distributed {
    /// For `claim`; `issuer` is the provider whose `keys` are known already.
    pub(super) fn new(claim: &str, remote: Arc<dyn Remote>, issuer: &str, keys: Arc<Keys>) -> Self {
        let own = (issuer.to_owned(), keys);
        Self { claim: claim.to_owned(), remote, own, others: Mutex::default() }
    }

    /// Puts the claim among `claims`, if they only say where it is.
    ///
    /// # Errors
    /// What cannot be understood, reached or believed.
    pub(super) async fn expand(&self, claims: &mut Claims, verifier: &Verifier) -> Result<(), String> {
        match source(&self.claim, claims)? {
            Some(source) => {
                let value = self.fetch(&source, verifier).await?;
                claims.insert(self.claim.clone(), value);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn fetch(&self, source: &Source, verifier: &Verifier) -> Result<Value, String> {
        let (claim, url) = (&self.claim, &source.endpoint);
        let failed = |why: String| format!("while getting distributed claim {claim:?}: {why}");
        let token = Some(source.access_token.as_str()).filter(|token| !token.is_empty());
        let asked = tokio::time::timeout(super::keys::WAIT, self.remote.exchange(url, Exchange::Get(token)));
        let answer = asked.await.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
        let body = match answer.map_err(|why| failed(format!("Get {url:?}: {why}")))? {
            (200..=226, body) => String::from_utf8_lossy(&body).into_owned(),
            (code, _) => {
                let text = http::StatusCode::from_u16(code).ok().and_then(|c| c.canonical_reason());
                let status = format!("{code} {}", text.unwrap_or(""));
                let why = format!("error while getting distributed claim JWT: {}", status.trim_end());
                return Err(failed(why));
            }
        };
        let from = issuer(&body).map_err(|why| {
            format!("getting untrusted issuer from endpoint {url} failed for claim {claim:?}: {why}")
        })?;
        let keys = self.keys(&from)?;
        let mut said = verifier.verify(&keys, &body).await.map_err(|why| match why {
            super::Unverified::NoKeys => {
                format!(
                    "verifying untrusted issuer {from} failed: verifier not initialized for issuer: {from:?}"
                )
            }
            super::Unverified::Token(why) => format!("verify distributed claim token: {why}"),
        })?;
        said.remove(claim).ok_or_else(|| {
            format!("jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}")
        })
    }

    /// The keys of a provider that a token names. Whether it may speak is what its keys and the audience tell.
    fn keys(&self, issuer: &str) -> Result<Arc<Keys>, String> {
        if issuer == self.own.0 {
            return Ok(self.own.1.clone());
        }
        let mut others = self.others.lock();
        if others.len() >= PROVIDERS && !others.contains_key(issuer) {
            return Err(format!("verifying untrusted issuer {issuer} failed: too many issuers"));
        }
        let new = || Arc::new(Keys::new(self.remote.clone(), issuer, ""));
        Ok(others.entry(issuer.to_owned()).or_insert_with(new).clone())
    }
}

/// Where a claim is, if it is elsewhere.
fn source(claim: &str, claims: &Claims) -> Result<Option<Source>, String> {
    let Some(names) = claims.get("_claim_names").filter(|_| !claims.contains_key(claim)) else {
        return Ok(None);
    };
    let names: HashMap<String, String> = serde_json::from_value(names.clone())
        .map_err(|e| format!("oidc: error parsing distributed claim names: {e}"))?;
    let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
    let mut sources: HashMap<String, Source> = serde_json::from_value(sources.clone())
        .map_err(|e| format!("oidc: could not parse claim sources: {e}"))?;
    let Some(name) = names.get(claim) else { return Ok(None) };
    let source = sources.remove(name).ok_or_else(|| {
        format!("id token _claim_names contained a source {name} missing in _claims_sources")
    })?;
    // Without an endpoint it may be an aggregated claim, which nobody reads.
    Ok(Some(source).filter(|source| !source.endpoint.is_empty()))
}
