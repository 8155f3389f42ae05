//! A server on a loopback port and a small HTTPS client, for the tests of this crate.

pub mod extension;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::{Anonymous, ApiServer, Config, RequestLimits, Tls};
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::static_token::StaticTokens;
use coracle_auth::{Authenticator, Authorizer};
use coracle_stdx::Clock;
use coracle_store::{MemoryStore, Store};
use futures::SinkExt as _;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

/// The administrator's token; `nobody` has no rights.
pub const ADMIN: &str = "admintoken";

/// A running server.
pub struct Cluster {
    api: Arc<ApiServer>,
    ca: CertificateAuthority,
    addr: SocketAddr,
    roots: rustls::RootCertStore,
    tls: Arc<rustls::ClientConfig>,
    serving: tokio::task::JoinHandle<()>,
}

/// An answer.
pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

/// A connection that stays.
pub struct KeepAlive(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl KeepAlive {
    /// GET on it.
    pub async fn get(&mut self, target: &str) -> StatusCode {
        let request = Request::builder().uri(target).header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {ADMIN}"));
        let response = self.0.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        let code = response.status();
        response.into_body().collect().await.unwrap();
        code
    }
}

impl KeepAlive {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The request cannot be made, or the connection ended: it is of no more use.
    pub async fn send(
        &mut self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let response = self.0.send_request(request.body(Full::new(body))?).await?;
        let code = response.status().as_u16();
        Ok((code, response.into_body().collect().await?.to_bytes()))
    }
}

/// A request whose body is under way.
pub struct Upload {
    body: futures::channel::mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    answer: tokio::task::JoinHandle<hyper::Result<http::Response<hyper::body::Incoming>>>,
}

impl Upload {
    /// Sends more of the body.
    pub async fn send(&mut self, bytes: Bytes) {
        self.body.send(Ok(Frame::data(bytes))).await.unwrap();
    }

    /// Ends the body; the answer.
    pub async fn finish(self) -> Answer {
        let Self { body, answer } = self;
        drop(body);
        Answer::of(answer.await.unwrap().unwrap()).await
    }

    /// The answer, though the body has not ended.
    pub async fn answer(self) -> Answer {
        let Self { body, answer } = self;
        let answer = Answer::of(answer.await.unwrap().unwrap()).await;
        drop(body);
        answer
    }
}

impl Answer {
    /// A response with its whole body.
    pub async fn of(response: http::Response<hyper::body::Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self { code: parts.status, headers: parts.headers, bytes }
    }

    /// The JSON body.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| {
            panic!("{e}: {}", String::from_utf8_lossy(&self.bytes));
        })
    }
}

/// A serving certificate.
fn serving(ca: &CertificateAuthority) -> Tls {
    let issue = Issue {
        common_name: "kube-apiserver".into(),
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        days: 1,
        ..Issue::default()
    };
    let pem = ca.issue(issue, &Clock::system()).unwrap();
    Tls { cert_pem: pem.cert, key_pem: pem.key }
}

