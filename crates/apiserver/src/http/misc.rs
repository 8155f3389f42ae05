//! What is neither a resource nor discovery: health, version, OpenAPI, OpenID, the index of paths.

use std::sync::Arc;

use coracle_meta::{Status, go};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use super::discovery::{groups, versions_of};
use super::pipeline::Incomer;
use super::query::Query;
use super::respond::{json_bytes, method_not_allowed, not_found_page, status, text};
use super::{about, docs, health, metrics};
use crate::flow::Protection;
use crate::server::Server;

/// Where the tables of priority and fairness are shown.
const FLOW_DUMPS: &str = "/debug/api_priority_and_fairness/";

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
        return health::check(server, &which[1..], below.trim_matches('/'), query);
    }
    let get = request.method() == Method::GET;
    match path {
        "/version" | "/version/" if get => version(server),
        "/version" | "/version/" => status(&method_not_allowed()),
        _ if path.starts_with("/version/") => status(&Status::no_such_path()),
        "/" | "/index.html" => indented("", &json!({ "paths": index(server) })),
        "/.well-known/openid-configuration" | "/openid/v1/jwks" if !get => status(&method_not_allowed()),
        "/.well-known/openid-configuration" => openid(server),
        "/openid/v1/jwks" => jwks(server, incomer),
        "/metrics" => metrics::answer(server),
        "/metrics/slis" => health::slis(server),
        "/statusz" if get => about::statusz(server, request.headers()),
        "/flagz" if get => about::flagz(server, request.headers()),
        _ if path.starts_with(FLOW_DUMPS) => flow_dump(server, &path[FLOW_DUMPS.len()..], query),
        _ => not_found_page(),
    }
}

/// The tables of priority and fairness.
fn flow_dump(server: &Server, what: &str, query: &Query<'_>) -> Response<Body> {
    let details = query.get("includeRequestDetails").is_some_and(|asked| !asked.is_empty());
    match &server.protection {
        Protection::Fair(flow) => flow
            .dump(what, details, server.clock.now())
            .map_or_else(not_found_page, |table| text(StatusCode::OK, table)),
        Protection::Plain(_) => not_found_page(),
    }
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
    indented("version.Info", &value)
}

/// A document over several lines, which is no object of the API.
fn indented(type_name: &str, document: &Value) -> Response<Body> {
    json_bytes(StatusCode::OK, go::encode_as(type_name, document, go::Style::Pretty).into())
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
        "/flagz",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/statusz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for group in groups(&served) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions_of(&served, group).into_iter().map(|v| format!("/apis/{group}/{v}")));
    }
    for health in ["healthz", "livez", "readyz"] {
        paths.extend(health::checks(server, health).into_iter().map(|c| format!("/{health}/{c}")));
    }
    paths.sort();
    paths
}

fn openid(server: &Server) -> Response<Body> {
    let Some(issuer) = &server.token_issuer else { return not_found_page() };
    let uri = format!("https://{}/openid/v1/jwks", server.advertise);
    json_bytes(StatusCode::OK, issuer.openid_configuration(&uri).to_string().into())
}

fn jwks(server: &Server, incomer: &Incomer) -> Response<Body> {
    let Some(issuer) = &server.token_issuer else { return not_found_page() };
    let accept = incomer.request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    if !accept.contains("*/*") && !accept.contains("application/jwk-set+json") {
        let why = "406: Not Acceptable\n\nAvailable representations: application/jwk-set+json";
        let reason = coracle_meta::Reason::NotAcceptable;
        return status(&Status::new(406, reason, why, Some(json!({}))));
    }
    let mut response = json_bytes(StatusCode::OK, issuer.jwks().to_string().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    response
}
