//! Passing a request on: a fresh connection per request; an upgraded connection becomes a byte pipe.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_meta::{Reason, Status};
use futures::StreamExt;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, BodyStream};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::debug;

use super::target::{Target, Wire};
use crate::http::body::Body;
use crate::server::Server;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers that belong to one connection and are not passed on.
const HOP: [HeaderName; 4] = [CONNECTION, UPGRADE, TRANSFER_ENCODING, HeaderName::from_static("keep-alive")];

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Sends a request to its target and returns the answer, streamed.
///
/// # Errors
/// 500 when the target cannot be reached, as upstream.
pub(super) async fn forward(
    server: &Server,
    target: Target,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let io = connect(server, &target).await?;
    let failed = |e: hyper::Error| Status::internal(format!("error sending request: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            debug!(error = %e, "proxied connection ended");
        }
    });
    let upgrade = request.headers().get(UPGRADE).cloned();
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let outgoing = outgoing(&target, request, upgrade)?;
    let mut response = sender.send_request(outgoing).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
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
        let mut answer = Response::new(Body::Full(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    Ok(passed_back(response))
}

/// Most that is read of a document.
const MOST: usize = 64 << 20;

/// Reads a JSON document from a target.
///
/// # Errors
/// It cannot be reached, or does not answer with success and JSON.
pub(super) async fn fetch(server: &Server, target: Target) -> Result<serde_json::Value, Status> {
    let io = connect(server, &target).await?;
    let failed = |e: hyper::Error| Status::internal(format!("error sending request: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(&target.path)
        .header(HOST, format!("{}:{}", target.host, target.port))
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(Status::internal)?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MOST).collect().await;
    driver.abort();
    let body = body.map_err(|e| Status::internal(format!("error reading answer: {e}")))?.to_bytes();
    if !status.is_success() {
        return Err(Status::internal(format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    serde_json::from_slice(&body).map_err(|e| Status::internal(format!("answer is not JSON: {e}")))
}

/// The request as the target gets it.
fn outgoing(
    target: &Target,
    request: Request<Incoming>,
    upgrade: Option<HeaderValue>,
) -> Result<Request<Incoming>, Status> {
    let (mut parts, body) = request.into_parts();
    parts.uri = target.path.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    strip(&mut parts.headers);
    // Credentials are for this server, not for what is behind it.
    parts.headers.remove(http::header::AUTHORIZATION);
    let host = format!("{}:{}", target.host, target.port);
    parts.headers.insert(HOST, HeaderValue::from_str(&host).map_err(Status::internal)?);
    if let Some(upgrade) = upgrade {
        parts.headers.insert(UPGRADE, upgrade);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    Ok(Request::from_parts(parts, body))
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
}

fn passed_back(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let exact = parts.headers.contains_key(CONTENT_LENGTH);
    strip(&mut parts.headers);
    if !exact {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let stream = BodyStream::new(body).filter_map(|frame| async {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(e) => Some(Err(std::io::Error::other(e))),
        }
    });
    Response::from_parts(parts, Body::Stream(stream.boxed()))
}

/// Makes a failed answer of the kubelet into a Status.
pub(super) async fn failure(response: &mut Response<Body>, name: &str) -> Status {
    let code = response.status();
    let body = std::mem::replace(response.body_mut(), Body::Full(Bytes::new()));
    let bytes = match tokio::time::timeout(Duration::from_secs(5), body.collect()).await {
        Ok(Ok(all)) => all.to_bytes(),
        _ => Bytes::new(),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::NOT_FOUND => {
            let message =
                "the server could not find the requested resource ( pods/log ".to_owned() + name + ")";
            let details = serde_json::json!({
                "name": name, "kind": "pods/log",
                "causes": [{ "reason": "UnexpectedServerResponse", "message": text }],
            });
            Status::new(404, Reason::NotFound, message, Some(details))
        }
        code => Status::new(code.as_u16(), Reason::Unknown, text, None),
    }
}

async fn connect(server: &Server, target: &Target) -> Result<Box<dyn Io>, Status> {
    let address = format!("{}:{}", target.host, target.port);
    let dial = |why: String| Status::internal(format!("error dialing backend: dial tcp {address}: {why}"));
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(dial(format!("connect: {}", plain(&e)))),
        Err(_) => return Err(dial("i/o timeout".into())),
    };
    let _ = stream.set_nodelay(true);
    let config = match target.wire {
        Wire::Plain => return Ok(Box::new(stream)),
        Wire::Kubelet => {
            let kubelets = server.kubelets.as_ref();
            let missing = || Status::unavailable("this server has no access to kubelets");
            kubelets.ok_or_else(missing)?.tls()
        }
        Wire::Unverified => unverified()?,
    };
    let name = ServerName::try_from(target.host.clone()).map_err(|e| dial(e.to_string()))?;
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream);
    match tokio::time::timeout(CONNECT_TIMEOUT, tls).await {
        Ok(Ok(tls)) => Ok(Box::new(tls)),
        Ok(Err(e)) => Err(Status::internal(format!("error dialing backend: tls: {e}"))),
        Err(_) => Err(dial("TLS handshake timeout".into())),
    }
}

/// Go's words for the commonest failures.
fn plain(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        _ => e.to_string(),
    }
}

fn unverified() -> Result<Arc<ClientConfig>, Status> {
    let config = ClientConfig::builder_with_provider(crate::http::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(Status::internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Accepts any certificate: workloads behind the proxy have none that could be verified.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crate::http::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
