//! One request with its whole body, one answer with its whole body, on a connection of its own.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;

use super::{Wire, connect};

/// What to ask whom.
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    /// Scheme, authority, path and query. The authority's host is what the certificate must be for.
    pub(crate) url: &'a str,
    /// Where to dial instead of the authority.
    pub(crate) at: Option<(String, u16)>,
    /// The name that the certificate must be for, if it is another one.
    pub(crate) name: Option<String>,
    /// Needed for `https`.
    pub(crate) tls: std::sync::Arc<ClientConfig>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Most bytes that are taken of the answer.
    pub(crate) most: usize,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Asks. The caller limits the time.
///
/// # Errors
/// Why there is no answer, in the words of Go's HTTP client without `Post "…":` before them.
pub(crate) async fn ask(question: Question<'_>) -> Result<Reply, String> {
    let uri: Uri = question.url.parse().map_err(|e| format!("parse {:?}: {e}", question.url))?;
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
    let plain = uri.scheme_str() == Some("http");
    let at =
        question.at.unwrap_or_else(|| (host.clone(), uri.port_u16().unwrap_or(if plain { 80 } else { 443 })));
    let wire = if plain { Wire::Plain } else { Wire::Tls(question.tls, question.name.unwrap_or(host)) };
    let connected = connect((&at.0, at.1), &wire).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connected.io)).await.map_err(|e| told(&e))?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::new(Full::new(question.body));
    *request.method_mut() = question.method;
    *request.uri_mut() = path.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    *request.headers_mut() = question.headers;
    request.headers_mut().remove(CONTENT_LENGTH);
    let authority = uri.authority().map_or("", |a| a.as_str());
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
    let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, question.most).collect().await.map_err(|e| e.to_string())?.to_bytes();
    driver.abort();
    Ok(Reply { code: parts.status.as_u16(), headers: parts.headers, body })
}

/// What went wrong on an open connection.
fn told(e: &hyper::Error) -> String {
    if e.is_incomplete_message() || e.is_closed() || e.is_canceled() {
        return "EOF".to_owned();
    }
    // An alert of the other side arrives with the first read.
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            let name = rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
            return super::trust::words(io, &name);
        }
        source = inner.source();
    }
    e.to_string()
}
