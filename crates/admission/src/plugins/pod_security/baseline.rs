//! The checks of the baseline level: known ways to more rights than a container needs.

use std::collections::BTreeSet;

use coracle_meta::pod::SAFE_SYSCTLS;
use k8s_openapi::api::core::v1::{LifecycleHandler, SELinuxOptions};

use super::checks::{Finding, Subject, containers, found, plural, quoted, setters};

/// Capabilities that container runtimes grant by default.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn app_armor(pod: &Subject<'_>) -> Option<Finding> {
    let allowed = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let mut values = BTreeSet::new();
    let own = pod.spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let own = own.filter(|profile| !allowed(&profile.type_));
    values.extend(own.map(|profile| profile.type_.clone()));
    let bad = pod.bad(|c| {
        let profile = c.security.and_then(|s| s.app_armor_profile.as_ref());
        let profile = profile.filter(|profile| !allowed(&profile.type_));
        values.extend(profile.map(|profile| profile.type_.clone()));
        profile.is_some()
    });
    let fine =
        |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let annotations = pod.annotations.into_iter().flatten();
    let annotations: Vec<String> = annotations
        .filter(|(key, value)| {
            key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine(value)
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> = own.map(|_| "pod".to_owned()).into_iter().collect();
    who.extend((!bad.is_empty()).then(|| containers(&bad)));
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    found(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)))
}

pub(super) fn capabilities(pod: &Subject<'_>) -> Option<Finding> {
    let mut added = BTreeSet::new();
    let bad = pod.bad(|c| {
        let own = c.security.and_then(|s| s.capabilities.as_ref()).and_then(|c| c.add.as_ref());
        let own: Vec<&String> =
            own.into_iter().flatten().filter(|name| !CAPABILITIES.contains(&name.as_str())).collect();
        added.extend(own.iter().map(|name| (*name).clone()));
        !own.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    let what = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&bad),
        quoted(added)
    );
    found("non-default capabilities", what)
}

pub(super) fn host_namespaces(pod: &Subject<'_>) -> Option<Finding> {
    let spec = pod.spec;
    let shared = [
        (spec.host_network, "hostNetwork=true"),
        (spec.host_pid, "hostPID=true"),
        (spec.host_ipc, "hostIPC=true"),
    ];
    let shared: Vec<&str> =
        shared.into_iter().filter(|(on, _)| *on == Some(true)).map(|(_, text)| text).collect();
    if shared.is_empty() { None } else { found("host namespaces", shared.join(", ")) }
}

