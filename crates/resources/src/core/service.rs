//! Service: a stable address for a set of pods.

use std::collections::BTreeSet;

use coracle_meta::field::ErrorList;
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::common::{column, format_labels, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::podspec::defaults::string;

pub(super) mod validation;

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        "",
        "type determines how the Service is exposed. Defaults to ClusterIP. Valid options are \
         ExternalName, ClusterIP, NodePort, and LoadBalancer. \"ClusterIP\" allocates a \
         cluster-internal IP address for load-balancing to endpoints. Endpoints are determined by the \
         selector or if that is not specified, by manual construction of an Endpoints object or \
         EndpointSlice objects. If clusterIP is \"None\", no virtual IP is allocated and the endpoints \
         are published as a set of endpoints rather than a virtual IP. \"NodePort\" builds on ClusterIP \
         and allocates a port on every node which routes to the same endpoints as the clusterIP. \
         \"LoadBalancer\" builds on NodePort and creates an external load-balancer (if supported in the \
         current cloud) which routes to the same endpoints as the clusterIP. \"ExternalName\" aliases \
         this service to the specified externalName. Several other fields do not apply to ExternalName \
         services. More info: \
         https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types",
    ),
    column(
        "Cluster-IP",
        "string",
        "",
        "clusterIP is the IP address of the service and is usually assigned randomly. If an address is \
         specified manually, is in-range (as per system configuration), and is not in use, it will be \
         allocated to the service; otherwise creation of the service will fail. This field may not be \
         changed through updates unless the type field is also being changed to ExternalName (which \
         requires this field to be blank) or the type field is being changed from ExternalName (in \
         which case this field may optionally be specified, as describe above).  Valid values are \
         \"None\", empty string (\"\"), or a valid IP address. Setting this to \"None\" makes a \
         \"headless service\" (no virtual IP), which is useful when direct endpoint connections are \
         preferred and proxying is not required.  Only applies to types ClusterIP, NodePort, and \
         LoadBalancer. If this field is specified when creating a Service of type ExternalName, \
         creation will fail. This field will be wiped when updating a Service to type ExternalName. \
         More info: \
         https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
    ),
    column(
        "External-IP",
        "string",
        "",
        "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic \
         for this service.  These IPs are not managed by Kubernetes.  The user is responsible for \
         ensuring that traffic arrives at a node with this IP.  A common example is external \
         load-balancers that are not part of the Kubernetes system.",
    ),
    column(
        "Port(s)",
        "string",
        "",
        "The list of ports that are exposed by this service. More info: \
         https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
    ),
    AGE,
    wide_column(
        "Selector",
        "string",
        "",
        "Route service traffic to pods with label keys and values matching this selector. If empty or \
         not present, the service is assumed to have an external process managing its endpoints, which \
         Kubernetes will not modify. Only applies to types ClusterIP, NodePort, and LoadBalancer. \
         Ignored if type is ExternalName. More info: \
         https://kubernetes.io/docs/concepts/services-networking/service/",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Proxy, Subresource::Status],
    columns: COLUMNS,
    returns_deleted: true,
    create_on_update: true,
    ..ResourceDef::new::<Service>("service", &Typed::<Service, _>::new(Services))
};

struct Services;

impl Strategy<Service> for Services {
    fn default(&self, obj: &mut Service) {
        defaults(obj.spec.get_or_insert_default());
        let status = obj.status.get_or_insert_default();
        let balancer = status.load_balancer.get_or_insert_default();
        for ingress in balancer.ingress.iter_mut().flatten() {
            if !text(ingress.ip.as_ref()).is_empty() {
                ingress.ip_mode.get_or_insert_with(|| "VIP".to_owned());
            }
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Service) {
        obj.status = Some(ServiceStatus { load_balancer: Some(Default::default()), ..Default::default() });
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Service, old: &Service) {
        new.status.clone_from(&old.status);
        if let (Some(new), Some(old)) = (&mut new.spec, &old.spec) {
            drop_type_dependent(new, old);
        }
        let balanced = new.spec.as_ref().is_some_and(|s| text(s.type_.as_ref()) == "LoadBalancer");
        if let Some(status) = new.status.as_mut().filter(|_| !balanced) {
            status.load_balancer = Some(Default::default());
        }
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Service, old: &Service) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &Service, errs: &mut ErrorList) {
        validation::service(obj, errs);
    }

    fn validate_update(&self, new: &Service, old: &Service, errs: &mut ErrorList) {
        validation::update(new, old, errs);
        validation::service(new, errs);
    }

    fn validate_status_update(&self, new: &Service, _: &Service, errs: &mut ErrorList) {
        validation::status(new, errs);
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::maybe_prefix(names::dns1123_label, name, prefix)
    }

    fn warnings(&self, new: &Service, _: Option<&Service>) -> Vec<String> {
        validation::warnings(new)
    }

