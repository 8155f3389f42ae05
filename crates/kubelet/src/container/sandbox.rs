//! The sandbox configuration of a pod.

use std::collections::BTreeMap;

use coracle_cri::v1::{DnsConfig, LinuxResources, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata};
use coracle_cri::{PortMapping, Protocol};
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use super::{dns, hosts, resources};
use crate::config::KubeletConfig;
use crate::names;
use crate::pod::{host_network, spec};

/// The labels by which the runtime knows a pod's sandboxes and containers.
pub fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    labels.insert(names::POD_NAME.to_owned(), names::name(pod).to_owned());
    labels.insert(names::POD_NAMESPACE.to_owned(), names::namespace(pod).to_owned());
    labels.insert(names::POD_UID.to_owned(), names::uid(pod).to_owned());
    labels
}

/// A declared port as a forwarded one, if it asks for a host port.
fn mapping(port: &ContainerPort) -> Option<PortMapping> {
    let number = |p: i32| u16::try_from(p).ok();
    let host_port = port.host_port.and_then(number).filter(|p| *p != 0)?;
    let host_ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).and_then(|ip| ip.parse().ok());
    Some(PortMapping {
        container_port: number(port.container_port)?,
        host_port,
        host_ip: host_ip.filter(|ip: &std::net::IpAddr| !ip.is_unspecified()),
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
    })
}

fn host_ports(pod: &Pod) -> Vec<PortMapping> {
    if host_network(pod) {
        return Vec::new();
    }
    crate::pod::containers(pod).flat_map(|(c, _)| c.ports.iter().flatten()).filter_map(mapping).collect()
}

/// What the runtime is told about a pod's sandbox.
pub fn config(pod: &Pod, attempt: u32, host_dns: &DnsConfig, config: &KubeletConfig) -> PodSandboxConfig {
    let s = spec(pod);
    let (host, domain) = hosts::hostname_and_domain(pod, &config.cluster_domain);
    let hostname = if host_network(pod) {
        String::new()
    } else if s.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        format!("{host}.{domain}")
    } else {
        host
    };
    let security = s.security_context.as_ref();
    let sysctls = security.and_then(|c| c.sysctls.as_ref()).into_iter().flatten();
    let mut all_labels = pod.metadata.labels.clone().unwrap_or_default();
    all_labels.extend(labels(pod));
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(names::GRACE_PERIOD.to_owned(), crate::pod::grace_period(pod).to_string());
    PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: names::name(pod).to_owned(),
            uid: names::uid(pod).to_owned(),
            namespace: names::namespace(pod).to_owned(),
            attempt,
        },
        hostname,
        log_directory: log_directory(pod, config),
        dns_config: dns::config(pod, host_dns, &config.cluster_dns, &config.cluster_domain),
        port_mappings: host_ports(pod),
        labels: all_labels,
        annotations,
        cgroup_parent: resources::cgroup_parent(&config.cgroup_root, pod),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        namespaces: NamespaceOptions {
            host_network: host_network(pod),
            host_pid: s.host_pid == Some(true),
            host_ipc: s.host_ipc == Some(true),
            share_process_namespace: s.share_process_namespace == Some(true),
            user_namespace: None,
        },
        resources: LinuxResources { pids_limit: config.pod_pids_limit.max(0), ..resources::of_pod(pod) },
        privileged: crate::pod::containers(pod)
            .any(|(c, _)| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true))),
        runtime_handler: String::new(),
    }
}

fn log_directory(pod: &Pod, config: &KubeletConfig) -> String {
    let (ns, name, uid) = (names::namespace(pod), names::name(pod), names::uid(pod));
    names::log_directory(&config.log_root, ns, name, uid).to_string_lossy().into_owned()
}
