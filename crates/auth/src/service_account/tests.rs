//! Tokens are good exactly as long as what they are bound to.

use std::sync::atomic::{AtomicI64, Ordering};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::{Objects, RSA_KEY};

const START: i64 = 1_700_000_000;

fn meta(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("ns".into()),
        uid: Some(uid.into()),
        ..ObjectMeta::default()
    }
}

struct Setup {
    second: Arc<AtomicI64>,
    objects: Arc<Objects>,
    issuer: Arc<TokenIssuer>,
    authenticator: ServiceAccountAuthenticator,
}

impl Setup {
    fn new() -> Self {
        let second = Arc::new(AtomicI64::new(START));
        let source = second.clone();
        let clock =
            Clock::from_fn(move || Timestamp::from_second(source.load(Ordering::Relaxed)).expect("time"));
        let objects = Objects::new();
        objects.put(ServiceAccount { metadata: meta("sa", "sa-uid"), ..ServiceAccount::default() });
        objects.put(Pod { metadata: meta("pod", "pod-uid"), ..Pod::default() });
        let key = crate::pki::generate_key().expect("a key");
        let issuer = TokenIssuer::new(&key, "https://issuer", vec!["api".into()]).expect("an issuer");
        let issuer = Arc::new(issuer);
        let authenticator = ServiceAccountAuthenticator::new(issuer.clone(), objects.clone(), clock);
        Self { second, objects, issuer, authenticator }
    }

    fn spec(&self) -> TokenSpec {
        TokenSpec {
            namespace: "ns".into(),
            service_account: "sa".into(),
            service_account_uid: "sa-uid".into(),
            expiration_seconds: 600,
            bound: Some(("Pod".into(), "pod".into(), "pod-uid".into())),
            node: Some(("n1".into(), "n1-uid".into())),
            ..TokenSpec::default()
        }
    }

    fn token(&self, spec: &TokenSpec) -> String {
        self.issuer.issue(spec, Timestamp::from_second(START).expect("time")).0
    }

    async fn ask(&self, token: &str) -> Result<Option<UserInfo>, AuthnError> {
        let credentials = Credentials { bearer: Some(token.into()), client_cert: None };
        self.authenticator.authenticate(&credentials).await
    }
}

#[tokio::test]
async fn token_gives_groups_uid_and_extras_of_its_pod() {
    let s = Setup::new();
    let token = s.token(&s.spec());
    for _ in 0..2 {
        let user = s.ask(&token).await.expect("valid").expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:sa", "sa-uid"));
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["pod"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["n1-uid"]);
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
    }
}

#[tokio::test]
async fn remembered_token_expires_and_dies_with_pod_and_account() {
    let s = Setup::new();
    let token = s.token(&s.spec());
    assert!(s.ask(&token).await.is_ok());
    s.second.store(START + 600, Ordering::Relaxed);
    assert!(s.ask(&token).await.expect_err("expired").to_string().contains("expired"));
    s.second.store(START + 599, Ordering::Relaxed);
    assert!(s.ask(&token).await.is_ok());
    s.objects.put(Pod { metadata: meta("pod", "other-uid"), ..Pod::default() });
    assert!(s.ask(&token).await.is_err(), "the pod's name was taken by another");
    s.objects.put(Pod { metadata: meta("pod", "pod-uid"), ..Pod::default() });
    assert!(s.ask(&token).await.is_ok());
    s.objects.remove("", "serviceaccounts", "ns", "sa");
    assert!(s.ask(&token).await.is_err());
}

#[tokio::test]
async fn token_of_other_audience_key_or_issuer_is_refused() {
    let s = Setup::new();
    let vault = s.token(&TokenSpec { audiences: vec!["vault".into()], ..s.spec() });
    assert!(s.ask(&vault).await.is_err());
    let reviewed = s.authenticator.review(&vault, &["vault".into(), "x".into()]).expect("valid");
    assert_eq!(reviewed.expect("ours").1, ["vault"]);

    let forged = Setup::new();
    assert!(s.ask(&forged.token(&s.spec())).await.is_err(), "same issuer name, another key");
    let good = s.token(&s.spec());
    let mut parts: Vec<&str> = good.split('.').collect();
    let payload = URL_SAFE_NO_PAD.encode(
        String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).expect("base64"))
            .expect("json")
            .replace("system:serviceaccount:ns:sa", "system:serviceaccount:ns:xx"),
    );
    parts[1] = &payload;
    assert!(s.ask(&parts.join(".")).await.is_err(), "a changed payload");
    assert_eq!(s.ask("admintoken").await.expect("not ours"), None);
}

