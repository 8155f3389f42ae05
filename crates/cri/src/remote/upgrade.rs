//! Switching a request to another protocol: WebSocket or SPDY.

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Body, Refusal};

/// Header in which SPDY clients offer sub-protocols.
const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";
/// Header in which WebSocket clients do.
const WEBSOCKET_PROTOCOL: &str = "Sec-WebSocket-Protocol";

/// What the connection is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 6455.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// All values of a header, comma-separated ones split.
fn offered<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .collect()
}

/// Which transport the request asks for.
///
/// # Errors
/// It asks for none that is known.
pub fn transport(headers: &HeaderMap) -> Result<Transport, Refusal> {
    let wanted = headers.get(UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if wanted.eq_ignore_ascii_case("websocket") {
        Ok(Transport::WebSocket)
    } else if wanted.eq_ignore_ascii_case("SPDY/3.1") {
        Ok(Transport::Spdy)
    } else {
        let message = "unable to upgrade: missing upgrade headers in request";
        Err((StatusCode::BAD_REQUEST, message.to_owned()))
    }
}

/// The first of `known` that the client offers.
///
/// # Errors
/// It offers none.
pub fn negotiate(
    headers: &HeaderMap,
    transport: Transport,
    known: &[&'static str],
) -> Result<&'static str, Refusal> {
    let name = match transport {
        Transport::WebSocket => WEBSOCKET_PROTOCOL,
        Transport::Spdy => STREAM_PROTOCOL,
    };
    let mut offers = offered(headers, name);
    if offers.is_empty() && transport == Transport::WebSocket {
        // A client that names no sub-protocol means the unnamed one, where there is one.
        offers.push("");
    }
    known.iter().copied().find(|k| offers.contains(k)).ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, \
             server accepts {known:?}"
        );
        (StatusCode::FORBIDDEN, message)
    })
}

/// The `101 Switching Protocols` answer, and the connection once the client has it.
///
/// # Errors
/// A WebSocket request without a key.
pub fn switch(
    mut request: Request<Incoming>,
    transport: Transport,
    protocol: &'static str,
) -> Result<(Response<Body>, hyper::upgrade::OnUpgrade), Refusal> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match transport {
        Transport::WebSocket => {
            let key = request.headers().get("sec-websocket-key");
            let key = key.ok_or_else(|| (StatusCode::BAD_REQUEST, "missing Sec-WebSocket-Key".to_owned()))?;
            let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
                .map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-accept", accept);
            if !protocol.is_empty() {
                headers.insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        Transport::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
    }
    let upgraded = hyper::upgrade::on(&mut request);
    Ok((response, upgraded))
}
