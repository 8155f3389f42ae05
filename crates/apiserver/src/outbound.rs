//! Connections that the server opens itself: to webhooks, extension servers, kubelets and whatever else it asks.
//! One way to trust, to dial and to ask, in the words of Go's HTTP client where clients see them.

mod ask;
mod relay;
mod remote;
mod service;
mod trust;

use std::time::Duration;

pub(crate) use coracle_client::Io;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

pub(crate) use ask::{Question, Reply, ask};
pub(crate) use relay::{relay, stream, strip};
pub use remote::{RemoteClient, RemoteConfig};
pub(crate) use service::address as service_address;
pub(crate) use trust::Trust;

/// Longest wait for a connection, and for its TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// How to speak on a connection.
#[derive(Clone)]
pub(crate) enum Wire {
    /// Plain HTTP.
    Plain,
    /// TLS, with the name that the certificate must be for.
    Tls(std::sync::Arc<rustls::ClientConfig>, String),
}

/// An open connection.
pub(crate) struct Connected {
    pub(crate) io: Box<dyn Io>,
    /// Whether both sides agreed to speak HTTP/2.
    pub(crate) http2: bool,
}

/// Opens a connection.
///
/// # Errors
/// Why there is none, as Go says it: `dial tcp 10.0.0.1:443: connect: connection refused`.
pub(crate) async fn connect((host, port): (&str, u16), wire: &Wire) -> Result<Connected, String> {
    let stream = match tokio::time::timeout(CONNECT, dial(host, port)).await {
        Ok(stream) => stream?,
        Err(_) => return Err(format!("dial tcp {}: i/o timeout", authority(host, port))),
    };
    let _ = stream.set_nodelay(true);
    let (config, name) = match wire {
        Wire::Plain => return Ok(Connected { io: Box::new(stream), http2: false }),
        Wire::Tls(config, name) => (config, name),
    };
    let name = ServerName::try_from(name.clone()).map_err(|e| e.to_string())?;
    let handshake = tokio_rustls::TlsConnector::from(config.clone()).connect(name.clone(), stream);
    match tokio::time::timeout(CONNECT, handshake).await {
        Ok(Ok(tls)) => {
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Connected { io: Box::new(tls), http2 })
        }
        Ok(Err(e)) => Err(trust::words(&e, &name)),
        Err(_) => Err("net/http: TLS handshake timeout".to_owned()),
    }
}

/// Host and port, with the brackets of an IPv6 address.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects to the first address of a host that takes it; else the first one says why not.
async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let unknown = || format!("dial tcp: lookup {host}: no such host");
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|_| unknown())?;
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = failure.or(Some(undialled(&address.to_string(), &e))),
        }
    }
    Err(failure.unwrap_or_else(unknown))
}

fn undialled(address: &str, e: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let why = match e.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::HostUnreachable => "no route to host",
        ErrorKind::NetworkUnreachable => "network is unreachable",
        ErrorKind::TimedOut => "connection timed out",
        _ => return format!("dial tcp {address}: {e}"),
    };
    format!("dial tcp {address}: connect: {why}")
}
