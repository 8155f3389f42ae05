//! One connection to a server: HTTP/1.1 over TLS, requests one after another, written from bytes that were
//! prepared once.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::target::{Failure, Target};
use crate::wire::{Body, find, parse_head};

/// Read at a time at most.
const READ: usize = 64 << 10;

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// `Content-Type`; empty without a body.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

impl Call {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), content_type: "", body: Bytes::new() }
    }
    /// A POST of a JSON object.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: "POST", path: path.into(), content_type: JSON, body: body.into() }
    }
    /// A merge patch.
    pub fn patch(path: impl Into<String>, body: &Value) -> Self {
        let body = body.to_string().into();
        Self { method: "PATCH", path: path.into(), content_type: MERGE_PATCH, body }
    }
    /// A DELETE, at once.
    pub fn delete(path: impl Into<String>) -> Self {
        let body = r#"{"apiVersion":"v1","kind":"DeleteOptions","gracePeriodSeconds":0}"#.into();
        Self { method: "DELETE", path: path.into(), content_type: JSON, body }
    }

    /// The request as it goes over the wire.
    fn write(&self, target: &Target, out: &mut Vec<u8>) {
        let Self { method, path, content_type, body } = self;
        // Writing into a vector does not fail.
        let _ = write!(out, "{method} {path} HTTP/1.1\r\n{}", target.headers());
        if !content_type.is_empty() {
            let _ = write!(out, "Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
    }
}

/// Stands for a number in the path or body of a [`Prepared`] request; as long as the number.
pub const NUMBER: &str = "@number@";

/// A request of which only a number of fixed width changes from one to the next.
#[derive(Clone, Debug)]
pub struct Prepared {
    parts: Vec<Vec<u8>>,
}

impl Prepared {
    /// Prepares a call with any number of [`NUMBER`] in it.
    pub fn new(target: &Target, call: &Call) -> Self {
        let mut all = Vec::new();
        call.write(target, &mut all);
        let (mut parts, mut rest) = (Vec::new(), &all[..]);
        while let Some(at) = find(rest, NUMBER.as_bytes()) {
            parts.push(rest[..at].to_vec());
            rest = &rest[at + NUMBER.len()..];
        }
        parts.push(rest.to_vec());
        Self { parts }
    }

    fn write(&self, number: u64, out: &mut Vec<u8>) {
        for (i, part) in self.parts.iter().enumerate() {
            if i > 0 {
                let _ = write!(out, "{number:08}");
            }
            out.extend_from_slice(part);
        }
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

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An open connection.
pub struct Connection {
    stream: Stream,
    target: Arc<Target>,
    out: Vec<u8>,
    input: Vec<u8>,
    /// What of `input` is used.
    at: usize,
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
        let stream = match &target.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from(target.host.clone()).map_err(|e| failed("server name", e))?;
                let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
                Stream::Tls(Box::new(stream.map_err(|e| failed("TLS", e))?))
            }
        };
        Ok(Self { stream, target: target.clone(), out: Vec::new(), input: Vec::new(), at: 0 })
    }

    /// Sends what is in `out`.
    async fn flush(&mut self) -> Result<(), Failure> {
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(&self.out).await,
            Stream::Tls(stream) => {
                let sent = stream.write_all(&self.out).await;
                if sent.is_ok() { stream.flush().await } else { sent }
            }
        };
        self.out.clear();
        sent.map_err(|e| failed("send", e))
    }

    /// Reads more into `input`; whether there was more. Safe to cancel.
    async fn fill(&mut self) -> Result<bool, Failure> {
        if self.at > 0 {
            self.input.drain(..self.at);
            self.at = 0;
        }
        self.input.reserve(READ);
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read_buf(&mut self.input).await,
            Stream::Tls(stream) => stream.read_buf(&mut self.input).await,
        };
        match read {
            Ok(n) => Ok(n > 0),
            // Servers seldom bother to say goodbye in TLS.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(failed("receive", e)),
        }
    }

    /// Reads the head of the answer.
    async fn head(&mut self) -> Result<(u16, Body), Failure> {
        loop {
            if let Some(head) = parse_head(&self.input[self.at..])? {
                self.at += head.length;
                if head.status >= 200 {
                    return Ok((head.status, head.body));
                }
                continue;
            }
            if !self.fill().await? {
                return Err("the server closed the connection".into());
            }
        }
    }

    /// The next data of a body, as a range of `input`; `None` at its end.
    async fn data(&mut self, body: &mut Body) -> Result<Option<std::ops::Range<usize>>, Failure> {
        loop {
            match body.take(&self.input[self.at..])? {
                Some(taken) => {
                    let data = self.at + taken.data.start..self.at + taken.data.end;
                    self.at += taken.used;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                    if taken.end {
                        return Ok(None);
                    }
                }
                None => {
                    if !self.fill().await? {
                        let whole = *body == Body::UntilClose;
                        return if whole { Ok(None) } else { Err("the answer ended early".into()) };
                    }
                }
            }
        }
    }

    async fn answer(&mut self, keep: bool) -> Result<Reply, Failure> {
        let (status, mut body) = self.head().await?;
        let keep = keep || status >= 400;
        let (mut kept, mut length) = (Vec::new(), 0);
        while body != Body::Length(0) {
            let Some(data) = self.data(&mut body).await? else { break };
            length += data.len() as u64;
            if keep {
                kept.extend_from_slice(&self.input[data]);
            }
        }
        Ok(Reply { status, body: kept.into(), length })
    }

    /// Sends a request and reads the whole answer; keeps the body if asked to.
    ///
    /// # Errors
    /// The connection broke; it must not be used again.
    pub async fn send(&mut self, call: &Call, keep: bool) -> Result<Reply, Failure> {
        call.write(&self.target, &mut self.out);
        self.flush().await?;
        self.answer(keep).await
    }

    /// Sends the prepared request with this number; the body of an answer that is no error is only counted.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn fire(&mut self, prepared: &Prepared, number: u64) -> Result<Reply, Failure> {
        prepared.write(number, &mut self.out);
        self.flush().await?;
        self.answer(false).await
    }

    /// Sends a request that must succeed, and decodes the answer.
    ///
    /// # Errors
    /// The connection broke, or the server refused: its message.
    pub async fn json(&mut self, call: Call) -> Result<Value, Failure> {
        let what = format!("{} {}", call.method, call.path);
        let reply = self.send(&call, true).await?;
        if reply.status >= 300 {
            return Err(format!("{what}: {}: {}", reply.status, message(&reply.body)));
        }
        serde_json::from_slice(&reply.body).map_err(|e| failed(&what, e))
    }

    /// Sends a request that must succeed; what exists already (409) is fine.
    ///
    /// # Errors
    /// As [`Connection::json`].
    pub async fn ensure(&mut self, call: Call) -> Result<(), Failure> {
        let reply = self.send(&call, false).await?;
        accepted(&reply).map_err(|e| format!("{} {}: {e}", call.method, call.path))
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// The connection broke, or the server refused.
    pub async fn watch(mut self, path: &str) -> Result<Lines, Failure> {
        Call::get(path).write(&self.target, &mut self.out);
        self.flush().await?;
        let (status, mut body) = self.head().await?;
        if status == 200 {
            return Ok(Lines { connection: self, body, buffer: Vec::new(), start: 0, scanned: 0 });
        }
        let mut text = Vec::new();
        while let Some(data) = self.data(&mut body).await? {
            text.extend_from_slice(&self.input[data]);
        }
        Err(format!("watch {path}: {status}: {}", message(&text)))
    }
}

