//! Passing a request on: a fresh connection per request; an upgraded connection becomes a byte pipe.

use std::time::Duration;

use bytes::Bytes;
use coracle_meta::{Reason, Status};
use http::header::{HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::target::{self, Target};
use crate::http::body::Body;
use crate::outbound::{self, Io, Trust};
use crate::server::Server;

/// Sends a request to its target and returns the answer, streamed.
///
/// # Errors
/// 500 when the target cannot be reached, 503 when it is a workload behind a proxy, as upstream.
pub(super) async fn forward(
    server: &Server,
    target: Target,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let proxied = target.base.is_some() && !request.headers().contains_key(UPGRADE);
    let io = connect(server, &target).await.map_err(|why| match why {
        Unreached::Here(status) => status,
        Unreached::There(why) if proxied => {
            Status::unavailable(format!("error trying to reach service: {why}"))
        }
        Unreached::There(why) => Status::internal(format!("error dialing backend: {why}")),
    })?;
    let outgoing = outgoing(&target, request)?;
    let response = outbound::relay(io, outgoing).await.map_err(|e| match proxied {
        true => Status::unavailable(format!("error trying to reach service: {e}")),
        false => Status::internal(format!("error sending request: {e}")),
    })?;
    Ok(response)
}

/// Most that is read of a document.
const MOST: usize = 64 << 20;

/// Reads a JSON document from a target.
///
/// # Errors
/// It cannot be reached, or does not answer with success and JSON.
pub(super) async fn fetch(server: &Server, target: Target) -> Result<serde_json::Value, Status> {
    let io = connect(server, &target).await.map_err(|why| match why {
        Unreached::Here(status) => status,
        Unreached::There(why) => Status::internal(format!("error dialing backend: {why}")),
    })?;
    let failed = |e: hyper::Error| Status::internal(format!("error sending request: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(&target.path)
        .header(HOST, format!("{}:{}", target.host, target.port))
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(Status::internal)?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MOST).collect().await;
    driver.abort();
    let body = body.map_err(|e| Status::internal(format!("error reading answer: {e}")))?.to_bytes();
    if !status.is_success() {
        return Err(Status::internal(format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    serde_json::from_slice(&body).map_err(|e| Status::internal(format!("answer is not JSON: {e}")))
}

/// The request as the target gets it.
fn outgoing(target: &Target, mut request: Request<Incoming>) -> Result<Request<Incoming>, Status> {
    *request.uri_mut() = target.path.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
    // Credentials are for this server, not for what is behind it.
    request.headers_mut().remove(http::header::AUTHORIZATION);
    let host = outbound::authority(&target.host, target.port);
    request.headers_mut().insert(HOST, HeaderValue::from_str(&host).map_err(Status::internal)?);
    Ok(request)
}

/// Makes a failed answer of the kubelet into a Status.
pub(super) async fn failure(response: &mut Response<Body>, name: &str) -> Status {
    let code = response.status();
    let body = std::mem::replace(response.body_mut(), Body::Full(Bytes::new()));
    let bytes = match tokio::time::timeout(Duration::from_secs(5), body.collect()).await {
        Ok(Ok(all)) => all.to_bytes(),
        _ => Bytes::new(),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::NOT_FOUND => {
            let message =
                "the server could not find the requested resource ( pods/log ".to_owned() + name + ")";
            let details = serde_json::json!({
                "name": name, "kind": "pods/log",
                "causes": [{ "reason": "UnexpectedServerResponse", "message": text }],
            });
            Status::new(404, Reason::NotFound, message, Some(details))
        }
        code => Status::new(code.as_u16(), Reason::Unknown, text, None),
    }
}

/// Why there is no connection.
enum Unreached {
    /// This server cannot make one.
    Here(Status),
    /// The other side cannot be reached.
    There(String),
}

async fn connect(server: &Server, target: &Target) -> Result<Box<dyn Io>, Unreached> {
    let config = match target.wire {
        target::Wire::Plain => None,
        target::Wire::Kubelet => {
            let missing = || Unreached::Here(Status::unavailable("this server has no access to kubelets"));
            Some(server.kubelets.as_ref().ok_or_else(missing)?.tls())
        }
        // A workload has no certificate that anybody vouches for.
        target::Wire::Unverified => {
            Some(Trust { insecure: true, ..Trust::default() }.config().map_err(Unreached::There)?)
        }
    };
    let wire = match config {
        None => outbound::Wire::Plain,
        Some(config) => outbound::Wire::Tls(config, target.host.clone()),
    };
    let connected = outbound::connect((&target.host, target.port), &wire).await;
    connected.map(|connected| connected.io).map_err(Unreached::There)
}