#[test]
fn published_key_bears_the_id_of_the_tokens() {
    let s = Setup::new();
    let token = s.token(&s.spec());
    let header = jsonwebtoken::decode_header(&token).expect("a header");
    let key = &s.issuer.jwks()["keys"][0];
    assert_eq!(key["kid"].as_str(), header.kid.as_deref());
    assert_eq!((key["use"].as_str(), key["kty"].as_str()), (Some("sig"), Some("EC")));
    assert!(TokenIssuer::new("nonsense", "https://issuer", Vec::new()).is_err());
}

#[test]
fn rsa_keys_sign_and_check_too() {
    let issuer = TokenIssuer::new(RSA_KEY, "https://issuer", vec!["api".into()]).expect("an issuer");
    let (token, _) = issuer.issue(&Setup::new().spec(), Timestamp::from_second(START).expect("time"));
    assert!(issuer.check::<Claims>(&token, issuer.issuer()).expect("a good signature").is_some());
    let cut = token.rfind('.').expect("three parts") + 1;
    let flipped = if token[cut..].starts_with('A') { "B" } else { "A" };
    let forged = format!("{}{flipped}{}", &token[..cut], &token[cut + 1..]);
    assert!(issuer.check::<Claims>(&forged, issuer.issuer()).is_err());
    assert_eq!(issuer.jwks()["keys"][0]["alg"], "RS256");
}

#[tokio::test]
async fn a_token_kept_in_a_secret_is_good_for_as_long_as_the_secret_holds_it() {
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;
    let s = Setup::new();
    let token = s.issuer.issue_legacy("ns", "sa", "sa-uid", "kept");
    let secret = |token: &str, labels: &[(&str, &str)]| Secret {
        metadata: ObjectMeta {
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..meta("kept", "kept-uid")
        },
        data: Some([("token".to_owned(), ByteString(token.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    let why = |outcome: Result<Option<UserInfo>, AuthnError>| outcome.expect_err("refused").0;
    assert!(why(s.ask(&token).await).ends_with("Token has been invalidated"), "no such Secret");
    s.objects.put(secret(&token, &[]));
    let user = s.ask(&token).await.expect("valid").expect("a user");
    let uses = s.issuer.legacy_uses().next().await;
    let today = Timestamp::from_second(START).expect("a time").strftime("%Y-%m-%d").to_string();
    let patch = json!({ "metadata": { "uid": "kept-uid",
        "labels": { "kubernetes.io/legacy-token-last-used": today } } });
    assert_eq!(uses.iter().map(LegacyUse::patch).collect::<Vec<_>>(), [patch]);
    s.objects.put(secret(&token, &[("kubernetes.io/legacy-token-last-used", &today)]));
    s.ask(&token).await.expect("valid").expect("a user");
    tokio::select! {
        biased;
        uses = s.issuer.legacy_uses().next() => panic!("it is written down: {uses:?}"),
        () = std::future::ready(()) => {}
    }
    s.objects.put(secret(&token, &[]));
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:sa", "sa-uid"));
    s.second.fetch_add(1 << 33, Ordering::Relaxed);
    assert!(s.ask(&token).await.expect("valid").is_some(), "it has no end");
    s.objects.put(secret(&token, &[("kubernetes.io/legacy-token-invalid-since", "2026-01-01")]));
    assert!(why(s.ask(&token).await).contains("has been marked invalid"));
    s.objects.put(secret("another", &[]));
    assert!(why(s.ask(&token).await).ends_with("Token does not match server's copy"));
    let other = s.issuer.issue_legacy("ns", "sa", "old-uid", "kept");
    s.objects.put(secret(&other, &[]));
    assert!(why(s.ask(&other).await).ends_with("UID (sa-uid) does not match claim (old-uid)"));
}
