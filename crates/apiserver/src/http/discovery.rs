//! Discovery: which groups, versions and resources are served, derived from the table of definitions.

use coracle_meta::names::compare_versions;
use coracle_meta::{Reason, Status};
use coracle_resources::def::{ResourceDef, Scope, Storage, Subresource};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::Body;
use super::negotiate::Format;
use super::respond::{PROTOBUF, json_value, method_not_allowed, negotiated, not_found_page, status};
use crate::aggregation;
use crate::codec;
use crate::metrics_api;
use crate::server::Server;

/// Order of the groups in discovery; groups not named come behind.
const ORDER: &[&str] = &[
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];
/// The definitions of everything served.
type Served<'a> = &'a [&'static ResourceDef];

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers discovery paths; `None` when `path` is none of them.
pub(crate) fn handle(server: &Server, request: &Request<Incoming>, path: &str) -> Option<Response<Body>> {
    let trimmed = path.trim_end_matches('/');
    let parts: Vec<&str> = trimmed.trim_start_matches('/').split('/').collect();
    let legacy = parts.first() == Some(&"api");
    if !legacy && parts.first() != Some(&"apis") {
        return None;
    }
    let served = parts.len() < 2 || parts == ["api", "v1"] || (parts.len() == 3 && !legacy);
    let get_only = served && (legacy || parts.len() == 3);
    let known = match parts.as_slice() {
        ["apis", group, version] => {
            let defs = server.cache.registry.defs();
            let own = |def: &&&ResourceDef| def.group == *group && def.version == *version;
            // Groups with no served version of that name have no handler that could refuse the method.
            defs.iter().any(|def| own(&def)) || !defs.iter().any(|def| def.group == *group)
        }
        _ => true,
    };
    if get_only && known && request.method() != Method::GET {
        return Some(status(&method_not_allowed()));
    }
    let served = server.cache.registry.defs();
    let metrics = metrics_api::is_served(server);
    Some(match parts.as_slice() {
        ["apis", metrics_api::GROUP]
            if metrics && !server.aggregation.routes().has_group(metrics_api::GROUP) =>
        {
            let mut value = metrics_api::group();
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            json_value(StatusCode::OK, &value)
        }
        ["apis", metrics_api::GROUP, metrics_api::VERSION] if metrics => {
            json_value(StatusCode::OK, &metrics_api::resources())
        }
        ["api"] => root(server, request, &served, (true, false), || versions(server)),
        ["apis"] => root(server, request, &served, (false, metrics), || group_list(server, &served, metrics)),
        ["api", version] => resources(server, &served, "", version),
        ["apis", group] => match aggregation::group(server, group, group_value(&served, group)) {
            Some(mut value) => {
                value["kind"] = "APIGroup".into();
                value["apiVersion"] = "v1".into();
                json_value(StatusCode::OK, &value)
            }
            None => not_found_page(),
        },
        ["apis", group, version] => resources(server, &served, group, version),
        _ => status(&Status::no_such_path()),
    })
}

/// `/api` and `/apis`: the plain document, or the aggregated one when asked for.
fn root(
    server: &Server,
    request: &Request<Incoming>,
    served: Served<'_>,
    (legacy, metrics): (bool, bool),
    plain: impl Fn() -> Value,
) -> Response<Body> {
    let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    let mut refused = false;
    for clause in accept.split(',') {
        let clause: String = clause.chars().filter(|c| !c.is_whitespace()).collect();
        let has = |param: &str| clause.split(';').any(|p| p == param);
        if !clause.contains("as=") {
            return json_value(StatusCode::OK, &plain());
        }
        if has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") && has("v=v2") {
            let mut response = json_value(StatusCode::OK, &aggregated(server, served, legacy, metrics));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
            let format = if clause.starts_with(PROTOBUF) { Format::Protobuf } else { Format::Json };
            return negotiated(response, format);
        }
        refused = true;
    }
    if !refused {
        return json_value(StatusCode::OK, &plain());
    }
    let accepted = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let why = format!("only the following media types are accepted: {accepted}");
    status(&Status::new(406, Reason::NotAcceptable, why, None))
}

