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
use crate::server::{ApiServer, Server};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections until dropped.
pub(crate) async fn run(api: Arc<ApiServer>, listener: TcpListener) {
    let client_ca = api.client_ca.as_deref().map(tls::ClientCa::new).transpose();
    let made = client_ca.and_then(|ca| Ok((Arc::new(tls::server_config(&api.tls, ca.as_ref())?), ca)));
    let (config, client_ca) = match made {
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
        let (acceptor, client_ca, server) = (acceptor.clone(), client_ca.clone(), api.server.clone());
        tokio::spawn(async move {
            if let Err(e) = connection(acceptor, client_ca, server, stream).await {
                debug!(%peer, error = %e, "connection ended");
            }
        });
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    client_ca: Option<tls::ClientCa>,
    server: Arc<Server>,
    stream: TcpStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let connection = Arc::new(match (stream.get_ref().1.peer_certificates(), client_ca) {
        (Some(chain @ [own, ..]), Some(ca)) => match ca.accepts(chain) {
            Ok(()) => Connection::new(Some(own.to_vec())),
            Err(e) => Connection::refused(e.to_string()),
        },
        _ => Connection::new(None),
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
