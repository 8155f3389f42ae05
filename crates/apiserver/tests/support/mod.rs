//! A server on a loopback port and a small HTTPS client, for the tests of this crate.

pub mod extension;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::{Anonymous, ApiServer, Config, Tls};
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::static_token::StaticTokens;
use coracle_auth::{Authenticator, Authorizer};
use coracle_stdx::Clock;
use coracle_store::{MemoryStore, Store};
use http::{Method, Request, StatusCode};
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
    _api: Arc<ApiServer>,
    addr: SocketAddr,
    roots: rustls::RootCertStore,
    tls: Arc<rustls::ClientConfig>,
    _serving: tokio::task::JoinHandle<()>,
}

/// An answer.
pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    /// The JSON body.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| {
            panic!("{e}: {}", String::from_utf8_lossy(&self.bytes));
        })
    }
}

/// Configuration over a store, on an address.
pub fn config(store: Arc<dyn Store>, advertise: SocketAddr) -> (Config, String) {
    let clock = Clock::system();
    let ca = CertificateAuthority::create("test-ca", &clock).unwrap();
    let issue = Issue {
        common_name: "kube-apiserver".into(),
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        days: 1,
        ..Issue::default()
    };
    let serving = ca.issue(issue, &clock).unwrap();
    let tokens = "admintoken,admin,admin,\"system:masters\"\nnobodytoken,nobody,nobody\n";
    let tokens = StaticTokens::parse(tokens).unwrap();
    let config = Config {
        store,
        clock,
        git_version: "v1.36.2+coracle".into(),
        tls: Tls { cert_pem: serving.cert, key_pem: serving.key },
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
        bootstrap: Vec::new(),
        compaction_interval: Duration::from_secs(300),
        event_ttl: Duration::from_secs(3600),
        audit: None,
    };
    (config, ca.cert_pem().to_owned())
}

impl Cluster {
    /// Starts a server on a fresh store.
    pub async fn start() -> Self {
        Self::over(MemoryStore::new()).await
    }

    /// Starts a server on a store.
    pub async fn over(store: Arc<dyn Store>) -> Self {
        Self::configured(store, |_| ()).await
    }

    /// Starts a server on a store, with a configuration of one's own.
    pub async fn configured(store: Arc<dyn Store>, configure: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (mut config, ca) = config(store, addr);
        configure(&mut config);
        let api = ApiServer::start(config).await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let tls = client(&roots).with_no_client_auth();
        let serving = tokio::spawn(api.clone().serve(listener));
        Self { _api: api, addr, roots, tls: Arc::new(tls), _serving: serving }
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
        let mut headers = headers.to_vec();
        headers.extend([("content-type", "application/json"), ("authorization", "")]);
        let response = self.exchange(Arc::new(tls), Method::POST, target, &headers, &body.to_string()).await;
        read(response).await
    }

    /// Sends a request and returns the response with its body still running.
    pub async fn open(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<hyper::body::Incoming> {
        self.exchange(self.tls.clone(), method, target, headers, body).await
    }

    async fn exchange(
        &self,
        tls: Arc<rustls::ClientConfig>,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
        if !headers.iter().any(|(k, _)| *k == "authorization") {
            request = request.header("authorization", format!("Bearer {ADMIN}"));
        }
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let response = self.open(method, target, headers, body).await;
        read(response).await
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

fn client(
    roots: &rustls::RootCertStore,
) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { code: parts.status, headers: parts.headers, bytes }
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
