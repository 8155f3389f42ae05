//! Which pods stand behind a Service, and at which ports: pure. Shared by Endpoints and EndpointSlices.

use std::collections::BTreeMap;

use coracle_client::{Change, Informer};
use coracle_meta::pod as podutil;
use coracle_meta::selector::LabelSelector;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::runtime::{Enqueue, ObjectKey};

/// Label of the Endpoints and EndpointSlices of a Service without cluster IP.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port that a pod offers to a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub name: String,
    pub number: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// The selector of a Service whose backends are ours to find.
pub(super) fn has_selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then_some(selector)
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// A headless Service may have no ports: its pods then count without any.
pub(super) fn is_portless(service: &Service) -> bool {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    is_headless(service) && ports.is_none_or(Vec::is_empty)
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The pod's IPv4 address.
pub(super) fn address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    all.filter(|ip| !ip.is_empty() && !ip.contains(':')).map(str::to_owned).next()
}

/// Whether the pod stands behind its Services at all.
pub(super) fn belongs(pod: &Pod, terminating_too: bool) -> bool {
    !podutil::is_terminal(pod)
        && address(pod).is_some()
        && (terminating_too || pod.metadata.deletion_timestamp.is_none())
}

/// The ports of a Service that this pod offers.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports.into_iter().flatten().filter_map(|port| offered(port, pod)).collect()
}

fn offered(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) if name.is_empty() => port.port,
        Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, number, protocol, app_protocol: port.app_protocol.clone() })
}

fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| podutil::is_restartable_init(c));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|port| port.name.as_deref() == Some(name))
        .find(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

/// The pod's own DNS name under a headless Service.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain == service.metadata.name).then(|| hostname.clone())
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Whether a change of a pod can change the endpoints of its Services.
fn matters(old: &Pod, new: &Pod) -> bool {
    let spec = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone()))
    };
    let state = |pod: &Pod| {
        let leaving = pod.metadata.deletion_timestamp.is_some();
        (leaving, podutil::is_ready(pod), podutil::is_terminal(pod), address(pod))
    };
    old.metadata.labels != new.metadata.labels || state(old) != state(new) || spec(old) != spec(new)
}

/// A change of a pod wakes the Services that select or selected it.
pub(super) fn wake_services(services: &Informer<Service>, change: &Change<Pod>, enqueue: Enqueue<'_>) {
    let (old, new) = match change {
        Change::Added(pod) | Change::Deleted(pod) => (pod, pod),
        Change::Modified { old, new } if matters(old, new) => (old, new),
        Change::Modified { .. } => return,
    };
    let none = BTreeMap::new();
    let labels = |pod: &Pod| pod.metadata.labels.clone().unwrap_or_else(|| none.clone());
    let (old_labels, new_labels) = (labels(old), labels(new));
    for service in services.list_namespace(new.metadata.namespace.as_deref().unwrap_or("")) {
        let Some(selector) = has_selector(&service).map(LabelSelector::from_map) else { continue };
        if selector.matches(&new_labels) || selector.matches(&old_labels) {
            enqueue(ObjectKey::of(&service.metadata));
        }
    }
}
