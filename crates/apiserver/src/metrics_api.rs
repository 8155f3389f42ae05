//! `metrics.k8s.io/v1beta1`: what nodes and pods use now, asked of the kubelets at each request. Read-only; served
//! where the server can reach kubelets, so that `kubectl top` works without an add-on.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::quantity::Quantity;
use coracle_meta::{Object, Status};
use http::{Method, Response, StatusCode};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::http::body::Body;
use crate::http::info::Info;
use crate::http::query::Query;
use crate::http::respond::{self, method_not_allowed};
use crate::kubelet;
use crate::server::Server;

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// Its only version.
pub(crate) const VERSION: &str = "v1beta1";
/// Plural, kind, whether namespaced.
const KINDS: [(&str, &str, bool); 2] = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];

/// Whether the group is served.
pub(crate) fn is_served(server: &Server) -> bool {
    server.kubelets.is_some()
}

/// The group in `/apis`.
pub(crate) fn group() -> Value {
    let version = json!({ "groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION });
    json!({ "name": GROUP, "versions": [version], "preferredVersion": version })
}

/// The resources of the version.
pub(crate) fn resources() -> Value {
    let one = |(plural, kind, namespaced): (&str, &str, bool)| {
        json!({
            "name": plural, "singularName": "", "namespaced": namespaced, "kind": kind,
            "verbs": ["get", "list"],
        })
    };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": KINDS.map(one),
    })
}

/// The group in aggregated discovery.
pub(crate) fn aggregated() -> Value {
    let one = |(plural, kind, namespaced): (&str, &str, bool)| {
        json!({
            "resource": plural, "responseKind": { "group": GROUP, "version": VERSION, "kind": kind },
            "scope": if namespaced { "Namespaced" } else { "Cluster" }, "singularResource": "",
            "verbs": ["get", "list"],
        })
    };
    json!({
        "metadata": { "name": GROUP },
        "versions": [{ "version": VERSION, "freshness": "Current", "resources": KINDS.map(one) }],
    })
}

