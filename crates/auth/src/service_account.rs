//! Service account tokens: issued bound to a pod, secret or node, and checked against what still exists.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_meta::ObjectReader;
use coracle_stdx::Clock;
use jiff::Timestamp;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::RwLock;
use rcgen::{KeyPair, PublicKeyData};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use keys::CheckingKey;
pub use legacy::{LegacyUse, LegacyUses};

use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};

/// Tokens whose signature is remembered as good.
const REMEMBERED: usize = 4096;

/// What a token is to say.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// Its uid.
    pub service_account_uid: String,
    /// Audiences; empty: the API server's.
    pub audiences: Vec<String>,
    /// Seconds until it expires.
    pub expiration_seconds: i64,
    /// `Pod`, `Secret` or `Node` (kind, name, uid) without which the token is void.
    pub bound: Option<(String, String, String)>,
    /// Node the bound pod runs on (name, uid).
    pub node: Option<(String, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Reference {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    aud: OneOrMany,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
    nbf: i64,
    sub: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<String>),
    One(String),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::Many(all) => all,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

/// Signs tokens and publishes the key that checks them.
pub struct TokenIssuer {
    header: Header,
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
    /// Keys that no longer, or elsewhere, sign.
    others: Vec<CheckingKey>,
    jwks: Value,
    issuer: String,
    audiences: Vec<String>,
    uses: LegacyUses,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuer").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl TokenIssuer {
    /// An issuer with the given private key (PEM, ECDSA P-256 or RSA), issuer URL and the audiences
    /// of the API server.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(private_key_pem: &str, issuer_url: &str, api_audiences: Vec<String>) -> Result<Self, String> {
        let why =
            |e: &dyn std::fmt::Display| format!("service account key: {e}; need PEM, ECDSA P-256 or RSA");
        crate::jwt::install();
        let private_key_pem = &crate::private_key::pkcs8(private_key_pem).map_err(|e| why(&e))?;
        let pair = KeyPair::from_pem(private_key_pem).map_err(|e| why(&e))?;
        let ecdsa = pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (algorithm, signing) = if ecdsa {
            (Algorithm::ES256, EncodingKey::from_ec_pem(private_key_pem.as_bytes()))
        } else {
            (Algorithm::RS256, EncodingKey::from_rsa_pem(private_key_pem.as_bytes()))
        };
        let signing = signing.map_err(|e| why(&e))?;
        let mut jwk = Jwk::from_encoding_key(&signing, algorithm).map_err(|e| why(&e))?;
        let kid = keys::id(&pair.subject_public_key_info());
        jwk.common.key_id = Some(kid.clone());
        let checking = DecodingKey::from_jwk(&jwk).map_err(|e| why(&e))?;
        let mut key = serde_json::to_value(&jwk).map_err(|e| why(&e))?;
        key["use"] = "sig".into();
        let mut header = Header::new(algorithm);
        header.kid = Some(kid);
        header.typ = None;
        let trial = json!({});
        jsonwebtoken::encode(&header, &trial, &signing).map_err(|e| why(&e))?;
        let validation = keys::validation(algorithm);
        Ok(Self {
            header,
            signing,
            checking,
            validation,
            others: Vec::new(),
            jwks: json!({ "keys": [key] }),
            issuer: issuer_url.to_owned(),
            audiences: api_audiences,
            uses: LegacyUses::default(),
        })
    }

    /// Also believes tokens that the keys in these PEM texts, public or private, have signed.
    ///
    /// # Errors
    /// A text without a key, or with one that cannot be used.
    pub fn with_keys(mut self, pems: &[String]) -> Result<Self, String> {
        for pem in pems {
            for key in keys::read(pem)? {
                if let Some(list) = self.jwks["keys"].as_array_mut()
                    && list.iter().all(|known| known["kid"] != key.jwk["kid"])
                {
                    list.push(key.jwk.clone());
                }
                self.others.push(key);
            }
        }
        Ok(self)
    }

    /// Uses of tokens in Secrets that are to be written down.
    pub fn legacy_uses(&self) -> &LegacyUses {
        &self.uses
    }

    /// Issues a token; also says when it expires.
    ///
    /// # Panics
    /// Never: [`TokenIssuer::new`] has tried the key.
    pub fn issue(&self, spec: &TokenSpec, now: Timestamp) -> (String, Timestamp) {
        let issued = now.as_second();
        let expires = issued.saturating_add(spec.expiration_seconds);
        let reference = |wanted: &str| {
            let (_, name, uid) = spec.bound.as_ref().filter(|(kind, ..)| kind == wanted)?;
            Some(Reference { name: name.clone(), uid: uid.clone() })
        };
        let node = spec.node.clone().map(|(name, uid)| Reference { name, uid });
        let audiences = if spec.audiences.is_empty() { &self.audiences } else { &spec.audiences };
        let claims = Claims {
            aud: OneOrMany::Many(audiences.clone()),
            exp: expires,
            iat: issued,
            iss: self.issuer.clone(),
            jti: coracle_stdx::uuid(),
            kubernetes: KubernetesClaims {
                namespace: spec.namespace.clone(),
                node: reference("Node").or(node),
                pod: reference("Pod"),
                secret: reference("Secret"),
                serviceaccount: Reference {
                    name: spec.service_account.clone(),
                    uid: spec.service_account_uid.clone(),
                },
            },
            nbf: issued,
            sub: user_name(&spec.namespace, &spec.service_account),
        };
        (self.encode(&claims), Timestamp::from_second(expires).unwrap_or(Timestamp::MAX))
    }

    fn encode(&self, claims: &impl Serialize) -> String {
        jsonwebtoken::encode(&self.header, claims, &self.signing)
            .expect("claims are plain JSON and the key signed at the start")
    }

    /// The audiences of the API server.
    pub fn api_audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The issuer URL.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The document at `/openid/v1/jwks`.
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// The document at `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        let algorithm = if self.header.alg == Algorithm::ES256 { "ES256" } else { "RS256" };
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [algorithm],
        })
    }

    /// `Ok(None)`: not one of ours.
    fn check<T: DeserializeOwned>(&self, token: &str, issuer: &str) -> Result<Option<T>, AuthnError> {
        if !issued(token, issuer) {
            return Ok(None);
        }
        let others = self.others.iter().map(|other| (&other.key, &other.validation));
        let mut refused = None;
        for (key, validation) in std::iter::once((&self.checking, &self.validation)).chain(others) {
            match jsonwebtoken::decode::<T>(token, key, validation) {
                Ok(data) => return Ok(Some(data.claims)),
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        let why = refused.map(|e| e.to_string()).unwrap_or_default();
        Err(AuthnError(format!("invalid bearer token: {why}")))
    }
}

/// Whether the token claims this issuer, before anything is verified.
fn issued(token: &str, issuer: &str) -> bool {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    let payload = token.split('.').nth(1).and_then(|p| URL_SAFE_NO_PAD.decode(p).ok());
    let claimed = payload.and_then(|p| serde_json::from_slice::<Issuer>(&p).ok());
    claimed.is_some_and(|claimed| claimed.iss == issuer)
}

/// `system:serviceaccount:<namespace>:<name>`.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The identity of a service account, as a token without extras gives it.
pub fn user(namespace: &str, name: &str, uid: &str) -> UserInfo {
    let of_namespace = format!("system:serviceaccounts:{namespace}");
    let mut user =
        UserInfo::authenticated(&user_name(namespace, name), &["system:serviceaccounts", &of_namespace]);
    user.uid = uid.to_owned();
    user
}

/// Checks service account tokens.
pub struct ServiceAccountAuthenticator {
    issuer: Arc<TokenIssuer>,
    objects: Arc<dyn ObjectReader>,
    clock: Clock,
    /// Tokens with a good signature, by digest. What can change (time, objects) is checked every time.
    known: RwLock<HashMap<[u8; 32], Arc<Claims>>>,
}

impl std::fmt::Debug for ServiceAccountAuthenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountAuthenticator").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl ServiceAccountAuthenticator {
    /// Checks what `issuer` signed against the cluster's `objects`.
    pub fn new(issuer: Arc<TokenIssuer>, objects: Arc<dyn ObjectReader>, clock: Clock) -> Self {
        Self { issuer, objects, clock, known: RwLock::default() }
    }

    /// Checks a token for any of `audiences` (empty: the API server's), as a TokenReview asks; also tells
    /// which of them it serves. `Ok(None)`: not a token of this issuer.
    ///
    /// # Errors
    /// The token is of this issuer, but void.
    pub fn review(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        let Some(claims) = self.claims(token)? else { return self.review_legacy(token, audiences) };
        let wanted = if audiences.is_empty() { self.issuer.api_audiences() } else { audiences };
        let served: Vec<String> =
            wanted.iter().filter(|a| claims.aud.as_slice().contains(a)).cloned().collect();
        if served.is_empty() {
            return Err(AuthnError(format!(
                "invalid bearer token: token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud.as_slice()
            )));
        }
        self.still_valid(&claims)?;
        Ok(Some((identity(&claims), served)))
    }

    /// Tokens in Secrets name no audience: they are for the API server.
    fn review_legacy(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        let Some(claims) = self.issuer.check::<legacy::Claims>(token, legacy::ISSUER)? else {
            return Ok(None);
        };
        let mine = self.issuer.api_audiences();
        let served: Vec<String> =
            mine.iter().filter(|a| audiences.is_empty() || audiences.contains(a)).cloned().collect();
        if served.is_empty() {
            return Ok(None);
        }
        let invalid = |e: AuthnError| AuthnError(format!("invalid bearer token: {}", e.0));
        let uses = (&self.issuer.uses, self.clock.now());
        Ok(Some((legacy::check(&claims, token, &*self.objects, uses).map_err(invalid)?, served)))
    }

    fn claims(&self, token: &str) -> Result<Option<Arc<Claims>>, AuthnError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.known.read().get(&digest) {
            return Ok(Some(claims.clone()));
        }
        let Some(claims) = self.issuer.check::<Claims>(token, &self.issuer.issuer)? else { return Ok(None) };
        let claims = Arc::new(claims);
        let mut known = self.known.write();
        if known.len() >= REMEMBERED {
            let now = self.clock.now().as_second();
            known.retain(|_, c| c.exp > now);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(digest, claims.clone());
        Ok(Some(claims))
    }

    fn still_valid(&self, claims: &Claims) -> Result<(), AuthnError> {
        let now = self.clock.now().as_second();
        if now >= claims.exp {
            return Err(AuthnError("service account token has expired".into()));
        }
        // A second of grace: the issuer cuts fractions off.
        if now + 1 < claims.nbf {
            return Err(AuthnError("service account token is not valid yet".into()));
        }
        let k = &claims.kubernetes;
        let account = &k.serviceaccount;
        self.exists("serviceaccounts", "service account", &k.namespace, account)?;
        if let Some(pod) = &k.pod {
            self.exists("pods", "pod", &k.namespace, pod)?;
        } else if let Some(secret) = &k.secret {
            self.exists("secrets", "secret", &k.namespace, secret)?;
        } else if let Some(node) = &k.node {
            self.exists("nodes", "node", "", node)?;
        }
        Ok(())
    }

    fn exists(
        &self,
        resource: &str,
        what: &str,
        namespace: &str,
        wanted: &Reference,
    ) -> Result<(), AuthnError> {
        let found = self.objects.get("", resource, namespace, &wanted.name);
        match found {
            None => Err(AuthnError(format!(
                "invalid bearer token: {what} {namespace}/{} of the token does not exist",
                wanted.name
            ))),
            Some(object) if object.meta().uid.as_deref().unwrap_or("") != wanted.uid => {
                Err(AuthnError(format!(
                    "invalid bearer token: {what} {namespace}/{} is another one than the token's ({})",
                    wanted.name, wanted.uid
                )))
            }
            Some(_) => Ok(()),
        }
    }
}

fn identity(claims: &Claims) -> UserInfo {
    let k = &claims.kubernetes;
    let mut user = user(&k.namespace, &k.serviceaccount.name, &k.serviceaccount.uid);
    let mut extra = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    extra("credential-id", format!("JTI={}", claims.jti));
    if let Some(pod) = &k.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &k.node {
        extra("node-name", node.name.clone());
        extra("node-uid", node.uid.clone());
    }
    user
}

#[async_trait]
impl Authenticator for ServiceAccountAuthenticator {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        let Some(token) = credentials.bearer.as_deref() else { return Ok(None) };
        Ok(Self::review(self, token, &[])?.map(|(user, _)| user))
    }

    async fn review(
        &self,
        token: &str,
        wanted: &[String],
        _: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        Self::review(self, token, wanted)
    }
}

mod keys;
mod legacy;
#[cfg(test)]
mod tests;
