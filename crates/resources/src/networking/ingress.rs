//! Ingress: HTTP routes from outside to services.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressLoadBalancerIngress, IngressRule, IngressSpec,
    IngressTLS,
};
use serde_json::{Value, json};

use super::reference;
use crate::address::{self, Address};
use crate::check::{named, port};
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::gaps::EMPTY_TEXT;

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Class",
        "string",
        "",
        "The name of the IngressClass resource that should be used for additional configuration",
    ),
    column("Hosts", "string", "", "Hosts that incoming requests are matched against before the ingress rule"),
    column("Address", "string", "", "Address is a list containing ingress points for the load-balancer"),
    column("Ports", "string", "", "Ports of TLS configurations that open"),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<Ingress>("ingress", &Typed::<Ingress, _>::new(Ingresses))
};

struct Ingresses;

const CLASS: &str = "kubernetes.io/ingress.class";
/// Bytes of the address cell.
const MAX_ADDRESS: usize = 16;

fn points(obj: &Ingress) -> &[IngressLoadBalancerIngress] {
    let balancer = obj.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default()
}

fn class_mark(obj: &Ingress) -> Option<&String> {
    obj.metadata.annotations.as_ref()?.get(CLASS)
}

impl Strategy<Ingress> for Ingresses {
    fn default(&self, obj: &mut Ingress) {
        obj.spec.get_or_insert_default();
        obj.status.get_or_insert_default().load_balancer.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Ingress) {
        obj.status = None;
        self.default(obj);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Ingress, old: &Ingress) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Ingress, old: &Ingress) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &Ingress, errs: &mut ErrorList) {
        check(obj, Lenience::default(), errs);
        let class = obj.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
        if let (Some(mark), Some(class)) = (class_mark(obj), class)
            && mark != class
        {
            let path = Path::new("annotations").child(CLASS);
            errs.invalid(path, mark.as_str(), "must match `ingressClassName` when both are specified");
        }
    }

    fn validate_update(&self, new: &Ingress, old: &Ingress, errs: &mut ErrorList) {
        check(new, Lenience::towards(old), errs);
    }

    fn validate_status_update(&self, new: &Ingress, old: &Ingress, errs: &mut ErrorList) {
        let known: Vec<&str> = points(old).iter().map(|p| text(p.ip.as_ref())).collect();
        let list = Path::new("status").child("loadBalancer").child("ingress");
        for (i, point) in points(new).iter().enumerate() {
            let path = list.index(i);
            let (ip, host) = (text(point.ip.as_ref()), text(point.hostname.as_ref()));
            if !ip.is_empty() && !known.contains(&ip) {
                named(errs, &path.child("ip"), ip, address::legacy_ip);
            }
            if !host.is_empty() {
                let at = path.child("hostname");
                named(errs, &at, host, names::dns1123_subdomain);
                no_address(host, &at, errs);
            }
        }
    }

    fn warnings(&self, new: &Ingress, old: Option<&Ingress>) -> Vec<String> {
        let Some(old) = old else {
            let class = new.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
            if class_mark(new).is_some() && class.is_none() {
                let why =
                    format!("annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead");
                return vec![why];
            }
            return Vec::new();
        };
        // A change of the main resource leaves the status as it was.
        if points(new) == points(old) {
            return Vec::new();
        }
        let list = Path::new("status").child("loadBalancer").child("ingress");
        let ips =
            points(new).iter().map(|p| text(p.ip.as_ref())).enumerate().filter(|(_, ip)| !ip.is_empty());
        ips.flat_map(|(i, ip)| address::ip_warnings(&list.index(i), ip)).collect()
    }

    fn row(&self, obj: &Ingress, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        let class = spec.and_then(|s| s.ingress_class_name.as_deref()).unwrap_or("<none>");
        let tls = spec.and_then(|s| s.tls.as_ref()).is_some_and(|t| !t.is_empty());
        vec![
            obj.metadata.name.clone().into(),
            class.into(),
            hosts(spec.and_then(|s| s.rules.as_deref()).unwrap_or_default()).into(),
            addresses(points(obj)).into(),
            (if tls { "80, 443" } else { "80" }).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn hosts(rules: &[IngressRule]) -> String {
    const MAX: usize = 3;
    let mut shown: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= shown.len() == MAX;
        let host = text(rule.host.as_ref());
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    let list = shown.join(",");
    match (shown.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{list} + {} more...", rules.len() - MAX),
        (false, false) => list,
    }
}

fn addresses(points: &[IngressLoadBalancerIngress]) -> String {
    let of = |p: &IngressLoadBalancerIngress| {
        let (ip, host) = (text(p.ip.as_ref()).to_owned(), text(p.hostname.as_ref()).to_owned());
        if ip.is_empty() { host } else { ip }
    };
    let found: BTreeSet<String> = points.iter().map(of).filter(|a| !a.is_empty()).collect();
    let list = found.into_iter().collect::<Vec<_>>().join(",");
    match list.get(..MAX_ADDRESS - 3) {
        Some(head) if list.len() > MAX_ADDRESS => format!("{head}..."),
        _ => list,
    }
}

/// Faults that stay allowed in an object that had them before they were checked.
#[derive(Clone, Copy, Default)]
struct Lenience {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Lenience {
    fn towards(old: &Ingress) -> Self {
        let Some(spec) = &old.spec else { return Self::default() };
        let bad_secret = |tls: &IngressTLS| {
            let name = text(tls.secret_name.as_ref());
            !name.is_empty() && !names::dns1123_subdomain(name).is_empty()
        };
        let bad_rule = |rule: &IngressRule| {
            let mut errs = ErrorList::new();
            rule_value(rule, &Path::new(""), &mut errs);
            text(rule.host.as_ref()).contains('*') && !errs.is_empty()
        };
        Self {
            secret_names: spec.tls.iter().flatten().any(bad_secret),
            wildcard_rules: spec.rules.iter().flatten().any(bad_rule),
        }
    }
}

fn check(obj: &Ingress, lenience: Lenience, errs: &mut ErrorList) {
    let empty = IngressSpec::default();
    let spec = obj.spec.as_ref().unwrap_or(&empty);
    let path = Path::new("spec");
    let list = spec.rules.as_deref().unwrap_or_default();
    match &spec.default_backend {
        Some(one) => backend(one, &path.child("defaultBackend"), errs),
        None if list.is_empty() => {
            errs.invalid(&path, json!(spec.rules), "either `defaultBackend` or `rules` must be specified");
        }
        None => {}
    }
    for (i, rule) in list.iter().enumerate() {
        let path = path.child("rules").index(i);
        let host = text(rule.host.as_ref());
        if !host.is_empty() {
            no_address(host, &path.child("host"), errs);
            named(errs, &path.child("host"), host, host_rule(host));
        }
        if !(host.contains('*') && lenience.wildcard_rules) {
            rule_value(rule, &path, errs);
        }
    }
    for (i, tls) in spec.tls.iter().flatten().enumerate() {
        let path = path.child("tls").index(i);
        for (j, host) in tls.hosts.iter().flatten().enumerate() {
            named(errs, &path.child("hosts").index(j), host, host_rule(host));
        }
        let secret = text(tls.secret_name.as_ref());
        if !lenience.secret_names && !secret.is_empty() {
            named(errs, &path.child("secretName"), secret, names::dns1123_subdomain);
        }
    }
    if let Some(class) = &spec.ingress_class_name {
        named(errs, &path.child("ingressClassName"), class, names::dns1123_subdomain);
    }
}

fn host_rule(host: &str) -> crate::check::Rule {
    if host.contains('*') { names::wildcard_dns1123_subdomain } else { names::dns1123_subdomain }
}

fn no_address(host: &str, path: &Path, errs: &mut ErrorList) {
    if Address::parse(host).is_some() {
        errs.invalid(path, host, "must be a DNS name, not an IP address");
    }
}

fn rule_value(rule: &IngressRule, path: &Path, errs: &mut ErrorList) {
    let Some(http) = &rule.http else { return };
    let list = path.child("http").child("paths");
    if http.paths.is_empty() {
        errs.required(&list, "");
    }
    for (i, one) in http.paths.iter().enumerate() {
        http_path(one, &list.index(i), errs);
    }
}

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];

fn http_path(one: &HTTPIngressPath, path: &Path, errs: &mut ErrorList) {
    let (value, at) = (text(one.path.as_ref()), path.child("path"));
    match one.path_type.as_str() {
        "" => return errs.required(path.child("pathType"), "pathType must be specified"),
        EMPTY_TEXT => errs.not_supported(path.child("pathType"), "", PATH_TYPES),
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errs.invalid(&at, value, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if value.contains(part) {
                    errs.invalid(&at, value, format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if value.ends_with(end) {
                    errs.invalid(&at, value, format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errs.invalid(&at, value, "must be an absolute path");
            }
        }
        other => errs.not_supported(path.child("pathType"), other, PATH_TYPES),
    }
    backend(&one.backend, &path.child("backend"), errs);
}

fn backend(one: &IngressBackend, path: &Path, errs: &mut ErrorList) {
    let service = match (&one.resource, &one.service) {
        (Some(_), Some(_)) => return errs.invalid(path, "", "cannot set both resource and service backends"),
        (None, None) => return errs.invalid(path, "", "resource or service backend is required"),
        (Some(r), None) => {
            return reference(r.api_group.as_ref(), &r.kind, &r.name, &path.child("resource"), errs);
        }
        (None, Some(service)) => service,
    };
    let at = path.child("service");
    if service.name.is_empty() {
        errs.required(at.child("name"), "");
    } else {
        named(errs, &at.child("name"), &service.name, names::dns1123_label);
    }
    let at = at.child("port");
    let name = text(service.port.as_ref().and_then(|p| p.name.as_ref()));
    let number = service.port.as_ref().and_then(|p| p.number).unwrap_or(0);
    match (name.is_empty(), number) {
        (false, 0) => named(errs, &at.child("name"), name, names::port_name),
        (false, _) => errs.invalid(path, "", "cannot set both port name & port number"),
        (true, 0) => errs.required(path, "port name or number is required"),
        (true, number) => port(errs, &at.child("number"), number),
    }
}
