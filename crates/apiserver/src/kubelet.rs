//! Requests that end at a kubelet, a pod or a service: logs, exec, attach, port-forward, proxy.

mod forward;
mod log_socket;
mod rewrite;
mod target;

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status};
use http::{Method, Response};
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::config::{KubeletClient, StartError, Tls};
use crate::http::body::Body;
use crate::http::info::Info;
use crate::http::pipeline::Incomer;
use crate::http::query::Query;
use crate::http::respond;
use crate::http::tls;
use crate::outbound::Trust;
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::Caller;
use crate::verbs::admit::{Act, Pass};

/// Access to kubelets: the TLS side of it.
pub(crate) struct Kubelets {
    tls: Arc<ClientConfig>,
}

impl Kubelets {
    /// From certificate, key and CA.
    ///
    /// # Errors
    /// [`StartError::Tls`] when one of them cannot be used.
    pub(crate) fn new(config: &KubeletClient) -> Result<Self, StartError> {
        let identity = Tls { cert_pem: config.cert_pem.clone(), key_pem: config.key_pem.clone() };
        if let Some(ca) = &config.ca_pem {
            tls::roots(ca, "kubelet CA")?;
        }
        tls::certs(&config.cert_pem, "kubelet client certificate")?;
        tls::key(&config.key_pem, "kubelet client key")?;
        let ca = config.ca_pem.as_deref().map(str::as_bytes);
        let trust = Trust { ca, insecure: ca.is_none(), identity: Some(&identity), ..Trust::default() };
        let tls =
            trust.config().map_err(|why| StartError::Tls { what: "kubelet client certificate", why })?;
        Ok(Self { tls })
    }

    /// The client configuration for connections to kubelets.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        self.tls.clone()
    }
}

/// A ready endpoint of a service, address and port.
///
/// # Errors
/// 503 without such a port or a ready endpoint.
pub(crate) fn endpoint(
    server: &Server,
    services: &Resource,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<(String, u16), Status> {
    target::service_address(server, services, namespace, name, port)
}

/// Answers a request of a streaming subresource.
pub(crate) async fn handle(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    incomer: Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Response<Body> {
    match proxied(server, resource, incomer, info, query).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

async fn proxied(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    incomer: Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<Response<Body>, Status> {
    let allowed = match info.subresource {
        "log" => incomer.request.method() == Method::GET,
        "exec" | "attach" | "portforward" => {
            matches!(*incomer.request.method(), Method::GET | Method::POST)
        }
        _ => true,
    };
    if !allowed {
        return Err(respond::method_not_allowed());
    }
    if let Some(moved) = rewrite::with_slash(&incomer.request, info) {
        return Ok(moved);
    }
    server.fresh().await?;
    if info.subresource != "log" {
        admit(server, resource, &incomer, info, query).await?;
    }
    let Some(target) = target::of(server, resource, &incomer, info, query)? else {
        // A log of a pod that runs nowhere yet is empty.
        return Ok(respond::text(http::StatusCode::OK, ""));
    };
    let (mut request, log) = (incomer.request, info.subresource == "log");
    let socket = if log { log_socket::take(&mut request)? } else { None };
    let rewriter = rewrite::Rewriter::of(&target, &mut request);
    let mut response = forward::forward(server, target, request).await?;
    if let Some(rewriter) = rewriter {
        response = rewriter.answer(response).await?;
    }
    if log && !response.status().is_success() {
        return Err(forward::failure(&mut response, info.name).await);
    }
    Ok(match socket {
        Some(socket) => socket.serve(response),
        None => response,
    })
}

/// A JSON document of a node's kubelet.
///
/// # Errors
/// The node is unknown, or its kubelet does not answer with JSON.
pub(crate) async fn fetch(server: &Server, node: &str, path: String) -> Result<Value, Status> {
    forward::fetch(server, target::kubelet(server, node, path)?).await
}

/// exec, attach, port-forward and proxy pass admission as CONNECT, with their options as the object.
async fn admit(
    server: &Server,
    resource: &Resource,
    incomer: &Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<(), Status> {
    let caller = Caller::new(incomer.user.clone(), Arc::from(""));
    let act = Act {
        operation: Operation::Connect,
        resource,
        subresource: info.subresource,
        namespace: info.namespace,
        name: info.name,
        dry_run: false,
    };
    let (kind, options) = connect_options(resource.def.kind, info, query);
    let gvk = GroupVersionKind::new("", "v1", &kind);
    let mut object: Box<dyn Object> =
        Box::new(DynamicObject::from_value(gvk, options).map_err(Status::internal)?);
    server.admit(&caller, Pass::Both, act, Some(&mut object), None).await.map(drop)
}

/// Kind and JSON of the options that a connection is asked for with.
fn connect_options(parent: &str, info: &Info<'_>, query: &Query<'_>) -> (String, Value) {
    let mut out = json!({ "metadata": {} });
    let kind = match info.subresource {
        "exec" => "PodExecOptions".to_owned(),
        "attach" => "PodAttachOptions".to_owned(),
        "portforward" => "PodPortForwardOptions".to_owned(),
        _ => format!("{parent}ProxyOptions"),
    };
    match info.subresource {
        "exec" | "attach" => {
            for stream in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(stream) {
                    out[stream] = true.into();
                }
            }
            if let Some(container) = query.get("container").filter(|c| !c.is_empty()) {
                out["container"] = container.into();
            }
            if info.subresource == "exec" {
                out["command"] = query.all("command").collect::<Vec<_>>().into();
            }
        }
        "portforward" => {
            let ports: Vec<i64> = query.all("ports").filter_map(|p| p.parse().ok()).collect();
            out["ports"] = ports.into();
        }
        _ => out["path"] = format!("/{}", info.rest).into(),
    }
    (kind, out)
}
