//! Endpoints: the addresses behind a Service, in the older form.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints};
use serde_json::Value;

use crate::address::{Address, legacy_ip};
use crate::check::{PROTOCOLS, named, one_of, port};
use crate::common::{column, join_host_port, join_three, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Endpoints",
        "string",
        "",
        "The set of all endpoints is the union of all subsets. Addresses are placed into subsets \
         according to the IPs they share. A single address with multiple ports, some of which are ready \
         and some of which are not (because they come from different containers) will result in the \
         address being displayed in different subsets for the different ports. No address will appear \
         in both Addresses and NotReadyAddresses in the same subset. Sets of addresses and ports that \
         comprise a service.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["ep"],
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<Endpoints>("endpoints", &Typed::<Endpoints, _>::new(EndpointsStrategy))
};

struct EndpointsStrategy;

impl Strategy<Endpoints> for EndpointsStrategy {
    fn default(&self, obj: &mut Endpoints) {
        for port in obj.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            crate::podspec::defaults::string(&mut port.protocol, "TCP");
        }
    }

    fn validate(&self, obj: &Endpoints, errs: &mut ErrorList) {
        for (i, subset) in obj.subsets.iter().flatten().enumerate() {
            let path = Path::new("subsets").index(i);
            let ready = subset.addresses.as_deref().unwrap_or_default();
            let other = subset.not_ready_addresses.as_deref().unwrap_or_default();
            let ports = subset.ports.as_deref().unwrap_or_default();
            if ready.is_empty() && other.is_empty() {
                errs.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for (j, one) in ready.iter().enumerate() {
                address(one, &path.child("addresses").index(j), errs);
            }
            for (j, one) in other.iter().enumerate() {
                address(one, &path.child("notReadyAddresses").index(j), errs);
            }
            for (j, one) in ports.iter().enumerate() {
                endpoint_port(one, ports.len() > 1, &path.child("ports").index(j), errs);
            }
        }
    }

    fn warnings(&self, _: &Endpoints, _: Option<&Endpoints>) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn row(&self, obj: &Endpoints, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), addresses(obj).into(), age(meta.creation_timestamp.as_ref(), now)]
    }
}

fn addresses(obj: &Endpoints) -> String {
    let subsets = obj.subsets.as_deref().unwrap_or_default();
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| a.ip.clone()));
        }
        for port in ports {
            all.extend(addresses.iter().map(|a| join_host_port(&a.ip, port.port)));
        }
    }
    join_three(&all, all.len())
}

fn address(address: &EndpointAddress, path: &Path, errs: &mut ErrorList) {
    named(errs, &path.child("ip"), &address.ip, legacy_ip);
    if let Some(name) = address.hostname.as_deref().filter(|h| !h.is_empty()) {
        named(errs, &path.child("hostname"), name, names::dns1123_label);
    }
    if let Some(node) = &address.node_name {
        named(errs, &path.child("nodeName"), node, names::dns1123_subdomain);
    }
    special_ip(errs, &path.child("ip"), &address.ip);
}

/// Addresses that no endpoint can have.
pub(crate) fn special_ip(errs: &mut ErrorList, path: &Path, text: &str) {
    let Some(Address { ip, .. }) = Address::parse(text) else {
        return errs.invalid(path, text, "must be a valid IP address");
    };
    if ip.is_unspecified() {
        errs.invalid(path, text, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errs.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    if link_local {
        errs.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    let link_multicast = match ip {
        std::net::IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    if link_multicast {
        errs.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn endpoint_port(one: &EndpointPort, named_ports: bool, path: &Path, errs: &mut ErrorList) {
    let name = text(one.name.as_ref());
    if name.is_empty() && named_ports {
        errs.required(path.child("name"), "");
    } else if !name.is_empty() {
        named(errs, &path.child("name"), name, names::dns1123_label);
    }
    port(errs, &path.child("port"), one.port);
    one_of(errs, &path.child("protocol"), text(one.protocol.as_ref()), PROTOCOLS);
    if let Some(protocol) = &one.app_protocol {
        named(errs, &path.child("appProtocol"), protocol, names::qualified_name);
    }
}
