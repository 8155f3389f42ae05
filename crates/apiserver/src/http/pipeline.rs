//! The path of every HTTP request. This file alone fixes the order of the stages.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use coracle_auth::UserInfo;
use coracle_meta::Status;
use futures::FutureExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tracing::error;

use super::body::Body;
use super::info::Info;
use super::query::{Query, decode_path};
use super::{authz, discovery, dispatch, metrics, misc, negotiate, protect, respond};
use crate::aggregation;
use crate::audit::{AuditLog, Trail};
use crate::authn::Connection;
use crate::server::Server;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");
/// What the names of headers with extra attributes begin with.
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";

/// A request behind authentication.
pub(crate) struct Incomer {
    /// The request; its body is read by whoever needs it.
    pub(crate) request: Request<Incoming>,
    /// Who sends it.
    pub(crate) user: Arc<UserInfo>,
}

/// Answers a request: panic recovery, then the stages in order.
pub(crate) async fn handle(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let format = negotiate::document_format(request.headers());
    let (uri, method) = (request.uri().clone(), request.method().clone());
    let started = Instant::now();
    let _in_flight = server.metrics.begin(&method);
    let Some(path) = decode_path(uri.path()) else {
        return respond::status(&Status::bad_request("malformed path"));
    };
    let query = Query::new(uri.query().unwrap_or(""));
    let info = Info::new(&method, &path, &query);
    let apply = is_apply(request.headers());
    let trail = OnceLock::new();
    protect::note(&server, &connection, &request, &info);
    let mut response = match protect::time_limit(&server, &info, &query) {
        Ok(limit) => {
            let stages = pin!(
                AssertUnwindSafe(stages(&server, &connection, request, &path, &query, &info, limit, &trail))
                    .catch_unwind()
            );
            within(limit, stages, uri.path()).await
        }
        Err(status) => respond::status(&status),
    };
    if let (Some(log), Some(trail)) = (&server.audit, trail.get()) {
        audit(log, trail, &response, server.clock.now());
    }
    response = respond::negotiated(response, format);
    let (verb, dry_run) = (metrics::verb(&method, &info, apply), query.get("dryRun").is_some());
    server.metrics.note(&info, verb, dry_run, response.status().as_u16(), started.elapsed());
    if head {
        *response.body_mut() = Body::Full(bytes::Bytes::new());
    }
    response
}

/// The answer of the stages, if it comes in time.
async fn within(
    limit: Option<Duration>,
    stages: Pin<&mut impl Future<Output = std::thread::Result<Response<Body>>>>,
    path: &str,
) -> Response<Body> {
    let answer = match limit {
        None => stages.await,
        Some(limit) => match tokio::time::timeout(limit, stages).await {
            Ok(answer) => answer,
            Err(_) => return protect::timed_out(),
        },
    };
    answer.unwrap_or_else(|_| {
        error!(path, "request handler panicked");
        let why = "This request caused apiserver to panic. Look in the logs for details.";
        respond::status(&Status::internal(why))
    })
}

/// Logs how a request ended.
fn audit(log: &AuditLog, trail: &Trail, response: &Response<Body>, now: jiff::Timestamp) {
    let code = response.status().as_u16();
    let body = match response.body() {
        Body::Full(bytes) if trail.wants_response() || code >= 400 => serde_json::from_slice(bytes).ok(),
        _ => None,
    };
    log.end(trail, code, body.as_ref(), matches!(response.body(), Body::Stream(_)), now);
}

fn is_apply(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/apply-patch"))
}

#[expect(clippy::too_many_arguments, reason = "what is known of a request")]
async fn stages(
    server: &Arc<Server>,
    connection: &Connection,
    mut request: Request<Incoming>,
    path: &str,
    query: &Query<'_>,
    info: &Info<'_>,
    limit: Option<Duration>,
    trail: &OnceLock<Arc<Trail>>,
) -> Response<Body> {
    // authentication
    let user = server.authenticate(connection, bearer(request.headers()), request.headers(), path).await;
    if let Some(proxies) = &server.front_proxy {
        proxies.clear(request.headers_mut());
    }
    let Some(user) = user else { return respond::status(&Status::unauthorized()) };
    // audit
    let begun = server
        .audit
        .as_ref()
        .and_then(|log| log.begin(&user, info, request.uri(), request.headers(), server.clock.now()));
    let begun = begun.map(|begun| trail.get_or_init(|| begun));
    // impersonation
    let asked = user.clone();
    let user = match impersonate(server, user, request.headers()).await {
        Ok(user) => user,
        Err(status) => return respond::status(&status),
    };
    if let Some(trail) = begun.filter(|_| !Arc::ptr_eq(&asked, &user)) {
        trail.impersonated(&user);
    }
    // priority and fairness
    let held = match protect::enter(server, &user, info, path, query, limit).await {
        Ok(held) => held,
        Err(response) => return response,
    };
    if let Some(seat) = held.seat().filter(|_| info.verb == "watch") {
        request.extensions_mut().insert(seat.clone());
    }
    let mut response = permitted(server, request, user, path, query, info, begun).await;
    held.leave(&mut response, limit);
    response
}