/// Answers a request for the group's resources.
pub(crate) async fn handle(
    server: &Arc<Server>,
    method: &Method,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Response<Body> {
    match answer(server, method, info, query).await {
        Ok(value) => respond::json_value(StatusCode::OK, &value),
        Err(status) => respond::status(&status),
    }
}

/// The answer's body.
///
/// # Errors
/// 404 and 405 as for any resource.
pub(crate) async fn answer(
    server: &Arc<Server>,
    method: &Method,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<Value, Status> {
    if info.version != VERSION || !KINDS.iter().any(|(plural, ..)| *plural == info.resource) {
        return Err(Status::no_such_path());
    }
    if method != Method::GET || info.verb.as_str() == "watch" {
        return Err(method_not_allowed());
    }
    let items = match info.resource {
        "nodes" => nodes(server, info, query).await?,
        _ => pods(server, info, query).await?,
    };
    let kind = if info.resource == "nodes" { "NodeMetrics" } else { "PodMetrics" };
    if !info.name.is_empty() {
        let mut found =
            items.into_iter().next().ok_or_else(|| Status::not_found(GROUP, info.resource, info.name))?;
        found["kind"] = kind.into();
        found["apiVersion"] = format!("{GROUP}/{VERSION}").into();
        return Ok(found);
    }
    Ok(json!({
        "kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items,
    }))
}

/// The objects that a request is about.
async fn selected(
    server: &Arc<Server>,
    plural: &str,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<Vec<Arc<dyn Object>>, Status> {
    let resource = server.cache.registry.find("", plural).ok_or_else(Status::no_such_path)?;
    let namespace = if resource.namespaced() { info.namespace } else { "" };
    if !info.name.is_empty() {
        return Ok(vec![server.present(&resource, namespace, info.name)?.decoded()?]);
    }
    let page = server.list(&resource, namespace, "", &query.list_options()?).await?;
    page.entries.iter().map(|e| e.decoded()).collect()
}

/// What a kubelet says of its node and pods; nothing where it does not answer.
async fn summary(server: &Arc<Server>, node: &str) -> Value {
    let path = "/stats/summary?only_cpu_and_memory=true".to_owned();
    kubelet::fetch(server, node, path).await.unwrap_or_else(|status| {
        tracing::debug!(node, %status, "kubelet's figures not read");
        Value::Null
    })
}

/// CPU and memory as amounts, with the time; `None` while there is no rate yet.
fn usage(stats: &Value) -> Option<(Value, Value)> {
    let cpu = stats["cpu"]["usageNanoCores"].as_u64()?;
    let memory = stats["memory"]["workingSetBytes"].as_u64()?;
    let cpu = Quantity::parse(&format!("{cpu}n")).unwrap_or_default().to_api().0;
    let memory = format!("{}Ki", memory / 1024);
    Some((json!({ "cpu": cpu, "memory": memory }), stats["cpu"]["time"].clone()))
}

fn metadata(object: &dyn Object, time: &Value) -> Value {
    let meta = object.meta();
    let mut value = json!({ "name": meta.name, "creationTimestamp": time });
    if let Some(namespace) = meta.namespace.as_ref().filter(|n| !n.is_empty()) {
        value["namespace"] = namespace.clone().into();
    }
    if let Some(labels) = meta.labels.as_ref().filter(|l| !l.is_empty()) {
        value["labels"] = json!(labels);
    }
    value
}

/// Seconds over which the kubelets' rates were taken, at most.
const WINDOW: &str = "15s";

async fn nodes(server: &Arc<Server>, info: &Info<'_>, query: &Query<'_>) -> Result<Vec<Value>, Status> {
    let all = selected(server, "nodes", info, query).await?;
    let names: Vec<String> = all.iter().filter_map(|n| n.downcast::<Node>()?.metadata.name.clone()).collect();
    let summaries = futures::future::join_all(names.iter().map(|n| summary(server, n))).await;
    let one = |(object, summary): (&Arc<dyn Object>, &Value)| {
        let (usage, time) = usage(&summary["node"])?;
        Some(json!({
            "metadata": metadata(&**object, &time), "timestamp": time, "window": WINDOW, "usage": usage,
        }))
    };
    Ok(all.iter().zip(&summaries).filter_map(one).collect())
}

async fn pods(server: &Arc<Server>, info: &Info<'_>, query: &Query<'_>) -> Result<Vec<Value>, Status> {
    let all = selected(server, "pods", info, query).await?;
    let node = |p: &Arc<dyn Object>| {
        let spec = p.downcast::<Pod>()?.spec.as_ref()?;
        spec.node_name.clone().filter(|n| !n.is_empty())
    };
    let mut names: Vec<String> = all.iter().filter_map(node).collect();
    names.sort();
    names.dedup();
    let summaries = futures::future::join_all(names.iter().map(|n| summary(server, n))).await;
    let mut by_uid = BTreeMap::new();
    for pod in summaries.iter().filter_map(|s| s["pods"].as_array()).flatten() {
        let reference = &pod["podRef"];
        let key = (reference["namespace"].as_str(), reference["name"].as_str());
        by_uid.insert(key, pod);
    }
    let one = |object: &Arc<dyn Object>| {
        let meta = object.meta();
        let stats = by_uid.get(&(meta.namespace.as_deref(), meta.name.as_deref()))?;
        let mut containers = Vec::new();
        let mut time = Value::Null;
        for c in stats["containers"].as_array().into_iter().flatten() {
            let (usage, at) = usage(c)?;
            time = at;
            containers.push(json!({ "name": c["name"], "usage": usage }));
        }
        if containers.is_empty() {
            return None;
        }
        Some(json!({
            "metadata": metadata(&**object, &time), "timestamp": time, "window": WINDOW,
            "containers": containers,
        }))
    };
    Ok(all.iter().filter_map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_amounts_once_there_is_a_rate() {
        let stats = json!({
            "cpu": { "time": "t", "usageNanoCores": 1_500_000 }, "memory": { "workingSetBytes": 2048 },
        });
        let (usage, time) = usage(&stats).expect("figures");
        assert_eq!((usage, time), (json!({ "cpu": "1500u", "memory": "2Ki" }), json!("t")));
        assert!(super::usage(&json!({ "cpu": {}, "memory": { "workingSetBytes": 1 } })).is_none());
    }
}
