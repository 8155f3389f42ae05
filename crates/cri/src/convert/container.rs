//! Containers.

use super::{all, mode, profile, sandbox, signal};
use crate::v1::ContainerState;
use crate::{v1, wire};

impl From<wire::ContainerMetadata> for v1::ContainerMetadata {
    fn from(m: wire::ContainerMetadata) -> Self {
        Self { name: m.name, attempt: m.attempt }
    }
}

impl From<v1::ContainerMetadata> for wire::ContainerMetadata {
    fn from(m: v1::ContainerMetadata) -> Self {
        Self { name: m.name, attempt: m.attempt }
    }
}

impl From<wire::Mount> for v1::Mount {
    fn from(m: wire::Mount) -> Self {
        Self {
            container_path: m.container_path,
            host_path: m.host_path,
            readonly: m.readonly,
            recursive_read_only: m.recursive_read_only,
            propagation: m.propagation,
            image_ref: m.image.as_ref().map(|i| i.image_ref.clone()).unwrap_or_default(),
            image: m.image.map(|i| i.image).unwrap_or_default(),
            image_sub_path: m.image_sub_path,
            id_mapping: sandbox::mapping(&m.uid_mappings),
        }
    }
}

impl From<v1::Mount> for wire::Mount {
    fn from(m: v1::Mount) -> Self {
        let image = (!m.image.is_empty()).then(|| wire::ImageSpec {
            image: m.image,
            image_ref: m.image_ref,
            ..Default::default()
        });
        let users: Vec<_> = m.id_mapping.iter().map(sandbox::mapping_out).collect();
        Self {
            uid_mappings: users.clone(),
            gid_mappings: users,
            container_path: m.container_path,
            host_path: m.host_path,
            readonly: m.readonly,
            propagation: m.propagation,
            recursive_read_only: m.recursive_read_only,
            image,
            image_sub_path: m.image_sub_path,
            ..Self::default()
        }
    }
}

impl From<wire::Device> for v1::Device {
    fn from(d: wire::Device) -> Self {
        Self { container_path: d.container_path, host_path: d.host_path, permissions: d.permissions }
    }
}

impl From<v1::Device> for wire::Device {
    fn from(d: v1::Device) -> Self {
        Self { container_path: d.container_path, host_path: d.host_path, permissions: d.permissions }
    }
}

impl From<wire::LinuxContainerSecurityContext> for v1::LinuxSecurityContext {
    fn from(s: wire::LinuxContainerSecurityContext) -> Self {
        let capabilities = s.capabilities.unwrap_or_default();
        let namespaces = s.namespace_options.unwrap_or_default();
        let seccomp = s.seccomp.unwrap_or_else(|| wire::SecurityProfile {
            // No profile is no filter, as the interface wants it.
            profile_type: profile::UNCONFINED,
            ..Default::default()
        });
        Self {
            capabilities_add: capabilities.add_capabilities,
            capabilities_drop: capabilities.drop_capabilities,
            privileged: s.privileged,
            run_as_user: s.run_as_user.map(|v| v.value),
            run_as_group: s.run_as_group.map(|v| v.value),
            run_as_username: s.run_as_username,
            readonly_rootfs: s.readonly_rootfs,
            supplemental_groups: s.supplemental_groups,
            no_new_privs: s.no_new_privs,
            masked_paths: s.masked_paths,
            readonly_paths: s.readonly_paths,
            seccomp_unconfined: seccomp.profile_type == profile::UNCONFINED,
            seccomp_localhost: match seccomp.profile_type {
                profile::LOCALHOST => seccomp.localhost_ref.trim_start_matches("localhost/").to_owned(),
                _ => String::new(),
            },
            supplemental_groups_strict: s.supplemental_groups_policy == 1,
            pid_target: if namespaces.pid == mode::TARGET { namespaces.target_id } else { String::new() },
            pid_private: namespaces.pid == mode::CONTAINER,
        }
    }
}