pub(super) fn host_paths(pod: &Subject<'_>) -> Option<Finding> {
    let volumes = pod.spec.volumes.iter().flatten();
    let names: Vec<&str> = volumes.filter(|v| v.host_path.is_some()).map(|v| v.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

pub(super) fn host_ports(pod: &Subject<'_>) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let bad = pod.bad(|c| {
        let own: Vec<String> =
            c.ports.iter().filter_map(|p| p.host_port).filter(|p| *p != 0).map(|p| p.to_string()).collect();
        let any = !own.is_empty();
        ports.extend(own);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let (uses, what) = (plural("uses", "use", bad.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    found("hostPort", format!("{} {uses} {what} {}", containers(&bad), ports.join(", ")))
}

pub(super) fn probe_hosts(pod: &Subject<'_>) -> Option<Finding> {
    let mut hosts: BTreeSet<&str> = BTreeSet::new();
    let of_handler = |handler: &'_ Option<LifecycleHandler>| -> Vec<String> {
        let Some(handler) = handler else { return Vec::new() };
        let http = handler.http_get.as_ref().and_then(|h| h.host.clone());
        [http, handler.tcp_socket.as_ref().and_then(|t| t.host.clone())].into_iter().flatten().collect()
    };
    let mut owned: BTreeSet<String> = BTreeSet::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for c in pod.containers() {
        let mut own: Vec<String> = Vec::new();
        for probe in c.probes.into_iter().flatten() {
            own.extend(probe.http_get.as_ref().and_then(|h| h.host.clone()));
            own.extend(probe.tcp_socket.as_ref().and_then(|t| t.host.clone()));
        }
        if let Some(lifecycle) = c.lifecycle {
            own.extend(of_handler(&lifecycle.post_start));
            own.extend(of_handler(&lifecycle.pre_stop));
        }
        own.retain(|host| !host.is_empty());
        if !own.is_empty() {
            names.insert(c.name);
        }
        owned.extend(own);
    }
    hosts.extend(owned.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let bad: Vec<&str> = names.into_iter().collect();
    let uses = plural("uses", "use", bad.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    found("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&bad), quoted(hosts)))
}

pub(super) fn privileged(pod: &Subject<'_>) -> Option<Finding> {
    let bad = pod.bad(|c| c.security.and_then(|s| s.privileged) == Some(true));
    if bad.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

pub(super) fn proc_mount(pod: &Subject<'_>) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let bad = pod.bad(|c| {
        let kind = c.security.and_then(|s| s.proc_mount.as_deref()).filter(|kind| *kind != "Default");
        kinds.extend(kind.map(str::to_owned));
        kind.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    found(
        "procMount",
        format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(kinds)),
    )
}

pub(super) fn proc_mount_of_host_users(pod: &Subject<'_>) -> Option<Finding> {
    if pod.own_users() { None } else { proc_mount(pod) }
}

pub(super) fn se_linux_old(pod: &Subject<'_>) -> Option<Finding> {
    se_linux_of(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

pub(super) fn se_linux(pod: &Subject<'_>) -> Option<Finding> {
    se_linux_of(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn se_linux_of(pod: &Subject<'_>, allowed: &[&str]) -> Option<Finding> {
    let (mut kinds, mut user, mut role) = (BTreeSet::new(), false, false);
    let set = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    let mut wrong = |options: &SELinuxOptions| {
        let kind = options.type_.as_deref().unwrap_or("");
        let bad_kind = !allowed.contains(&kind);
        if bad_kind {
            kinds.insert(kind.to_owned());
        }
        let (own_user, own_role) = (set(&options.user), set(&options.role));
        user |= own_user;
        role |= own_role;
        bad_kind || own_user || own_role
    };
    let own =
        pod.spec.security_context.as_ref().and_then(|s| s.se_linux_options.as_ref()).is_some_and(&mut wrong);
    let bad = pod.bad(|c| c.security.and_then(|s| s.se_linux_options.as_ref()).is_some_and(&mut wrong));
    let who = setters(own, &bad)?;
    let mut what = Vec::new();
    if !kinds.is_empty() {
        what.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(&kinds)));
    }
    what.extend(user.then(|| "user may not be set".to_owned()));
    what.extend(role.then(|| "role may not be set".to_owned()));
    found(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    )
}

pub(super) fn seccomp_annotations(pod: &Subject<'_>) -> Option<Finding> {
    let keys = pod.containers().map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.name));
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(keys);
    let fine = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.annotations?.get(&key).filter(|value| !fine(value))?;
            Some(format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", bad.len());
    found("seccompProfile", format!("forbidden {what} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

/// Whether a seccomp profile confines at all.
pub(super) fn confines(kind: &str) -> bool {
    matches!(kind, "Localhost" | "RuntimeDefault")
}

pub(super) fn seccomp(pod: &Subject<'_>) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let own = pod.spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let own = own.filter(|profile| !confines(&profile.type_));
    kinds.extend(own.map(|profile| profile.type_.clone()));
    let bad = pod.bad(|c| {
        let profile = c.security.and_then(|s| s.seccomp_profile.as_ref()).filter(|p| !confines(&p.type_));
        kinds.extend(profile.map(|profile| profile.type_.clone()));
        profile.is_some()
    });
    let who = setters(own.is_some(), &bad)?;
    found(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(kinds)),
    )
}

pub(super) fn sysctls_0(pod: &Subject<'_>) -> Option<Finding> {
    sysctls(pod, &SAFE_SYSCTLS[..5])
}

pub(super) fn sysctls_27(pod: &Subject<'_>) -> Option<Finding> {
    sysctls(pod, &SAFE_SYSCTLS[..6])
}

pub(super) fn sysctls_29(pod: &Subject<'_>) -> Option<Finding> {
    sysctls(pod, &SAFE_SYSCTLS[..10])
}

pub(super) fn sysctls_32(pod: &Subject<'_>) -> Option<Finding> {
    sysctls(pod, &SAFE_SYSCTLS)
}

fn sysctls(pod: &Subject<'_>, allowed: &[&str]) -> Option<Finding> {
    let set = pod.spec.security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let bad: Vec<&str> =
        set.into_iter().flatten().map(|s| s.name.as_str()).filter(|n| !allowed.contains(n)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

pub(super) fn windows_host_process(pod: &Subject<'_>) -> Option<Finding> {
    let own = pod.spec.security_context.as_ref().and_then(|s| s.windows_options.as_ref());
    let own = own.and_then(|w| w.host_process) == Some(true);
    let bad = pod.bad(|c| {
        c.security.and_then(|s| s.windows_options.as_ref()).and_then(|w| w.host_process) == Some(true)
    });
    let who = setters(own, &bad)?;
    found("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
