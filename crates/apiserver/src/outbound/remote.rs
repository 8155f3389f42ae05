//! A client for servers that are asked who somebody is, or what somebody may.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_auth::{Exchange, Remote};
use coracle_client::Dial;
use futures::FutureExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{HeaderValue, Method};
use rustls::ClientConfig;

use super::{Question, Trust, Wire, ask, connect};
use crate::config::Tls;

/// Most bytes that are taken of an answer.
const MOST: usize = 16 << 20;

/// Whom a [`RemoteClient`] trusts, and how it shows who it is.
#[derive(Clone, Debug, Default)]
pub struct RemoteConfig {
    /// PEM of the authorities; without, the system's.
    pub ca_pem: Option<String>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The name that the server's certificate must be for, if it is not the host of the URL.
    pub server_name: Option<String>,
    /// The certificate to show.
    pub identity: Option<Tls>,
    /// The token to show.
    pub bearer: Option<String>,
}

impl RemoteConfig {
    fn tls(&self, http2: bool) -> Result<Arc<ClientConfig>, String> {
        let trust = Trust {
            ca: self.ca_pem.as_deref().map(str::as_bytes),
            insecure: self.insecure,
            identity: self.identity.as_ref(),
            http2,
        };
        trust.config()
    }

    /// Opens connections to the server at `url` for a [`coracle_client::RemoteServer`].
    ///
    /// # Errors
    /// A URL, certificates or keys that cannot be used.
    pub fn dial(&self, url: &str) -> Result<Dial, String> {
        let uri: http::Uri = url.parse().map_err(|e| format!("parse {url:?}: {e}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{url}: not an https URL"));
        }
        let host = uri.host().ok_or_else(|| format!("{url}: no host"))?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let wire = Wire::Tls(self.tls(true)?, self.server_name.clone().unwrap_or_else(|| host.clone()));
        Ok(Arc::new(move || {
            let (host, wire) = (host.clone(), wire.clone());
            async move {
                let connected = connect((&host, port), &wire).await?;
                if connected.http2 {
                    Ok(connected.io)
                } else {
                    Err("the server does not speak HTTP/2".to_owned())
                }
            }
            .boxed()
        }))
    }
}

/// Asks servers by HTTPS, with a connection for each question.
#[derive(Debug)]
pub struct RemoteClient {
    tls: Arc<ClientConfig>,
    server_name: Option<String>,
    headers: HeaderMap,
}

impl RemoteClient {
    /// A client that trusts and shows what `config` says.
    ///
    /// # Errors
    /// Certificates, keys or a token that cannot be used.
    pub fn new(config: &RemoteConfig) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        headers.insert(USER_AGENT, HeaderValue::from_static("kube-apiserver"));
        if let Some(token) = &config.bearer {
            headers.insert(AUTHORIZATION, bearer(token)?);
        }
        Ok(Self { tls: config.tls(false)?, server_name: config.server_name.clone(), headers })
    }
}

/// The header that shows a token.
fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| e.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

#[async_trait]
impl Remote for RemoteClient {
    async fn exchange(&self, url: &str, sent: Exchange<'_>) -> Result<(u16, Vec<u8>), String> {
        let mut headers = self.headers.clone();
        let (method, body) = match sent {
            Exchange::Get(token) => {
                if let Some(token) = token {
                    headers.insert(AUTHORIZATION, bearer(token)?);
                }
                (Method::GET, Vec::new())
            }
            Exchange::Post(body) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                (Method::POST, body)
            }
        };
        let question = Question {
            method,
            url,
            at: None,
            name: self.server_name.clone(),
            tls: self.tls.clone(),
            headers,
            body: body.into(),
            most: MOST,
        };
        let reply = ask(question).await?;
        Ok((reply.code, reply.body.to_vec()))
    }
}