/// Configuration over a store, on an address.
pub fn config(store: Arc<dyn Store>, advertise: SocketAddr) -> (Config, CertificateAuthority) {
    let clock = Clock::system();
    let ca = CertificateAuthority::create("test-ca", &clock).unwrap();
    let tokens = "admintoken,admin,admin,\"system:masters\"\nnobodytoken,nobody,nobody\n";
    let tokens = StaticTokens::parse(tokens).unwrap();
    let config = Config {
        store,
        clock,
        git_version: "v1.36.2+coracle".into(),
        flags: Default::default(),
        encryption: None,
        reloads: Default::default(),
        tls: serving(&ca),
        client_ca_pem: None,
        authenticators: Box::new(move |_| vec![Arc::new(tokens) as Arc<dyn Authenticator>]),
        anonymous: Anonymous::Everywhere,
        authorizers: Box::new(|reader| vec![Arc::new(RbacAuthorizer::new(reader)) as Arc<dyn Authorizer>]),
        token_issuer: None,
        admission: Vec::new(),
        service_cidr: "10.96.0.0/16".into(),
        node_port_range: (30000, 32767),
        advertise,
        kubelet_client: None,
        proxy_client: None,
        front_proxy: None,
        components: vec!["scheduler"],
        bootstrap: Vec::new(),
        compaction_interval: Duration::from_secs(300),
        event_ttl: Duration::from_secs(3600),
        limits: RequestLimits::UPSTREAM,
        audit: None,
    };
    (config, ca)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Cluster {
    /// Starts a server on a fresh store.
    pub async fn start() -> Self {
        Self::over(MemoryStore::new()).await
    }

    /// Starts a server on a store.
    pub async fn over(store: Arc<dyn Store>) -> Self {
        Self::with(store, |_| ()).await
    }

    /// Starts a server on a fresh store, with other limits.
    pub async fn limited(limits: RequestLimits) -> Self {
        Self::with(MemoryStore::new(), |config| config.limits = limits).await
    }

    /// Starts a server on a store, with a configuration that the test changes.
    pub async fn with(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (mut config, ca) = config(store, addr);
        change(&mut config);
        let api = ApiServer::start(config).await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let tls = client(&roots).with_no_client_auth();
        let serving = tokio::spawn(api.clone().serve(listener));
        Self { api, ca, addr, roots, tls: Arc::new(tls), serving }
    }

    /// POST of JSON with a client certificate, or none, instead of a token.
    pub async fn as_client(
        &self,
        own: Option<&Tls>,
        target: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let builder = client(&self.roots);
        let tls = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let cert = CertificateDer::from_pem_slice(own.cert_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let io = TokioIo::new(self.tls_as(Arc::new(tls)).await);
        let mut headers = headers.to_vec();
        headers.extend([("content-type", "application/json"), ("authorization", "")]);
        let body = Full::new(Bytes::from(body.to_string()));
        Answer::of(begin(io, Method::POST, target, &headers, body).await.await.unwrap()).await
    }

    /// The server.
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// Another serving certificate of the same CA.
    pub fn issue(&self) -> Tls {
        serving(&self.ca)
    }

    /// A connection without a request.
    pub async fn tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.tls_as(self.tls.clone()).await
    }

    /// Whether it takes no more connections.
    pub async fn refuses(&self) -> bool {
        TcpStream::connect(self.addr).await.is_err()
    }

    async fn tls_as(&self, tls: Arc<rustls::ClientConfig>) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap()
    }

    /// The certificate that a new connection is shown.
    pub async fn served_certificate(&self) -> Vec<u8> {
        self.tls().await.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// A connection for several requests.
    pub async fn keep_alive(&self) -> KeepAlive {
        let io = TokioIo::new(self.tls().await);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        KeepAlive(sender)
    }

    /// Sends a request and returns the response with its body still running.
    pub async fn open(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<hyper::body::Incoming> {
        let body = Full::new(Bytes::from(body.to_owned()));
        self.connect(method, target, headers, body).await.await.unwrap()
    }

    /// Begins a request whose body the test sends bit by bit.
    pub async fn upload(&self, method: Method, target: &str, headers: &[(&str, &str)]) -> Upload {
        let (body, rest) = futures::channel::mpsc::channel(8);
        let rest = http_body_util::StreamBody::new(rest);
        let answer = tokio::spawn(self.connect(method, target, headers, rest).await);
        Upload { body, answer }
    }

    /// Connects, and begins a request.
    async fn connect<B>(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: B,
    ) -> impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>> + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        begin(TokioIo::new(self.tls().await), method, target, headers, body).await
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        Answer::of(self.open(method, target, headers, body).await).await
    }

    /// GET.
    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, &[], "").await
    }

    /// POST of JSON.
    pub async fn post(&self, target: &str, body: &Value) -> Answer {
        self.send(Method::POST, target, &[("content-type", "application/json")], &body.to_string()).await
    }

    /// PATCH.
    pub async fn patch(&self, target: &str, kind: &str, body: &Value) -> Answer {
        let kind = format!("application/{kind}");
        self.send(Method::PATCH, target, &[("content-type", &kind)], &body.to_string()).await
    }

    /// DELETE.
    pub async fn delete(&self, target: &str) -> Answer {
        self.send(Method::DELETE, target, &[], "").await
    }
}

/// Begins a request on a connection of its own.
async fn begin<B>(
    io: TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
    method: Method,
    target: &str,
    headers: &[(&str, &str)],
    body: B,
) -> impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>> + use<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
    if !headers.iter().any(|(k, _)| *k == "authorization") {
        request = request.header("authorization", format!("Bearer {ADMIN}"));
    }
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let request = request.body(body).unwrap();
    async move { sender.send_request(request).await }
}

fn client(
    roots: &rustls::RootCertStore,
) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
}

/// Waits until there is something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut find: impl FnMut() -> F) -> T {
    let look = async {
        loop {
            if let Some(found) = find().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, look).await.unwrap_or_else(|_| panic!("no {what} within a minute"))
}
