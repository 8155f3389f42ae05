//! Sandboxes.

use super::{all, mode, profile};
use crate::network::{PortMapping, Protocol};
use crate::{v1, wire};

impl From<wire::PodSandboxMetadata> for v1::PodSandboxMetadata {
    fn from(m: wire::PodSandboxMetadata) -> Self {
        Self { name: m.name, uid: m.uid, namespace: m.namespace, attempt: m.attempt }
    }
}

impl From<v1::PodSandboxMetadata> for wire::PodSandboxMetadata {
    fn from(m: v1::PodSandboxMetadata) -> Self {
        Self { name: m.name, uid: m.uid, namespace: m.namespace, attempt: m.attempt }
    }
}

/// `None` for what no port can be, and for ports of the pod that the host does not have.
fn port_in(p: &wire::PortMapping) -> Option<PortMapping> {
    Some(PortMapping {
        container_port: u16::try_from(p.container_port).ok()?,
        host_port: u16::try_from(p.host_port).ok().filter(|p| *p != 0)?,
        host_ip: p.host_ip.parse().ok().filter(|ip: &std::net::IpAddr| !ip.is_unspecified()),
        protocol: match p.protocol {
            1 => Protocol::Udp,
            2 => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
    })
}

fn port_out(p: &PortMapping) -> wire::PortMapping {
    wire::PortMapping {
        protocol: match p.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        },
        container_port: p.container_port.into(),
        host_port: p.host_port.into(),
        host_ip: p.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

impl From<wire::NamespaceOption> for v1::NamespaceOptions {
    fn from(o: wire::NamespaceOption) -> Self {
        let users = o.userns_options.filter(|u| u.mode == mode::POD);
        Self {
            host_network: o.network == mode::NODE,
            host_pid: o.pid == mode::NODE,
            host_ipc: o.ipc == mode::NODE,
            share_process_namespace: o.pid == mode::POD,
            user_namespace: users.and_then(|u| mapping(&u.uids)),
        }
    }
}

/// The mapping whose first user is root.
pub(super) fn mapping(all: &[wire::IDMapping]) -> Option<v1::IdMapping> {
    let of_root = all.iter().find(|m| m.container_id == 0 && m.length > 0);
    of_root.map(|m| v1::IdMapping { host_id: m.host_id, length: m.length })
}

pub(super) fn mapping_out(m: &v1::IdMapping) -> wire::IDMapping {
    wire::IDMapping { host_id: m.host_id, container_id: 0, length: m.length }
}

/// Refuses user namespaces that nobody can make, in containerd's words where it has some.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_users(config: &wire::PodSandboxConfig) -> Result<(), String> {
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = security.and_then(|s| s.namespace_options.as_ref());
    let Some(users) = options.and_then(|o| o.userns_options.as_ref()) else { return Ok(()) };
    let (uids, gids) = (&users.uids, &users.gids);
    match users.mode {
        mode::NODE => Ok(()),
        mode::POD if uids.len() > 1 || gids.len() > 1 => {
            Err("user namespaces: only one uid mapping and one gid mapping are supported".into())
        }
        mode::POD if uids != gids => {
            Err("user namespaces: the mappings of users and groups must be the same".into())
        }
        mode::POD => match mapping(uids) {
            Some(m) if m.host_id != 0 && m.host_id.checked_add(m.length).is_some() => Ok(()),
            _ => Err("user namespaces: id 0 must be mapped, to another id of the host".into()),
        },
        other => Err(format!("user namespaces: unsupported mode {other}")),
    }
}

fn mode_of(host: bool) -> i32 {
    if host { mode::NODE } else { mode::POD }
}

impl From<v1::NamespaceOptions> for wire::NamespaceOption {
    fn from(o: v1::NamespaceOptions) -> Self {
        let pid = match (o.host_pid, o.share_process_namespace) {
            (true, _) => mode::NODE,
            (false, true) => mode::POD,
            (false, false) => mode::CONTAINER,
        };
        let users = |m: &v1::IdMapping| {
            let one = mapping_out(m);
            wire::UserNamespace { mode: mode::POD, uids: vec![one.clone()], gids: vec![one] }
        };
        Self {
            network: mode_of(o.host_network),
            pid,
            ipc: mode_of(o.host_ipc),
            target_id: String::new(),
            userns_options: o.user_namespace.as_ref().map(users),
        }
    }
}

impl From<wire::PodSandboxConfig> for v1::PodSandboxConfig {
    fn from(c: wire::PodSandboxConfig) -> Self {
        let linux = c.linux.unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        let dns = c.dns_config.unwrap_or_default();
        Self {
            metadata: c.metadata.map(Into::into).unwrap_or_default(),
            hostname: c.hostname,
            log_directory: c.log_directory,
            dns_config: v1::DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options },
            port_mappings: c.port_mappings.iter().filter_map(port_in).collect(),
            labels: c.labels,
            annotations: c.annotations,
            cgroup_parent: linux.cgroup_parent,
            sysctls: linux.sysctls,
            namespaces: security.namespace_options.unwrap_or_default().into(),
            resources: linux.resources.map(Into::into).unwrap_or_default(),
            privileged: security.privileged,
            runtime_handler: String::new(),
        }
    }
}