/// A container's security context; what it shares with its pod stands in both on the wire.
fn security(s: v1::LinuxSecurityContext, pod: &v1::NamespaceOptions) -> wire::LinuxContainerSecurityContext {
    let value = |value| wire::Int64Value { value };
    let mut namespaces = wire::NamespaceOption::from(pod.clone());
    if !s.pid_target.is_empty() {
        namespaces.pid = mode::TARGET;
        namespaces.target_id = s.pid_target;
    } else if s.pid_private {
        namespaces.pid = mode::CONTAINER;
    }
    let profile_type = match (s.seccomp_unconfined, s.seccomp_localhost.is_empty()) {
        (true, _) => profile::UNCONFINED,
        (false, true) => profile::RUNTIME_DEFAULT,
        (false, false) => profile::LOCALHOST,
    };
    wire::LinuxContainerSecurityContext {
        capabilities: Some(wire::Capability {
            add_capabilities: s.capabilities_add,
            drop_capabilities: s.capabilities_drop,
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: s.privileged,
        namespace_options: Some(namespaces),
        run_as_user: s.run_as_user.map(value),
        run_as_group: s.run_as_group.map(value),
        run_as_username: s.run_as_username,
        readonly_rootfs: s.readonly_rootfs,
        supplemental_groups: s.supplemental_groups,
        supplemental_groups_policy: i32::from(s.supplemental_groups_strict),
        no_new_privs: s.no_new_privs,
        masked_paths: s.masked_paths,
        readonly_paths: s.readonly_paths,
        seccomp: Some(wire::SecurityProfile { profile_type, localhost_ref: s.seccomp_localhost }),
        ..Default::default()
    }
}

impl From<wire::ContainerConfig> for v1::ContainerConfig {
    fn from(c: wire::ContainerConfig) -> Self {
        let linux = c.linux.unwrap_or_default();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let env = |e: wire::KeyValue| v1::KeyValue { key: e.key, value: text(&e.value) };
        Self {
            metadata: c.metadata.map(Into::into).unwrap_or_default(),
            image: c.image.map(Into::into).unwrap_or_default(),
            command: c.command,
            args: c.args,
            working_dir: c.working_dir,
            envs: c.envs.into_iter().map(env).collect(),
            mounts: all(c.mounts),
            devices: all(c.devices),
            labels: c.labels,
            annotations: c.annotations,
            log_path: c.log_path,
            stdin: c.stdin,
            stdin_once: c.stdin_once,
            tty: c.tty,
            resources: linux.resources.map(Into::into).unwrap_or_default(),
            security: linux.security_context.unwrap_or_default().into(),
            cdi_devices: c.cdi_devices.into_iter().map(|d| d.name).collect(),
            stop_signal: signal::name(c.stop_signal),
        }
    }
}

/// A container's configuration for a runtime elsewhere.
pub(crate) fn config(c: v1::ContainerConfig, pod: &v1::NamespaceOptions) -> wire::ContainerConfig {
    let env = |e: v1::KeyValue| wire::KeyValue { key: e.key, value: e.value.into() };
    wire::ContainerConfig {
        metadata: Some(c.metadata.into()),
        image: Some(c.image.into()),
        command: c.command,
        args: c.args,
        working_dir: c.working_dir,
        envs: c.envs.into_iter().map(env).collect(),
        mounts: all(c.mounts),
        devices: all(c.devices),
        labels: c.labels,
        annotations: c.annotations,
        log_path: c.log_path,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(c.resources.into()),
            security_context: Some(security(c.security, pod)),
        }),
        cdi_devices: c.cdi_devices.into_iter().map(|name| wire::CDIDevice { name }).collect(),
        stop_signal: signal::number(&c.stop_signal),
    }
}

/// The number of a state.
pub(crate) fn state_out(state: ContainerState) -> i32 {
    match state {
        ContainerState::Created => 0,
        ContainerState::Running => 1,
        ContainerState::Exited => 2,
        ContainerState::Unknown => 3,
    }
}

