//! Bootstrap tokens: signs `kube-public/cluster-info` with them, so that a node that knows a token can trust what it
//! reads there, and removes them when they expire.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_client::{Api, DeleteOptions, Informer, ListOptions};
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use ring::hmac;

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};

pub(crate) const SIGNER: Descriptor = Descriptor { name: "bootstrap-signer", workers: 1 };
pub(crate) const CLEANER: Descriptor = Descriptor { name: "token-cleaner", workers: 1 };

const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const SIGNATURE: &str = "jws-kubeconfig-";

/// A token's parts.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    id: String,
    secret: String,
    expires: Option<Timestamp>,
    signs: bool,
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let data = secret.data.as_ref()?.get(key)?;
    String::from_utf8(data.0.clone()).ok().filter(|text| !text.is_empty())
}

/// The token in a Secret; `None` when the Secret is malformed.
fn token(secret: &Secret) -> Option<Token> {
    let id = name_of(secret).strip_prefix("bootstrap-token-")?.to_owned();
    if secret.type_.as_deref() != Some(TOKEN_TYPE) || text(secret, "token-id").as_ref() != Some(&id) {
        return None;
    }
    // A time that cannot be read is taken as over.
    let expires = text(secret, "expiration").map(|at| at.parse().unwrap_or(Timestamp::MIN));
    Some(Token {
        secret: text(secret, "token-secret")?,
        signs: text(secret, "usage-bootstrap-signing").as_deref() == Some("true"),
        id,
        expires,
    })
}

/// A detached signature (RFC 7515) of the text by HMAC with the token.
fn sign(text: &str, token: &Token) -> String {
    let header = format!("{{\"alg\":\"HS256\",\"kid\":\"{}\"}}", token.id);
    let header = URL_SAFE_NO_PAD.encode(header);
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
    let key = hmac::Key::new(hmac::HMAC_SHA256, format!("{}.{}", token.id, token.secret).as_bytes());
    let tag = hmac::sign(&key, input.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

/// The data with one signature per token that signs and is valid, and no others; `None` if it is that already.
fn signed(
    data: &BTreeMap<String, String>,
    tokens: &[Token],
    now: Timestamp,
) -> Option<BTreeMap<String, String>> {
    let mut wanted: BTreeMap<String, String> = data
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if let Some(kubeconfig) = data.get("kubeconfig") {
        for token in tokens.iter().filter(|t| t.signs && t.expires.is_none_or(|at| at > now)) {
            wanted.insert(format!("{SIGNATURE}{}", token.id), sign(kubeconfig, token));
        }
    }
    (wanted != *data).then_some(wanted)
}

fn tokens_only() -> ListOptions {
    ListOptions { field_selector: format!("type={TOKEN_TYPE}"), ..ListOptions::default() }
}

/// Starts the signer.
pub(crate) fn run_signer(cx: &Context) -> BoxFuture<'static, ()> {
    let secrets = cx.informers.filtered::<Secret>("kube-system", tokens_only());
    let only =
        ListOptions { field_selector: format!("metadata.name={CLUSTER_INFO}"), ..ListOptions::default() };
    let maps = cx.informers.filtered::<ConfigMap>(PUBLIC, only);
    let api = cx.client(SIGNER.name).api();
    let reconciler =
        Arc::new(Signer { maps: maps.clone(), secrets: secrets.clone(), api, clock: cx.clock.clone() });
    let key = || ObjectKey::new(PUBLIC, CLUSTER_INFO);
    Controller::new(SIGNER)
        .watch(&maps, move |_, enqueue| enqueue(key()))
        .watch(&secrets, move |_, enqueue| enqueue(key()))
        .run(reconciler)
        .boxed()
}

struct Signer {
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    api: Api<ConfigMap>,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(map) = self.maps.get(&key.namespace, &key.name) else { return Ok(Action::AwaitChange) };
        let tokens: Vec<Token> = self.secrets.list().iter().filter_map(|secret| token(secret)).collect();
        let data = map.data.clone().unwrap_or_default();
        if let Some(data) = signed(&data, &tokens, self.clock.now()) {
            let changed = ConfigMap { data: Some(data), ..(*map).clone() };
            match self.api.update(&key.namespace, changed).await {
                Err(status) if status.reason() != Reason::NotFound => return Err(status),
                _ => {}
            }
        }
        Ok(Action::AwaitChange)
    }
}

/// Starts the cleaner.
pub(crate) fn run_cleaner(cx: &Context) -> BoxFuture<'static, ()> {
    let secrets = cx.informers.filtered::<Secret>("kube-system", tokens_only());
    let reconciler = Arc::new(Cleaner {
        secrets: secrets.clone(),
        api: cx.client(CLEANER.name).api(),
        clock: cx.clock.clone(),
    });
    Controller::new(CLEANER).watch_primary(&secrets).run(reconciler).boxed()
}

struct Cleaner {
    secrets: Informer<Secret>,
    api: Api<Secret>,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else {
            return Ok(Action::AwaitChange);
        };
        let Some(at) = token(&secret).and_then(|token| token.expires) else { return Ok(Action::AwaitChange) };
        let left = at.duration_since(self.clock.now());
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Action::RequeueAfter(left));
        }
        let options = DeleteOptions { uid: secret.metadata.uid.clone(), ..DeleteOptions::default() };
        ignore_not_found(self.api.delete(&key.namespace, &key.name, options).await)?;
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(expiration: Option<&str>) -> Secret {
        let mut data = json!({ "token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-signing": "true" });
        if let Some(at) = expiration {
            data["expiration"] = at.into();
        }
        let data: BTreeMap<String, k8s_openapi::ByteString> = data
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), k8s_openapi::ByteString(v.as_str().unwrap_or("").as_bytes().to_vec())))
            .collect();
        Secret {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("bootstrap-token-abcdef".into()),
                ..Default::default()
            },
            type_: Some(TOKEN_TYPE.into()),
            data: Some(data),
            ..Secret::default()
        }
    }

    #[test]
    fn valid_tokens_sign_the_cluster_info_and_others_do_not() {
        let data = BTreeMap::from([
            ("kubeconfig".to_owned(), "payload".to_owned()),
            ("jws-kubeconfig-gone".to_owned(), "x".to_owned()),
        ]);
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().expect("a time");
        let valid = token(&secret(Some("2025-01-01T00:00:00Z"))).expect("a token");
        let new = signed(&data, &[valid], now).expect("changes");
        let signature = &new["jws-kubeconfig-abcdef"];
        // {"alg":"HS256","kid":"abcdef"}, then nothing, then 32 bytes.
        assert!(signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."), "{signature}");
        assert_eq!(signature.rsplit('.').next().map(str::len), Some(43));
        assert!(!new.contains_key("jws-kubeconfig-gone"));
        assert_eq!(signed(&new, &[token(&secret(None)).expect("a token")], now), None);
        let over = token(&secret(Some("2023-01-01T00:00:00Z"))).expect("a token");
        assert!(!signed(&new, &[over], now).expect("changes").contains_key("jws-kubeconfig-abcdef"));
    }
}