fn versions(server: &Server) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [
            { "clientCIDR": "0.0.0.0/0", "serverAddress": server.advertise.to_string() },
        ],
    })
}

/// The groups beside core, in discovery order.
pub(crate) fn groups(served: Served<'_>) -> Vec<&'static str> {
    let mut groups: Vec<&str> = Vec::new();
    for def in served {
        if !def.group.is_empty() && !groups.contains(&def.group) {
            groups.push(def.group);
        }
    }
    groups.sort_by_key(|g| (ORDER.iter().position(|o| o == g).unwrap_or(ORDER.len()), *g));
    groups
}

/// The versions of a group, preferred first.
pub(crate) fn versions_of(served: Served<'_>, group: &str) -> Vec<&'static str> {
    let mut versions: Vec<&str> = Vec::new();
    for def in served {
        if def.group == group && !versions.contains(&def.version) {
            versions.push(def.version);
        }
    }
    versions.sort_by(|a, b| compare_versions(b, a));
    versions
}

fn group_value(served: Served<'_>, group: &str) -> Option<Value> {
    let versions: Vec<Value> = versions_of(served, group)
        .into_iter()
        .map(|v| json!({ "groupVersion": format!("{group}/{v}"), "version": v }))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({ "name": group, "versions": versions, "preferredVersion": preferred }))
}

fn group_list(server: &Server, served: Served<'_>, metrics: bool) -> Value {
    let mut groups: Vec<Value> =
        groups(served).into_iter().filter_map(|group| group_value(served, group)).collect();
    groups.extend(metrics.then(metrics_api::group));
    let groups = aggregation::groups(server, groups);
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

fn resources(server: &Server, served: Served<'_>, group: &str, version: &str) -> Response<Body> {
    let defs = of_version(served, group, version);
    if defs.is_empty() {
        let custom = server.cache.registry.is_custom_group(group);
        let known = group.is_empty() || (!custom && served.iter().any(|d| d.group == group));
        return if known { status(&Status::no_such_path()) } else { not_found_page() };
    }
    let mut list = Vec::new();
    for def in &defs {
        list.push(resource_value(server, def));
        for sub in sorted_subresources(def) {
            list.push(subresource_value(def, sub));
        }
    }
    let group_version = codec::api_version(defs[0]);
    let mut value = json!({ "kind": "APIResourceList", "groupVersion": group_version, "resources": list });
    if !group.is_empty() {
        value["apiVersion"] = "v1".into();
    }
    json_value(StatusCode::OK, &value)
}

fn of_version(served: Served<'_>, group: &str, version: &str) -> Vec<&'static ResourceDef> {
    let all = served.iter().copied();
    let mut defs: Vec<_> = all.filter(|d| d.group == group && d.version == version).collect();
    defs.sort_by_key(|d| d.plural);
    defs
}

fn sorted_subresources(def: &ResourceDef) -> Vec<Subresource> {
    let mut subs = def.subresources.to_vec();
    subs.sort_by_key(|s| s.path());
    if def.strategy.custom().is_some() {
        subs.reverse();
    }
    subs
}

fn verbs(def: &ResourceDef) -> Value {
    if def.storage == Storage::Virtual {
        return json!(["create"]);
    }
    if def.storage == Storage::Computed {
        return json!(["get", "list"]);
    }
    if def.strategy.custom().is_some() {
        return json!(["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]);
    }
    if def.group.is_empty() && def.plural == "namespaces" {
        return json!(["create", "delete", "get", "list", "patch", "update", "watch"]);
    }
    json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
}

fn resource_value(server: &Server, def: &'static ResourceDef) -> Value {
    let mut value = json!({
        "name": def.plural,
        "singularName": def.singular,
        "namespaced": def.scope == Scope::Namespaced,
        "kind": def.kind,
        "verbs": verbs(def),
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    if def.storage == Storage::Stored {
        value["storageVersionHash"] = storage_hash(server, def).into();
    }
    value
}

/// Upstream's `discovery.StorageVersionHash`: base64 of the first 8 bytes of SHA-256 over group/version/kind.
fn storage_hash(server: &Server, def: &'static ResourceDef) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let resource = def.strategy.custom().and_then(|_| server.cache.registry.find(def.group, def.plural));
    let def = resource.map_or_else(|| def.stored(), |r| r.storage);
    let version = match def.kind {
        // Upstream still stores these in their older version.
        "CustomResourceDefinition" | "MutatingAdmissionPolicy" | "MutatingAdmissionPolicyBinding" => {
            "v1beta1"
        }
        _ => def.version,
    };
    let digest = sha2::Sha256::digest(format!("{}/{version}/{}", def.group, def.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// Kind (with group and version if another's) and verbs of a subresource.
fn subresource_facts(
    def: &ResourceDef,
    sub: Subresource,
) -> (&'static str, &'static str, &'static str, Value) {
    let kind = match sub {
        Subresource::Scale => ("autoscaling", "v1", "Scale"),
        Subresource::Binding => ("", "", "Binding"),
        Subresource::Eviction => ("policy", "v1", "Eviction"),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
        Subresource::Exec => ("", "", "PodExecOptions"),
        Subresource::Attach => ("", "", "PodAttachOptions"),
        Subresource::PortForward => ("", "", "PodPortForwardOptions"),
        Subresource::Proxy => match def.kind {
            "Service" => ("", "", "ServiceProxyOptions"),
            "Node" => ("", "", "NodeProxyOptions"),
            _ => ("", "", "PodProxyOptions"),
        },
        _ => ("", "", def.kind),
    };
    let verbs = match sub {
        Subresource::Binding | Subresource::Eviction | Subresource::Token => json!(["create"]),
        Subresource::Finalize => json!(["update"]),
        Subresource::Log => json!(["get"]),
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => json!(["create", "get"]),
        Subresource::Proxy => json!(["create", "delete", "get", "patch", "update"]),
        _ => json!(["get", "patch", "update"]),
    };
    (kind.0, kind.1, kind.2, verbs)
}

fn subresource_value(def: &ResourceDef, sub: Subresource) -> Value {
    let (group, version, kind, verbs) = subresource_facts(def, sub);
    let mut value = json!({
        "name": format!("{}/{}", def.plural, sub.path()),
        "singularName": "",
        "namespaced": def.scope == Scope::Namespaced,
        "kind": kind,
        "verbs": verbs,
    });
    if !group.is_empty() {
        value["group"] = group.into();
        value["version"] = version.into();
    }
    value
}

fn aggregated(server: &Server, served: Served<'_>, legacy: bool, metrics: bool) -> Value {
    let groups = if legacy { vec![""] } else { groups(served) };
    let mut items: Vec<Value> = groups
        .into_iter()
        .map(|group| {
            let versions: Vec<Value> = versions_of(served, group)
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of_version(served, group, version).into_iter().map(aggregated_resource).collect();
                    json!({ "version": version, "freshness": "Current", "resources": resources })
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    items.extend((metrics && !legacy).then(metrics_api::aggregated));
    if !legacy {
        items = aggregation::aggregated(server, items);
    }
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(def: &ResourceDef) -> Value {
    let scope = if def.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" };
    // Custom resources say in full what they answer with.
    let (group, version) = if def.strategy.custom().is_some() { (def.group, def.version) } else { ("", "") };
    let mut value = json!({
        "resource": def.plural,
        "responseKind": { "group": group, "version": version, "kind": def.kind },
        "scope": scope,
        "singularResource": def.singular,
        "verbs": verbs(def),
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    let subs: Vec<Value> = sorted_subresources(def)
        .into_iter()
        .map(|sub| {
            let (of_group, of_version, kind, verbs) = subresource_facts(def, sub);
            let (group, version) =
                if of_group.is_empty() { (group, version) } else { (of_group, of_version) };
            json!({
                "subresource": sub.path(),
                "responseKind": { "group": group, "version": version, "kind": kind },
                "verbs": verbs,
            })
        })
        .collect();
    if !subs.is_empty() {
        value["subresources"] = subs.into();
    }
    value
}
