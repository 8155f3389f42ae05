//! Calls of webhooks: one HTTPS request, with the authorities and the name that the configuration says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_admission::HookTarget;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use crate::http::tls;
use crate::kubelet::service_address;
use crate::server::Server;

/// Largest answer that is read.
const MAX_ANSWER: usize = 3 * 1024 * 1024;

/// Posts `body` and returns the answer's body.
///
/// # Errors
/// Why that failed, in the words of Go's HTTP client.
pub(crate) async fn post(
    server: &Server,
    target: &HookTarget,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let url = with_timeout(&target.url, timeout);
    let failed = |why: String| format!("Post {url:?}: {why}");
    match tokio::time::timeout(timeout, exchange(server, target, &url, body)).await {
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
        Ok(Err(Failure::Transport(why))) => Err(failed(why)),
        Ok(Err(Failure::Answer(why))) => Err(why),
        Ok(Ok(answer)) => Ok(answer),
    }
}

enum Failure {
    /// No answer.
    Transport(String),
    /// An answer that is none.
    Answer(String),
}

/// The URL with the parameter that tells the webhook how long it may take.
fn with_timeout(url: &str, timeout: Duration) -> String {
    let sign = if url.contains('?') { '&' } else { '?' };
    format!("{url}{sign}timeout={}s", timeout.as_secs())
}

async fn exchange(
    server: &Server,
    target: &HookTarget,
    url: &str,
    body: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let transport = |e: &dyn std::fmt::Display| Failure::Transport(e.to_string());
    let uri: Uri = url.parse().map_err(|e| transport(&e))?;
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
    let (address, port) = match &target.service {
        Some((namespace, name, port)) => {
            let found = service_address(server, namespace, name, *port);
            found.map_err(|why| Failure::Transport(why.message().to_owned()))?
        }
        None => (host.clone(), uri.port_u16().unwrap_or(443)),
    };
    let stream = TcpStream::connect((address.as_str(), port)).await.map_err(|e| {
        let why =
            if e.kind() == std::io::ErrorKind::ConnectionRefused { "connection refused" } else { "failed" };
        Failure::Transport(format!("dial tcp {address}:{port}: connect: {why}"))
    })?;
    let connector = tokio_rustls::TlsConnector::from(config(target).map_err(Failure::Transport)?);
    // The name in the certificate is the one in the URL, also for services.
    let name = ServerName::try_from(host.clone()).map_err(|e| transport(&e))?;
    let stream = connector.connect(name, stream).await;
    let stream = stream.map_err(|e| Failure::Transport(format!("tls: failed to verify certificate: {e}")))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| transport(&e))?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map_or("", |a| a.as_str());
    let request = Request::post(path)
        .header(HOST, HeaderValue::from_str(authority).map_err(|e| transport(&e))?)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, */*")
        .header(USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| transport(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| transport(&e))?;
    let code = answer.status().as_u16();
    let text =
        Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| transport(&e))?.to_bytes();
    driver.abort();
    if (200..300).contains(&code) { Ok(text.to_vec()) } else { Err(Failure::Answer(refusal(code, &text))) }
}

/// A code that is no success, in the words of client-go.
fn refusal(code: u16, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "forbidden".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    }
}

fn config(target: &HookTarget) -> Result<Arc<ClientConfig>, String> {
    let roots = match &target.ca_bundle {
        Some(pem) => {
            tls::roots(&String::from_utf8_lossy(pem), "caBundle of a webhook").map_err(|e| e.to_string())?
        }
        None => RootCertStore::empty(),
    };
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_is_told_how_long_it_may_take() {
        assert_eq!(
            with_timeout("https://a.b.svc:443/v", Duration::from_secs(5)),
            "https://a.b.svc:443/v?timeout=5s"
        );
        assert_eq!(with_timeout("https://h/?a=1", Duration::from_secs(1)), "https://h/?a=1&timeout=1s");
    }

    #[test]
    fn refusals_are_told_as_client_go_does() {
        let want = "an error on the server (\"oops\") has prevented the request from succeeding";
        assert_eq!(refusal(500, b"oops\n"), want);
        assert_eq!(refusal(404, b""), "the server could not find the requested resource");
    }
}
