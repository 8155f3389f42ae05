//! What a name of the cluster means. Pure: the cluster is behind [`Cluster`].

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// How long resolvers may keep an answer, in seconds.
pub(crate) const TTL: u32 = 5;

/// What the zone knows about the cluster.
pub(crate) trait Cluster {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>>;
    /// Whether the namespace has a Service.
    fn has_services(&self, namespace: &str) -> bool;
    /// Services with this cluster IP.
    fn services_at(&self, address: &str) -> Vec<Arc<Service>>;
    /// Slices with this endpoint.
    fn slices_at(&self, address: &str) -> Vec<Arc<EndpointSlice>>;
}

/// What there is under a name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// Answers and additional records; without answers the name exists but not with this type.
    Records(Vec<Record>, Vec<Record>),
    /// The name does not exist.
    NoName,
    /// An alias; its target must be resolved too.
    Alias(Name),
    /// Not a name of the cluster.
    NotOurs,
}

impl Reply {
    fn nothing() -> Self {
        Self::Records(Vec::new(), Vec::new())
    }
}

/// The zone of a cluster's domain.
pub(crate) struct Zone<C> {
    domain: Name,
    cluster: C,
}

/// An endpoint as DNS sees it.
struct Host {
    name: String,
    address: Ipv4Addr,
}

