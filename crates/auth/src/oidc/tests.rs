//! Tokens of a provider that is played here: its key, its documents, its claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coracle_stdx::Clock;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::config::AuthenticationConfiguration;
use super::signed::Signed;
use super::*;
use crate::remote::Exchange;
use crate::testing::RSA_KEY;

const ISSUER: &str = "https://issuer.example.com";
const NOW: i64 = 1_700_000_000;

/// A provider with one key.
struct Provider {
    key: EncodingKey,
    documents: Value,
    /// Claims that are given in a token of their own, by URL.
    elsewhere: Value,
    asked: AtomicUsize,
}

impl Provider {
    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.key).expect("signs")
    }
}

#[async_trait]
impl Remote for Provider {
    async fn exchange(&self, url: &str, sent: Exchange<'_>) -> Result<(u16, Vec<u8>), String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(claims) = self.elsewhere.get(url) {
            return Ok(match sent {
                Exchange::Get(Some("f005ba11")) => (200, self.sign(claims).into_bytes()),
                _ => (401, Vec::new()),
            });
        }
        Ok(match self.documents.get(url) {
            Some(document) => (200, document.to_string().into_bytes()),
            None => (404, Vec::new()),
        })
    }
}

fn provider() -> Arc<Provider> {
    crate::jwt::install();
    let pem = crate::pki::generate_key().expect("a key");
    let key = EncodingKey::from_ec_pem(pem.as_bytes()).expect("an EC key");
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a JWK");
    jwk.common.key_id = Some("k1".into());
    let discovery = format!("{ISSUER}/.well-known/openid-configuration");
    let documents = json!({
        discovery: { "issuer": ISSUER, "jwks_uri": "https://issuer.example.com/keys" },
        "https://issuer.example.com/keys": { "keys": [jwk] },
    });
    let elsewhere = json!({
        "https://claims.example.com/groups": { "iss": ISSUER, "aud": "me", "exp": NOW + 60, "groups": ["far"] },
        "https://claims.example.com/none": { "iss": ISSUER, "aud": "me", "exp": NOW + 60 },
        "https://claims.example.com/old": { "iss": ISSUER, "aud": "me", "exp": NOW - 60, "groups": ["far"] },
        "https://claims.example.com/yours": { "iss": ISSUER, "aud": "you", "exp": NOW + 60, "groups": ["far"] },
    });
    Arc::new(Provider { key, documents, elsewhere, asked: AtomicUsize::new(0) })
}

fn read(jwt: Value) -> AuthenticationConfiguration {
    serde_json::from_value(json!({ "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration", "jwt": [jwt] }))
    .expect("a configuration")
}

fn oidc(provider: &Arc<Provider>, mappings: Value, rules: Value, user_rules: Value) -> Oidc {
    let config = read(json!({ "issuer": { "url": ISSUER, "audiences": ["me"] },
        "claimMappings": mappings, "claimValidationRules": rules, "userValidationRules": user_rules }));
    let compiled = validate(&config, &[]).unwrap_or_else(|e| panic!("{}", e.aggregate()));
    let clock = Clock::from_fn(|| jiff::Timestamp::from_second(NOW).expect("a time"));
    let (jwt, compiled) =
        (config.jwt.into_iter().next().expect("one"), compiled.into_iter().next().expect("one"));
    Oidc::new(jwt, compiled, vec!["ES256".into()], provider.clone(), clock)
}

async fn shown(oidc: &Oidc, provider: &Provider, change: Value) -> Result<Option<UserInfo>, String> {
    let mut claims = json!({ "iss": ISSUER, "aud": "me", "exp": NOW + 60, "sub": "jane",
        "groups": ["devs"], "team": "red", "email": "j@example.com", "email_verified": true });
    for (key, value) in change.as_object().expect("an object") {
        claims[key] = value.clone();
    }
    show(oidc, provider.sign(&claims)).await
}

