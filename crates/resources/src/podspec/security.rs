//! Checks of security contexts, of pods and of containers.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    WindowsSecurityContextOptions,
};
use regex::Regex;
use serde_json::{Value, json};

use crate::check::{about_struct, about_text, go_struct, local_path, named, one_of};
use crate::common::text;

const WITH_USERS: &str = "when `hostUsers` is false";

fn id(errs: &mut ErrorList, path: &Path, value: Option<i64>) {
    if let Some(value) = value.filter(|v| !(0..=i64::from(i32::MAX)).contains(v)) {
        errs.invalid(path, value, names::in_range(0, i64::from(i32::MAX)));
    }
}

/// Checks a container's security context.
pub(crate) fn container(context: &SecurityContext, host_users: bool, path: &Path, errs: &mut ErrorList) {
    id(errs, &path.child("runAsUser"), context.run_as_user);
    id(errs, &path.child("runAsGroup"), context.run_as_group);
    seccomp(context.seccomp_profile.as_ref(), &path.child("seccompProfile"), errs);
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            about_text(errs, ErrorKind::Invalid, path, show(context), why);
        }
        let mut added = context.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        if added.any(|capability| capability == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            about_text(errs, ErrorKind::Invalid, path, show(context), why);
        }
    }
    if let Some(options) = &context.windows_options {
        windows(options, &path.child("windowsOptions"), errs);
    }
    app_armor(context.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errs);
    if let Some(mount) = context.proc_mount.as_deref() {
        one_of(errs, &path.child("procMount"), mount, &["Default", "Unmasked"]);
        if host_users && mount == "Unmasked" {
            errs.invalid(path.child("procMount"), mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
}

/// The context as upstream's internal type prints.
fn show(context: &SecurityContext) -> String {
    let null = || "null".to_owned();
    let capabilities = context
        .capabilities
        .as_ref()
        .map_or_else(null, |c| go_struct(&[("Add", json!(c.add)), ("Drop", json!(c.drop))]));
    let selinux = context.se_linux_options.as_ref().map_or_else(null, |s| {
        let field = |value: Option<&String>| json!(text(value));
        go_struct(&[
            ("User", field(s.user.as_ref())),
            ("Role", field(s.role.as_ref())),
            ("Type", field(s.type_.as_ref())),
            ("Level", field(s.level.as_ref())),
        ])
    });
    let profile = |kind: &str, file: &Option<String>| {
        go_struct(&[("Type", json!(kind)), ("LocalhostProfile", json!(file))])
    };
    let seccomp =
        context.seccomp_profile.as_ref().map_or_else(null, |p| profile(&p.type_, &p.localhost_profile));
    let armor =
        context.app_armor_profile.as_ref().map_or_else(null, |p| profile(&p.type_, &p.localhost_profile));
    let plain = |value: Value| value.to_string();
    let fields = [
        ("Capabilities", capabilities),
        ("Privileged", plain(json!(context.privileged))),
        ("SELinuxOptions", selinux),
        ("WindowsOptions", plain(json!(context.windows_options))),
        ("RunAsUser", plain(json!(context.run_as_user))),
        ("RunAsGroup", plain(json!(context.run_as_group))),
        ("RunAsNonRoot", plain(json!(context.run_as_non_root))),
        ("ReadOnlyRootFilesystem", plain(json!(context.read_only_root_filesystem))),
        ("AllowPrivilegeEscalation", plain(json!(context.allow_privilege_escalation))),
        ("ProcMount", plain(json!(context.proc_mount))),
        ("SeccompProfile", seccomp),
        ("AppArmorProfile", armor),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn seccomp(profile: Option<&SeccompProfile>, path: &Path, errs: &mut ErrorList) {
    let Some(profile) = profile else { return };
    match profile.type_.as_str() {
        "" => errs.required(path.child("type"), "type is required when seccompProfile is set"),
        kind => one_of(errs, &path.child("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    let at = path.child("localhostProfile");
    match profile.localhost_profile.as_deref() {
        None if profile.type_ == "Localhost" => {
            errs.required(at, "must be set when seccomp type is Localhost");
        }
        Some(file) if profile.type_ == "Localhost" => local_path(errs, &at, file),
        Some(_) => {
            let shown =
                [("Type", json!(profile.type_)), ("LocalhostProfile", json!(profile.localhost_profile))];
            let why = "can only be set when seccomp type is Localhost";
            about_struct(errs, ErrorKind::Invalid, &at, &shown, why);
        }
        None => {}
    }
}

fn app_armor(profile: Option<&AppArmorProfile>, path: &Path, errs: &mut ErrorList) {
    let Some(profile) = profile else { return };
    let at = path.child("localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None) => errs.required(at, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errs.invalid(&at, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                errs.required(&at, "must be set when AppArmor type is Localhost");
            }
            if name.len() > 4095 {
                errs.too_long(&at, 4095);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            errs.invalid(at, name, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errs.required(path.child("type"), "type is required when appArmorProfile is set"),
        (kind, _) => {
            errs.not_supported(path.child("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

/// Checks Windows options; Coracle runs no Windows nodes, but the fields are part of the API.
fn windows(options: &WindowsSecurityContextOptions, path: &Path, errs: &mut ErrorList) {
    if let Some(name) = options.gmsa_credential_spec_name.as_deref() {
        named(errs, &path.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain);
    }
    if options.gmsa_credential_spec.as_deref() == Some("") {
        let why = "gmsaCredentialSpec cannot be an empty string";
        errs.invalid(path.child("gmsaCredentialSpec"), "", why);
    }
    let Some(name) = options.run_as_user_name.as_deref() else { return };
    let at = path.child("runAsUserName");
    let mut parts = name.splitn(2, '\\');
    let (first, second) = (parts.next().unwrap_or(""), parts.next());
    if name.is_empty() {
        return errs.invalid(at, name, "runAsUserName cannot be an empty string");
    }
    if name.contains(|c: char| c.is_ascii_control()) {
        errs.invalid(&at, name, "runAsUserName cannot contain control characters");
    }
    let user = second.unwrap_or(first);
    if user.is_empty() {
        errs.invalid(&at, name, "runAsUserName's User cannot be empty");
    }
    if user.chars().count() > 104 {
        errs.invalid(&at, name, "runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        errs.invalid(&at, name, "runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c| r#""/\:;|=,+*?<>@[]"#.contains(c)) {
        let why = r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#;
        errs.invalid(&at, name, why);
    }
}

/// Checks the pod's security context, and what of the spec it goes with.
pub(crate) fn pod(spec: &PodSpec, spec_path: &Path, errs: &mut ErrorList) {
    let path = spec_path.child("securityContext");
    if spec.host_network == Some(true) {
        host_network_ports(&spec.containers, &spec_path.child("containers"), errs);
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        host_network_ports(inits, &spec_path.child("initContainers"), errs);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.invalid(path.child("shareProcessNamespace"), true, why);
    }
    if spec.host_users == Some(false) {
        for (name, set) in
            [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)]
        {
            if set == Some(true) {
                errs.forbidden(spec_path.child(name), WITH_USERS);
            }
        }
        let lists =
            [("initContainers", spec.init_containers.as_deref()), ("containers", Some(&spec.containers[..]))];
        for (list, containers) in lists {
            for (i, container) in containers.into_iter().flatten().enumerate() {
                if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
                    errs.forbidden(spec_path.child(list).index(i).child("volumeDevices"), WITH_USERS);
                }
            }
        }
    }
    if let Some(context) = &spec.security_context {
        context_of_pod(context, spec, &path, errs);
    }
}

fn context_of_pod(context: &PodSecurityContext, spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    id(errs, &path.child("fsGroup"), context.fs_group);
    id(errs, &path.child("runAsUser"), context.run_as_user);
    id(errs, &path.child("runAsGroup"), context.run_as_group);
    for (i, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(errs, &path.child("supplementalGroups").index(i), Some(*group));
    }
    if let Some(policy) = context.supplemental_groups_policy.as_deref() {
        one_of(errs, &path.child("supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
    if let Some(policy) = context.fs_group_change_policy.as_deref() {
        one_of(errs, &path.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    if let Some(policy) = context.se_linux_change_policy.as_deref() {
        one_of(errs, &path.child("seLinuxChangePolicy"), policy, &["Recursive"]);
    }
    seccomp(context.seccomp_profile.as_ref(), &path.child("seccompProfile"), errs);
    app_armor(context.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errs);
    if let Some(options) = &context.windows_options {
        windows(options, &path.child("windowsOptions"), errs);
    }
    sysctls(context, spec, &path.child("sysctls"), errs);
}

/// Upstream's pattern of sysctl names, as its messages print it.
const SYSCTL_PATTERN: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

static SYSCTL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(SYSCTL_PATTERN).ok());

fn sysctls(context: &PodSecurityContext, spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let at = path.index(i).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errs.required(&at, "");
        } else if name.len() > 253 || !SYSCTL.as_ref().is_some_and(|r| r.is_match(name)) {
            let why = format!("must have at most 253 characters and match regex {SYSCTL_PATTERN}");
            errs.invalid(&at, name, why);
        } else if !seen.insert(name) {
            errs.duplicate(&at, name);
        }
        let normal = name.replace('/', ".");
        if spec.host_network == Some(true) && normal.starts_with("net.") {
            errs.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = normal == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| normal.starts_with(p));
        if spec.host_ipc == Some(true) && ipc {
            errs.invalid(&at, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn host_network_ports(containers: &[Container], path: &Path, errs: &mut ErrorList) {
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            // Templates need not name it: only pods get it by default.
            if host_port != 0 && host_port != port.container_port {
                let at = path.index(i).child("ports").index(j).child("hostPort");
                errs.invalid(at, host_port, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// Checks fields that fit only one operating system, when the pod names one.
pub(crate) fn os(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let Some(os) = &spec.os else { return };
    match os.name.as_str() {
        "" => errs.required(path.child("os").child("name"), ""),
        "linux" => linux(spec, path, errs),
        "windows" => not_windows(spec, path, errs),
        other => errs.not_supported(path.child("os"), other, &["linux", "windows"]),
    }
}

/// Every container's security context with its path.
fn contexts<'a>(spec: &'a PodSpec, path: &Path) -> Vec<(Path, &'a SecurityContext)> {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (list, containers) in [("containers", spec.containers.as_slice()), ("initContainers", inits)] {
        for (i, container) in containers.iter().enumerate() {
            if let Some(context) = &container.security_context {
                found.push((path.child(list).index(i).child("securityContext"), context));
            }
        }
    }
    found
}

fn linux(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let why = "windows options cannot be set for a linux pod";
    if spec.security_context.as_ref().is_some_and(|c| c.windows_options.is_some()) {
        errs.forbidden(path.child("securityContext").child("windowsOptions"), why);
    }
    for (path, context) in contexts(spec, path) {
        if context.windows_options.is_some() {
            errs.forbidden(path.child("windowsOptions"), why);
        }
    }
}

fn not_windows(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    const WHY: &str = "cannot be set for a windows pod";
    let mut forbid = |path: Path, set: bool| {
        if set {
            errs.forbidden(path, WHY);
        }
    };
    if let Some(context) = &spec.security_context {
        let at = path.child("securityContext");
        forbid(at.child("appArmorProfile"), context.app_armor_profile.is_some());
        forbid(at.child("seLinuxOptions"), context.se_linux_options.is_some());
        forbid(at.child("seccompProfile"), context.seccomp_profile.is_some());
        forbid(at.child("fsGroup"), context.fs_group.is_some());
        forbid(at.child("fsGroupChangePolicy"), context.fs_group_change_policy.is_some());
        forbid(at.child("sysctls"), context.sysctls.as_ref().is_some_and(|s| !s.is_empty()));
        forbid(at.child("runAsUser"), context.run_as_user.is_some());
        forbid(at.child("runAsGroup"), context.run_as_group.is_some());
        forbid(at.child("supplementalGroups"), context.supplemental_groups.is_some());
        forbid(at.child("supplementalGroupsPolicy"), context.supplemental_groups_policy.is_some());
        forbid(at.child("shareProcessNamespace"), spec.share_process_namespace.is_some());
    }
    forbid(path.child("hostUsers"), spec.host_users.is_some());
    forbid(path.child("hostPID"), spec.host_pid == Some(true));
    forbid(path.child("hostIPC"), spec.host_ipc == Some(true));
    for (at, context) in contexts(spec, path) {
        forbid(at.child("appArmorProfile"), context.app_armor_profile.is_some());
        forbid(at.child("seLinuxOptions"), context.se_linux_options.is_some());
        forbid(at.child("seccompProfile"), context.seccomp_profile.is_some());
        forbid(at.child("capabilities"), context.capabilities.is_some());
        forbid(at.child("readOnlyRootFilesystem"), context.read_only_root_filesystem.is_some());
        forbid(at.child("privileged"), context.privileged.is_some());
        forbid(at.child("allowPrivilegeEscalation"), context.allow_privilege_escalation.is_some());
        forbid(at.child("procMount"), context.proc_mount.is_some());
        forbid(at.child("runAsUser"), context.run_as_user.is_some());
        forbid(at.child("runAsGroup"), context.run_as_group.is_some());
    }
}
