//! What an extension server says about itself: its resources, and its OpenAPI documents.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH};
use serde_json::{Value, json};

use super::Extension;
use super::link::aggregator;
use crate::server::Server;

/// Longest wait for one document.
const WAIT: Duration = Duration::from_secs(60);
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                         application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// What was learned last, and whether it could be learned again the last time.
#[derive(Default)]
pub(super) struct Learned {
    /// Whether the server answered the last time.
    pub(super) fresh: bool,
    /// The version in aggregated discovery, without its freshness.
    pub(super) version: Option<Value>,
    /// The OpenAPI v2 document.
    pub(super) v2: Option<Document>,
    /// The index of its OpenAPI v3 documents.
    pub(super) v3: Option<Document>,
}

/// A document, with what tells whether it is still the same.
#[derive(Clone)]
pub(super) struct Document {
    etag: Option<HeaderValue>,
    pub(super) value: Arc<Value>,
}

/// Learns again what the server of `extension` says; whether anything has changed.
pub(super) async fn again(server: &Server, extension: &Extension) -> bool {
    let version = version(server, extension).await;
    let (v2, v3) = {
        let learned = extension.learned.read();
        (learned.v2.clone(), learned.v3.clone())
    };
    let v3 = document(server, extension, "/openapi/v3", v3).await;
    let v2 = document(server, extension, "/openapi/v2", v2).await;
    let mut learned = extension.learned.write();
    let fresh = version.is_ok();
    let version = version.ok().or_else(|| learned.version.clone());
    let same = |a: &Option<Document>, b: &Option<Document>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(&a.value, &b.value) || a.value == b.value,
        (None, None) => true,
        _ => false,
    };
    let changed = fresh != learned.fresh
        || version != learned.version
        || !same(&v2, &learned.v2)
        || !same(&v3, &learned.v3);
    *learned = Learned { fresh, version, v2, v3 };
    changed
}

/// Notes that the server does not answer; whether that is news.
pub(super) fn lost(extension: &Extension) -> bool {
    std::mem::replace(&mut extension.learned.write().fresh, false)
}

/// What the server says of the version in discovery.
async fn version(server: &Server, extension: &Extension) -> Result<Value, String> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(DISCOVERY));
    let late = "timed out".to_owned();
    let (_, reply) = tokio::time::timeout(
        Duration::from_secs(5),
        extension.link.read(server, &aggregator(), "/apis", headers),
    )
    .await
    .map_err(|_| late.clone())?
    .map_err(|(_, why)| why)?;
    let kind = reply.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if reply.code == 200 && kind.contains("as=APIGroupDiscoveryList") {
        let list: Value = serde_json::from_slice(&reply.body).map_err(|e| e.to_string())?;
        return Ok(of_list(&list, &extension.group, &extension.version));
    }
    if reply.code == 503 {
        return Err("returned non-success response code: 503".to_owned());
    }
    // A server that does not know aggregated discovery is asked for the version alone.
    let path = format!("/apis/{}/{}", extension.group, extension.version);
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let (_, reply) = tokio::time::timeout(
        Duration::from_secs(5),
        extension.link.read(server, &aggregator(), &path, headers),
    )
    .await
    .map_err(|_| late)?
    .map_err(|(_, why)| why)?;
    if reply.code != 200 {
        return Err(format!("failed to download legacy discovery for {path}: {}", reply.code));
    }
    let list: Value = serde_json::from_slice(&reply.body).map_err(|e| e.to_string())?;
    Ok(json!({ "version": extension.version, "resources": of_resources(&list) }))
}

