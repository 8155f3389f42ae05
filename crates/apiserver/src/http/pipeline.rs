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
use super::{authz, discovery, dispatch, misc, negotiate, respond};
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
    let head = request.method() == http::Method::HEAD;
    let target = request.uri().path().to_owned();
    let format = negotiate::document_format(request.headers());
    let answer = AssertUnwindSafe(stages(&server, &connection, request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        error!(path = target, "request handler panicked");
        let why = "This request caused apiserver to panic. Look in the logs for details.";
        respond::status(&Status::internal(why))
    });
    response = respond::negotiated(response, format);
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
    let Some(mut wanted) = wanted_user(headers)? else { return Ok(user) };
    let account = wanted.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let group = "authentication.k8s.io";
    match account {
        Some((namespace, name)) => {
            may_impersonate(server, &user, ("", "serviceaccounts", ""), namespace, name)?
        }
        None => may_impersonate(server, &user, ("", "users", ""), "", &wanted.name)?,
    }
    for name in &wanted.groups {
        may_impersonate(server, &user, ("", "groups", ""), "", name)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may_impersonate(server, &user, (group, "userextras", key), "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        may_impersonate(server, &user, (group, "uids", ""), "", &wanted.uid)?;
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

fn may_impersonate(
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
    authz::check(server, user, &info, "", "")
}