    fn row(&self, obj: &Service, now: Timestamp) -> Vec<Value> {
        let empty = ServiceSpec::default();
        let spec = obj.spec.as_ref().unwrap_or(&empty);
        let cluster_ip = spec.cluster_ips.iter().flatten().next().map_or("<none>", String::as_str);
        vec![
            obj.metadata.name.clone().into(),
            text(spec.type_.as_ref()).into(),
            cluster_ip.into(),
            external_ip(obj, spec).into(),
            ports(spec).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            format_labels(spec.selector.as_ref()).into(),
        ]
    }

    fn selectable(&self, obj: &Service) -> Vec<(&'static str, String)> {
        let spec = obj.spec.as_ref();
        vec![
            ("spec.clusterIP", text(spec.and_then(|s| s.cluster_ip.as_ref())).to_owned()),
            ("spec.type", text(spec.and_then(|s| s.type_.as_ref())).to_owned()),
        ]
    }
}

fn external_ip(obj: &Service, spec: &ServiceSpec) -> String {
    let external = spec.external_ips.as_deref().unwrap_or_default();
    match text(spec.type_.as_ref()) {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => external.join(","),
        "LoadBalancer" => {
            let balancer = obj.status.as_ref().and_then(|s| s.load_balancer.as_ref());
            let ingress = balancer.into_iter().flat_map(|b| b.ingress.iter().flatten());
            let found: BTreeSet<&str> = ingress
                .map(|i| match text(i.ip.as_ref()) {
                    "" => text(i.hostname.as_ref()),
                    ip => ip,
                })
                .filter(|a| !a.is_empty())
                .collect();
            let all: Vec<&str> = found.into_iter().chain(external.iter().map(String::as_str)).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => text(spec.external_name.as_ref()).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(spec: &ServiceSpec) -> String {
    let shown: Vec<String> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let protocol = text(port.protocol.as_ref());
            match port.node_port {
                Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", port.port),
                _ => format!("{}/{protocol}", port.port),
            }
        })
        .collect();
    if shown.is_empty() { "<none>".to_owned() } else { shown.join(",") }
}

fn defaults(spec: &mut ServiceSpec) {
    string(&mut spec.session_affinity, "None");
    match text(spec.session_affinity.as_ref()) {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let config = spec.session_affinity_config.get_or_insert_default();
            let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client.timeout_seconds.get_or_insert(10800);
        }
        _ => {}
    }
    string(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        string(&mut port.protocol, "TCP");
        port.node_port = port.node_port.filter(|number| *number != 0);
        let unset = match &port.target_port {
            None => true,
            Some(IntOrString::Int(number)) => *number == 0,
            Some(IntOrString::String(name)) => name.is_empty(),
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if externally_accessible(spec) {
        string(&mut spec.external_traffic_policy, "Cluster");
    }
    let kind = text(spec.type_.as_ref());
    if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

/// Whether traffic from outside the cluster can arrive.
fn externally_accessible(spec: &ServiceSpec) -> bool {
    match text(spec.type_.as_ref()) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

fn needs_health_check_port(spec: &ServiceSpec) -> bool {
    text(spec.type_.as_ref()) == "LoadBalancer" && text(spec.external_traffic_policy.as_ref()) == "Local"
}

/// A change of type takes away fields that the old type needed, unless the change sets them anew.
fn drop_type_dependent(new: &mut ServiceSpec, old: &ServiceSpec) {
    let kind = |spec: &ServiceSpec| text(spec.type_.as_ref()).to_owned();
    let (now, before) = (kind(new), kind(old));
    let has_ip = |kind: &str| kind != "ExternalName";
    let has_node_port = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if has_ip(&before) && !has_ip(&now) {
        if new.cluster_ip == old.cluster_ip && new.cluster_ips == old.cluster_ips {
            (new.cluster_ip, new.cluster_ips) = (None, None);
        }
        if new.ip_families == old.ip_families {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
        if new.internal_traffic_policy == old.internal_traffic_policy {
            new.internal_traffic_policy = None;
        }
    }
    let ports = |spec: &ServiceSpec| -> BTreeSet<i32> {
        spec.ports.iter().flatten().filter_map(|p| p.node_port).filter(|p| *p != 0).collect()
    };
    if has_node_port(&before) && !has_node_port(&now) && ports(new).is_subset(&ports(old)) {
        new.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(new)
        && new.health_check_node_port == old.health_check_node_port
    {
        new.health_check_node_port = None;
    }
    if before == "LoadBalancer" && now != "LoadBalancer" {
        if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            new.allocate_load_balancer_node_ports = None;
        }
        if new.load_balancer_class == old.load_balancer_class {
            new.load_balancer_class = None;
        }
    }
    if externally_accessible(old)
        && !externally_accessible(new)
        && new.external_traffic_policy == old.external_traffic_policy
    {
        new.external_traffic_policy = None;
    }
}