/// The version in a list of groups; one that the list does not have has no resources.
fn of_list(list: &Value, group: &str, version: &str) -> Value {
    let groups = list["items"].as_array().into_iter().flatten();
    let mut groups = groups.filter(|g| g["metadata"]["name"].as_str().unwrap_or("") == group);
    let versions = groups.find_map(|g| g["versions"].as_array());
    let found = versions.into_iter().flatten().find(|v| v["version"] == version);
    let mut found = found.cloned().unwrap_or_else(|| json!({ "version": version }));
    // Clients of 1.26 do not expect resources without a kind.
    for resource in found.get_mut("resources").and_then(Value::as_array_mut).into_iter().flatten() {
        let empty = || json!({ "group": "", "version": "", "kind": "" });
        if resource.get("responseKind").is_none_or(Value::is_null) {
            resource["responseKind"] = empty();
        }
        for sub in resource.get_mut("subresources").and_then(Value::as_array_mut).into_iter().flatten() {
            if sub.get("responseKind").is_none_or(Value::is_null) {
                sub["responseKind"] = empty();
            }
        }
    }
    found
}

/// The resources of an APIResourceList as aggregated discovery shows them.
fn of_resources(list: &Value) -> Vec<Value> {
    let all = list["resources"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or("").to_owned();
    let kind = |r: &Value| json!({ "group": text(r, "group"), "version": text(r, "version"), "kind": text(r, "kind") });
    let scope = |r: &Value| if r["namespaced"] == true { "Namespaced" } else { "Cluster" };
    let mut out: Vec<Value> = Vec::new();
    for resource in all.iter().filter(|r| !text(r, "name").contains('/')) {
        let mut value = json!({
            "resource": text(resource, "name"), "responseKind": kind(resource), "scope": scope(resource),
            "singularResource": text(resource, "singularName"), "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if let Some(list) = resource.get(field) {
                value[field] = list.clone();
            }
        }
        out.push(value);
    }
    for resource in all {
        let name = text(resource, "name");
        let Some((parent, sub)) = name.split_once('/') else { continue };
        if !out.iter().any(|r| r["resource"] == parent) {
            // A subresource of something that is no resource itself.
            let none = json!({ "group": "", "version": "", "kind": "" });
            out.push(json!({
                "resource": parent, "responseKind": none, "scope": scope(resource), "verbs": [],
            }));
        }
        let Some(of) = out.iter_mut().find(|r| r["resource"] == parent) else { continue };
        let value = json!({ "subresource": sub, "responseKind": kind(resource), "verbs": resource["verbs"] });
        match of.get_mut("subresources").and_then(Value::as_array_mut) {
            Some(subs) => subs.push(value),
            None => of["subresources"] = json!([value]),
        }
    }
    out
}

/// A document, or what was known of it while it cannot be read.
async fn document(
    server: &Server,
    extension: &Extension,
    path: &str,
    known: Option<Document>,
) -> Option<Document> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(etag) = known.as_ref().and_then(|k| k.etag.clone()) {
        headers.insert(IF_NONE_MATCH, etag);
    }
    match tokio::time::timeout(WAIT, extension.link.read(server, &aggregator(), path, headers)).await {
        Ok(Ok((_, reply))) if reply.code == 200 => {
            let value = serde_json::from_slice(&reply.body).ok()?;
            Some(Document { etag: reply.headers.get(ETAG).cloned(), value: Arc::new(value) })
        }
        // It has none.
        Ok(Ok((_, reply))) if reply.code == 404 => None,
        _ => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_list_of_resources_becomes_one_of_discovery() {
        let list = json!({ "resources": [
            { "name": "flunders/status", "kind": "Flunder", "namespaced": true, "verbs": ["get"] },
            { "name": "flunders", "singularName": "flunder", "kind": "Flunder", "namespaced": true,
              "verbs": ["get", "list"], "shortNames": ["fl"] },
        ] });
        let got = of_resources(&list);
        assert_eq!(got.len(), 1);
        assert_eq!((&got[0]["scope"], &got[0]["shortNames"]), (&json!("Namespaced"), &json!(["fl"])));
        assert_eq!(got[0]["subresources"][0]["subresource"], "status");
    }

    #[test]
    fn a_version_that_the_server_does_not_list_has_no_resources() {
        let list = json!({ "items": [{ "metadata": { "name": "g" }, "versions": [
            { "version": "v1", "resources": [{ "resource": "a" }] }] }] });
        assert_eq!(of_list(&list, "g", "v1")["resources"][0]["responseKind"]["kind"], "");
        assert_eq!(of_list(&list, "g", "v2"), json!({ "version": "v2" }));
    }
}
