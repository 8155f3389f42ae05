//! The table of checks: which hold at which level since which version, and how their findings read together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EphemeralContainer, Lifecycle, PodSpec, Probe, SecurityContext,
};

use super::policy::{Level, LevelVersion, Version};
use super::{baseline, restricted};

/// The newest version that changed a check.
const NEWEST: u32 = 35;

/// What a check looks at.
pub(super) struct Subject<'a> {
    pub(super) annotations: Option<&'a BTreeMap<String, String>>,
    pub(super) spec: &'a PodSpec,
}

/// A container of any of the three lists.
pub(super) struct View<'a> {
    pub(super) name: &'a str,
    pub(super) security: Option<&'a SecurityContext>,
    pub(super) ports: &'a [ContainerPort],
    pub(super) probes: [Option<&'a Probe>; 3],
    pub(super) lifecycle: Option<&'a Lifecycle>,
}

impl<'a> Subject<'a> {
    /// The containers: those for initialization, the main ones, the ephemeral ones.
    pub(super) fn containers(&self) -> impl Iterator<Item = View<'a>> {
        let spec = self.spec;
        let main = spec.init_containers.iter().flatten().chain(&spec.containers).map(view);
        main.chain(spec.ephemeral_containers.iter().flatten().map(ephemeral))
    }

    /// Names of the containers that `bad` finds.
    pub(super) fn bad(&self, mut bad: impl FnMut(&View<'a>) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| c.name).collect()
    }

    /// Whether the pod says that it runs on Windows.
    pub(super) fn windows(&self) -> bool {
        self.spec.os.as_ref().is_some_and(|os| os.name == "windows")
    }

    /// Whether the pod has a user namespace of its own.
    pub(super) fn own_users(&self) -> bool {
        self.spec.host_users == Some(false)
    }
}

fn view(c: &Container) -> View<'_> {
    View {
        name: &c.name,
        security: c.security_context.as_ref(),
        ports: c.ports.as_deref().unwrap_or_default(),
        probes: [c.liveness_probe.as_ref(), c.readiness_probe.as_ref(), c.startup_probe.as_ref()],
        lifecycle: c.lifecycle.as_ref(),
    }
}

