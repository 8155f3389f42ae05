//! Validation of services.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::validate_labels;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use serde_json::{Value, json};

use super::{externally_accessible, needs_health_check_port};
use crate::address::{self, legacy_cidr, legacy_ip};
use crate::check::{PROTOCOLS, about_struct, named, one_of, port, port_or_name};
use crate::common::text;
use crate::core::endpoints::special_ip;

const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ips.as_ref().is_some_and(|ips| ips.len() == 1 && ips[0] == "None")
}

/// Checks a service.
pub(super) fn service(obj: &Service, errs: &mut ErrorList) {
    let Some(spec) = &obj.spec else { return };
    let path = Path::new("spec");
    let kind = text(spec.type_.as_ref());
    let all_ports = spec.ports.as_deref().unwrap_or_default();
    if all_ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errs.required(path.child("ports"), "");
    }
    by_type(spec, kind, &path, errs);
    ports(all_ports, kind, &path.child("ports"), errs);
    if let Some(selector) = &spec.selector {
        validate_labels(selector, &path.child("selector"), errs);
    }
    affinity(spec, &path, errs);
    cluster_ips(spec, &path, errs);
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        let at = path.child("externalIPs").index(i);
        let messages = legacy_ip(ip);
        if messages.is_empty() {
            special_ip(errs, &at, ip);
        }
        crate::check::each(errs, &at, ip.as_str(), messages);
    }
    one_of(errs, &path.child("type"), kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    load_balancer(spec, kind, &path, errs);
    traffic(spec, kind, &path, errs);
}

fn by_type(spec: &ServiceSpec, kind: &str, path: &Path, errs: &mut ErrorList) {
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let at = path.child("clusterIPs").index(0);
            errs.invalid(at, "None", format!("may not be set to 'None' for {kind} services"));
        }
        "ExternalName" => {
            const WHY: &str = "may not be set for ExternalName services";
            if spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
                errs.forbidden(path.child("clusterIPs"), WHY);
            }
            if spec.ip_families.as_ref().is_some_and(|f| !f.is_empty()) {
                errs.forbidden(path.child("ipFamilies"), WHY);
            }
            if spec.ip_family_policy.is_some() {
                errs.forbidden(path.child("ipFamilyPolicy"), WHY);
            }
            let name = text(spec.external_name.as_ref());
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errs.required(path.child("externalName"), ""),
                name => named(errs, &path.child("externalName"), name, names::dns1123_subdomain),
            }
        }
        _ => {}
    }
    if kind == "LoadBalancer" {
        for (i, port) in spec.ports.iter().flatten().enumerate().filter(|(_, p)| p.port == 10250) {
            let why = "may not expose port 10250 externally since it is used by kubelet";
            errs.invalid(path.child("ports").index(i), port.port, why);
        }
    }
}

