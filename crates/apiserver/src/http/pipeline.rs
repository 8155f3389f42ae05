//! The path of every HTTP request. This file alone fixes the order of the stages.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use coracle_auth::UserInfo;
use coracle_meta::Status;
use futures::FutureExt;
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tracing::error;

use super::body::Body;
use super::info::Info;
use super::query::{Query, decode_path};
use super::{authz, discovery, dispatch, misc, respond};
use crate::authn::Connection;
use crate::server::Server;

const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");

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
    let head = request.method() == http::Method::HEAD;
    let target = request.uri().path().to_owned();
    let answer = AssertUnwindSafe(stages(&server, &connection, request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        error!(path = target, "request handler panicked");
        let why = "This request caused apiserver to panic. Look in the logs for details.";
        respond::status(&Status::internal(why))
    });
    if head {
        *response.body_mut() = Body::Full(bytes::Bytes::new());
    }
    response
}

async fn stages(server: &Arc<Server>, connection: &Connection, request: Request<Incoming>) -> Response<Body> {
    // authentication
    let bearer = bearer(request.headers());
    let Some(user) = server.authenticate(connection, bearer).await else {
        return respond::status(&Status::unauthorized());
    };
    // impersonation
    let user = match impersonate(server, user, request.headers()) {
        Ok(user) => user,
        Err(status) => return respond::status(&status),
    };
    // request info
    let uri = request.uri().clone();
    let Some(path) = decode_path(uri.path()) else {
        return respond::status(&Status::bad_request("malformed path"));
    };
    let query = Query::new(uri.query().unwrap_or(""));
    let info = Info::new(request.method(), &path, &query);
    // authorization
    if let Err(status) = authz::check(server, &user, &info, &path, query.get("fieldSelector").unwrap_or("")) {
        return respond::status(&status);
    }
    // the request itself
    let incomer = Incomer { request, user };
    if info.is_resource {
        return dispatch::resource(server, incomer, &info, &query).await;
    }
    if let Some(response) = discovery::handle(server, &incomer.request, &path) {
        return response;
    }
    misc::handle(server, &incomer, &path, &query).await
}

/// The bearer token, if one is shown.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Acts as another user when the request asks for it and the caller may.
fn impersonate(server: &Server, user: Arc<UserInfo>, headers: &HeaderMap) -> Result<Arc<UserInfo>, Status> {
    let Some(name) = headers.get(IMPERSONATE_USER).and_then(|v| v.to_str().ok()) else { return Ok(user) };
    let groups: Vec<String> = headers
        .get_all(IMPERSONATE_GROUP)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .map(str::to_owned)
        .collect();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (resource, namespace, object) = match account {
        Some((namespace, account)) => ("serviceaccounts", namespace, account),
        None => ("users", "", name),
    };
    may_impersonate(server, &user, resource, namespace, object)?;
    for group in &groups {
        may_impersonate(server, &user, "groups", "", group)?;
    }
    let uid = headers.get(IMPERSONATE_UID).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut groups = groups;
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups.push("system:serviceaccounts".into());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let known = |g: &String| g == "system:authenticated" || g == "system:unauthenticated";
    if !groups.iter().any(known) {
        let anonymous = name == "system:anonymous";
        groups.push(if anonymous { "system:unauthenticated" } else { "system:authenticated" }.into());
    }
    Ok(Arc::new(UserInfo { name: name.to_owned(), uid, groups, ..UserInfo::default() }))
}

fn may_impersonate(
    server: &Server,
    user: &Arc<UserInfo>,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let info = Info {
        is_resource: true,
        verb: "impersonate".into(),
        resource,
        namespace,
        name,
        version: "v1",
        ..Info::default()
    };
    authz::check(server, user, &info, "", "")
}
