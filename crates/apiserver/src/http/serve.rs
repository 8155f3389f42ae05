//! Connections: accept, TLS, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use super::{pipeline, tls};
use crate::authn::Connection;
use crate::config::StartError;
use crate::server::{ApiServer, Server};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections until dropped.
pub(crate) async fn run(api: Arc<ApiServer>, listener: TcpListener) {
    let (config, authorities) = match prepare(&api) {
        Ok(made) => made,
        Err(e) => {
            error!(error = %e, "cannot serve");
            return;
        }
    };
    let acceptor = TlsAcceptor::from(config);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, authorities, server) = (acceptor.clone(), authorities.clone(), api.server.clone());
        tokio::spawn(async move {
            if let Err(e) = connection(acceptor, authorities, server, stream).await {
                debug!(%peer, error = %e, "connection ended");
            }
        });
    }
}

/// Who vouches for client certificates.
#[derive(Clone)]
struct Authorities {
    clients: Option<tls::ClientCa>,
    proxies: Option<tls::ClientCa>,
}

/// The TLS side of a server, and who vouches for its clients.
fn prepare(api: &ApiServer) -> Result<(Arc<rustls::ServerConfig>, Authorities), StartError> {
    let clients = api.client_ca.as_deref().map(tls::ClientCa::new).transpose()?;
    let proxies = api.server.front_proxy.as_ref().map(|p| tls::ClientCa::new(&p.ca_pem)).transpose()?;
    let asked = clients.as_ref().or(proxies.as_ref());
    let config = Arc::new(tls::server_config(&api.tls, asked)?);
    Ok((config, Authorities { clients, proxies }))
}

async fn connection(
    acceptor: TlsAcceptor,
    authorities: Authorities,
    server: Arc<Server>,
    stream: TcpStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let connection = Arc::new(match stream.get_ref().1.peer_certificates() {
        Some(chain @ [own, ..]) => {
            let clients = authorities.clients.as_ref();
            let client = clients.map(|ca| ca.accepts(chain).map_err(|e| e.to_string()));
            let proxy = authorities.proxies.as_ref().is_some_and(|ca| ca.accepts(chain).is_ok());
            Connection::certified(own, client, proxy)
        }
        _ => Connection::plain(),
    });
    let service = service_fn(move |request| {
        let (server, connection) = (server.clone(), connection.clone());
        async move { Ok::<_, Infallible>(pipeline::handle(server, connection, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Some(Duration::from_secs(75)));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(Some(1000))
        .initial_stream_window_size(Some(1 << 20))
        .initial_connection_window_size(Some(4 << 20))
        .max_frame_size(Some(64 * 1024))
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(30));
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
}
