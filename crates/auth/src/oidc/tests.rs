//! Tokens of a provider that is played here: its key, its documents, its claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coracle_stdx::Clock;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::config::AuthenticationConfiguration;
use super::*;

const ISSUER: &str = "https://issuer.example.com";
const NOW: i64 = 1_700_000_000;

/// A provider with one key.
struct Provider {
    key: EncodingKey,
    documents: Value,
    asked: AtomicUsize,
}

#[async_trait]
impl Remote for Provider {
    async fn exchange(&self, url: &str, _: Option<Vec<u8>>) -> Result<(u16, Vec<u8>), String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
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
    Arc::new(Provider { key, documents, asked: AtomicUsize::new(0) })
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
    let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &claims, &provider.key).expect("signs");
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
    let user = shown(&oidc, &provider, json!({})).await.expect("valid").expect("a user");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("j@example.com", "jane"));
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
