//! Logs over WebSocket: the body of the answer as messages of one of upstream's stream sub-protocols.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coracle_meta::Status;
use futures::SinkExt;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::http::body::Body;
use crate::http::web_socket::{self, Handshake, PROTOCOL};

/// Sub-protocols, best first; a client that offers none gets the unnamed one.
const PROTOCOLS: [&str; 3] = ["binary.k8s.io", "base64.binary.k8s.io", ""];

/// A request's wish for a WebSocket.
pub(super) struct LogSocket {
    handshake: Handshake,
    protocol: &'static str,
}

/// Takes the wish off a request, which then is one for plain bytes; `None` when there is no such wish.
///
/// # Errors
/// 400 for a handshake without a key, 403 for sub-protocols none of which is known.
pub(super) fn take(request: &mut Request<Incoming>) -> Result<Option<LogSocket>, Status> {
    let offered = request.headers().get(PROTOCOL).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let Some(handshake) = web_socket::wish(request)? else { return Ok(None) };
    let protocol = negotiated(&offered).ok_or_else(|| {
        let message = format!("unable to negotiate protocol: client supports {offered:?}");
        Status::new(403, coracle_meta::Reason::Forbidden, message, None)
    })?;
    without_handshake(request.headers_mut());
    Ok(Some(LogSocket { handshake, protocol }))
}

fn negotiated(offered: &str) -> Option<&'static str> {
    let offers: Vec<&str> = offered.split(',').map(str::trim).collect();
    PROTOCOLS.into_iter().find(|known| offers.contains(known))
}

/// Headers of the handshake are not for the kubelet.
fn without_handshake(headers: &mut http::HeaderMap) {
    let is_handshake = |name: &&http::HeaderName| name.as_str().starts_with("sec-websocket-");
    let names: Vec<_> = headers.keys().filter(is_handshake).cloned().collect();
    for name in names.into_iter().chain([UPGRADE, CONNECTION]) {
        headers.remove(name);
    }
}

/// Bytes as a message of a sub-protocol.
fn message(protocol: &str, bytes: Bytes) -> Message {
    if protocol.starts_with("base64") {
        Message::Text(STANDARD.encode(bytes).into())
    } else {
        Message::Binary(bytes)
    }
}

impl LogSocket {
    /// Switches protocols, and sends the answer's body as it comes; the connection closes with its end.
    pub(super) fn serve(self, answer: Response<Body>) -> Response<Body> {
        let Self { handshake, protocol } = self;
        let named = (!protocol.is_empty()).then(|| HeaderValue::from_static(protocol));
        handshake.switch(named, move |mut socket| async move {
            let mut body = answer.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else { continue };
                if socket.send(message(protocol, bytes)).await.is_err() {
                    return;
                }
            }
            let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = socket.close(Some(close)).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_known_sub_protocol_is_taken_and_unknown_ones_are_refused() {
        assert_eq!(negotiated("base64.binary.k8s.io, binary.k8s.io"), Some("binary.k8s.io"));
        assert_eq!(negotiated("base64.binary.k8s.io"), Some("base64.binary.k8s.io"));
        assert_eq!(negotiated(""), Some(""));
        assert_eq!(negotiated("chat"), None);
    }

    #[test]
    fn base64_goes_as_text() {
        let bytes = Bytes::from_static(b"hi\n");
        assert_eq!(message("base64.binary.k8s.io", bytes.clone()), Message::Text("aGkK".into()));
        assert_eq!(message("", bytes.clone()), Message::Binary(bytes));
    }
}
