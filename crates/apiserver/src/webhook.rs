//! Calls to webhooks: one JSON document there, one back, over TLS, with a connection per call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::WebhookClientConfig;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::http::tls;
use crate::kubelet;
use crate::server::Server;

/// Largest answer taken.
const MAX_ANSWER: usize = 64 << 20;

/// Where a webhook is and how it shows who it is.
struct Target {
    /// Host and port to connect to.
    address: String,
    /// The name in its certificate.
    name: String,
    path: String,
    /// As upstream's messages name it.
    url: String,
}

impl Server {
    /// Sends `body` to a webhook and reads its answer.
    ///
    /// # Errors
    /// What went wrong, in words like upstream's.
    pub(crate) async fn call_webhook(
        &self,
        client: &WebhookClientConfig,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let target = self.webhook_target(client)?;
        let seconds = timeout.as_secs();
        let url =
            format!("{}{}timeout={seconds}s", target.url, if target.url.contains('?') { "&" } else { "?" });
        let failed = |why: String| format!("Post {url:?}: {why}");
        let ca = client.ca_bundle.as_ref().map(|ca| ca.0.as_slice()).unwrap_or_default();
        let config = trust(ca).map_err(failed)?;
        let exchange = exchange(&target, config, body.to_string().into(), seconds);
        match tokio::time::timeout(timeout, exchange).await {
            Err(_) => Err(failed("context deadline exceeded".into())),
            Ok(answer) => answer.map_err(failed),
        }
    }

    fn webhook_target(&self, client: &WebhookClientConfig) -> Result<Target, String> {
        if let Some(service) = &client.service {
            let path = service.path.clone().unwrap_or_default();
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            let port = service.port.unwrap_or(443);
            let name = format!("{}.{}.svc", service.name, service.namespace);
            let address = self.webhook_service(&service.namespace, &service.name, port)?;
            return Ok(Target { address, url: format!("https://{name}:{port}{path}"), name, path });
        }
        let url = client.url.clone().unwrap_or_default();
        let parsed: Uri = url.parse().map_err(|e| format!("parse {url:?}: {e}"))?;
        let host = parsed.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let address = match parsed.port_u16() {
            Some(port) => format!("{}:{port}", parsed.host().unwrap_or("")),
            None => format!("{}:443", parsed.host().unwrap_or("")),
        };
        let path = parsed.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Target { address, name: host, path, url })
    }

    /// An endpoint of a service, or what it is an alias of.
    fn webhook_service(&self, namespace: &str, name: &str, port: i32) -> Result<String, String> {
        let services = self.cache.registry.find("", "services").ok_or("services are not served")?;
        let entry = self.present(&services, namespace, name).map_err(|e| e.message().to_owned())?;
        let obj = entry.decoded().map_err(|e| e.message().to_owned())?;
        let spec = obj.downcast::<Service>().and_then(|s| s.spec.as_ref());
        if let Some(alias) = spec.filter(|s| s.type_.as_deref() == Some("ExternalName")) {
            return Ok(format!("{}:{port}", alias.external_name.as_deref().unwrap_or("")));
        }
        let number = u16::try_from(port).map_err(|e| e.to_string())?;
        let found = kubelet::service_address(self, namespace, name, number);
        let (address, port) = found.map_err(|e| e.message().to_owned())?;
        Ok(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
    }
}

/// Trusts the given certificates only.
fn trust(ca: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let pem = std::str::from_utf8(ca).map_err(|e| e.to_string())?;
    let roots = tls::roots(pem, "webhook CA").map_err(|e| e.to_string())?;
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn exchange(
    target: &Target,
    config: Arc<ClientConfig>,
    body: Bytes,
    seconds: u64,
) -> Result<Value, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let stream = TcpStream::connect(&target.address)
        .await
        .map_err(|e| format!("dial tcp {}: connect: {}", target.address, io_text(&e)))?;
    let name = ServerName::try_from(target.name.clone()).map_err(|e| text(&e))?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    let running = tokio::spawn(connection);
    let path = &target.path;
    let separator = if path.contains('?') { '&' } else { '?' };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{path}{separator}timeout={seconds}s"))
        .header(HOST, &target.name)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| text(&e))?;
    let response = sender.send_request(request).await.map_err(|e| text(&e))?;
    let status = response.status();
    let answer =
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| text(&e))?.to_bytes();
    running.abort();
    if status != StatusCode::OK {
        let said = String::from_utf8_lossy(&answer);
        let said = said.trim();
        return Err(if said.is_empty() {
            format!("the server responded with {status}")
        } else {
            said.to_owned()
        });
    }
    serde_json::from_slice(&answer).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
}

fn io_text(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => e.to_string(),
    }
}