impl From<v1::PodSandboxConfig> for wire::PodSandboxConfig {
    fn from(c: v1::PodSandboxConfig) -> Self {
        let dns = c.dns_config;
        let has_dns = !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
        let default = wire::SecurityProfile { profile_type: profile::RUNTIME_DEFAULT, ..Default::default() };
        Self {
            metadata: Some(c.metadata.into()),
            hostname: c.hostname,
            log_directory: c.log_directory,
            dns_config: has_dns.then_some(wire::DNSConfig {
                servers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            }),
            port_mappings: c.port_mappings.iter().map(port_out).collect(),
            labels: c.labels,
            annotations: c.annotations,
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: c.cgroup_parent,
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    namespace_options: Some(c.namespaces.into()),
                    privileged: c.privileged,
                    seccomp: Some(default),
                    ..Default::default()
                }),
                sysctls: c.sysctls,
                overhead: None,
                resources: Some(c.resources.into()),
            }),
        }
    }
}

/// `PodSandboxState`.
fn state(ready: bool) -> i32 {
    i32::from(!ready)
}

impl From<wire::PodSandboxFilter> for v1::PodSandboxFilter {
    fn from(f: wire::PodSandboxFilter) -> Self {
        Self { id: f.id, ready: f.state.map(|s| s.state == 0), label_selector: f.label_selector }
    }
}

impl From<v1::PodSandboxFilter> for wire::PodSandboxFilter {
    fn from(f: v1::PodSandboxFilter) -> Self {
        let state = f.ready.map(|ready| wire::PodSandboxStateValue { state: state(ready) });
        Self { id: f.id, state, label_selector: f.label_selector }
    }
}

impl From<v1::PodSandbox> for wire::PodSandbox {
    fn from(s: v1::PodSandbox) -> Self {
        Self {
            id: s.id,
            metadata: Some(s.metadata.into()),
            state: state(s.ready),
            created_at: s.created_at,
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        }
    }
}

impl From<wire::PodSandbox> for v1::PodSandbox {
    fn from(s: wire::PodSandbox) -> Self {
        Self {
            id: s.id,
            metadata: s.metadata.map(Into::into).unwrap_or_default(),
            ready: s.state == 0,
            created_at: s.created_at,
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        }
    }
}

impl From<v1::PodSandboxStatus> for wire::PodSandboxStatus {
    fn from(s: v1::PodSandboxStatus) -> Self {
        let mut ips = s.ips.into_iter();
        let namespaces = wire::Namespace { options: Some(s.namespaces.into()) };
        Self {
            id: s.id,
            metadata: Some(s.metadata.into()),
            state: state(s.ready),
            created_at: s.created_at,
            network: Some(wire::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| wire::PodIP { ip }).collect(),
            }),
            linux: Some(wire::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        }
    }
}