async fn show(oidc: &Oidc, token: String) -> Result<Option<UserInfo>, String> {
    let credentials = Credentials { bearer: Some(token), ..Credentials::default() };
    oidc.authenticate(&credentials).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn claims_become_a_user_and_the_provider_is_asked_once() {
    let provider = provider();
    let mappings = json!({ "username": { "claim": "sub", "prefix": "o:" },
        "groups": { "claim": "groups", "prefix": "g:" } });
    let oidc = oidc(&provider, mappings, json!([{ "claim": "team", "requiredValue": "red" }]), json!([]));
    for _ in 0..2 {
        let user = shown(&oidc, &provider, json!({})).await.expect("valid").expect("a user");
        assert_eq!(user.name, "o:jane");
        assert_eq!(user.groups, ["g:devs", "system:authenticated"]);
    }
    assert_eq!(provider.asked.load(Ordering::Relaxed), 2);
    let other = shown(&oidc, &provider, json!({ "iss": "https://other" })).await;
    assert_eq!(other.expect("not of this provider"), None);
    for (change, why) in [
        (json!({ "aud": "you" }), "oidc: verify token: oidc: expected audience \"me\" got [\"you\"]"),
        (json!({ "exp": NOW - 1 }), "oidc: verify token: oidc: token is expired"),
        (json!({ "nbf": NOW + 3600 }), "oidc: verify token: oidc: current time"),
        (json!({ "team": "blue" }), "oidc: required claim team value does not match. Got = blue, want = red"),
        (json!({ "sub": 7 }), "oidc: parse username claims \"sub\""),
    ] {
        let error = shown(&oidc, &provider, change).await.expect_err("refused");
        assert!(error.starts_with(why), "{error}");
    }
}

#[tokio::test]
async fn a_token_that_another_key_has_signed_is_refused() {
    let (good, bad) = (provider(), provider());
    let mappings = json!({ "username": { "claim": "sub", "prefix": "" } });
    let oidc = oidc(&good, mappings, json!([]), json!([]));
    let error = shown(&oidc, &bad, json!({})).await.expect_err("another key");
    assert!(error.contains("failed to verify id token signature"), "{error}");
}

#[tokio::test]
async fn expressions_make_the_user_and_rules_judge_claims_and_user() {
    let provider = provider();
    let mappings = json!({
        "username": { "expression": "claims.email_verified ? claims.email : ''" },
        "groups": { "expression": "dyn(claims.groups).map(g, 'x:' + g)" },
        "uid": { "expression": "claims.sub" },
        "extra": [{ "key": "example.com/team", "valueExpression": "claims.team" }],
    });
    let rules =
        json!([{ "expression": "claims.exp - claims.?iat.orValue(claims.exp) < 10", "message": "too long" }]);
    let users = json!([{ "expression": "!user.username.startsWith('system:')", "message": "reserved" }]);
    let oidc = oidc(&provider, mappings, rules, users);
    let user = shown(&oidc, &provider, json!({ "jti": "7" })).await.expect("valid").expect("a user");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("j@example.com", "jane"));
    assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=7"]);
    assert_eq!(user.groups, ["x:devs", "system:authenticated"]);
    assert_eq!(user.extra["example.com/team"], ["red"]);
    let error = shown(&oidc, &provider, json!({ "iat": NOW - 99 })).await.expect_err("too long");
    assert!(error.ends_with("failed: too long"), "{error}");
    let error = shown(&oidc, &provider, json!({ "email": "system:x" })).await.expect_err("reserved");
    assert!(error.ends_with("failed: reserved"), "{error}");
}

