//! What is neither a resource nor discovery: health, version, OpenAPI, OpenID, the index of paths.

use std::sync::Arc;

use bytes::Bytes;
use coracle_meta::Status;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use serde_json::json;

use super::body::Body;
use super::discovery::{groups, versions_of};
use super::docs;
use super::pipeline::Incomer;
use super::query::Query;
use super::respond::{json_value, method_not_allowed, not_found_page, status, text};
use crate::server::Server;

/// The health checks, by upstream's names: all of them hold once the server answers at all, but `etcd`.
const CHECKS: &[&str] = &[
    "ping",
    "log",
    "etcd",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "autoregister-completion",
];

/// Answers a request outside the API groups.
pub(crate) async fn handle(
    server: &Arc<Server>,
    incomer: &Incomer,
    path: &str,
    query: &Query<'_>,
) -> Response<Body> {
    let request = &incomer.request;
    if let Some(response) = docs::handle(server, request.method(), path, query, request.headers()) {
        return response;
    }
    let health = ["/healthz", "/livez", "/readyz"].into_iter().find_map(|h| Some((h, path.strip_prefix(h)?)));
    if let Some((which, below)) = health.filter(|(_, below)| below.is_empty() || below.starts_with('/')) {
        return check_health(server, &which[1..], below.trim_matches('/'), query).await;
    }
    let get = request.method() == Method::GET;
    match path {
        "/version" | "/version/" if get => version(server),
        "/version" | "/version/" => status(&method_not_allowed()),
        _ if path.starts_with("/version/") => status(&Status::no_such_path()),
        "/" | "/index.html" => json_value(StatusCode::OK, &json!({ "paths": index(server) })),
        "/.well-known/openid-configuration" | "/openid/v1/jwks" if !get => status(&method_not_allowed()),
        "/.well-known/openid-configuration" => openid(server),
        "/openid/v1/jwks" => jwks(server, incomer),
        "/metrics" => metrics(server),
        _ => not_found_page(),
    }
}

async fn check_health(server: &Server, which: &str, one: &str, query: &Query<'_>) -> Response<Body> {
    let failed = |name: &str| name == "etcd" && server.store.revision() == 0;
    if !one.is_empty() {
        return match CHECKS.iter().find(|c| **c == one) {
            Some(check) if !failed(check) => text(StatusCode::OK, "ok"),
            Some(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: store failed\n"),
            None => not_found_page(),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = String::new();
    let mut ok = true;
    for check in CHECKS {
        if excluded.contains(check) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
        } else if failed(check) {
            ok = false;
            lines.push_str(&format!("[-]{check} failed: reason withheld\n"));
        } else {
            lines.push_str(&format!("[+]{check} ok\n"));
        }
    }
    if !ok {
        lines.push_str(&format!("{which} check failed\n"));
        return text(StatusCode::INTERNAL_SERVER_ERROR, lines);
    }
    if query.get("verbose").is_none() {
        return text(StatusCode::OK, "ok");
    }
    lines.push_str(&format!("{which} check passed\n"));
    text(StatusCode::OK, lines)
}

fn version(server: &Server) -> Response<Body> {
    let git = server.git_version.as_str();
    let mut numbers = git.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("36"));
    let previous = minor.parse::<u32>().map_or_else(|_| minor.to_owned(), |m| (m - 1).to_string());
    let value = json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": previous,
        "gitVersion": git,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": "linux/amd64",
    });
    json_value(StatusCode::OK, &value)
}

/// All paths served, as `/` lists them.
fn index(server: &Server) -> Vec<String> {
    let served = server.cache.registry.defs();
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for group in groups(&served) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions_of(&served, group).into_iter().map(|v| format!("/apis/{group}/{v}")));
    }
    for health in ["healthz", "livez", "readyz"] {
        paths.extend(CHECKS.iter().map(|c| format!("/{health}/{c}")));
    }
    paths.sort();
    paths
}

fn openid(server: &Server) -> Response<Body> {
    let Some(issuer) = &server.token_issuer else { return not_found_page() };
    let uri = format!("https://{}/openid/v1/jwks", server.advertise);
    json_value(StatusCode::OK, &issuer.openid_configuration(&uri))
}

fn jwks(server: &Server, incomer: &Incomer) -> Response<Body> {
    let Some(issuer) = &server.token_issuer else { return not_found_page() };
    let accept = incomer.request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    if !accept.contains("*/*") && !accept.contains("application/jwk-set+json") {
        let why = "406: Not Acceptable\n\nAvailable representations: application/jwk-set+json";
        let reason = coracle_meta::Reason::NotAcceptable;
        return status(&Status::new(406, reason, why, Some(json!({}))));
    }
    let mut response = json_value(StatusCode::OK, issuer.jwks());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    response
}

/// Object counts and the store's revision, in Prometheus text.
fn metrics(server: &Server) -> Response<Body> {
    let mut out = String::from(
        "# HELP apiserver_storage_objects Number of stored objects at the time of last check.\n\
         # TYPE apiserver_storage_objects gauge\n",
    );
    for resource in server.cache.registry.all().into_iter().filter(|r| r.stored()) {
        let (name, count) = (resource.qualified(), resource.cache.len());
        out.push_str(&format!("apiserver_storage_objects{{resource=\"{name}\"}} {count}\n"));
    }
    let revision = server.store.revision();
    out.push_str(&format!(
        "# HELP coracle_store_revision Newest revision of the store.\n\
         # TYPE coracle_store_revision gauge\ncoracle_store_revision {revision}\n"
    ));
    text(StatusCode::OK, Bytes::from(out))
}
