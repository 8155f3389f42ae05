//! Requests that end at a kubelet, a pod or a service: logs, exec, attach, port-forward, proxy.

mod forward;
mod target;

pub(crate) use target::service_address;

use std::sync::Arc;

use coracle_admission::{Operation, Request as Admitted};
use coracle_meta::Status;
use http::{Method, Response};
use rustls::ClientConfig;

use crate::config::{KubeletClient, StartError};
use crate::http::body::Body;
use crate::http::info::Info;
use crate::http::pipeline::Incomer;
use crate::http::query::Query;
use crate::http::respond;
use crate::http::tls;
use crate::registry::Resource;
use crate::server::Server;

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
        let fail = |what: &'static str| move |e: rustls::Error| StartError::Tls { what, why: e.to_string() };
        let roots = tls::roots(&config.ca_pem, "kubelet CA")?;
        let chain = tls::certs(&config.cert_pem, "kubelet client certificate")?;
        let key = tls::key(&config.key_pem, "kubelet client key")?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(fail("TLS versions"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(fail("kubelet client certificate"))?;
        Ok(Self { tls: Arc::new(config) })
    }

    /// The client configuration for connections to kubelets.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        self.tls.clone()
    }
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
    server.fresh().await;
    if info.subresource != "log" {
        admit(server, resource, &incomer, info).await?;
    }
    let Some(target) = target::of(server, resource, &incomer, info, query)? else {
        // A log of a pod that runs nowhere yet is empty.
        return Ok(respond::text(http::StatusCode::OK, ""));
    };
    let checked = info.subresource == "log";
    let mut response = forward::forward(server, target, incomer.request).await?;
    if checked && !response.status().is_success() {
        return Err(forward::failure(&mut response, info.name).await);
    }
    Ok(response)
}

/// exec, attach, port-forward and proxy pass admission as CONNECT.
async fn admit(
    server: &Server,
    resource: &Resource,
    incomer: &Incomer,
    info: &Info<'_>,
) -> Result<(), Status> {
    let mut request = Admitted {
        operation: Operation::Connect,
        resource: resource.def,
        subresource: info.subresource,
        namespace: info.namespace,
        name: info.name,
        user: &incomer.user,
        object: None,
        old: None,
        dry_run: false,
        warnings: Vec::new(),
    };
    server.admission.mutate(&mut request).await?;
    server.admission.validate(&mut request).await
}
