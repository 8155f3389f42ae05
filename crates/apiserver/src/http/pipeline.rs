//! The path of every HTTP request. This file alone fixes the order of the stages.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use coracle_auth::UserInfo;
use coracle_meta::Status;
use futures::FutureExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tracing::{debug, error};

use super::body::Body;
use super::info::Info;
use super::query::{Query, decode_path};
use super::{
    authz, discovery, dispatch, impersonate, metrics, misc, negotiate, protect, respond, web_socket,
};
use crate::aggregation;
use crate::audit::{AuditLog, Trail};
use crate::authn::Connection;
use crate::server::Server;

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
    let Some(path) = decode_path(uri.path()) else {
        return respond::status(&Status::bad_request("malformed path"));
    };
    let query = Query::new(uri.query().unwrap_or(""));
    let info = Info::new(&method, &path, &query);
    let apply = is_apply(request.headers());
    let _in_flight = (!protect::lasts(&info)).then(|| server.metrics.begin(&method));
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
        server.metrics.counts.add(&metrics::families::AUDIT_EVENTS, Vec::new());
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
        Body::Full(bytes) if code >= 400 || trail.misses_response() => serde_json::from_slice(bytes).ok(),
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
    let arrived = Instant::now();
    let user = authenticated(server, connection, &mut request, path).await;
    metrics::authenticated(server, user.as_deref(), arrived.elapsed());
    if let Some(proxies) = &server.front_proxy {
        proxies.clear(request.headers_mut());
    }
    let Some(user) = user else { return respond::status(&Status::unauthorized()) };
    // audit
    let begun = server
        .audit
        .as_ref()
        .and_then(|log| log.begin(&user, info, &request, connection.peer, server.clock.now()));
    let begun = begun.map(|begun| trail.get_or_init(|| begun));
    // impersonation
    let asked = || authz::attributes(&user, info, path, selectors(query));
    let user = match impersonate::acting(server, request.headers(), asked).await {
        Ok(None) => user,
        Ok(Some(acting)) => {
            if let Some(trail) = begun {
                trail.impersonated(&acting.user, acting.constraint);
            }
            acting.user
        }
        Err(status) => return respond::status(&status),
    };
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
    let arrived = Instant::now();
    let allowed = authz::check(server, &user, info, path, selectors(query)).await;
    metrics::authorized(server, allowed.is_ok(), arrived.elapsed());
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

/// Who sends a request. A token among the sub-protocols of a WebSocket is taken out of them.
async fn authenticated(
    server: &Server,
    connection: &Connection,
    request: &mut Request<Incoming>,
    path: &str,
) -> Option<Arc<UserInfo>> {
    let headers = request.headers();
    if bearer(headers).is_some() {
        return server.authenticate(connection, bearer(headers), headers, path).await;
    }
    let (token, protocols) = match web_socket::token(headers) {
        Ok(None) => return server.authenticate(connection, None, headers, path).await,
        Ok(Some(found)) => found,
        Err(why) => {
            debug!(why, "no token among the sub-protocols");
            return None;
        }
    };
    let user = server.authenticate(connection, Some(&token), headers, path).await?;
    let protocols = HeaderValue::from_str(&protocols).ok()?;
    request.headers_mut().insert(web_socket::PROTOCOL, protocols);
    Some(user)
}

/// The field and the label selector of a request.
fn selectors<'q>(query: &'q Query<'_>) -> (&'q str, &'q str) {
    (query.get("fieldSelector").unwrap_or(""), query.get("labelSelector").unwrap_or(""))
}

/// The bearer token, if one is shown.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
