//! What Services need from the packet path, without any kernel in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::guard::Guard;

/// Where clients send: an address, protocol number and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address; `None` is any local address (a node port).
    pub address: Option<Ipv4Addr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// An endpoint's address and port.
pub type Backend = (Ipv4Addr, u16);

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Refused at once: there are no endpoints.
    Reject,
    /// Sent to one of the backends.
    Balance {
        /// In a fixed order; never empty.
        backends: Vec<Backend>,
        /// Whether the backend sees the node's address instead of the client's.
        masquerade: bool,
        /// Seconds for which a client keeps its backend after its last connection.
        affinity: Option<u32>,
    },
}

/// What a set of Services needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// What happens where.
    pub frontends: BTreeMap<Frontend, Action>,
    /// Cluster IPs: at their other ports connections are refused.
    pub cluster_ips: BTreeSet<Ipv4Addr>,
    /// Frontends that not everybody reaches.
    pub guards: BTreeMap<Frontend, Guard>,
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn address(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy)]
enum Reach<'a> {
    Anywhere,
    /// Only on this node.
    Local(&'a str),
}

/// The backends of one Service port: ready endpoints; if there are none, those that still serve while they
/// terminate.
fn backends(port: &ServicePort, slices: &[Arc<EndpointSlice>], reach: Reach<'_>) -> Vec<Backend> {
    let wanted = (port.name.as_deref().unwrap_or(""), protocol(port.protocol.as_deref()));
    let (mut ready, mut leaving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let target = slice
            .ports
            .iter()
            .flatten()
            .find(|p| (p.name.as_deref().unwrap_or(""), protocol(p.protocol.as_deref())) == wanted);
        let Some(target) = target.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|e| reachable(e, reach)) {
            let Some(ip) = endpoint.addresses.first().and_then(|a| address(a)) else { continue };
            let conditions = endpoint.conditions.as_ref();
            let is = |field: Option<bool>, unset: bool| field.unwrap_or(unset);
            if is(conditions.and_then(|c| c.ready), true) {
                ready.insert((ip, target));
            } else if is(conditions.and_then(|c| c.serving), false)
                && is(conditions.and_then(|c| c.terminating), false)
            {
                leaving.insert((ip, target));
            }
        }
    }
    let chosen = if ready.is_empty() { leaving } else { ready };
    chosen.into_iter().collect()
}

fn reachable(endpoint: &Endpoint, reach: Reach<'_>) -> bool {
    match reach {
        Reach::Anywhere => true,
        Reach::Local(node) => endpoint.node_name.as_deref() == Some(node),
    }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = configured.and_then(|c| c.timeout_seconds).unwrap_or(10_800);
    Some(u32::try_from(seconds).unwrap_or(10_800).max(1))
}

fn action(backends: Vec<Backend>, masquerade: bool, affinity: Option<u32>) -> Action {
    if backends.is_empty() { Action::Reject } else { Action::Balance { backends, masquerade, affinity } }
}

/// The addresses of a Service's load balancer that the nodes answer for.
fn balanced_addresses(service: &Service) -> Vec<Ipv4Addr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
    let balanced = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    balanced.filter_map(|i| address(i.ip.as_deref()?)).collect()
}

/// What one Service needs on the node called `node`. Headless and ExternalName Services need nothing.
pub fn service_rules(node: &str, service: &Service, slices: &[Arc<EndpointSlice>]) -> RuleSet {
    let mut rules = RuleSet::default();
    let Some(spec) = &service.spec else { return rules };
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    if headless || spec.type_.as_deref() == Some("ExternalName") {
        return rules;
    }
    let declared = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    rules.cluster_ips = declared.filter_map(|a| address(a)).collect();
    let balanced = balanced_addresses(service);
    let declared = spec.external_ips.iter().flatten().filter_map(|a| address(a));
    let external: Vec<Ipv4Addr> = declared.chain(balanced.iter().copied()).collect();
    let guard = Guard::of(spec).filter(|_| spec.type_.as_deref() == Some("LoadBalancer"));
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let affinity = affinity(spec);
    let reach = |is_local| if is_local { Reach::Local(node) } else { Reach::Anywhere };
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port))
        else {
            continue;
        };
        let inside = backends(port, slices, reach(local(&spec.internal_traffic_policy)));
        for ip in &rules.cluster_ips {
            let frontend = Frontend { address: Some(*ip), protocol, port: number };
            rules.frontends.insert(frontend, action(inside.clone(), false, affinity));
        }
        let is_local = local(&spec.external_traffic_policy);
        let outside = backends(port, slices, reach(is_local));
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        let on_node = node_port.map(|port| Frontend { address: None, protocol, port });
        let elsewhere = external.iter().map(|ip| Frontend { address: Some(*ip), protocol, port: number });
        for frontend in on_node.into_iter().chain(elsewhere) {
            rules.frontends.insert(frontend, action(outside.clone(), !is_local, affinity));
        }
        for (ip, guard) in balanced.iter().zip(std::iter::repeat(&guard)) {
            let frontend = Frontend { address: Some(*ip), protocol, port: number };
            rules.guards.extend(guard.clone().map(|guard| (frontend, guard)));
        }
    }
    rules
}

/// What all these Services need. Where two claim one frontend, the first keeps it.
pub fn desired<'a>(
    node: &str,
    services: impl IntoIterator<Item = (&'a Service, &'a [Arc<EndpointSlice>])>,
) -> RuleSet {
    let mut all = RuleSet::default();
    for (service, slices) in services {
        let one = service_rules(node, service, slices);
        for (frontend, action) in one.frontends {
            all.frontends.entry(frontend).or_insert(action);
        }
        all.cluster_ips.extend(one.cluster_ips);
        for (frontend, guard) in one.guards {
            all.guards.entry(frontend).or_insert(guard);
        }
    }
    all
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
