//! The kubelet's HTTPS server: logs, exec, attach, port-forward, health, pods, stats.
//!
//! The API server may do everything; whoever else comes with a certificate or a token of the cluster is asked for in
//! the API: what matters is what the user may do with subresources of the node.

mod authorize;
mod exec;
pub mod figures;
mod log;
mod metrics;
mod node_logs;
mod stats;
pub mod tls;

use std::sync::Arc;

use bytes::Bytes;
use coracle_cri::remote::{Body, Query, Refusal, answer, text};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::context::Context;
use crate::manager::Pods;
use crate::worker::Handle;
use tls::Caller;

fn json(value: &serde_json::Value) -> Response<Body> {
    answer(StatusCode::OK, "application/json", Bytes::from(value.to_string()))
}

fn prometheus(body: String) -> Response<Body> {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::from(body))
}

/// The server.
pub struct Server {
    cx: Arc<Context>,
    pods: Pods,
    rates: figures::Rates,
}

impl Server {
    /// A server for the pods of `pods`.
    pub fn new(cx: Arc<Context>, pods: Pods) -> Self {
        Self { cx, pods, rates: figures::Rates::default() }
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
        if *caller != Caller::ApiServer {
            let Some(user) = authorize::user(&self.cx, caller, request.headers()).await else {
                return text(StatusCode::UNAUTHORIZED, "Unauthorized");
            };
            let wanted = authorize::subresources(request.uri().path());
            let verb = authorize::verb(request.method());
            if let Err(message) = authorize::check(&self.cx, &user, verb, &wanted).await {
                return text(StatusCode::FORBIDDEN, message);
            }
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
            ["healthz", "ping" | "log" | "syncloop"] => Ok(text(StatusCode::OK, "ok")),
            ["pods"] => Ok(json(&stats::pods(&self.pods))),
            ["runningpods"] => Ok(json(&stats::running_pods(&self.pods))),
            ["configz"] => Ok(json(&self.configuration())),
            ["stats", "summary"] => {
                let few = query.is(&["only_cpu_and_memory"]);
                Ok(json(&stats::summary(&self.cx, &self.pods, &self.rates, few).await))
            }
            ["metrics"] => Ok(prometheus(metrics::own(&self.cx, &self.pods))),
            ["metrics", "resource"] => {
                Ok(prometheus(metrics::resource(&self.cx, &self.pods, &self.rates).await))
            }
            ["metrics", "cadvisor"] => {
                Ok(prometheus(metrics::cadvisor(&self.cx, &self.pods, &self.rates).await))
            }
            ["metrics", "probes"] => Ok(prometheus(metrics::probes(&self.cx))),
            ["logs", rest @ ..] => node_logs::serve(&self.cx, rest, &query).await,
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
            ["portForward", ns, pod] => exec::forward(&self.cx, request, &self.pod(ns, pod, None)?).await,
            ["portForward", ns, pod, uid] => {
                exec::forward(&self.cx, request, &self.pod(ns, pod, Some(uid))?).await
            }
            _ => Err((StatusCode::NOT_FOUND, "404 page not found".to_owned())),
        }
    }

    /// What the kubelet was told, under upstream's names.
    fn configuration(&self) -> serde_json::Value {
        let c = &self.cx.config;
        serde_json::json!({"kubeletconfig": {
            "staticPodPath": c.static_pods,
            "staticPodURL": c.static_pod_url.as_ref().map_or("", |from| from.url.as_str()), "address": "0.0.0.0", "port": c.port, "maxPods": c.max_pods,
            "clusterDomain": c.cluster_domain, "clusterDNS": c.cluster_dns, "resolvConf": c.resolv_conf,
            "reservedSystemCPUs": c.reserved_cpus.as_ref().map(ToString::to_string),
            "imageGCHighThresholdPercent": c.image_gc.high, "imageGCLowThresholdPercent": c.image_gc.low,
            "serializeImagePulls": c.image_pulls == Some(1),
            "maxParallelImagePulls": c.image_pulls.filter(|most| *most > 1),
            "containerLogMaxSize": c.log_max_size.to_string(), "containerLogMaxFiles": c.log_max_files,
            "cgroupRoot": c.cgroup_root, "authentication": {"anonymous": {"enabled": false},
                "webhook": {"enabled": true}}, "authorization": {"mode": "Webhook"},
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        }})
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&&str>) -> Result<Handle, Refusal> {
        let found = self.pods.find(namespace, name);
        let right = found.filter(|h| uid.is_none_or(|uid| crate::names::uid(&h.pod) == *uid));
        right.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod {name:?} not found")))
    }
}

#[cfg(test)]
mod tests;
