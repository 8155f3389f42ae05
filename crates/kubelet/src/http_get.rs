//! One HTTP GET for probes and lifecycle hooks, with the error texts of Go's client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_stdx::AnyCertificate;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Largest body that is read.
const MAX_BODY: usize = 10 * 1024;

/// A port given by number or by the name of a container port.
///
/// # Errors
/// No such name, or a number that is no port.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.ok_or_else(|| format!("couldn't find port: {} in container", show(port)))?;
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn show(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::String(s) => s.clone(),
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Opens a connection.
///
/// # Errors
/// As Go words it: `dial tcp 10.0.0.1:80: connect: connection refused`.
pub async fn dial(address: &str, limit: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(format!("dial tcp {address}: connect: {}", reason(&e))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// The bare error text, without Rust's `(os error N)`.
fn reason(e: &std::io::Error) -> String {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or("");
    text.chars().next().map(|c| c.to_lowercase().collect::<String>()).unwrap_or_default()
        + text.get(1..).unwrap_or("")
}

/// Status code and the beginning of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
    /// At most 10 KiB.
    pub body: String,
}

/// Carries out an `httpGet` action against a pod's address.
///
/// # Errors
/// As Go words it: `Get "http://…": …`.
pub async fn get(
    container: &Container,
    action: &HTTPGetAction,
    pod_ip: &str,
    agent: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let port = port(container, &action.port)?;
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let address = address(host, port);
    let url = format!("{}://{address}{slash}{path}", if tls { "https" } else { "http" });
    let request = request(action, &format!("{slash}{path}"), &address, agent)
        .map_err(|e| format!("Get {url:?}: {e}"))?;
    let exchange = async {
        let stream = dial(&address, limit).await?;
        if tls { send(secure(stream, host).await?, request).await } else { send(stream, request).await }
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result.map_err(|e| format!("Get {url:?}: {e}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn request(
    action: &HTTPGetAction,
    path: &str,
    address: &str,
    agent: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let given = action.http_headers.as_deref().unwrap_or_default();
    let has = |name: &str| given.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    let mut request = http::Request::get(path).header("Connection", "close");
    if !has("Host") {
        request = request.header("Host", address);
    }
    if !has("User-Agent") {
        request = request.header("User-Agent", agent);
    }
    if !has("Accept") {
        request = request.header("Accept", "*/*");
    }
    for header in given.iter().filter(|h| !h.value.is_empty() || !h.name.eq_ignore_ascii_case("Accept")) {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new())
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() })?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok(Answer { code, body })
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

/// TLS to a container: kubelets accept any certificate for probes.
async fn secure(stream: TcpStream, host: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_connection_is_worded_as_go_does() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        let action = HTTPGetAction { port: IntOrString::Int(port.into()), ..HTTPGetAction::default() };
        let limit = Duration::from_secs(1);
        let error = get(&Container::default(), &action, "127.0.0.1", "x", limit).await.expect_err("refused");
        let at = format!("127.0.0.1:{port}");
        assert_eq!(error, format!("Get \"http://{at}/\": dial tcp {at}: connect: connection refused"));
    }

    #[test]
    fn ports_are_found_by_name() {
        let c: Container = serde_json::from_value(serde_json::json!({
            "name": "a", "ports": [{"name": "http", "containerPort": 8080}]}))
        .expect("container");
        assert_eq!(port(&c, &IntOrString::String("http".into())), Ok(8080));
        assert!(port(&c, &IntOrString::String("no".into())).is_err());
    }
}
