//! gRPC to etcd over HTTP/2: unary calls and one kind of stream, on the first endpoint that answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use coracle_grpc::{framed, unframed};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

/// How long a connection may take to be made, and a call to be answered.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);
/// What may be under way unread: watches of large objects need more than HTTP/2's default 64 KiB.
const WINDOW: u32 = 8 << 20;

/// Where etcd is and how to speak to it: upstream's `--etcd-*` flags.
#[derive(Clone, Debug, Default)]
pub struct EtcdConfig {
    /// `--etcd-servers`: `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    /// `--etcd-cafile`, its content: PEM certificates that vouch for etcd.
    pub ca_pem: Option<String>,
    /// `--etcd-certfile` and `--etcd-keyfile`, their content: the client's certificate and its key.
    pub client_pem: Option<(String, String)>,
    /// `--etcd-prefix`: what our keys are put below.
    pub prefix: String,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No endpoint could be reached: the call was not made.
    #[error("cannot reach etcd: {0}")]
    Unreachable(String),
    /// The connection failed under way: whether the call took effect is unknown.
    #[error("the connection to etcd failed: {0}")]
    Broken(String),
    /// etcd answered with an error.
    #[error("{message}")]
    Status {
        /// The gRPC status code.
        code: u32,
        /// etcd's message.
        message: String,
    },
}

#[derive(Debug)]
struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    fn parse(url: &str) -> Result<Self, String> {
        let bad = || format!("etcd server {url:?} is not of the form https://host:port");
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(2379), tls })
    }
}

/// The body of a request: one message, or messages as they come.
enum RequestBody {
    Whole(Option<Bytes>),
    Stream(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(rx) => rx.poll_recv(cx).map(|b| b.map(|b| Ok(Frame::data(b)))),
        }
    }
}

/// A failure in a response's headers or trailers.
fn failure(headers: &http::HeaderMap) -> Option<CallError> {
    let status = coracle_grpc::failure(headers)?;
    Some(CallError::Status { code: status.code as u32, message: status.message })
}

/// A frame that is not as agreed on.
fn broken(error: coracle_grpc::DecodeError) -> CallError {
    CallError::Broken(error.to_string())
}

/// Connections to etcd: one at a time, made anew on the next endpoint when it fails.
pub(super) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<tokio_rustls::TlsConnector>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    endpoint: usize,
    sender: Option<SendRequest<RequestBody>>,
}