#[test]
fn what_is_wrong_with_a_configuration_is_told_in_upstreams_words() {
    let check = |jwt: Value, want: &[&str]| {
        let errs = validate(&read(jwt), &["https://own".to_owned()]).expect_err("wrong");
        let got: Vec<String> = errs.iter().map(ToString::to_string).collect();
        assert_eq!(got, want);
    };
    check(
        json!({ "issuer": { "url": "http://x?y", "audiences": ["a", "b"] }, "claimMappings": {} }),
        &[
            "jwt[0].issuer.url: Invalid value: \"http://x?y\": URL scheme must be https",
            "jwt[0].issuer.url: Invalid value: \"http://x?y\": URL must not contain a query",
            "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for \
             multiple audiences",
            "jwt[0].claimMappings.username: Required value: claim or expression is required",
        ],
    );
    let issuer = json!({ "url": "https://own", "audiences": ["a"] });
    check(
        json!({ "issuer": issuer, "claimMappings": { "username": { "expression": "claims.email" },
            "extra": [{ "key": "Foo", "valueExpression": "'x'" }, { "key": "k8s.io/a", "valueExpression": "'x'" }] } }),
        &[
            "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: \
             [https://own]",
            "jwt[0].claimMappings.extra[0].key: Invalid value: \"Foo\": must be a domain-prefixed path (such as \
             \"acme.io/foo\")",
            "jwt[0].claimMappings.extra[0].key: Invalid value: \"Foo\": must be lowercase",
            "jwt[0].claimMappings.extra[1].key: Invalid value: \"k8s.io/a\": k8s.io, kubernetes.io and their \
             subdomains are reserved for Kubernetes use",
            "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must \
             be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or \
             claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
        ],
    );
}

#[tokio::test]
async fn groups_that_are_elsewhere_are_fetched_with_the_token_that_was_given_for_them() {
    let provider = provider();
    let mappings = json!({ "username": { "claim": "sub", "prefix": "" },
        "groups": { "claim": "groups", "prefix": "g:" } });
    let oidc = oidc(&provider, mappings, json!([]), json!([]));
    let claims = |names: Value, source: Value| {
        json!({ "iss": ISSUER, "aud": "me", "exp": NOW + 60, "sub": "jane",
            "_claim_names": names, "_claim_sources": { "src": source } })
    };
    let at = |path: &str| {
        let source =
            json!({ "endpoint": format!("https://claims.example.com/{path}"), "access_token": "f005ba11" });
        claims(json!({ "groups": "src" }), source)
    };
    let user = show(&oidc, provider.sign(&at("groups"))).await.expect("valid").expect("a user");
    assert_eq!(user.groups, ["g:far", "system:authenticated"]);

    let mut near = at("groups");
    near["groups"] = json!("near");
    let user = show(&oidc, provider.sign(&near)).await.expect("valid").expect("a user");
    assert_eq!(user.groups, ["g:near", "system:authenticated"], "a claim of the token itself comes first");
    let aggregated = claims(json!({ "groups": "src" }), json!({ "JWT": "x.y.z" }));
    let user = show(&oidc, provider.sign(&aggregated)).await.expect("valid").expect("a user");
    assert_eq!(user.groups, ["system:authenticated"]);

    let mut unasked = at("groups");
    unasked["_claim_sources"]["src"]["access_token"] = Value::Null;
    unasked["_claim_sources"]["src"].as_object_mut().expect("a source").remove("access_token");
    let expand = "oidc: could not expand distributed claims: ";
    for (claims, why) in [
        (
            unasked,
            "while getting distributed claim \"groups\": error while getting distributed claim JWT: 401",
        ),
        (
            at("none"),
            "jwt returned by distributed claim endpoint \"https://claims.example.com/none\" did not contain",
        ),
        (at("old"), "verify distributed claim token: oidc: token is expired"),
        (at("yours"), "verify distributed claim token: oidc: expected audience \"me\" got [\"you\"]"),
        (
            claims(json!({ "groups": "other" }), json!({})),
            "id token _claim_names contained a source other missing in _claims_sources",
        ),
        (claims(json!([]), json!({})), "oidc: error parsing distributed claim names"),
    ] {
        let error = show(&oidc, provider.sign(&claims)).await.expect_err("refused");
        assert!(error.starts_with(&format!("{expand}{why}")), "{error}");
    }
}

