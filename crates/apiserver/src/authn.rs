//! Identities of HTTP requests, remembered for a few seconds so that tokens are not verified each time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use coracle_auth::{Credentials, UserInfo};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::http::drain::Waited;
use crate::server::Server;

/// How long a verified token is believed, as upstream's token cache.
const BELIEVED: Duration = Duration::from_secs(10);
/// Most tokens remembered.
const MAX_TOKENS: usize = 4096;

/// Verified bearer tokens.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<HashMap<String, (Arc<UserInfo>, Instant)>>);

impl TokenCache {
    fn get(&self, token: &str) -> Option<Arc<UserInfo>> {
        let tokens = self.0.lock();
        let (user, until) = tokens.get(token)?;
        (*until > Instant::now()).then(|| user.clone())
    }

    fn put(&self, token: &str, user: &Arc<UserInfo>) {
        let now = Instant::now();
        let mut tokens = self.0.lock();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, (_, until)| *until > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(token.to_owned(), (user.clone(), now + BELIEVED));
    }
}

/// The client certificate of a connection, and whom it was found to be.
#[derive(Default)]
pub(crate) struct Connection {
    /// DER, if one was shown and chains to the client CA.
    client_cert: Option<Vec<u8>>,
    /// DER, if one was shown and chains to the CA of proxies.
    proxy_cert: Option<Vec<u8>>,
    /// What is wrong with the one that was shown instead.
    refused: Option<String>,
    known: Mutex<Option<(Arc<UserInfo>, Instant)>>,
    /// Where it comes from.
    pub(crate) peer: Option<IpAddr>,
    /// It carries something that may rest, e.g. a shell.
    pub(crate) patient: Arc<AtomicBool>,
    /// Whether the end of the server waits for its end.
    pub(crate) waited: Waited,
    /// The client is to make another connection for its next requests.
    pub(crate) goaway: Notify,
}

impl Connection {
    /// A connection without a client certificate.
    pub(crate) fn plain() -> Self {
        Self::default()
    }

    /// A connection with a certificate: what the CA of clients says of it, if there is one, and whether that of
    /// proxies believes it.
    pub(crate) fn certified(der: &[u8], client: Option<Result<(), String>>, proxy: bool) -> Self {
        let proxy_cert = proxy.then(|| der.to_vec());
        let (client_cert, refused) = match client {
            Some(Ok(())) => (Some(der.to_vec()), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        Self { client_cert, proxy_cert, refused, ..Self::default() }
    }

    /// The connection, which comes from there.
    pub(crate) fn from(self, peer: IpAddr, waited: Waited) -> Self {
        Self { peer: Some(peer), waited, ..self }
    }
}

impl Server {
    /// Who sends a request; `None` when the credentials are not valid.
    pub(crate) async fn authenticate(
        &self,
        connection: &Connection,
        bearer: Option<&str>,
        headers: &HeaderMap,
        path: &str,
    ) -> Option<Arc<UserInfo>> {
        let anonymous = || self.anonymous.admits(path).then(|| Arc::new(UserInfo::anonymous()));
        let mut unproxied = None;
        if let (Some(proxies), Some(certificate)) = (&self.front_proxy, &connection.proxy_cert) {
            match proxies.user(certificate, headers) {
                Ok(Some(user)) => return Some(Arc::new(user)),
                Ok(None) => {}
                Err(e) => unproxied = Some(e.to_string()),
            }
        }
        if connection.client_cert.is_none() && bearer.is_none() {
            if let Some(why) = connection.refused.as_ref().or(unproxied.as_ref()) {
                tracing::warn!(%why, "client certificate refused");
                return None;
            }
            return anonymous();
        }
        if connection.client_cert.is_some() {
            let known = connection.known.lock().clone();
            if let Some((user, until)) = known
                && until > Instant::now()
            {
                return Some(user);
            }
        } else if let Some(user) = bearer.and_then(|t| self.tokens.get(t)) {
            return Some(user);
        }
        let credentials =
            Credentials { client_cert: connection.client_cert.clone(), bearer: bearer.map(str::to_owned) };
        match coracle_auth::authenticate(&self.authenticators, &credentials).await {
            Ok(Some(user)) => {
                let user = Arc::new(user);
                if connection.client_cert.is_some() && bearer.is_none() {
                    *connection.known.lock() = Some((user.clone(), Instant::now() + BELIEVED));
                } else if let Some(token) = bearer.filter(|_| connection.client_cert.is_none()) {
                    self.tokens.put(token, &user);
                }
                Some(user)
            }
            Ok(None) if connection.refused.is_some() => None,
            Ok(None) => anonymous(),
            Err(e) => {
                tracing::debug!(error = %e, "authentication failed");
                None
            }
        }
    }
}