fn ports(all: &[ServicePort], kind: &str, path: &Path, errs: &mut ErrorList) {
    let mut seen_names = BTreeSet::new();
    let mut seen_ports = BTreeSet::new();
    let mut seen_node_ports = BTreeSet::new();
    for (i, one) in all.iter().enumerate() {
        let path = path.index(i);
        let name = text(one.name.as_ref());
        if name.is_empty() {
            if all.len() > 1 {
                errs.required(path.child("name"), "");
            }
        } else {
            named(errs, &path.child("name"), name, names::dns1123_label);
            if !seen_names.insert(name) {
                errs.duplicate(path.child("name"), name);
            }
        }
        let protocol = text(one.protocol.as_ref());
        port(errs, &path.child("port"), one.port);
        one_of(errs, &path.child("protocol"), protocol, PROTOCOLS);
        if let Some(target) = &one.target_port {
            port_or_name(errs, &path.child("targetPort"), target);
        }
        if let Some(protocol) = &one.app_protocol {
            named(errs, &path.child("appProtocol"), protocol, names::qualified_name);
        }
        if let Some(node_port) = one.node_port.filter(|p| *p != 0) {
            if kind == "ClusterIP" {
                errs.forbidden(path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !seen_node_ports.insert((protocol, node_port)) {
                errs.duplicate(path.child("nodePort"), node_port);
            }
        }
        if !seen_ports.insert((protocol, one.port)) {
            let shown = [
                ("Name", "".into()),
                ("Protocol", protocol.into()),
                ("AppProtocol", Value::Null),
                ("Port", one.port.into()),
                ("TargetPort", 0.into()),
                ("NodePort", 0.into()),
            ];
            about_struct(errs, ErrorKind::Duplicate, &path, &shown, "");
        }
    }
}

fn affinity(spec: &ServiceSpec, path: &Path, errs: &mut ErrorList) {
    let kind = text(spec.session_affinity.as_ref());
    one_of(errs, &path.child("sessionAffinity"), kind, &["ClientIP", "None"]);
    let at = path.child("sessionAffinityConfig");
    if kind == "ClientIP" {
        let client = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let Some(seconds) = client.and_then(|c| c.timeout_seconds) else {
            return errs.required(at, "when session affinity type is ClientIP");
        };
        if !(1..=86400).contains(&seconds) {
            let why = "must be greater than 0 and less than 86400";
            errs.invalid(at.child("clientIP").child("timeoutSeconds"), seconds, why);
        }
    } else if kind == "None" && spec.session_affinity_config.is_some() {
        errs.forbidden(at, "must not be set when session affinity is None");
    }
}

/// Checks addresses, IP families and family policy together.
pub(in crate::core) fn cluster_ips(spec: &ServiceSpec, path: &Path, errs: &mut ErrorList) {
    if text(spec.type_.as_ref()) == "ExternalName" {
        return;
    }
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let at = path.child("clusterIPs");
    match (text(spec.cluster_ip.as_ref()), ips.first()) {
        ("", None) => {}
        ("", Some(_)) => {
            errs.invalid(&at, ips.to_vec(), "must be empty when `clusterIP` is not specified");
        }
        (_, None) => errs.required(&at, ""),
        (single, Some(first)) if single != first => {
            errs.invalid(&at, ips.to_vec(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (i, family) in families.iter().enumerate() {
        let at = path.child("ipFamilies").index(i);
        one_of(errs, &at, family, &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errs.duplicate(&at, family.as_str());
        }
    }
    if let Some(policy) = spec.ip_family_policy.as_deref() {
        let set = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        one_of(errs, &path.child("ipFamilyPolicy"), policy, &set);
    }
    let mut malformed = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip == "None" {
            if ips.len() > 1 {
                malformed = true;
                errs.invalid(&at, ips.to_vec(), "'None' must be the first and only value");
            }
            continue;
        }
        let messages = legacy_ip(ip);
        malformed |= !messages.is_empty();
        crate::check::each(errs, &at.index(i), ip.as_str(), messages);
    }
    if ips.len() > 2 {
        errs.invalid(&at, ips.to_vec(), "may only hold up to 2 values");
    }
    if malformed || is_headless(spec) {
        return;
    }
    let is_v6 = |ip: &String| ip.contains(':');
    if ips.len() > 1 && ips.iter().all(is_v6) == ips.iter().any(is_v6) {
        errs.invalid(&at, ips.to_vec(), "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in ips.iter().zip(families).enumerate() {
        if matches!(family.as_str(), "IPv4" | "IPv6") && is_v6(ip) != (family == "IPv6") {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errs.invalid(at.index(i), ip.as_str(), why);
        }
    }
}

fn load_balancer(spec: &ServiceSpec, kind: &str, path: &Path, errs: &mut ErrorList) {
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let at = path.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        errs.forbidden(&at, ONLY_BALANCED);
    }
    for (i, range) in ranges.iter().enumerate() {
        named(errs, &at.index(i), range.trim(), legacy_cidr);
    }
    match (kind, spec.allocate_load_balancer_node_ports) {
        ("LoadBalancer", None) => errs.required(path.child("allocateLoadBalancerNodePorts"), ""),
        ("LoadBalancer", _) | (_, None) => {}
        _ => errs.forbidden(path.child("allocateLoadBalancerNodePorts"), ONLY_BALANCED),
    }
    class(spec, kind, path, errs);
}

fn class(spec: &ServiceSpec, kind: &str, path: &Path, errs: &mut ErrorList) {
    let Some(class) = spec.load_balancer_class.as_deref() else { return };
    if kind == "LoadBalancer" {
        named(errs, &path.child("loadBalancerClass"), class, names::qualified_name);
    } else {
        errs.forbidden(path.child("loadBalancerClass"), ONLY_BALANCED);
    }
}

fn traffic(spec: &ServiceSpec, kind: &str, path: &Path, errs: &mut ErrorList) {
    let at = path.child("externalTrafficPolicy");
    let policy = text(spec.external_traffic_policy.as_ref());
    match (policy, externally_accessible(spec)) {
        ("", true) => errs.required(&at, ""),
        ("", false) => {}
        (policy, true) => one_of(errs, &at, policy, &["Cluster", "Local"]),
        (policy, false) => {
            errs.invalid(&at, policy, "may only be set for externally-accessible services");
        }
    }
    let health = spec.health_check_node_port.unwrap_or(0);
    if !needs_health_check_port(spec) && health != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errs.invalid(path.child("healthCheckNodePort"), health, why);
    }
    match spec.internal_traffic_policy.as_deref() {
        Some(policy) => {
            one_of(errs, &path.child("internalTrafficPolicy"), policy, &["Cluster", "Local"]);
        }
        None if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") => {
            errs.required(path.child("internalTrafficPolicy"), "");
        }
        None => {}
    }
    if let Some(distribution) = spec.traffic_distribution.as_deref() {
        let set = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        one_of(errs, &path.child("trafficDistribution"), distribution, &set);
    }
}

/// Checks what may not change once set.
pub(super) fn update(new: &Service, old: &Service, errs: &mut ErrorList) {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
    let path = Path::new("spec");
    let kind = |spec: &ServiceSpec| text(spec.type_.as_ref()).to_owned();
    let either_external = kind(new) == "ExternalName" || kind(old) == "ExternalName";
    let both_headless = is_headless(new) && is_headless(old);
    if !either_external && !both_headless {
        let (now, before) = (new.cluster_ips.as_deref(), old.cluster_ips.as_deref());
        let (now, before) = (now.unwrap_or_default(), before.unwrap_or_default());
        for (i, ip) in before.iter().enumerate() {
            if now.len() == before.len() && now[i] != *ip {
                let at = path.child("clusterIPs").index(i);
                errs.invalid(at, now.to_vec(), "may not change once set");
            }
        }
        if now.is_empty() && !before.is_empty() {
            let why = "primary clusterIP can not be unset";
            errs.invalid(path.child("clusterIPs").index(0), now.to_vec(), why);
        }
    }
    let balanced = kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer";
    if balanced && new.load_balancer_class != old.load_balancer_class {
        let shown = json!(new.load_balancer_class);
        errs.invalid(path.child("loadBalancerClass"), shown, "may not change once set");
    }
    // Upstream asks twice.
    class(new, text(new.type_.as_ref()), &path, errs);
    if needs_health_check_port(new)
        && needs_health_check_port(old)
        && new.health_check_node_port != old.health_check_node_port
    {
        let why = "field is immutable";
        errs.invalid(path.child("healthCheckNodePort"), new.health_check_node_port.unwrap_or(0), why);
    }
}

/// Checks the load balancer's answer.
pub(super) fn status(obj: &Service, errs: &mut ErrorList) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let balancer = obj.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default();
    let kind = text(obj.spec.as_ref().and_then(|s| s.type_.as_ref()));
    if kind != "LoadBalancer" && !ingress.is_empty() {
        return errs.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (i, one) in ingress.iter().enumerate() {
        let path = path.index(i);
        let (ip, host) = (text(one.ip.as_ref()), text(one.hostname.as_ref()));
        if !ip.is_empty() {
            named(errs, &path.child("ip"), ip, legacy_ip);
            match one.ip_mode.as_deref() {
                None => errs.required(path.child("ipMode"), "must be specified when `ip` is set"),
                Some(mode) => one_of(errs, &path.child("ipMode"), mode, &["Proxy", "VIP"]),
            }
        } else if one.ip_mode.is_some() {
            errs.forbidden(path.child("ipMode"), "may not be specified when `ip` is not set");
        }
        if !host.is_empty() {
            named(errs, &path.child("hostname"), host, names::dns1123_subdomain);
            if host.parse::<std::net::IpAddr>().is_ok() {
                errs.invalid(path.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// Warnings about a service.
pub(super) fn warnings(obj: &Service) -> Vec<String> {
    let mut out = Vec::new();
    let Some(spec) = &obj.spec else { return out };
    let external = text(spec.type_.as_ref()) == "ExternalName";
    let path = Path::new("spec");
    if is_headless(spec) {
        for (field, set) in [
            ("loadBalancerIP", !text(spec.load_balancer_ip.as_ref()).is_empty()),
            ("externalIPs", spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty())),
            ("SessionAffinity", text(spec.session_affinity.as_ref()) != "None"),
        ] {
            if set {
                out.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    } else {
        for (i, ip) in spec.cluster_ips.iter().flatten().enumerate() {
            out.extend(address::ip_warnings(&path.child("clusterIPs").index(i), ip));
        }
    }
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        out.extend(address::ip_warnings(&path.child("externalIPs").index(i), ip));
    }
    let balanced = text(spec.load_balancer_ip.as_ref());
    if !balanced.is_empty() {
        out.extend(address::ip_warnings(&path.child("loadBalancerIP"), balanced));
    }
    for (i, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        out.extend(address::cidr_warnings(&path.child("loadBalancerSourceRanges").index(i), range));
    }
    if external && spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    let is_headless = is_headless(spec);
    if !external && !is_headless && spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
        let why = "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
        out.push(why.to_owned());
    }
    if !external && !text(spec.external_name.as_ref()).is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    out
}