/// The stages of a request that has its seats.
async fn permitted(
    server: &Arc<Server>,
    mut request: Request<Incoming>,
    user: Arc<UserInfo>,
    path: &str,
    query: &Query<'_>,
    info: &Info<'_>,
    begun: Option<&Arc<Trail>>,
) -> Response<Body> {
    // authorization
    let selectors = (query.get("fieldSelector").unwrap_or(""), query.get("labelSelector").unwrap_or(""));
    let allowed = authz::check(server, &user, info, path, selectors).await;
    if let Some(trail) = begun {
        trail.decided(allowed.is_ok(), allowed.as_ref().map_or("", String::as_str));
        request.extensions_mut().insert(trail.clone());
    }
    if let Err(status) = allowed {
        return respond::status(&status);
    }
    // the request itself
    let incomer = Incomer { request, user };
    let document = || aggregation::openapi_routed(server, path.strip_prefix("/openapi/v3/")?);
    if let Some(extension) = server.aggregation.route(info.group, info.version).or_else(document) {
        return aggregation::handle(server, extension, incomer, info).await;
    }
    if info.is_resource {
        return dispatch::resource(server, incomer, info, query).await;
    }
    if let Some(response) = discovery::handle(server, &incomer.request, path) {
        return response;
    }
    misc::handle(server, &incomer, path, query).await
}

/// The bearer token, if one is shown.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Acts as another user when the request asks for it and the caller may.
async fn impersonate(
    server: &Server,
    user: Arc<UserInfo>,
    headers: &HeaderMap,
) -> Result<Arc<UserInfo>, Status> {
    let Some(mut wanted) = wanted_user(headers)? else { return Ok(user) };
    let account = wanted.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let group = "authentication.k8s.io";
    match account {
        Some((namespace, name)) => {
            may_impersonate(server, &user, ("", "serviceaccounts", ""), namespace, name).await?
        }
        None => may_impersonate(server, &user, ("", "users", ""), "", &wanted.name).await?,
    }
    for name in &wanted.groups {
        may_impersonate(server, &user, ("", "groups", ""), "", name).await?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may_impersonate(server, &user, (group, "userextras", key), "", value).await?;
        }
    }
    if !wanted.uid.is_empty() {
        may_impersonate(server, &user, (group, "uids", ""), "", &wanted.uid).await?;
    }
    if wanted.groups.is_empty()
        && let Some((namespace, _)) = account
    {
        wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let known = |g: &String| g == "system:authenticated" || g == "system:unauthenticated";
    if !wanted.groups.iter().any(known) {
        let anonymous = wanted.name == "system:anonymous";
        wanted.groups.push(if anonymous { "system:unauthenticated" } else { "system:authenticated" }.into());
    }
    Ok(Arc::new(wanted))
}

/// The user that the headers name; none when they name none.
fn wanted_user(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut wanted =
        UserInfo { name: text(&IMPERSONATE_USER), uid: text(&IMPERSONATE_UID), ..UserInfo::default() };
    let groups = headers.get_all(IMPERSONATE_GROUP).iter().filter_map(|v| v.to_str().ok());
    wanted.groups = groups.map(str::to_owned).collect();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(IMPERSONATE_EXTRA) else { continue };
        let key = decode_path(key).map_or_else(|| key.to_owned(), |key| key.into_owned());
        wanted.extra.entry(key).or_default().extend(value.to_str().ok().map(str::to_owned));
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty() {
        return Ok(None);
    }
    let list = |list: &[String]| {
        let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let groups = if wanted.groups.is_empty() { "[]string(nil)".to_owned() } else { list(&wanted.groups) };
    let extra: Vec<String> =
        wanted.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
    let extra = if extra.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", extra.join(", ")) };
    Err(Status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, \
         Extra:map[string][]string{extra}}} without impersonating a user name",
        wanted.uid
    )))
}

async fn may_impersonate(
    server: &Server,
    user: &Arc<UserInfo>,
    (group, resource, subresource): (&str, &str, &str),
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let info = Info {
        is_resource: true,
        verb: "impersonate".into(),
        group,
        resource,
        subresource,
        namespace,
        name,
        version: "v1",
        ..Info::default()
    };
    authz::check(server, user, &info, "", ("", "")).await.map(drop)
}
