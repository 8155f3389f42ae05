//! Requests that an extension server answers: passed on with who asks, answers passed back as they come.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_auth::UserInfo;
use coracle_meta::{Reason, Status};
use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderName, LOCATION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::Value;

use super::Extension;
use super::link::{Way, introduce};
use crate::http::body::Body;
use crate::http::info::Info;
use crate::http::pipeline::Incomer;
use crate::http::respond::text;
use crate::outbound::{authority, relay, stream, strip};
use crate::server::Server;

/// Longest wait for a document of discovery, which every client asks for.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Passes a request on.
pub(crate) async fn handle(
    server: &Server,
    extension: Arc<Extension>,
    incomer: Incomer,
    info: &Info<'_>,
) -> Response<Body> {
    if !extension.available {
        return error(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
    }
    if let Some(why) = extension.link.broken() {
        return error(StatusCode::INTERNAL_SERVER_ERROR, why);
    }
    let Ok(at) = extension.link.address(server) else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
    };
    let segments = incomer.request.uri().path().trim_matches('/').split('/').count();
    let passing = pass(&extension, at, incomer);
    let passed = if !info.is_resource && segments == 3 {
        let late = |_| Err("context deadline exceeded".to_owned());
        tokio::time::timeout(DISCOVERY, passing).await.unwrap_or_else(late)
    } else {
        passing.await
    };
    match passed {
        Ok(response) => returned(response),
        Err(why) => {
            let why = format!("error trying to reach service: {why}");
            error(StatusCode::SERVICE_UNAVAILABLE, &why)
        }
    }
}

async fn pass(extension: &Extension, at: (String, u16), incomer: Incomer) -> Result<Response<Body>, String> {
    let Incomer { mut request, user } = incomer;
    let host = authority(&at.0, at.1);
    let uri = request.uri().clone();
    address(request.headers_mut(), &user, &host, &uri);
    let upgrade = request.headers().contains_key(UPGRADE);
    match extension.link.way(&at, upgrade).await? {
        Way::Own(connected) => {
            let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
            *request.uri_mut() = target.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
            request.headers_mut().insert(HOST, HeaderValue::from_str(&host).map_err(|e| e.to_string())?);
            relay(connected.io, request).await.map_err(|e| e.to_string())
        }
        Way::Shared(mut sender) => {
            let request = over_http2(request, &host)?;
            sender.ready().await.map_err(|e| e.to_string())?;
            sender.send_request(request).await.map(stream).map_err(|e| e.to_string())
        }
    }
}

/// The headers that the extension server gets: who asks, and how it was asked; nothing that proves who the
/// client is to this server.
fn address(headers: &mut HeaderMap, user: &UserInfo, host: &str, uri: &Uri) {
    headers.remove(AUTHORIZATION);
    let impersonation = |name: &&HeaderName| name.as_str().starts_with("impersonate-");
    let old: Vec<HeaderName> = headers.keys().filter(impersonation).cloned().collect();
    for name in old {
        headers.remove(name);
    }
    introduce(headers, user);
    let told = [("x-forwarded-uri", uri.path()), ("x-forwarded-host", host), ("x-forwarded-proto", "https")];
    for (name, value) in told {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// A request as HTTP/2 has it: the host is part of its target.
fn over_http2(mut request: Request<Incoming>, host: &str) -> Result<Request<Incoming>, String> {
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let uri = Uri::builder().scheme("https").authority(host).path_and_query(target).build();
    *request.uri_mut() = uri.map_err(|e| e.to_string())?;
    *request.version_mut() = http::Version::HTTP_2;
    request.extensions_mut().clear();
    strip(request.headers_mut());
    request.headers_mut().remove(HOST);
    Ok(request)
}

/// An answer as the client gets it: extension servers may not send it elsewhere, nor say who else may read it.
fn returned(mut response: Response<Body>) -> Response<Body> {
    if response.status().is_redirection() && response.headers().contains_key(LOCATION) {
        let why = "the backend attempted to redirect this request, which is not permitted";
        let mut refused = Response::new(Body::Full(Bytes::from_static(why.as_bytes())));
        *refused.status_mut() = StatusCode::BAD_GATEWAY;
        return refused;
    }
    let cors = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let old: Vec<HeaderName> = response.headers().keys().filter(cors).cloned().collect();
    for name in old {
        response.headers_mut().remove(name);
    }
    response
}

/// Reads a JSON document for a component in this process.
///
/// # Errors
/// 503 when the server cannot be reached, else what it says itself.
pub(crate) async fn read(
    server: &Server,
    extension: &Extension,
    user: &UserInfo,
    target: String,
) -> Result<Value, Status> {
    if !extension.available {
        return Err(Status::unavailable("service unavailable"));
    }
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let answer = extension.link.read(server, user, &target, headers).await;
    let unreached = |why: String| Status::unavailable(format!("error trying to reach service: {why}"));
    let (_, reply) = answer.map_err(|(_, why)| unreached(why))?;
    if (200..300).contains(&reply.code) {
        return serde_json::from_slice(&reply.body).map_err(Status::internal);
    }
    let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let message =
        said["message"].as_str().map_or_else(|| String::from_utf8_lossy(&reply.body).into(), str::to_owned);
    Err(Status::new(reply.code, Reason::Unknown, message, said.get("details").cloned()))
}

/// A failure as Go's `http.Error` writes it.
fn error(code: StatusCode, why: &str) -> Response<Body> {
    text(code, format!("{why}\n"))
}
