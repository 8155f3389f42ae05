//! Connections: accept, TLS, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::stall::Stall;
use super::{pipeline, tls};
use crate::authn::Connection;
use crate::server::{ApiServer, Server};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bytes of a request's headers.
const MAX_HEADERS: u32 = 1 << 20;

/// Accepts connections until dropped.
pub(crate) async fn run(api: Arc<ApiServer>, listener: TcpListener) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (serving, server) = (api.serving.read().clone(), api.server.clone());
        tokio::spawn(async move {
            if let Err(e) = connection(&serving, server, stream, peer.ip()).await {
                debug!(%peer, error = %e, "connection ended");
            }
        });
    }
}

async fn connection(
    serving: &tls::Serving,
    server: Arc<Server>,
    stream: TcpStream,
    peer: IpAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(serving.config.clone());
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let connection = match stream.get_ref().1.peer_certificates() {
        Some(chain @ [own, ..]) => {
            let clients = serving.client_ca.as_ref();
            let client = clients.map(|ca| ca.accepts(chain).map_err(|e| e.to_string()));
            let proxy = serving.proxy_ca.as_ref().is_some_and(|ca| ca.accepts(chain).is_ok());
            Connection::certified(own, client, proxy)
        }
        _ => Connection::plain(),
    };
    let connection = Arc::new(connection.from(peer));
    let stream = Stall::new(stream, server.limits.timeout, connection.patient.clone());
    let theirs = connection.clone();
    let service = service_fn(move |request| {
        let (server, connection) = (server.clone(), theirs.clone());
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
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(30));
    let mut served = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        ended = served.as_mut() => return ended,
        () = connection.goaway.notified() => served.as_mut().graceful_shutdown(),
    }
    served.await
}
