//! Where a proxied request goes: host, port, path, read off pods, nodes and endpoints.

use coracle_meta::Status;
use k8s_openapi::api::core::v1::{Container, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rand::Rng;

use crate::http::info::Info;
use crate::http::pipeline::Incomer;
use crate::http::query::Query;
use crate::registry::Resource;
use crate::server::Server;

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Address or host name.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// How to speak to it.
    pub(crate) wire: Wire,
    /// Path and query.
    pub(crate) path: String,
    /// Path prefix that the client sees, for redirects and links of proxied servers.
    pub(crate) base: Option<String>,
}

/// How to speak to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// TLS with our client certificate; the kubelet's certificate is verified.
    Kubelet,
    /// Plain HTTP.
    Plain,
    /// TLS to a workload, whose certificate nobody vouches for (as upstream's proxy).
    Unverified,
}

/// The target of a request; `None` for the log of a pod that is on no node.
pub(crate) fn of(
    server: &Server,
    resource: &Resource,
    incomer: &Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<Option<Target>, Status> {
    let raw = incomer.request.uri().query().unwrap_or("");
    if info.subresource == "proxy" {
        return proxy(server, resource, info, raw).map(Some);
    }
    let pod = server.present(resource, info.namespace, info.name)?.decoded()?;
    let Some(pod) = pod.downcast::<Pod>() else { return Err(Status::no_such_path()) };
    let (namespace, name) = (info.namespace, info.name);
    if info.subresource == "portforward" {
        let node = assigned(pod, name)?;
        let ports: Vec<String> = query.all("ports").map(|p| format!("port={}", escape(p))).collect();
        let path = join(format!("/portForward/{namespace}/{name}"), &ports);
        return kubelet(server, &node, path).map(Some);
    }
    let container = container(pod, name, query.get("container").unwrap_or(""))?;
    if info.subresource == "log" {
        let Some(node) = node_name(pod) else { return Ok(None) };
        let params: Vec<String> = LOG_PARAMS
            .iter()
            .filter_map(|(from, to)| Some(format!("{to}={}", escape(query.get(from)?))))
            .collect();
        let path = join(format!("/containerLogs/{namespace}/{name}/{container}"), &params);
        return kubelet(server, &node, path).map(Some);
    }
    if info.subresource == "exec" {
        check_running(pod)?;
    }
    let node = assigned(pod, name)?;
    let path = join(format!("/{}/{namespace}/{name}/{container}", info.subresource), &streams(query));
    kubelet(server, &node, path).map(Some)
}

/// Log options by the API's and by the kubelet's names.
const LOG_PARAMS: &[(&str, &str)] = &[
    ("follow", "follow"),
    ("previous", "previous"),
    ("timestamps", "timestamps"),
    ("sinceSeconds", "sinceSeconds"),
    ("sinceTime", "sinceTime"),
    ("tailLines", "tailLines"),
    ("limitBytes", "limitBytes"),
    ("stream", "stream"),
];

/// Streams and command of exec and attach, as the kubelet names them.
fn streams(query: &Query<'_>) -> Vec<String> {
    let on = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let mut params: Vec<String> =
        on.iter().filter(|(from, _)| query.flag(from)).map(|(_, to)| format!("{to}=1")).collect();
    params.extend(query.all("command").map(|c| format!("command={}", escape(c))));
    params
}

fn node_name(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone().filter(|n| !n.is_empty())
}

fn assigned(pod: &Pod, name: &str) -> Result<String, Status> {
    node_name(pod).ok_or_else(|| Status::bad_request(format!("pod {name} does not have a host assigned")))
}

fn check_running(pod: &Pod) -> Result<(), Status> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
    if !matches!(phase, "Succeeded" | "Failed") {
        return Ok(());
    }
    let why = format!("cannot exec into a container in a completed pod; current phase is {phase}");
    Err(Status::bad_request(why))
}

/// The container asked for, or the only one.
fn container(pod: &Pod, pod_name: &str, asked: &str) -> Result<String, Status> {
    let spec = pod.spec.clone().unwrap_or_default();
    let names = |list: &[Container]| list.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(" ");
    let init = spec.init_containers.unwrap_or_default();
    if !asked.is_empty() {
        let ephemeral = spec.ephemeral_containers.unwrap_or_default();
        let known = spec.containers.iter().chain(&init).any(|c| c.name == asked)
            || ephemeral.iter().any(|c| c.name == asked);
        let why = || format!("container {asked} is not valid for pod {pod_name}");
        return if known { Ok(asked.to_owned()) } else { Err(Status::bad_request(why())) };
    }
    match spec.containers.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        many => {
            let mut why = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                names(many)
            );
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", names(&init)));
            }
            Err(Status::bad_request(why))
        }
    }
}

