//! Streams that an external runtime serves itself: the client's request is sent on to the URL that the runtime gave,
//! and after the switch of protocols bytes are passed both ways unread.

use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{Body, Refusal, text};

/// Headers that say what to switch to.
const PASSED_ON: [&str; 7] = [
    "connection",
    "upgrade",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "origin",
];

fn unreachable(url: &str, e: impl std::fmt::Display) -> Refusal {
    (StatusCode::BAD_GATEWAY, format!("cannot reach the container runtime's stream {url}: {e}"))
}

/// Passes a request on to `url` (http only, as container runtimes serve it on the loopback address), and then the
/// streams.
///
/// # Errors
/// The runtime does not answer there.
pub async fn pass_on(url: &str, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let uri: Uri = url.parse().map_err(|e| unreachable(url, e))?;
    let authority = uri.authority().ok_or_else(|| unreachable(url, "it names no host"))?.clone();
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host(), port)).await.map_err(|e| unreachable(url, e))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(url, e))?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method()).uri(path).header("host", authority.as_str());
    for name in PASSED_ON {
        for value in request.headers().get_all(name) {
            onward = onward.header(name, value);
        }
    }
    let onward = onward.body(Empty::<bytes::Bytes>::new()).map_err(|e| unreachable(url, e))?;
    let mut answer = sender.send_request(onward).await.map_err(|e| unreachable(url, e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|e| unreachable(url, e))?.to_bytes();
        return Ok(text(status, String::from_utf8_lossy(&body)));
    }
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().entry("connection").or_insert(HeaderValue::from_static("Upgrade"));
    let (theirs, ours) = (hyper::upgrade::on(&mut answer), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        match tokio::try_join!(theirs, ours) {
            Ok((theirs, ours)) => {
                let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
                // Ends when both sides are done, or with the first that breaks.
                let _ = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
            }
            Err(e) => debug!(error = %e, "client left before the upgrade"),
        }
    });
    Ok(response)
}
