//! ConfigMap `kube-system/extension-apiserver-authentication`: which client certificates and which proxies this
//! server believes, for extension servers, which ask there whom to believe in turn.

use std::sync::Arc;

use coracle_auth::FrontProxy;
use coracle_client::WriteOptions;
use coracle_meta::{ObjectReader, Status};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tracing::warn;

use crate::cache::Filter;
use crate::server::Server;
use crate::verbs::{Input, Part};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const CLIENTS: &str = "client-ca-file";
const PROXIES: &str = "requestheader-client-ca-file";

type Data = std::collections::BTreeMap<String, String>;

/// Keeps the ConfigMap, whatever others do to it.
pub(crate) async fn run(server: Arc<Server>, client_ca: Option<String>) {
    let Some(resource) = server.cache.registry.find("", "configmaps") else {
        return std::future::pending().await;
    };
    let filter = Filter { key: resource.key(NAMESPACE, NAME), single: true, ..Filter::default() };
    let applied = server.cache.applied();
    let Ok(mut changes) = resource.cache.subscribe(filter, Some(applied), applied) else { return };
    loop {
        if let Err(status) = once(&server, client_ca.as_deref()).await {
            warn!(error = %status, "cannot publish whom extension servers may believe");
            return;
        }
        if changes.live.recv().await.is_none() {
            return;
        }
    }
}

/// Adds to the ConfigMap what this server believes.
async fn once(server: &Arc<Server>, client_ca: Option<&str>) -> Result<(), Status> {
    let found = server.cache.get("", "configmaps", NAMESPACE, NAME);
    let have = found.as_ref().and_then(|obj| obj.downcast::<ConfigMap>()?.data.clone()).unwrap_or_default();
    let data = combined(&have, client_ca, server.front_proxy.as_ref());
    if data == have {
        return Ok(());
    }
    let resource = server.cache.registry.find("", "configmaps").ok_or_else(Status::no_such_path)?;
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    let done = match found {
        Some(obj) => {
            let mut value: Value = obj.to_value();
            value["data"] = json!(data);
            let input = Input::Json(value);
            server.update(&caller, &resource, NAMESPACE, NAME, Part::Main, input, &opts).await
        }
        None => {
            let value = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": NAME, "namespace": NAMESPACE }, "data": data,
            });
            server.create(&caller, &resource, NAMESPACE, Input::Json(value), &opts).await
        }
    };
    match done {
        // Another server on the same store was faster; its change leads to another round.
        Err(status) if status.code() != 409 => Err(status),
        _ => Ok(()),
    }
}

/// What is there, with what this server believes: several servers may believe different authorities.
fn combined(have: &Data, client_ca: Option<&str>, proxies: Option<&FrontProxy>) -> Data {
    let mut data = Data::new();
    let old = |key: &str| have.get(key).map_or("", String::as_str);
    let clients = certificates(old(CLIENTS), client_ca.unwrap_or(""));
    if !clients.is_empty() {
        data.insert(CLIENTS.to_owned(), clients);
    }
    let authorities = certificates(old(PROXIES), proxies.map_or("", |p| &p.ca_pem));
    if authorities.is_empty() {
        return data;
    }
    data.insert(PROXIES.to_owned(), authorities);
    let nothing = FrontProxy::default();
    let own = proxies.unwrap_or(&nothing);
    let lists = [
        ("requestheader-username-headers", &own.username_headers),
        ("requestheader-uid-headers", &own.uid_headers),
        ("requestheader-group-headers", &own.group_headers),
        ("requestheader-extra-headers-prefix", &own.extra_prefixes),
        ("requestheader-allowed-names", &own.allowed_names),
    ];
    for (key, own) in lists {
        let mut list: Vec<String> = serde_json::from_str(old(key)).unwrap_or_default();
        let new: Vec<String> = own.iter().filter(|name| !list.contains(name)).cloned().collect();
        list.extend(new);
        if key != "requestheader-uid-headers" || !list.is_empty() {
            data.insert(key.to_owned(), json!(list).to_string());
        }
    }
    data
}

/// The certificates of both texts, each once.
fn certificates(first: &str, second: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let mut seen: Vec<&str> = Vec::new();
    for text in [first, second] {
        let blocks = text.split_inclusive(END).map(str::trim).filter(|block| block.ends_with(END));
        for block in blocks {
            if !seen.contains(&block) {
                seen.push(block);
            }
        }
    }
    seen.iter().map(|block| format!("{block}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_servers_believe_stands_side_by_side() {
        let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let proxies = FrontProxy {
            ca_pem: pem("p"),
            allowed_names: vec!["front-proxy-client".into()],
            username_headers: vec!["X-Remote-User".into()],
            ..FrontProxy::default()
        };
        assert_eq!(combined(&Data::new(), None, None), Data::new());
        let first = combined(&Data::new(), Some(&pem("a")), Some(&proxies));
        assert_eq!(first["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(first["requestheader-group-headers"], "[]");
        assert_eq!(combined(&first, Some(&pem("a")), Some(&proxies)), first);
        let second = combined(&first, Some(&pem("b")), None);
        assert_eq!(second[CLIENTS], format!("{}{}", pem("a"), pem("b")));
        assert_eq!(second[PROXIES], pem("p"));
    }
}