/// A signature over `header.payload` for each algorithm that a flag may name, by two keys.
#[test]
fn tokens_of_every_algorithm_are_checked_with_the_key_of_their_kind_only() {
    use p521::ecdsa::signature::Signer as _;
    use ring::signature::KeyPair as _;
    crate::jwt::install();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let random = ring::rand::SystemRandom::new();

    let p521 = p521::ecdsa::SigningKey::from_slice(&[&[0][..], &[7; 65]].concat()).expect("a key");
    let point = p521.verifying_key().to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(66);
    let rsa_der = PrivatePkcs8KeyDer::from_pem_slice(RSA_KEY.as_bytes()).expect("PEM");
    let rsa = ring::signature::RsaKeyPair::from_pkcs8(rsa_der.secret_pkcs8_der()).expect("an RSA key");
    let parts = ring::signature::RsaPublicKeyComponents::<Vec<u8>>::from(rsa.public());
    let (n, e) = (encode(&parts.n), encode(&parts.e));
    let ec = |kind| {
        let document = ring::signature::EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        ring::signature::EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).expect("a key")
    };
    let p256 = ec(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let p384 = ec(&ring::signature::ECDSA_P384_SHA384_FIXED_SIGNING);
    let curve = |name: &str, point: &[u8]| {
        let (x, y) = point[1..].split_at(point.len() / 2);
        json!({ "kty": "EC", "crv": name, "x": encode(x), "y": encode(y) })
    };
    let keys = [
        curve("P-256", p256.public_key().as_ref()),
        curve("P-384", p384.public_key().as_ref()),
        json!({ "kty": "EC", "crv": "P-521", "x": encode(x), "y": encode(y) }),
        json!({ "kty": "RSA", "n": n, "e": e }),
    ];
    let keys: Vec<Jwk> = keys.map(|key| serde_json::from_value(key).expect("a JWK")).into();

    for algorithm in ALGORITHMS {
        let header = encode(json!({ "alg": algorithm }).to_string().as_bytes());
        let message = format!("{header}.{}", encode(b"{\"sub\":\"jane\"}"));
        let by_rsa = |padding: &'static dyn ring::signature::RsaEncoding| {
            let mut signed = vec![0; rsa.public().modulus_len()];
            rsa.sign(padding, &random, message.as_bytes(), &mut signed).expect("signs");
            (3, signed)
        };
        let by_ec = |key: &ring::signature::EcdsaKeyPair| {
            key.sign(&random, message.as_bytes()).expect("signs").as_ref().to_vec()
        };
        let (key, signature) = match algorithm {
            "ES256" => (0, by_ec(&p256)),
            "ES384" => (1, by_ec(&p384)),
            "ES512" => {
                let signature: p521::ecdsa::Signature = p521.sign(message.as_bytes());
                (2, signature.to_bytes().to_vec())
            }
            "PS256" => by_rsa(&ring::signature::RSA_PSS_SHA256),
            "PS384" => by_rsa(&ring::signature::RSA_PSS_SHA384),
            "PS512" => by_rsa(&ring::signature::RSA_PSS_SHA512),
            "RS256" => by_rsa(&ring::signature::RSA_PKCS1_SHA256),
            "RS384" => by_rsa(&ring::signature::RSA_PKCS1_SHA384),
            _ => by_rsa(&ring::signature::RSA_PKCS1_SHA512),
        };
        let token = format!("{message}.{}", encode(&signature));
        let good = Signed::read(&token).expect("a token");
        let fits: Vec<bool> = keys.iter().map(|key| good.is_signed_by(key)).collect();
        let only: Vec<bool> = (0..keys.len()).map(|at| at == key).collect();
        assert_eq!(fits, only, "{algorithm}");
        assert_eq!(good.claims().expect("claims")["sub"], "jane");

        let mut forged = signature.clone();
        forged[20] ^= 1;
        let forged = format!("{message}.{}", encode(&forged));
        assert!(!Signed::read(&forged).expect("a token").is_signed_by(&keys[key]), "{algorithm}");
    }
}

#[test]
fn what_is_no_signed_token_is_refused_before_any_key_is_asked_for() {
    for token in ["", "a.b", "a.b.c.d", "!.e30.AA", "e30.e30.AA"] {
        assert!(Signed::read(token).is_err(), "{token}");
    }
    let shared = serde_json::from_value(json!({ "kty": "oct", "k": "AAAA" })).expect("a JWK");
    for algorithm in ["none", "HS256", "EdDSA"] {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": algorithm }).to_string());
        let token = format!("{header}.e30.AA");
        assert!(!Signed::read(&token).expect("three parts").is_signed_by(&shared), "{algorithm}");
    }
}
