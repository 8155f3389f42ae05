//! Connections: accept, TLS, HTTP/1.1 and HTTP/2. Each stays on its lane; see [`super::lanes`].

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_meta::Status;
use futures::future::Either;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use super::lanes::{self, Lanes};
use super::stall::Stall;
use super::{pipeline, respond, tls};
use crate::authn::Connection;
use crate::server::{ApiServer, Server};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bytes of a request's headers.
const MAX_HEADERS: u32 = 1 << 20;

/// Accepts connections until the server is about to end; those it has go on until this is dropped.
pub(crate) async fn run(api: Arc<ApiServer>, listener: TcpListener) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = loop {
        match Lanes::start(processors) {
            Ok(lanes) => break lanes,
            Err(e) => error!(error = %e, "no threads for connections"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let mut closed = pin!(api.server.drain.closed());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.as_mut() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (serving, server, shared) = (api.serving.read().clone(), api.server.clone(), Handle::current());
        let given = lanes.give(stream, move |stream| async move {
            if let Err(e) = connection(&serving, server, shared, stream, peer.ip()).await {
                debug!(%peer, error = %e, "connection ended");
            }
        });
        if let Err(e) = given {
            warn!(error = %e, "connection dropped");
        }
    }
    // Who asks now is to ask elsewhere; the lanes go on until all is answered.
    drop(listener);
    std::future::pending().await
}

async fn connection(
    serving: &tls::Serving,
    server: Arc<Server>,
    shared: Handle,
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
    let closed = server.drain.closed();
    let connection = Arc::new(connection.from(peer, server.drain.connection()));
    let stream = Stall::new(stream, server.limits.timeout, connection.patient.clone());
    let theirs = connection.clone();
    let service = service_fn(move |request| {
        // Boxed: as a value it would be moved, all of its states, several times before it begins.
        let stays = lanes::stays(&request);
        let answer = Box::pin(pipeline::handle(server.clone(), theirs.clone(), request));
        let answer = if stays {
            Either::Left(answer)
        } else {
            // A client that goes away ends its request.
            Either::Right(AbortOnDropHandle::new(shared.spawn(answer)))
        };
        async move {
            Ok::<_, Infallible>(match answer {
                Either::Left(answer) => answer.await,
                Either::Right(answer) => answer
                    .await
                    .unwrap_or_else(|_| respond::status(&Status::internal("the server is shutting down"))),
            })
        }
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
        () = connection.goaway.notified() => {}
        () = closed => {}
    }
    served.as_mut().graceful_shutdown();
    served.await
}
