//! Passing a request on over an open connection: the answer is streamed back, and a connection that changes its
//! protocol becomes a byte pipe.

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONNECTION, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyStream;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::Io;
use crate::http::body::Body;

/// Headers that belong to one connection and are not passed on.
const HOP: [HeaderName; 4] = [CONNECTION, UPGRADE, TRANSFER_ENCODING, HeaderName::from_static("keep-alive")];

/// Takes out the headers that belong to one connection.
pub(crate) fn strip(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
}

/// Sends a request, whose line and headers are as the other side shall see them, but for those of the connection.
/// An upgrade that both sides want is carried out.
///
/// # Errors
/// The other side does not answer.
pub(crate) async fn relay(
    io: Box<dyn Io>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            debug!(error = %e, "proxied connection ended");
        }
    });
    let upgrade = request.headers().get(UPGRADE).cloned();
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    *request.version_mut() = http::Version::HTTP_11;
    request.extensions_mut().clear();
    strip(request.headers_mut());
    if let Some(upgrade) = upgrade {
        request.headers_mut().insert(UPGRADE, upgrade);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let mut response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(stream(response));
    }
    if let Some(client) = client {
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, backend) = match tokio::try_join!(client, backend) {
                Ok(both) => both,
                Err(e) => {
                    debug!(error = %e, "upgrade failed");
                    return;
                }
            };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        });
    }
    let mut answer = Response::new(Body::Full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    Ok(answer)
}

/// An answer as it is passed back: its body as it comes.
pub(crate) fn stream(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    let frames = BodyStream::new(body).filter_map(|frame| async {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(e) => Some(Err(std::io::Error::other(e))),
        }
    });
    Response::from_parts(parts, Body::Stream(frames.boxed()))
}
