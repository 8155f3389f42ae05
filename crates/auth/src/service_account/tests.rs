//! Tokens are good exactly as long as what they are bound to.

use std::sync::atomic::{AtomicI64, Ordering};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::Objects;

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

/// Made for this test; opens nothing.
const RSA_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQDGGW4WmCkOWHtT
I+01S2sav17gv5cPexJIstoUdinlRi548tKTZtcir5miXS6f/6ciXxombVf4+znl
im5AWyXYUogeEpc9O4+CtCTBe97Ut7xdWepj4SHoDgWHBem2aS9EAeUmzolr/9pJ
UnPLHdd5fNdh5a2a+lVJN4d/BdkgiNAqF8bj7WRCjKc5bltEVkbY5REXS1338Ytr
GqyympwXZQ1bpgeYqjGbVHZPbh+224hKCNnxn/0kMfp6pzwGs3Os2d2bP43CJtCr
PFv3IxXw4DV6phz5gm4ykGvuUbuwoOvt2X6bOxnlcdcTIDUoUzw0R35LYF500t7W
zNTyEeYVAgMBAAECggEALAA2gmjCR8gx/lXOyKVrkQmcPJ35ouvidAjb5SsY467q
wB0pVinD09W+sYByjIHXwQvwLkRfw7MjmT9d/UfxmEK+rrVQ5/4sgmradip6JHP6
MB76b7xwEE/a/PJ8hrKG19t25199SSKPfPVGOIG0nGy1F27RWIjNfEGMBFQLdgzh
Zy5AKNFGhYtZVwFW/rOwLOClhnKhAsLNs3v2x3iSoIk0P3YdCgmE8qAHTlWDDJsj
4FHwGwYD2rLMeaXqS5isMJ4DToIcPbt1d/VSIFP3O4KT7cUaLPhOdMsc59IceJvW
Vg4R1+7r72myWeMyqmmFvSzRKd0gCHcpUawzs/wVEQKBgQDlWPlt23V7PtZD9M//
kOaAtL/oaghSWFrXBTBnlfpXnCtuQ7eP9QetTLsGUidLUASA89kt4XkmPzy3a14o
DUD/5RmE9R5c/Z0uQxG0H176jViDegB25vYgJ1ztp3pSWmMSOiSCEtDlt++uTzVS
ybTp+O9GID0m4Xov+LprF0sqJQKBgQDdHtRz6aCjfFSmOMjCRcT0oklM8CzbR80J
0ZbIcGET+w8MeSWYm0ag4d4pZVM4qM2RSN4qRaxzDY2uAxG8G8IziELWmhogDN8D
N37n6oLvcgHH4fMWNMM6ckhDfbuHEA7REsjov4jaz6/3jqbqn9xHlq7E36gDbRM6
x05YdVrxMQKBgAIvBrD1FflGb+PVwOU+C/PNxMYBvHKMRNEnS36w/uE2q3MxUd4d
ByWvRViaD6W37VMM/1RggTbMA1f7vbnD5oqJM+UAMHnSMFzwZorAgbcBAYa+8qIv
MMi9lzTsE04VbjwOMarLYxHM3otaVbekFATmSeDxDaQBIZizVZMPdbfBAoGASHn3
dvrHvW5eLJGGNC88LFcZIY/DlChHq4U4IAC9wRfUSelXilqy3r7J29WrXnHt10YE
E+T8bkWt/7Bf2sFaeRublM2z7HdrjZleDlQOkL9UmBiWXdvzda/Jwd1vXwjDYoH+
ulM1X0sdyU3HpjW5tPlN1ZfdcSoKWITFSDdHFLECgYBuiaakQTnJLQdOnCa0gxIm
2upclSqSo8YurbTemhD0E+RCw82ZoxBDLdOEUn6dBnz9WupqoiyV1lUuHUC30bio
wFVNkE1QMto4GL4ntS8GjGqMNYnpp63Ym9pdfGkEx3cDz7a6dHAJXIoVtDEEFqkd
SdVIXlcitiLRuAACvUceqA==
-----END PRIVATE KEY-----
";

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