fn host(endpoint: &Endpoint) -> Option<Host> {
    let text = endpoint.addresses.first()?;
    let address = text.parse().ok()?;
    let name = endpoint.hostname.clone().filter(|h| !h.is_empty());
    Some(Host { name: name.unwrap_or_else(|| text.replace('.', "-")).to_ascii_lowercase(), address })
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

/// The endpoints to publish: ready ones, or all if the Service says so.
fn hosts(slice: &EndpointSlice, all: bool) -> impl Iterator<Item = Host> + '_ {
    let ipv4 = slice.address_type == "IPv4";
    let endpoints = slice.endpoints.iter().flatten().filter(move |e| ipv4 && (all || is_ready(e)));
    endpoints.filter_map(host)
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

impl<C: Cluster> Zone<C> {
    pub fn new(domain: Name, cluster: C) -> Self {
        Self { domain, cluster }
    }

    fn name(&self, prefix: &[&str]) -> Option<Name> {
        let labels = Name::from_labels(prefix.iter().map(|l| l.as_bytes())).ok()?;
        let mut name = labels.append_name(&self.domain).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    /// The authority record of negative answers.
    pub fn soa(&self, serial: u32) -> Option<Record> {
        let soa =
            SOA::new(self.name(&["ns", "dns"])?, self.name(&["hostmaster"])?, serial, 7200, 1800, 86400, TTL);
        Some(Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa)))
    }

    /// What there is under `name`; owners of the answers are written as the client wrote the name.
    pub fn look_up(&self, name: &Name, kind: RecordType, serial: u32) -> Reply {
        let labels: Vec<String> =
            name.iter().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect();
        if let Some(address) = reverse(&labels) {
            return self.pointers(name, address, kind);
        }
        if !self.domain.zone_of(name) {
            return Reply::NotOurs;
        }
        let own = labels.len() - usize::from(self.domain.num_labels());
        let labels: Vec<&str> = labels[..own].iter().map(String::as_str).collect();
        let is = |wanted| kind == wanted || kind == RecordType::ANY;
        match labels.as_slice() {
            [] if is(RecordType::SOA) => Reply::Records(self.soa(serial).into_iter().collect(), Vec::new()),
            [] if is(RecordType::NS) => {
                let server = self
                    .name(&["ns", "dns"])
                    .map(|n| Record::from_rdata(name.clone(), TTL, RData::NS(NS(n))));
                Reply::Records(server.into_iter().collect(), Vec::new())
            }
            ["dns-version"] if is(RecordType::TXT) => {
                let text = RData::TXT(TXT::new(vec!["1.1.0".into()]));
                Reply::Records(vec![Record::from_rdata(name.clone(), TTL, text)], Vec::new())
            }
            [] | ["dns-version" | "svc" | "pod"] | [_, "pod"] => Reply::nothing(),
            [address, _, "pod"] => match address.replace('-', ".").parse::<Ipv4Addr>() {
                Ok(address) => addresses(name, kind, [address]),
                Err(_) => Reply::NoName,
            },
            [namespace, "svc"] if self.cluster.has_services(namespace) => Reply::nothing(),
            [rest @ .., service, namespace, "svc"] => self.service(name, kind, rest, service, namespace),
            _ => Reply::NoName,
        }
    }

    fn service(&self, name: &Name, kind: RecordType, rest: &[&str], service: &str, namespace: &str) -> Reply {
        let Some(found) = self.cluster.service(namespace, service) else { return Reply::NoName };
        let Some(spec) = &found.spec else { return Reply::NoName };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().and_then(|n| Name::from_ascii(n).ok());
            return match (rest, target) {
                ([], Some(mut target)) => {
                    target.set_fqdn(true);
                    Reply::Alias(target)
                }
                _ => Reply::NoName,
            };
        }
        match rest {
            [] | [_, _] if kind == RecordType::SRV || rest.len() == 2 => {
                self.ports(name, kind, rest, &found, (service, namespace))
            }
            [] if is_headless(spec) => {
                let all = spec.publish_not_ready_addresses.unwrap_or(false);
                let slices = self.cluster.slices(namespace, service);
                let mut found: Vec<Ipv4Addr> =
                    slices.iter().flat_map(|s| hosts(s, all)).map(|h| h.address).collect();
                found.sort_unstable();
                found.dedup();
                if found.is_empty() { Reply::NoName } else { addresses(name, kind, found) }
            }
            [] => addresses(name, kind, spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok())),
            [wanted] => {
                let all = spec.publish_not_ready_addresses.unwrap_or(false);
                let slices = self.cluster.slices(namespace, service);
                let hosts = slices.iter().flat_map(|s| hosts(s, all)).filter(|h| h.name == *wanted);
                let mut found: Vec<Ipv4Addr> = hosts.map(|h| h.address).collect();
                found.sort_unstable();
                found.dedup();
                if found.is_empty() { Reply::NoName } else { addresses(name, kind, found) }
            }
            _ => Reply::NoName,
        }
    }

    /// SRV records of named ports: `_port._protocol.service…`, or of all ports for the Service's own name.
    fn ports(
        &self,
        name: &Name,
        kind: RecordType,
        rest: &[&str],
        service: &Service,
        path: (&str, &str),
    ) -> Reply {
        let (service_name, namespace) = path;
        let Some(spec) = &service.spec else { return Reply::NoName };
        let wanted = match rest {
            [port, protocol] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => Some((port, protocol)),
                _ => return Reply::NoName,
            },
            _ => None,
        };
        let matches = |port: Option<&str>, protocol: Option<&str>| {
            let port = port.unwrap_or("").to_ascii_lowercase();
            let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
            !port.is_empty() && wanted.is_none_or(|(p, t)| p == port && t == protocol)
        };
        let mut targets: Vec<(Name, u16, Ipv4Addr)> = Vec::new();
        if is_headless(spec) {
            let all = spec.publish_not_ready_addresses.unwrap_or(false);
            for slice in self.cluster.slices(namespace, service_name) {
                for port in slice.ports.iter().flatten() {
                    let number = port.port.and_then(|p| u16::try_from(p).ok());
                    let (true, Some(number)) =
                        (matches(port.name.as_deref(), port.protocol.as_deref()), number)
                    else {
                        continue;
                    };
                    targets.extend(hosts(&slice, all).filter_map(|h| {
                        Some((self.name(&[&h.name, service_name, namespace, "svc"])?, number, h.address))
                    }));
                }
            }
        } else if let Some(address) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()) {
            for port in
                spec.ports.iter().flatten().filter(|p| matches(p.name.as_deref(), p.protocol.as_deref()))
            {
                if let (Some(target), Ok(number)) =
                    (self.name(&[service_name, namespace, "svc"]), u16::try_from(port.port))
                {
                    targets.push((target, number, address));
                }
            }
        }
        if targets.is_empty() {
            return if wanted.is_some() { Reply::NoName } else { Reply::nothing() };
        }
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return Reply::nothing();
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let answer = |(target, port, _): &(Name, u16, Ipv4Addr)| {
            let srv = SRV::new(0, weight, *port, target.clone());
            Record::from_rdata(name.clone(), TTL, RData::SRV(srv))
        };
        let answers = targets.iter().map(answer).collect();
        let mut extra: Vec<Record> = Vec::new();
        for (target, _, address) in targets {
            let record = Record::from_rdata(target, TTL, RData::A(A(address)));
            if !extra.contains(&record) {
                extra.push(record);
            }
        }
        Reply::Records(answers, extra)
    }

    /// The names of an address: Services with this cluster IP, else endpoints of headless Services.
    fn pointers(&self, name: &Name, address: Ipv4Addr, kind: RecordType) -> Reply {
        let text = address.to_string();
        let of = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default())
        };
        let mut names: Vec<Name> = Vec::new();
        for service in self.cluster.services_at(&text) {
            let (service, namespace) = of(&service.metadata);
            names.extend(self.name(&[&service, &namespace, "svc"]));
        }
        if names.is_empty() {
            for slice in self.cluster.slices_at(&text) {
                let Some((namespace, service)) = crate::slices::service_of(&slice) else { continue };
                for host in hosts(&slice, true).filter(|h| h.address == address) {
                    names.extend(self.name(&[&host.name, service, namespace, "svc"]));
                }
            }
        }
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Reply::NotOurs;
        }
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Reply::nothing();
        }
        let record = |target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)));
        Reply::Records(names.into_iter().map(record).collect(), Vec::new())
    }
}

/// The record of an alias.
pub(crate) fn alias(name: &Name, target: Name) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target)))
}

fn addresses(name: &Name, kind: RecordType, found: impl IntoIterator<Item = Ipv4Addr>) -> Reply {
    if !matches!(kind, RecordType::A | RecordType::ANY) {
        return Reply::nothing();
    }
    let record = |address| Record::from_rdata(name.clone(), TTL, RData::A(A(address)));
    Reply::Records(found.into_iter().map(record).collect(), Vec::new())
}

/// The address in `d.c.b.a.in-addr.arpa`.
fn reverse(labels: &[String]) -> Option<Ipv4Addr> {
    let [d, c, b, a, zone, arpa] = labels else { return None };
    if zone != "in-addr" || arpa != "arpa" {
        return None;
    }
    let octet = |label: &String| label.parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
