//! Port-forward: TCP connections to ports of a pod, over SPDY streams; the SPDY session itself may come
//! through a WebSocket tunnel, as kubectl does it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tracing::debug;

use super::spdy::{Session, Stream};
use super::upgrade::{Transport, negotiate, switch, transport};
use super::{Body, Refusal, websocket};
use crate::streaming::Streaming;

const SPDY_PROTOCOL: [&str; 1] = ["portforward.k8s.io"];
const TUNNEL_PROTOCOL: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];

/// Whose ports are forwarded.
#[derive(Clone)]
pub struct Target {
    /// Who connects.
    pub streaming: Arc<dyn Streaming>,
    /// Id of the sandbox.
    pub sandbox: String,
    /// The pod as messages name it.
    pub pod: String,
}

/// Forwards ports for as long as the client stays.
///
/// # Errors
/// The request cannot be upgraded.
pub fn forward(target: Target, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let transport = transport(request.headers())?;
    let known = match transport {
        Transport::WebSocket => TUNNEL_PROTOCOL,
        Transport::Spdy => SPDY_PROTOCOL,
    };
    let protocol = negotiate(request.headers(), transport, &known)?;
    let (response, upgraded) = switch(request, transport, protocol)?;
    tokio::spawn(async move {
        let upgraded = match upgraded.await {
            Ok(upgraded) => upgraded,
            Err(e) => {
                debug!(error = %e, "client left before the upgrade");
                return;
            }
        };
        let session = match transport {
            Transport::WebSocket => Session::new(websocket::tunnel(websocket::accept(upgraded).await)),
            Transport::Spdy => Session::new(TokioIo::new(upgraded)),
        };
        serve(session, target).await;
    });
    Ok(response)
}

/// Streams of one connection: data and error arrive separately.
#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

async fn serve(mut session: Session, target: Target) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut connections = JoinSet::new();
    while let Some(stream) = session.accept().await {
        while connections.try_join_next().is_some() {}
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let (kind, port) = (header("streamtype"), header("port"));
        // Old clients send no request id: theirs are told apart by stream numbers, data after error.
        let mut id = header("requestid");
        if id.is_empty() {
            let number = if kind == "error" { stream.id } else { stream.id.saturating_sub(2) };
            id = number.to_string();
        }
        stream.reply().await;
        let pair = pairs.entry(id.clone()).or_default();
        match kind.as_str() {
            "data" => pair.data = Some(stream),
            "error" => pair.error = Some(stream),
            _ => continue,
        }
        if pair.data.is_none() || pair.error.is_none() {
            continue;
        }
        if let Some(Pair { data: Some(data), error: Some(error) }) = pairs.remove(&id) {
            connections.spawn(connection(target.clone(), port, data, error));
        }
    }
}

async fn connection(target: Target, port: String, data: Stream, error: Stream) {
    let result = match port.parse::<u16>() {
        Ok(number) => target
            .streaming
            .port_forward(&target.sandbox, number)
            .await
            .map_err(|e| format!("error forwarding port {number} to pod {}: {e}", target.pod)),
        Err(_) => Err(format!("unable to parse {port:?} as a port")),
    };
    match result {
        Ok(tcp) => {
            exchange(tcp, data).await;
            error.finish().await;
        }
        Err(message) => {
            error.write(Bytes::from(message)).await;
            error.finish().await;
            data.finish().await;
        }
    }
}

/// Copies both ways until both ends are done.
async fn exchange(tcp: tokio::net::TcpStream, mut data: Stream) {
    let _ = tcp.set_nodelay(true);
    let (mut from, mut to) = tcp.into_split();
    let writer = data.writer();
    let down = async {
        let mut block = vec![0; 32 * 1024];
        while let Ok(n) = from.read(&mut block).await {
            if n == 0 || !writer.write(Bytes::copy_from_slice(&block[..n])).await {
                break;
            }
        }
        writer.finish().await;
    };
    let up = async {
        while let Some(bytes) = data.read().await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    // What the pod sends to its end counts; a client that is gone ends both.
    tokio::join!(down, up);
}