impl Channel {
    /// Reads the configuration; connects at the first call.
    ///
    /// # Errors
    /// Endpoints and PEM texts that cannot be used.
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, String> {
        let endpoints: Vec<_> =
            config.endpoints.iter().map(|e| Endpoint::parse(e)).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err("no etcd server is named".into());
        }
        let tls = endpoints.iter().any(|e| e.tls).then(|| connector(config)).transpose()?;
        Ok(Self { endpoints, tls, current: Mutex::default() })
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<SendRequest<RequestBody>, String> {
        let at = format!("{}:{}", endpoint.host, endpoint.port);
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|e| format!("{at}: {e}"))?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut http2 = Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        let failed = |e: hyper::Error| format!("{at}: {e}");
        match &self.tls {
            Some(connector) if endpoint.tls => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| format!("{at}: {e}"))?;
                let tls = connector.connect(name, tcp).await.map_err(|e| format!("{at}: {e}"))?;
                let (sender, connection) = http2.handshake(TokioIo::new(tls)).await.map_err(failed)?;
                tokio::spawn(connection);
                Ok(sender)
            }
            _ => {
                let (sender, connection) = http2.handshake(TokioIo::new(tcp)).await.map_err(failed)?;
                tokio::spawn(connection);
                Ok(sender)
            }
        }
    }

    /// The connection in use, or a new one on the first endpoint that answers.
    async fn sender(&self) -> Result<SendRequest<RequestBody>, CallError> {
        let mut current = self.current.lock().await;
        if let Some(sender) = current.sender.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        current.sender = None;
        let mut why = Vec::new();
        for _ in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[current.endpoint % self.endpoints.len()];
            match tokio::time::timeout(CONNECT, self.connect(endpoint)).await {
                Ok(Ok(sender)) => {
                    current.sender = Some(sender.clone());
                    return Ok(sender);
                }
                Ok(Err(e)) => why.push(e),
                Err(_) => why.push(format!("{}:{}: no answer", endpoint.host, endpoint.port)),
            }
            current.endpoint += 1;
        }
        Err(CallError::Unreachable(why.join("; ")))
    }

    /// Forgets a connection that failed; the next call tries the next endpoint.
    async fn drop_connection(&self) {
        let mut current = self.current.lock().await;
        current.sender = None;
        current.endpoint += 1;
    }

    async fn send(&self, path: &str, body: RequestBody) -> Result<http::Response<Incoming>, CallError> {
        let mut sender = self.sender().await?;
        let request = http::Request::post(format!("http://etcd{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // A member that has lost its leader says so instead of answering from the past.
            .header("hasleader", "true")
            .body(body)
            .map_err(|e| CallError::Unreachable(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| CallError::Broken(e.to_string()))?;
        match failure(response.headers()) {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }

    async fn exchange(&self, path: &str, message: &[u8]) -> Result<Bytes, CallError> {
        let response = self.send(path, RequestBody::Whole(Some(framed(message)))).await?;
        let body = response.into_body().collect().await.map_err(|e| CallError::Broken(e.to_string()))?;
        if let Some(error) = body.trailers().and_then(failure) {
            return Err(error);
        }
        let mut arrived = BytesMut::from(body.to_bytes());
        let message = unframed(&mut arrived).map_err(broken)?;
        message.ok_or_else(|| CallError::Broken("an answer without a message".into()))
    }

    /// One call that changes something: made at most once.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) async fn write(&self, path: &str, message: &[u8]) -> Result<Bytes, CallError> {
        let answer = match tokio::time::timeout(CALL, self.exchange(path, message)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Broken("no answer in time".into())),
        };
        if matches!(answer, Err(CallError::Broken(_))) {
            self.drop_connection().await;
        }
        answer
    }

    /// One call that only reads: repeated on the other endpoints when a connection fails.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) async fn read(&self, path: &str, message: &[u8]) -> Result<Bytes, CallError> {
        let mut tries = self.endpoints.len();
        loop {
            match self.write(path, message).await {
                Err(CallError::Broken(_)) if tries > 0 => tries -= 1,
                answer => return answer,
            }
        }
    }

    /// A stream in both directions; ends with either half.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) async fn stream(&self, path: &str, first: &[u8]) -> Result<Stream, CallError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(framed(first));
        let answer = tokio::time::timeout(CALL, self.send(path, RequestBody::Stream(receiver))).await;
        let answer = answer.unwrap_or_else(|_| Err(CallError::Broken("no answer in time".into())));
        match answer {
            Ok(response) => Ok(Stream {
                sender,
                body: response.into_body(),
                arrived: BytesMut::new(),
                messages: VecDeque::new(),
            }),
            Err(error) => {
                if matches!(error, CallError::Broken(_)) {
                    self.drop_connection().await;
                }
                Err(error)
            }
        }
    }
}

/// A running stream.
pub(super) struct Stream {
    sender: mpsc::UnboundedSender<Bytes>,
    body: Incoming,
    arrived: BytesMut,
    messages: VecDeque<Bytes>,
}

impl Stream {
    /// Sends a message.
    pub(super) fn send(&self, message: &[u8]) {
        let _ = self.sender.send(framed(message));
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The end of the stream, for whatever reason.
    pub(super) async fn next(&mut self) -> Result<Bytes, CallError> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            let frame = match self.body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(e)) => return Err(CallError::Broken(e.to_string())),
                None => return Err(CallError::Broken("etcd ended the stream".into())),
            };
            match frame.into_data() {
                Ok(data) => self.arrived.put(data),
                Err(frame) => {
                    let error = frame.trailers_ref().and_then(failure);
                    return Err(error.unwrap_or_else(|| CallError::Broken("etcd ended the stream".into())));
                }
            }
            while let Some(message) = unframed(&mut self.arrived).map_err(broken)? {
                self.messages.push_back(message);
            }
        }
    }
}

fn connector(config: &EtcdConfig) -> Result<tokio_rustls::TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = config
        .ca_pem
        .as_deref()
        .ok_or("https etcd servers need the CA that vouches for them (--etcd-cafile)")?;
    for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(cert.map_err(|e| format!("etcd CA: {e}"))?).map_err(|e| format!("etcd CA: {e}"))?;
    }
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots);
    let mut tls = match &config.client_pem {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
            let chain = chain.map_err(|e| format!("etcd client certificate: {e}"))?;
            let key =
                PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| format!("etcd client key: {e}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("etcd client certificate: {e}"))?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tokio_rustls::TlsConnector::from(Arc::new(tls)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_with_a_default_port() {
        let e = Endpoint::parse("https://[::1]:23790").unwrap();
        assert_eq!((e.host.as_str(), e.port, e.tls), ("::1", 23790, true));
        let e = Endpoint::parse("http://etcd.example").unwrap();
        assert_eq!((e.host.as_str(), e.port, e.tls), ("etcd.example", 2379, false));
        for wrong in ["etcd:2379", "", "ftp://a:1", "http://"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
