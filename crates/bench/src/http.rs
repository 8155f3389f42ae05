//! One connection to a server: HTTP/1.1 over TLS, requests one after another.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::target::{Failure, Target};

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// `Content-Type`; empty without a body.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

/// JSON bodies.
pub const JSON: &str = "application/json";
/// Merge patches.
pub const MERGE_PATCH: &str = "application/merge-patch+json";

impl Call {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), content_type: "", body: Bytes::new() }
    }
    /// A POST of a JSON object.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, path: path.into(), content_type: JSON, body: body.into() }
    }
    /// A merge patch.
    pub fn patch(path: impl Into<String>, body: &Value) -> Self {
        let body = body.to_string().into();
        Self { method: Method::PATCH, path: path.into(), content_type: MERGE_PATCH, body }
    }
    /// A DELETE, at once.
    pub fn delete(path: impl Into<String>) -> Self {
        let body = r#"{"apiVersion":"v1","kind":"DeleteOptions","gracePeriodSeconds":0}"#.into();
        Self { method: Method::DELETE, path: path.into(), content_type: JSON, body }
    }
}

/// What came back: the body, or only its length.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// The body, if kept.
    pub body: Bytes,
    /// Its length.
    pub length: u64,
}

/// An open connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    target: Arc<Target>,
}

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    format!("{what}: {e}")
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The server is not there, or its certificate is not trusted.
    pub async fn open(target: &Arc<Target>) -> Result<Self, Failure> {
        let at = (target.host.as_str(), target.port);
        let stream = TcpStream::connect(at).await.map_err(|e| failed("connect", e))?;
        stream.set_nodelay(true).map_err(|e| failed("connect", e))?;
        let Some(config) = &target.tls else { return Self::over(stream, target).await };
        let name = ServerName::try_from(target.host.clone()).map_err(|e| failed("server name", e))?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
        Self::over(stream.map_err(|e| failed("TLS", e))?, target).await
    }

    async fn over<S>(stream: S, target: &Arc<Target>) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| failed("HTTP", e))?;
        tokio::spawn(connection);
        Ok(Self { sender, target: target.clone() })
    }

    async fn start(&mut self, call: Call) -> Result<http::Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, format!("{}:{}", self.target.host, self.target.port))
            .header(header::ACCEPT, JSON)
            .header(header::USER_AGENT, "coracle-bench");
        if let Some(token) = &self.target.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !call.content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, call.content_type);
        }
        let request = request.body(Full::new(call.body)).map_err(|e| failed("request", e))?;
        self.sender.ready().await.map_err(|e| failed("connection", e))?;
        self.sender.send_request(request).await.map_err(|e| failed("request", e))
    }

    /// Sends a request and reads the whole answer; keeps the body if asked to.
    ///
    /// # Errors
    /// The connection broke; it must not be used again.
    pub async fn send(&mut self, call: Call, keep: bool) -> Result<Reply, Failure> {
        let response = self.start(call).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if keep || status >= 400 {
            let body = body.collect().await.map_err(|e| failed("body", e))?.to_bytes();
            return Ok(Reply { status, length: body.len() as u64, body });
        }
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| failed("body", e))?;
            length += frame.data_ref().map_or(0, |d| d.len() as u64);
        }
        Ok(Reply { status, length, body: Bytes::new() })
    }

    /// Sends a request that must succeed, and decodes the answer.
    ///
    /// # Errors
    /// The connection broke, or the server refused: its message.
    pub async fn json(&mut self, call: Call) -> Result<Value, Failure> {
        let what = format!("{} {}", call.method, call.path);
        let reply = self.send(call, true).await?;
        if reply.status >= 300 {
            return Err(format!("{what}: {}: {}", reply.status, message(&reply.body)));
        }
        serde_json::from_slice(&reply.body).map_err(|e| failed(&what, e))
    }

    /// As [`Connection::json`], but what exists already (409) is fine.
    ///
    /// # Errors
    /// As [`Connection::json`].
    pub async fn ensure(&mut self, call: Call) -> Result<(), Failure> {
        let what = format!("{} {}", call.method, call.path);
        let reply = self.send(call, true).await?;
        if reply.status < 300 || reply.status == 409 {
            return Ok(());
        }
        Err(format!("{what}: {}: {}", reply.status, message(&reply.body)))
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// The connection broke, or the server refused.
    pub async fn watch(mut self, path: &str) -> Result<Lines, Failure> {
        let response = self.start(Call::get(path)).await?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = response.into_body().collect().await.map_err(|e| failed("body", e))?.to_bytes();
            return Err(format!("watch {path}: {status}: {}", message(&body)));
        }
        Ok(Lines { body: response.into_body(), buffer: Vec::new(), scanned: 0, _connection: self })
    }
}

/// The message of a Status body, or the body itself.
pub fn message(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let text = status.as_ref().and_then(|s| s["message"].as_str()).map(str::to_owned);
    text.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(200).collect())
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    scanned: usize,
    _connection: Connection,
}

impl Lines {
    /// The next line, without its end; `None` when the server ended the watch.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = take_line(&mut self.buffer, &mut self.scanned) {
                return Some(line);
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

fn take_line(buffer: &mut Vec<u8>, scanned: &mut usize) -> Option<Bytes> {
    let Some(end) = buffer[*scanned..].iter().position(|b| *b == b'\n') else {
        *scanned = buffer.len();
        return None;
    };
    let end = *scanned + end;
    let rest = buffer.split_off(end + 1);
    let mut line = std::mem::replace(buffer, rest);
    line.truncate(end);
    *scanned = 0;
    Some(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_across_frames() {
        let (mut buffer, mut scanned) = (b"{\"a\":1}\n{\"b\"".to_vec(), 0);
        assert_eq!(take_line(&mut buffer, &mut scanned).as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(take_line(&mut buffer, &mut scanned), None);
        buffer.extend_from_slice(b":2}\n");
        assert_eq!(take_line(&mut buffer, &mut scanned).as_deref(), Some(&b"{\"b\":2}"[..]));
        assert_eq!(take_line(&mut buffer, &mut scanned), None);
    }

    #[test]
    fn message_is_taken_from_a_status() {
        assert_eq!(message(br#"{"kind":"Status","message":"pods \"x\" not found"}"#), "pods \"x\" not found");
        assert_eq!(message(b"plain"), "plain");
    }
}
