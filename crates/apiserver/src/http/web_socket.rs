//! WebSockets that this server speaks itself: the handshake, the token in a sub-protocol, and watches as messages.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, Bytes, BytesMut};
use coracle_meta::Status;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, ORIGIN, UPGRADE};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use super::body::Body;

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
/// Names the sub-protocols.
pub(crate) const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
/// What a sub-protocol begins with that is a bearer token, for clients that cannot send other headers.
const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// The server's end of a WebSocket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request's wish for a WebSocket.
pub(crate) struct Handshake {
    accept: HeaderValue,
    client: OnUpgrade,
}

/// Whether a request wishes for a WebSocket.
pub(crate) fn is_wished(headers: &HeaderMap) -> bool {
    let says = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    says(CONNECTION, "upgrade") && says(UPGRADE, "websocket")
}

/// The wish of a request; `None` when there is none.
///
/// # Errors
/// 400 for a handshake without a key.
pub(crate) fn wish(request: &mut Request<Incoming>) -> Result<Option<Handshake>, Status> {
    if !is_wished(request.headers()) {
        return Ok(None);
    }
    let key = request.headers().get(KEY).ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    Ok(Some(Handshake { accept, client: hyper::upgrade::on(request) }))
}

impl Handshake {
    /// Switches protocols; `serve` then has the socket.
    pub(crate) fn switch<F: Future<Output = ()> + Send>(
        self,
        protocol: Option<HeaderValue>,
        serve: impl FnOnce(Socket) -> F + Send + 'static,
    ) -> Response<Body> {
        let Self { accept, client } = self;
        tokio::spawn(async move {
            match client.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    serve(WebSocketStream::from_raw_socket(io, Role::Server, None).await).await;
                }
                Err(e) => debug!(error = %e, "client left before the upgrade"),
            }
        });
        let mut response = Response::new(Body::Full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(ACCEPT, accept);
        if let Some(protocol) = protocol {
            headers.insert(PROTOCOL, protocol);
        }
        response
    }

    /// The answer to a watch as messages, one an event: text for JSON, else binary. What the client sends is not
    /// looked at. Browsers say where they come from, and so must everybody.
    pub(super) fn watch(self, answer: Response<Body>, headers: &HeaderMap) -> Response<Body> {
        let bare = |status: StatusCode| {
            let mut response = Response::new(Body::Full(Bytes::new()));
            *response.status_mut() = status;
            response
        };
        if answer.status() != StatusCode::OK {
            return answer;
        }
        if headers.get(ORIGIN).is_none_or(HeaderValue::is_empty) {
            return bare(StatusCode::FORBIDDEN);
        }
        let offered = offers(headers);
        let ([] | [_]) = offered.as_slice() else { return bare(StatusCode::BAD_REQUEST) };
        let protocol = offered.first().and_then(|only| HeaderValue::from_str(only).ok());
        let mime = answer.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let binary = mime.starts_with(b"application/vnd.kubernetes.protobuf");
        self.switch(protocol, move |socket| send_frames(socket, answer.into_body(), binary))
    }
}

async fn send_frames(socket: Socket, mut body: Body, binary: bool) {
    let (mut out, mut back) = socket.split();
    // Pings are answered and the end is noticed while somebody reads.
    let gone = async { while let Some(Ok(_)) = back.next().await {} };
    let sending = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            for message in messages(bytes, binary) {
                if out.send(message).await.is_err() {
                    return;
                }
            }
        }
        let _ = out.close().await;
    };
    futures::future::select(std::pin::pin!(gone), std::pin::pin!(sending)).await;
}

/// The messages of a block of frames: lines of JSON, or protobuf behind its length.
fn messages(block: Bytes, binary: bool) -> Vec<Message> {
    if !binary {
        let lines = block.split_inclusive(|byte| *byte == b'\n');
        return lines.map(|line| Message::text(String::from_utf8_lossy(line).into_owned())).collect();
    }
    let (mut out, mut rest) = (Vec::new(), BytesMut::from(&*block).freeze());
    while rest.len() >= 4 {
        let length = (rest.get_u32() as usize).min(rest.len());
        out.push(Message::Binary(rest.split_to(length)));
    }
    out
}

fn offers(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|offer| !offer.is_empty()).collect()
}

/// The bearer token among the sub-protocols of a WebSocket's handshake, and what is left of these.
///
/// # Errors
/// Why a token there is none.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<(String, String)>, &'static str> {
    if !is_wished(headers) {
        return Ok(None);
    }
    let (tokens, rest): (Vec<&str>, Vec<&str>) =
        offers(headers).into_iter().partition(|offer| offer.starts_with(TOKEN));
    let token = match tokens.as_slice() {
        [] => return Ok(None),
        [token] => token.trim_start_matches(TOKEN),
        _ => return Err("multiple base64.bearer.authorization tokens specified"),
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| "illegal base64 data")?;
    let token = String::from_utf8(bytes).map_err(|_| "invalid bearer token")?;
    if token.is_empty() {
        return Ok(None);
    }
    // The client takes the handshake for failed when none of its protocols is named in the answer.
    if rest.is_empty() {
        return Err("missing additional subprotocol");
    }
    Ok(Some((token, rest.join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(protocols: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(PROTOCOL, HeaderValue::from_str(protocols).unwrap());
        headers
    }

    #[test]
    fn a_token_comes_as_a_sub_protocol_beside_another() {
        let told = |protocols: &str| token(&handshake(protocols));
        let found = told("base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io, x");
        assert_eq!(found, Ok(Some(("abc".to_owned(), "v4.channel.k8s.io,x".to_owned()))));
        assert_eq!(told("v4.channel.k8s.io"), Ok(None));
        let alone = "base64url.bearer.authorization.k8s.io.YWJj";
        assert_eq!(told(alone), Err("missing additional subprotocol"));
        assert!(told(&format!("{alone},{alone},x")).is_err());
        assert!(told("base64url.bearer.authorization.k8s.io.*,x").is_err());
        let mut plain = handshake("base64url.bearer.authorization.k8s.io.YWJj,x");
        plain.remove(UPGRADE);
        assert_eq!(token(&plain), Ok(None));
    }

    #[test]
    fn blocks_of_frames_become_a_message_a_frame() {
        let lines = Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n");
        assert_eq!(messages(lines, false), [Message::text("{\"a\":1}\n"), Message::text("{\"b\":2}\n")]);
        let framed = Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c");
        let parts = [Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])];
        assert_eq!(messages(framed, true), parts);
    }
}
