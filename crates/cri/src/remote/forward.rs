//! Port-forward: TCP connections to ports of a pod, over SPDY streams; the SPDY session itself may come
//! through a WebSocket tunnel, as kubectl does it. Other clients use channels of a WebSocket ([`channels`]).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tracing::debug;

use super::spdy::{Session, Stream};
use super::upgrade::{Transport, negotiate, switch, transport};
use super::websocket::Dialect;
use super::{Body, Refusal, channels, websocket};
use crate::streaming::Streaming;

const SPDY_PROTOCOL: [&str; 1] = ["portforward.k8s.io"];
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 4] =
    [TUNNEL_PROTOCOL, channels::PROTOCOLS[0], channels::PROTOCOLS[1], channels::PROTOCOLS[2]];

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
    let known: &[&str] = match transport {
        Transport::WebSocket => &WEBSOCKET_PROTOCOLS,
        Transport::Spdy => &SPDY_PROTOCOL,
    };
    let protocol = negotiate(request.headers(), transport, known)?;
    let ports = if transport == Transport::WebSocket && protocol != TUNNEL_PROTOCOL {
        let ports = channels::ports(request.uri().query().unwrap_or(""));
        ports.map_err(|why| (StatusCode::BAD_REQUEST, why))?
    } else {
        Vec::new()
    };
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
            Transport::WebSocket if protocol != TUNNEL_PROTOCOL => {
                let socket = websocket::accept(upgraded).await;
                return channels::serve(socket, Dialect::of(protocol), ports, target).await;
            }
            Transport::WebSocket => Session::new(websocket::tunnel(websocket::accept(upgraded).await)),
            Transport::Spdy => Session::new(TokioIo::new(upgraded)),
        };
        serve(session, target).await;
    });
    Ok(response)
}

impl Target {
    /// Connects to a port of the pod.
    ///
    /// # Errors
    /// The text that the client is told.
    pub(super) async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let tcp = self.streaming.port_forward(&self.sandbox, port).await;
        let tcp = tcp.map_err(|e| format!("error forwarding port {port} to pod {}: {e}", self.pod))?;
        let _ = tcp.set_nodelay(true);
        Ok(tcp)
    }
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
        Ok(number) => target.connect(number).await,
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
async fn exchange(tcp: TcpStream, mut data: Stream) {
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