impl From<wire::PodSandboxStatus> for v1::PodSandboxStatus {
    fn from(s: wire::PodSandboxStatus) -> Self {
        let network = s.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|a| a.ip);
        let namespaces = s.linux.and_then(|l| l.namespaces?.options);
        Self {
            id: s.id,
            metadata: s.metadata.map(Into::into).unwrap_or_default(),
            ready: s.state == 0,
            created_at: s.created_at,
            ips: std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect(),
            labels: s.labels,
            annotations: s.annotations,
            namespaces: namespaces.map(Into::into).unwrap_or_default(),
            runtime_handler: s.runtime_handler,
        }
    }
}

/// Resources are needed on both sides of containers too.
impl From<wire::LinuxContainerResources> for v1::LinuxResources {
    fn from(r: wire::LinuxContainerResources) -> Self {
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit_in_bytes: r.memory_limit_in_bytes,
            oom_score_adj: r.oom_score_adj,
            pids_limit: r.unified.get("pids.max").and_then(|p| p.parse().ok()).unwrap_or(0),
            cpuset_cpus: r.cpuset_cpus,
            cpuset_mems: r.cpuset_mems,
            hugepages: r.hugepage_limits.into_iter().map(|h| (h.page_size, h.limit)).collect(),
            unified: r.unified,
            memory_swap_limit_in_bytes: r.memory_swap_limit_in_bytes,
        }
    }
}

impl From<v1::LinuxResources> for wire::LinuxContainerResources {
    fn from(r: v1::LinuxResources) -> Self {
        let huge = |(page_size, limit)| wire::HugepageLimit { page_size, limit };
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit_in_bytes: r.memory_limit_in_bytes,
            oom_score_adj: r.oom_score_adj,
            cpuset_cpus: r.cpuset_cpus,
            cpuset_mems: r.cpuset_mems,
            hugepage_limits: r.hugepages.into_iter().map(huge).collect(),
            unified: r.unified,
            memory_swap_limit_in_bytes: r.memory_swap_limit_in_bytes,
        }
    }
}

impl From<wire::ListPodSandboxResponse> for Vec<v1::PodSandbox> {
    fn from(list: wire::ListPodSandboxResponse) -> Self {
        all(list.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_comes_through_the_wire_as_it_was() {
        let config = v1::PodSandboxConfig {
            hostname: "web".into(),
            metadata: v1::PodSandboxMetadata { name: "web".into(), attempt: 2, ..Default::default() },
            port_mappings: vec![PortMapping {
                container_port: 80,
                host_port: 8080,
                host_ip: Some([127, 0, 0, 1].into()),
                protocol: Protocol::Udp,
            }],
            dns_config: v1::DnsConfig { servers: vec!["10.96.0.10".into()], ..Default::default() },
            cgroup_parent: "/a/b".into(),
            namespaces: v1::NamespaceOptions {
                host_ipc: true,
                user_namespace: Some(v1::IdMapping { host_id: 65536, length: 65536 }),
                ..Default::default()
            },
            resources: v1::LinuxResources {
                cpu_shares: 5,
                cpuset_cpus: "0-1".into(),
                hugepages: [("2MB".to_owned(), 4 << 20)].into(),
                ..Default::default()
            },
            privileged: true,
            ..Default::default()
        };
        let wire = wire::PodSandboxConfig::from(config.clone());
        assert_eq!(v1::PodSandboxConfig::from(wire), config);
    }

    #[test]
    fn namespace_modes_are_those_of_the_interface() {
        let out = |share, host| {
            let options =
                v1::NamespaceOptions { host_pid: host, share_process_namespace: share, ..Default::default() };
            wire::NamespaceOption::from(options).pid
        };
        assert_eq!([out(false, false), out(true, false), out(false, true)], [1, 0, 2]);
    }

    #[test]
    fn ports_that_the_host_does_not_have_are_left_out() {
        let port = wire::PortMapping { container_port: 80, ..Default::default() };
        assert_eq!(port_in(&port), None);
        assert_eq!(port_in(&wire::PortMapping { host_port: 70_000, ..port }), None);
    }
}
