//! Streams into containers for clients elsewhere: exec, attach and port-forward over WebSocket and SPDY. The kubelet
//! serves them over HTTPS, the runtime's socket hands out URLs of them.

mod command;
mod forward;
mod pump;
mod query;
pub mod redirect;
pub mod spdy;
mod upgrade;
pub mod websocket;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

pub use command::{Job, Wanted, serve};
pub use forward::{Target, forward};
pub use query::Query;

/// A response body.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// A refused request: status and text.
pub type Refusal = (StatusCode, String);

/// A whole answer as text.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", Bytes::from(body.into()))
}

/// A whole answer of some media type.
pub fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
    response
}