fn state_in(state: i32) -> ContainerState {
    match state {
        0 => ContainerState::Created,
        1 => ContainerState::Running,
        2 => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

impl From<wire::ContainerFilter> for v1::ContainerFilter {
    fn from(f: wire::ContainerFilter) -> Self {
        Self {
            id: f.id,
            pod_sandbox_id: f.pod_sandbox_id,
            state: f.state.map(|s| state_in(s.state)),
            label_selector: f.label_selector,
        }
    }
}

impl From<v1::ContainerFilter> for wire::ContainerFilter {
    fn from(f: v1::ContainerFilter) -> Self {
        Self {
            id: f.id,
            state: f.state.map(|s| wire::ContainerStateValue { state: state_out(s) }),
            pod_sandbox_id: f.pod_sandbox_id,
            label_selector: f.label_selector,
        }
    }
}

impl From<v1::Container> for wire::Container {
    fn from(c: v1::Container) -> Self {
        Self {
            id: c.id,
            pod_sandbox_id: c.pod_sandbox_id,
            metadata: Some(c.metadata.into()),
            image: Some(c.image.into()),
            image_ref: c.image_ref,
            state: state_out(c.state),
            created_at: c.created_at,
            labels: c.labels,
            annotations: c.annotations,
            image_id: c.image_id,
        }
    }
}

impl From<wire::Container> for v1::Container {
    fn from(c: wire::Container) -> Self {
        Self {
            id: c.id,
            pod_sandbox_id: c.pod_sandbox_id,
            metadata: c.metadata.map(Into::into).unwrap_or_default(),
            image: c.image.map(Into::into).unwrap_or_default(),
            image_ref: c.image_ref,
            state: state_in(c.state),
            created_at: c.created_at,
            labels: c.labels,
            annotations: c.annotations,
            image_id: c.image_id,
        }
    }
}

impl From<v1::ContainerStatus> for wire::ContainerStatus {
    fn from(s: v1::ContainerStatus) -> Self {
        let user = s.user.map(|u| wire::LinuxContainerUser {
            uid: u.uid,
            gid: u.gid,
            supplemental_groups: u.supplemental_groups,
        });
        Self {
            id: s.id,
            metadata: Some(s.metadata.into()),
            state: state_out(s.state),
            created_at: s.created_at,
            started_at: s.started_at,
            finished_at: s.finished_at,
            exit_code: s.exit_code,
            image: Some(s.image.into()),
            image_ref: s.image_ref,
            reason: s.reason,
            message: s.message,
            labels: s.labels,
            annotations: s.annotations,
            mounts: all(s.mounts),
            log_path: s.log_path,
            resources: Some(wire::ContainerResources { linux: Some(s.resources.into()) }),
            image_id: s.image_id,
            user: user.map(|linux| wire::ContainerUser { linux: Some(linux) }),
            stop_signal: 0,
        }
    }
}

impl From<wire::ContainerStatus> for v1::ContainerStatus {
    fn from(s: wire::ContainerStatus) -> Self {
        let user = s.user.and_then(|u| u.linux).map(|u| v1::LinuxContainerUser {
            uid: u.uid,
            gid: u.gid,
            supplemental_groups: u.supplemental_groups,
        });
        // Runtimes before CRI 1.30 name the image by its reference alone.
        let image_id = if s.image_id.is_empty() { s.image_ref.clone() } else { s.image_id };
        Self {
            id: s.id,
            // Not on the wire; lists have it.
            pod_sandbox_id: String::new(),
            metadata: s.metadata.map(Into::into).unwrap_or_default(),
            state: state_in(s.state),
            created_at: s.created_at,
            started_at: s.started_at,
            finished_at: s.finished_at,
            exit_code: s.exit_code,
            signal: 0,
            image: s.image.map(Into::into).unwrap_or_default(),
            image_ref: s.image_ref,
            image_id,
            reason: s.reason,
            message: s.message,
            labels: s.labels,
            annotations: s.annotations,
            log_path: s.log_path,
            mounts: all(s.mounts),
            pid: 0,
            user,
            resources: s.resources.and_then(|r| r.linux).map(Into::into).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_comes_through_the_wire_as_it_was() {
        let config = v1::ContainerConfig {
            metadata: v1::ContainerMetadata { name: "a".into(), attempt: 1 },
            envs: vec![v1::KeyValue { key: "A".into(), value: "b".into() }],
            mounts: vec![v1::Mount {
                container_path: "/m".into(),
                image: "i:1".into(),
                readonly: true,
                propagation: 2,
                ..Default::default()
            }],
            security: v1::LinuxSecurityContext {
                run_as_user: Some(0),
                pid_target: "other".into(),
                seccomp_localhost: "/p.json".into(),
                supplemental_groups: vec![1, 2],
                supplemental_groups_strict: true,
                ..Default::default()
            },
            stop_signal: "SIGQUIT".into(),
            ..Default::default()
        };
        let wire = super::config(config.clone(), &v1::NamespaceOptions::default());
        assert_eq!(v1::ContainerConfig::from(wire), config);
    }

    #[test]
    fn a_private_process_namespace_is_asked_for_where_the_pod_shares_none() {
        let wire = super::config(v1::ContainerConfig::default(), &v1::NamespaceOptions::default());
        assert!(v1::ContainerConfig::from(wire).security.pid_private);
        let shared = v1::NamespaceOptions { share_process_namespace: true, ..Default::default() };
        let wire = super::config(v1::ContainerConfig::default(), &shared);
        assert!(!v1::ContainerConfig::from(wire).security.pid_private);
    }

    #[test]
    fn no_seccomp_profile_is_no_filter() {
        let s = v1::LinuxSecurityContext::from(wire::LinuxContainerSecurityContext::default());
        assert!(s.seccomp_unconfined && s.seccomp_localhost.is_empty());
    }
}
