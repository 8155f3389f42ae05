//! The kubelet's HTTPS server: logs, exec, attach, port-forward, health, pods, stats.
//!
//! Only the API server may call it: a client certificate of the cluster with the right name is required.

mod exec;
mod log;
mod portforward;
mod remote;
mod request;
mod spdy;
mod stats;
pub mod tls;
mod upgrade;
mod websocket;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::context::Context;
use crate::manager::Pods;
use crate::worker::Handle;
use request::Query;
use tls::Caller;

/// A response body.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A whole answer as text.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", Bytes::from(body.into()))
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    answer(StatusCode::OK, "application/json", Bytes::from(value.to_string()))
}

/// A refused request: status and text.
pub type Refusal = (StatusCode, String);

/// The server.
pub struct Server {
    cx: Arc<Context>,
    pods: Pods,
}

impl Server {
    /// A server for the pods of `pods`.
    pub fn new(cx: Arc<Context>, pods: Pods) -> Self {
        Self { cx, pods }
    }

    /// Accepts connections for ever.
    pub async fn serve(self: Arc<Self>, listener: Arc<TcpListener>, tls: TlsAcceptor) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().connection(stream, tls.clone()));
                }
                Err(e) => {
                    // Out of descriptors, mostly: give others time to close theirs.
                    debug!(error = %e, "accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, tls: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), tls.accept(stream)).await;
        let Ok(Ok(stream)) = handshake else { return };
        let caller = Arc::new(tls::caller(stream.get_ref().1.peer_certificates()));
        let service = service_fn(move |request| {
            let (server, caller) = (self.clone(), caller.clone());
            async move { Ok::<_, std::convert::Infallible>(server.handle(request, &caller).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(e) = connection.await {
            debug!(error = %e, "connection ended");
        }
    }

    async fn handle(&self, request: Request<Incoming>, caller: &Caller) -> Response<Body> {
        match caller {
            Caller::Anonymous => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Caller::Other(user) => {
                let verb = if request.method() == Method::GET { "get" } else { "create" };
                let message =
                    format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[proxy])");
                return text(StatusCode::FORBIDDEN, message);
            }
            Caller::ApiServer => {}
        }
        match self.route(request).await {
            Ok(response) => response,
            Err((status, message)) => text(status, message),
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path().to_owned();
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["healthz"] => Ok(text(StatusCode::OK, "ok")),
            ["pods"] => Ok(json(&stats::pods(&self.pods))),
            ["stats", "summary"] => Ok(json(&stats::summary(&self.cx, &self.pods).await)),
            ["containerLogs", ns, pod, container] => {
                log::logs(&self.cx, &self.pod(ns, pod, None)?, container, &query)
            }
            ["exec", ns, pod, container] => {
                exec::exec(&self.cx, request, &self.pod(ns, pod, None)?, container, &query).await
            }
            ["exec", ns, pod, uid, container] => {
                exec::exec(&self.cx, request, &self.pod(ns, pod, Some(uid))?, container, &query).await
            }
            ["attach", ns, pod, container] => {
                exec::attach(&self.cx, request, &self.pod(ns, pod, None)?, container, &query).await
            }
            ["attach", ns, pod, uid, container] => {
                exec::attach(&self.cx, request, &self.pod(ns, pod, Some(uid))?, container, &query).await
            }
            ["portForward", ns, pod] => portforward::forward(&self.cx, request, &self.pod(ns, pod, None)?),
            ["portForward", ns, pod, uid] => {
                portforward::forward(&self.cx, request, &self.pod(ns, pod, Some(uid))?)
            }
            _ => Err((StatusCode::NOT_FOUND, "404 page not found".to_owned())),
        }
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&&str>) -> Result<Handle, Refusal> {
        let found = self.pods.find(namespace, name);
        let right = found.filter(|h| uid.is_none_or(|uid| crate::names::uid(&h.pod) == *uid));
        right.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod {name:?} not found")))
    }
}

#[cfg(test)]
mod tests;
