//! Where a service is reached: what webhooks, conversion and aggregation have in common.

use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::Service;

use crate::kubelet;
use crate::server::Server;

/// An address and port behind a port of a service: one of its ready endpoints, what it is an alias of, or this
/// server itself for `default/kubernetes`.
///
/// # Errors
/// 404 without the service, 503 without such a port or a ready endpoint.
pub(crate) fn address(
    server: &Server,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), Status> {
    if (namespace, name, port) == ("default", "kubernetes", 443) {
        return Ok((server.advertise.ip().to_string(), server.advertise.port()));
    }
    let services = server.cache.registry.find("", "services").ok_or_else(Status::no_such_path)?;
    let Ok(entry) = server.present(&services, namespace, name) else {
        let why = format!("service {name:?} not found");
        return Err(Status::new(404, Reason::NotFound, why, None));
    };
    let obj = entry.decoded()?;
    let spec = obj.downcast::<Service>().and_then(|s| s.spec.as_ref());
    if let Some(alias) = spec.filter(|s| s.type_.as_deref() == Some("ExternalName")) {
        return Ok((alias.external_name.clone().unwrap_or_default(), port));
    }
    let listens = spec.iter().flat_map(|s| s.ports.iter().flatten()).any(|p| p.port == i32::from(port));
    if !listens {
        return Err(Status::unavailable(format!("no service port {port} found for service {name:?}")));
    }
    kubelet::endpoint(server, &services, namespace, name, &port.to_string())
}