/// Whether the answer is a success or a conflict with what exists.
///
/// # Errors
/// The status code and the server's message.
pub fn accepted(reply: &Reply) -> Result<(), Failure> {
    if reply.status < 300 || reply.status == 409 {
        return Ok(());
    }
    Err(format!("{}: {}", reply.status, message(&reply.body)))
}

/// The message of a Status body, or the body itself.
pub fn message(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let text = status.as_ref().and_then(|s| s["message"].as_str()).map(str::to_owned);
    text.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(200).collect())
}

/// The lines of a watch.
pub struct Lines {
    connection: Connection,
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no line end was found.
    scanned: usize,
}

impl Lines {
    /// The next line, without its end; `None` when the server ended the watch. Safe to cancel.
    pub async fn next(&mut self) -> Option<&[u8]> {
        let line = loop {
            if let Some(line) = next_line(&self.buffer, &mut self.start, &mut self.scanned) {
                break line;
            }
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
            let data = self.connection.data(&mut self.body).await.ok()??;
            self.buffer.extend_from_slice(&self.connection.input[data]);
        };
        Some(&self.buffer[line])
    }
}

fn next_line(buffer: &[u8], start: &mut usize, scanned: &mut usize) -> Option<std::ops::Range<usize>> {
    let Some(end) = memchr::memchr(b'\n', &buffer[*scanned..]) else {
        *scanned = buffer.len();
        return None;
    };
    let line = *start..*scanned + end;
    *start = line.end + 1;
    *scanned = *start;
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_across_pieces() {
        let (mut buffer, mut start, mut scanned) = (b"{\"a\":1}\n{\"b\"".to_vec(), 0, 0);
        let line = next_line(&buffer, &mut start, &mut scanned).expect("a line");
        assert_eq!(&buffer[line], b"{\"a\":1}");
        assert_eq!(next_line(&buffer, &mut start, &mut scanned), None);
        buffer.extend_from_slice(b":2}\n");
        let line = next_line(&buffer, &mut start, &mut scanned).expect("a line");
        assert_eq!(&buffer[line], b"{\"b\":2}");
        assert_eq!(next_line(&buffer, &mut start, &mut scanned), None);
    }

    #[test]
    fn message_is_taken_from_a_status() {
        assert_eq!(message(br#"{"kind":"Status","message":"pods \"x\" not found"}"#), "pods \"x\" not found");
        assert_eq!(message(b"plain"), "plain");
    }

    #[test]
    fn prepared_request_states_the_length_it_has() {
        let target = Target::insecure("https://h:1", "t", &[]).expect("a target");
        let body = format!(r#"{{"metadata":{{"name":"o-{NUMBER}"}}}}"#);
        let prepared = Prepared::new(&target, &Call::post(format!("/x/{NUMBER}"), body));
        let mut out = Vec::new();
        prepared.write(417, &mut out);
        let text = String::from_utf8(out).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("POST /x/00000417 HTTP/1.1\r\nHost: h:1\r\n"), "{head}");
        assert!(head.contains("Authorization: Bearer t\r\n"), "{head}");
        assert_eq!(body, r#"{"metadata":{"name":"o-00000417"}}"#);
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
    }
}
