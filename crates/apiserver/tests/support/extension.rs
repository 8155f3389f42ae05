//! A real TLS server that other tests put behind APIServices and webhooks.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_stdx::Clock;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A request as the server got it: head, body, and the common names of the client's certificate chain (DER).
pub struct Got {
    pub parts: http::request::Parts,
    pub body: Bytes,
    pub client: Option<Vec<u8>>,
}

type Answerer = Arc<dyn Fn(&Got) -> Response<Full<Bytes>> + Send + Sync>;

/// A running server.
pub struct Extension {
    pub addr: SocketAddr,
    /// PEM of its CA.
    pub ca: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Extension {
    /// A server for these names, which asks for client certificates when a CA is given. A request that wants to
    /// upgrade gets an echo.
    pub async fn start(
        names: &[&str],
        client_ca: Option<&str>,
        answer: impl Fn(&Got) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let clock = Clock::system();
        let ca = CertificateAuthority::create("extension-ca", &clock).unwrap();
        let issue = Issue {
            common_name: "extension".into(),
            dns_names: names.iter().map(|n| (*n).to_owned()).collect(),
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Issue::default()
        };
        let pem = ca.issue(issue, &clock).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let cert = CertificateDer::from_pem_slice(pem.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(vec![cert], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let answer: Answerer = Arc::new(answer);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let certs = stream.get_ref().1.peer_certificates();
                    let client = certs.and_then(|c| c.first()).map(|c| c.to_vec());
                    let service = service_fn(move |request| {
                        let (answer, client) = (answer.clone(), client.clone());
                        async move { Ok::<_, std::convert::Infallible>(reply(&answer, client, request).await) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, ca: ca.cert_pem().to_owned(), serving }
    }
}

async fn reply(
    answer: &Answerer,
    client: Option<Vec<u8>>,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if let Some(protocol) = request.headers().get("upgrade").cloned() {
        let upgrade = hyper::upgrade::on(&mut request);
        let who = request.headers().get("x-remote-user").cloned();
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let greeting = who.map_or_else(Vec::new, |w| w.as_bytes().to_vec());
            io.write_all(&greeting).await.unwrap();
            let mut buffer = [0; 64];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..n]).await.unwrap();
            }
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", protocol);
        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        return response;
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    answer(&Got { parts, body, client })
}