fn ephemeral(c: &EphemeralContainer) -> View<'_> {
    View {
        name: &c.name,
        security: c.security_context.as_ref(),
        ports: c.ports.as_deref().unwrap_or_default(),
        probes: [c.liveness_probe.as_ref(), c.readiness_probe.as_ref(), c.startup_probe.as_ref()],
        lifecycle: c.lifecycle.as_ref(),
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

/// A finding, as a check returns it.
pub(super) fn found(reason: &'static str, detail: String) -> Option<Finding> {
    Some(Finding { reason, detail })
}

type Test = fn(&Subject<'_>) -> Option<Finding>;

struct Check {
    id: &'static str,
    /// Checks of the lower level that this one replaces.
    replaces: &'static str,
    /// The minor version each form came with, rising.
    forms: &'static [(u32, Test)],
}

const fn check(id: &'static str, forms: &'static [(u32, Test)]) -> Check {
    Check { id, replaces: "", forms }
}

const fn replacing(replaces: &'static str, id: &'static str, forms: &'static [(u32, Test)]) -> Check {
    Check { id, replaces, forms }
}

/// The baseline checks, by id.
static BASELINE: &[Check] = &[
    check("appArmorProfile", &[(0, baseline::app_armor)]),
    check("capabilities_baseline", &[(0, baseline::capabilities)]),
    check("hostNamespaces", &[(0, baseline::host_namespaces)]),
    check("hostPathVolumes", &[(0, baseline::host_paths)]),
    check("hostPorts", &[(0, baseline::host_ports)]),
    check("hostProbesAndHostLifecycle", &[(34, baseline::probe_hosts)]),
    check("privileged", &[(0, baseline::privileged)]),
    check("procMount", &[(0, baseline::proc_mount), (35, baseline::proc_mount_of_host_users)]),
    check("seLinuxOptions", &[(0, baseline::se_linux_old), (31, baseline::se_linux)]),
    check("seccompProfile_baseline", &[(0, baseline::seccomp_annotations), (19, baseline::seccomp)]),
    check(
        "sysctls",
        &[
            (0, baseline::sysctls_0),
            (27, baseline::sysctls_27),
            (29, baseline::sysctls_29),
            (32, baseline::sysctls_32),
        ],
    ),
    check("windowsHostProcess", &[(0, baseline::windows_host_process)]),
];

/// The restricted checks, by id.
static RESTRICTED: &[Check] = &[
    check("allowPrivilegeEscalation", &[(8, restricted::escalation_anywhere), (25, restricted::escalation)]),
    replacing(
        "capabilities_baseline",
        "capabilities_restricted",
        &[(22, restricted::capabilities_anywhere), (25, restricted::capabilities)],
    ),
    replacing("procMount", "procMount_restricted", &[(35, baseline::proc_mount)]),
    replacing("hostPathVolumes", "restrictedVolumes", &[(0, restricted::volumes)]),
    check("runAsNonRoot", &[(0, restricted::run_as_non_root_anywhere), (35, restricted::run_as_non_root)]),
    check("runAsUser", &[(23, restricted::run_as_user_anywhere), (35, restricted::run_as_user)]),
    replacing(
        "seccompProfile_baseline",
        "seccompProfile_restricted",
        &[(19, restricted::seccomp_anywhere), (25, restricted::seccomp)],
    ),
];

impl Check {
    /// The form at a version.
    fn at(&self, minor: u32) -> Option<Test> {
        self.forms.iter().rev().find(|(since, _)| *since <= minor).map(|(_, test)| *test)
    }
}

/// All that a level at a version finds wrong with a pod, in the order of the checks.
pub(super) fn evaluate(policy: LevelVersion, subject: &Subject<'_>) -> Vec<Finding> {
    let minor = match policy.version {
        Version::Minor(minor) => minor.min(NEWEST),
        Version::Latest => NEWEST,
    };
    let strict: &[Check] = if policy.level == Level::Restricted { RESTRICTED } else { &[] };
    if policy.level == Level::Privileged {
        return Vec::new();
    }
    let replaced = |id: &str| strict.iter().any(|c| c.replaces == id && c.at(minor).is_some());
    let lax = BASELINE.iter().filter(|c| !replaced(c.id));
    lax.chain(strict).filter_map(|c| c.at(minor)).filter_map(|test| test(subject)).collect()
}

/// `reason (detail), reason (detail)`.
pub(super) fn details(findings: &[Finding]) -> String {
    let parts = findings.iter().map(|f| match f.detail.as_str() {
        "" => f.reason.to_owned(),
        detail => format!("{} ({detail})", f.reason),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// `reason, reason`.
pub(super) fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|f| f.reason).collect::<Vec<_>>().join(", ")
}

/// `"a", "b"`.
pub(super) fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    quoted.join(", ")
}

/// The singular or the plural.
pub(super) fn plural(one: &'static str, many: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
pub(super) fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: who sets something; `None` when nobody does.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(containers(names)),
        (true, false) => Some(format!("pod and {}", containers(names))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_ordered_by_id_and_replace_what_exists() {
        for table in [BASELINE, RESTRICTED] {
            assert!(table.iter().all(|c| c.forms.is_sorted_by(|a, b| a.0 < b.0) && c.forms.last().is_some()));
            assert!(table.is_sorted_by_key(|c| c.id));
        }
        assert!(
            RESTRICTED.iter().all(|r| r.replaces.is_empty() || BASELINE.iter().any(|b| b.id == r.replaces))
        );
        let newest = BASELINE.iter().chain(RESTRICTED).filter_map(|c| c.forms.last()).map(|f| f.0).max();
        assert_eq!(newest, Some(NEWEST));
    }
}
