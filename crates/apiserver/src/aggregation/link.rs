//! The way to an extension server: its service, whom to trust, connections kept open.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_auth::UserInfo;
use coracle_meta::Status;
use http::header::{HeaderMap, HeaderName};
use http::{HeaderValue, Method};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceSpec;
use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::config::Tls;
use crate::outbound::{Connected, Question, Reply, Trust, Wire, ask, authority, connect, service_address};
use crate::server::Server;

/// Most bytes of a document of an extension server.
const MOST: usize = 64 << 20;
/// What headers with extra attributes begin with.
const EXTRA: &str = "x-remote-extra-";

/// An extension server as an APIService describes it.
pub(super) struct Link {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) port: u16,
    trust: (Vec<u8>, bool),
    /// For HTTP/2 where the server speaks it, and for HTTP/1.1; or what is wrong with the trust.
    tls: Result<(Arc<ClientConfig>, Arc<ClientConfig>), String>,
    /// HTTP/2 connections by address.
    open: Mutex<HashMap<(String, u16), http2::SendRequest<Incoming>>>,
}

/// A way to send one request.
pub(super) enum Way {
    /// A connection shared with other requests.
    Shared(http2::SendRequest<Incoming>),
    /// One of its own.
    Own(Connected),
}

impl Link {
    /// The link that a spec describes; none when the APIService is this server's own. `known` is kept when it is
    /// the same.
    pub(super) fn of(
        spec: &APIServiceSpec,
        identity: Option<&Tls>,
        known: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        let to = spec.service.as_ref()?;
        let (namespace, service) =
            (to.namespace.clone().unwrap_or_default(), to.name.clone().unwrap_or_default());
        let port = u16::try_from(to.port.unwrap_or(443)).unwrap_or(443);
        let ca = spec.ca_bundle.as_ref().map(|ca| ca.0.clone()).unwrap_or_default();
        let insecure = spec.insecure_skip_tls_verify.unwrap_or(false);
        let same = |link: &&Arc<Self>| {
            (&link.namespace, &link.service, link.port) == (&namespace, &service, port)
                && link.trust.0 == ca
                && link.trust.1 == insecure
        };
        if let Some(known) = known.filter(same) {
            return Some(known.clone());
        }
        let trust = Trust { ca: Some(&ca), insecure, identity, http2: true };
        let both = || Ok((trust.config()?, Trust { http2: false, ..trust }.config()?));
        let tls = both();
        Some(Arc::new(Self { namespace, service, port, trust: (ca, insecure), tls, open: Mutex::default() }))
    }

    /// The name in the server's certificate.
    fn name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Why no connection can be made, whatever the other side does.
    pub(super) fn broken(&self) -> Option<&str> {
        self.tls.as_ref().err().map(String::as_str)
    }

    /// An address of the server.
    ///
    /// # Errors
    /// As [`service_address`].
    pub(super) fn address(&self, server: &Server) -> Result<(String, u16), Status> {
        service_address(server, &self.namespace, &self.service, self.port)
    }

    /// A way to send one request; one that upgrades takes a connection of HTTP/1.1.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub(super) async fn way(&self, at: &(String, u16), upgrade: bool) -> Result<Way, String> {
        let (shared, own) = self.tls.as_ref().map_err(Clone::clone)?;
        if upgrade {
            let wire = Wire::Tls(own.clone(), self.name());
            return connect((&at.0, at.1), &wire).await.map(Way::Own);
        }
        if let Some(open) = self.open.lock().get(at).filter(|open| !open.is_closed()) {
            return Ok(Way::Shared(open.clone()));
        }
        let wire = Wire::Tls(shared.clone(), self.name());
        let connected = connect((&at.0, at.1), &wire).await?;
        if !connected.http2 {
            return Ok(Way::Own(connected));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15));
        let made = builder.handshake(TokioIo::new(connected.io)).await;
        let (sender, connection) = made.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut open = self.open.lock();
        open.retain(|_, sender| !sender.is_closed());
        open.insert(at.clone(), sender.clone());
        Ok(Way::Shared(sender))
    }

    /// Reads a document as a user. The answer may be any code.
    ///
    /// # Errors
    /// The URL that was asked and why there is no answer.
    pub(super) async fn read(
        &self,
        server: &Server,
        user: &UserInfo,
        path: &str,
        mut headers: HeaderMap,
    ) -> Result<(String, Reply), (String, String)> {
        let at = self.address(server).map_err(|status| (String::new(), status.message().to_owned()))?;
        let url = format!("https://{}{path}", authority(&at.0, at.1));
        let tls = self.tls.as_ref().map_err(|why| (url.clone(), why.clone()))?.1.clone();
        introduce(&mut headers, user);
        let named = format!("https://{}{path}", self.name());
        let question = Question {
            method: Method::GET,
            url: &named,
            at: Some(at),
            name: None,
            tls,
            headers,
            body: bytes::Bytes::new(),
            most: MOST,
        };
        match ask(question).await {
            Ok(reply) => Ok((url, reply)),
            Err(why) => Err((url.clone(), format!("Get {url:?}: {why}"))),
        }
    }
}

/// As whom this server itself asks.
pub(super) fn aggregator() -> UserInfo {
    let (name, groups) = ("system:kube-aggregator".to_owned(), vec!["system:masters".to_owned()]);
    UserInfo { name, groups, ..UserInfo::default() }
}

/// A key of an extra attribute as part of a header's name: what cannot stand there is percent-encoded.
fn escaped(key: &str) -> String {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    key.bytes().map(|b| if legal(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Says in the headers who asks, instead of what they said so far.
pub(super) fn introduce(headers: &mut HeaderMap, user: &UserInfo) {
    let old: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            matches!(name, "x-remote-user" | "x-remote-uid" | "x-remote-group") || name.starts_with(EXTRA)
        })
        .cloned()
        .collect();
    for name in old {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("{EXTRA}{}", escaped(key)), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_about_itself_is_replaced_by_who_it_is() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-remote-user", "admin"), ("x-remote-extra-scopes", "all"), ("accept", "*/*")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut user = UserInfo::authenticated("jane", &["devs"]);
        user.extra.insert("example.org/Team".into(), vec!["a".into(), "b".into()]);
        introduce(&mut headers, &user);
        let of = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(of("x-remote-user"), ["jane"]);
        assert_eq!(of("x-remote-group"), ["devs", "system:authenticated"]);
        assert_eq!(of("x-remote-extra-example.org%2fteam"), ["a", "b"]);
        assert_eq!((of("x-remote-extra-scopes").len(), of("accept").len()), (0, 1));
    }
}