/// The kubelet of a node.
pub(super) fn kubelet(server: &Server, node: &str, path: String) -> Result<Target, Status> {
    let nodes = server.cache.registry.find("", "nodes").ok_or_else(Status::no_such_path)?;
    let node = server.present(&nodes, "", node)?.decoded()?;
    let status = node.downcast::<Node>().and_then(|n| n.status.as_ref());
    let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or(&[]);
    let of = |kind: &str| addresses.iter().find(|a| a.type_ == kind).map(|a| a.address.clone());
    let host = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"));
    let no_address =
        || Status::internal(format!("no preferred addresses found; known addresses: {addresses:?}"));
    let port = status
        .and_then(|s| s.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
        .and_then(|e| u16::try_from(e.port).ok())
        .filter(|p| *p != 0)
        .unwrap_or(10250);
    Ok(Target { host: host.ok_or_else(no_address)?, port, wire: Wire::Kubelet, path, base: None })
}

/// Target of `…/proxy/…`: the name is `name`, `name:port` or `scheme:name:port`.
fn proxy(server: &Server, resource: &Resource, info: &Info<'_>, raw: &str) -> Result<Target, Status> {
    let (scheme, name, port) = match info.name.split(':').collect::<Vec<_>>().as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return Err(Status::bad_request(format!("invalid proxy request {:?}", info.name))),
    };
    let mut path = format!("/{}", info.rest);
    if !raw.is_empty() {
        path = format!("{path}?{raw}");
    }
    let base = if info.namespace.is_empty() || !resource.namespaced() {
        format!("/api/v1/{}/{}/proxy", info.resource, info.name)
    } else {
        format!("/api/v1/namespaces/{}/{}/{}/proxy", info.namespace, info.resource, info.name)
    };
    let wire = if scheme == "https" { Wire::Unverified } else { Wire::Plain };
    let (host, port) = match info.resource {
        "nodes" => {
            let target = kubelet(server, name, path)?;
            return Ok(Target { base: Some(base), ..target });
        }
        "pods" => pod_address(server, resource, info.namespace, name, port)?,
        _ => service_address(server, resource, info.namespace, name, port)?,
    };
    Ok(Target { host, port, wire, path, base: Some(base) })
}

fn pod_address(
    server: &Server,
    resource: &Resource,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<(String, u16), Status> {
    let pod = server.present(resource, namespace, name)?.decoded()?;
    let pod = pod.downcast::<Pod>();
    let ip = pod.and_then(|p| p.status.as_ref()?.pod_ip.clone()).filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| Status::unavailable("address not allowed"))?;
    let spec = pod.and_then(|p| p.spec.as_ref());
    let mut ports = spec.into_iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let number = match port {
        "" => ports.next().and_then(|p| u16::try_from(p.container_port).ok()).unwrap_or(80),
        port => match port.parse() {
            Ok(number) => number,
            Err(_) => ports
                .find(|p| p.name.as_deref() == Some(port))
                .and_then(|p| u16::try_from(p.container_port).ok())
                .ok_or_else(|| Status::unavailable(format!("no port named {port:?} in pod {name:?}")))?,
        },
    };
    Ok((ip, number))
}

/// A random ready endpoint of a service.
pub(super) fn service_address(
    server: &Server,
    resource: &Resource,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<(String, u16), Status> {
    let service = server.present(resource, namespace, name)?.decoded()?;
    let spec = service.downcast::<Service>().and_then(|s| s.spec.clone()).unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let wanted = ports.iter().find(|p| {
        port.is_empty() || p.name.as_deref() == Some(port) || port.parse::<i32>().is_ok_and(|n| n == p.port)
    });
    let none = || Status::unavailable(format!("no endpoints available for service {name:?}"));
    let Some(wanted) = wanted else {
        return Err(Status::unavailable(format!("no service port {port:?} found for service {name:?}")));
    };
    let slices = server.cache.registry.find("discovery.k8s.io", "endpointslices").ok_or_else(none)?;
    let filter = crate::cache::Filter { key: slices.key_prefix(namespace), ..Default::default() };
    let mut found = Vec::new();
    for entry in slices.cache.range(&filter, 0).entries {
        let slice = entry.decoded()?;
        let Some(slice) = slice.downcast::<EndpointSlice>() else { continue };
        let of = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if of.map(String::as_str) != Some(name) {
            continue;
        }
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref().unwrap_or("") == wanted.name.as_deref().unwrap_or(""));
        let Some(number) = number.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        let ready = |e: &&k8s_openapi::api::discovery::v1::Endpoint| {
            e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
        };
        for endpoint in slice.endpoints.iter().flatten().filter(ready) {
            found.extend(endpoint.addresses.iter().map(|a| (a.clone(), number)));
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    let pick = rand::rng().random_range(0..found.len());
    Ok(found.swap_remove(pick))
}

fn join(path: String, params: &[String]) -> String {
    if params.is_empty() { path } else { format!("{path}?{}", params.join("&")) }
}

/// Percent-encodes a parameter.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(names: &[&str]) -> Pod {
        let mut pod = Pod::default();
        let containers =
            names.iter().map(|n| Container { name: (*n).into(), ..Default::default() }).collect();
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec { containers, ..Default::default() });
        pod
    }

    #[test]
    fn container_must_be_named_when_there_are_several() {
        let error = container(&pod(&["a", "b"]), "x", "").unwrap_err();
        let want = "a container name must be specified for pod x, choose one of: [a b]";
        assert_eq!(error.message(), want);
        assert_eq!(container(&pod(&["a"]), "x", "").unwrap(), "a");
        let error = container(&pod(&["a"]), "x", "z").unwrap_err();
        assert_eq!(error.message(), "container z is not valid for pod x");
    }
}
