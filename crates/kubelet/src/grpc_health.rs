//! The gRPC health check of probes: one unary call, encoded by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::http_get::dial;

/// `SERVING` of `grpc.health.v1.HealthCheckResponse`.
const SERVING: u8 = 1;

/// A length-prefixed `HealthCheckRequest`.
fn request_body(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(0));
    body.extend(message);
    body.freeze()
}

/// Asks for the health of `service`.
///
/// # Errors
/// Upstream's text for an unreachable or unhealthy service.
pub async fn check(address: &str, service: &str, limit: Duration) -> Result<(), String> {
    let timeout = || {
        format!(
            "timeout: failed to connect service {address:?} within {}s: context deadline exceeded",
            limit.as_secs()
        )
    };
    let exchange = async {
        let stream = dial(address, limit).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
        let driver = tokio::spawn(connection);
        let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(request_body(service)))
            .map_err(|e| e.to_string())?;
        let answer = answer(sender.send_request(request).await.map_err(|e| e.to_string())?).await;
        driver.abort();
        answer
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result,
        Err(_) => Err(timeout()),
    }
}

async fn answer(response: http::Response<hyper::body::Incoming>) -> Result<(), String> {
    let early = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), 4096).collect().await.map_err(|e| e.to_string())?;
    let status = early.or_else(|| body.trailers()?.get("grpc-status").cloned());
    match status.as_ref().and_then(|s| s.to_str().ok()) {
        Some("0") | None => {}
        Some("12") => return Err("error: this server does not implement the grpc health protocol".into()),
        Some(code) => return Err(format!("error: health rpc failed with code {code}")),
    }
    let bytes = body.to_bytes();
    match bytes.get(5..7) {
        Some([0x08, SERVING]) => Ok(()),
        Some([0x08, other]) => Err(format!("service unhealthy (responded with {other})")),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_length_prefixed_messages() {
        assert_eq!(&request_body("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request_body("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }
}
