//! Checks of containers: names, images, ports, mounts, devices.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerRestartRule, EphemeralContainer, PodSpec, ResourceRequirements,
    Volume, VolumeDevice, VolumeMount,
};

use super::{env, probes, requirements, security};
use crate::check::{PROTOCOLS, each, local_path, named, no_backsteps, one_of};
use crate::common::text;

/// What containers of one pod need to know of it.
pub(crate) struct Pod<'a> {
    spec: &'a PodSpec,
    volumes: BTreeMap<&'a str, &'a Volume>,
    volume_names: BTreeSet<&'a str>,
    claims: BTreeSet<&'a str>,
    grace: i64,
    template: bool,
}

impl<'a> Pod<'a> {
    /// Gathers names; `good`: the usable volumes; `template`: the spec stands in a pod template.
    pub(crate) fn new(spec: &'a PodSpec, good: BTreeSet<&'a str>, template: bool) -> Self {
        let volumes: BTreeMap<&str, &Volume> = spec
            .volumes
            .iter()
            .flatten()
            .map(|v| (v.name.as_str(), v))
            .filter(|v| good.contains(v.0))
            .collect();
        Self {
            volumes,
            volume_names: good,
            claims: spec
                .resource_claims
                .iter()
                .flatten()
                .map(|c| c.name.as_str())
                .filter(|name| !name.is_empty())
                .collect(),
            grace: spec.termination_grace_period_seconds.unwrap_or(0),
            spec,
            template,
        }
    }

    /// Names of the pod's resource claims.
    pub(crate) fn claims(&self) -> &BTreeSet<&'a str> {
        &self.claims
    }
}

/// Checks all containers and init containers below the path of the spec.
pub(crate) fn all(pod: &Pod<'_>, path: &Path, errs: &mut ErrorList) {
    let list = path.child("containers");
    if pod.spec.containers.is_empty() {
        errs.required(&list, "");
    }
    let mut seen = BTreeSet::new();
    for (i, container) in pod.spec.containers.iter().enumerate() {
        let path = list.index(i);
        common(pod, container, &path, errs);
        unique_name(&mut seen, container, &path, errs);
        probes::lifecycle(container.lifecycle.as_ref(), pod.grace, &path.child("lifecycle"), errs);
        three_probes(container, &path, errs);
        restart_rules(container, &path, errs);
    }
    host_port_conflicts(&pod.spec.containers, &list, errs);
    let list = path.child("initContainers");
    for (i, container) in pod.spec.init_containers.iter().flatten().enumerate() {
        let path = list.index(i);
        common(pod, container, &path, errs);
        unique_name(&mut seen, container, &path, errs);
        host_port_conflicts(std::slice::from_ref(container), &list, errs);
        init(pod, container, &path, errs);
    }
}

/// Checks the ephemeral containers below the path of their list. They are what containers are, less what a service that
/// runs on would need.
pub(crate) fn ephemeral(pod: &Pod<'_>, path: &Path, errs: &mut ErrorList) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let usual = pod.spec.containers.iter().chain(pod.spec.init_containers.iter().flatten());
    let targets: BTreeSet<&str> = usual.map(|c| c.name.as_str()).collect();
    let mut taken = targets.clone();
    for (i, own) in pod.spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.index(i);
        let container = as_container(own);
        common(pod, &container, &path, errs);
        if pod.template {
            image_without_space(&container, &path, errs);
        }
        if !taken.insert(&own.name) {
            errs.duplicate(path.child("name"), own.name.as_str());
        }
        let target = text(own.target_container_name.as_ref());
        if !target.is_empty() && !targets.contains(target) {
            errs.not_found(path.child("targetContainerName"), target);
        }
        for (field, set) in [
            ("ports", own.ports.is_some()),
            ("resources", own.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default())),
            ("resizePolicy", own.resize_policy.is_some()),
            ("restartPolicy", own.restart_policy.is_some()),
            ("restartPolicyRules", own.restart_policy_rules.is_some()),
            ("livenessProbe", own.liveness_probe.is_some()),
            ("readinessProbe", own.readiness_probe.is_some()),
            ("startupProbe", own.startup_probe.is_some()),
            ("lifecycle", own.lifecycle.is_some()),
        ] {
            if set {
                errs.forbidden(path.child(field), WHY);
            }
        }
        for (j, mount) in own.volume_mounts.iter().flatten().enumerate() {
            let path = path.child("volumeMounts").index(j);
            for (field, sub_path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if !text(sub_path.as_ref()).is_empty() {
                    errs.forbidden(path.child(field), WHY);
                }
            }
        }
    }
}

/// The fields in which ephemeral containers are containers.
fn as_container(own: &EphemeralContainer) -> Container {
    let own = own.clone();
    Container {
        args: own.args,
        command: own.command,
        env: own.env,
        env_from: own.env_from,
        image: own.image,
        image_pull_policy: own.image_pull_policy,
        lifecycle: own.lifecycle,
        liveness_probe: own.liveness_probe,
        name: own.name,
        ports: own.ports,
        readiness_probe: own.readiness_probe,
        resize_policy: own.resize_policy,
        resources: own.resources,
        restart_policy: own.restart_policy,
        restart_policy_rules: own.restart_policy_rules,
        security_context: own.security_context,
        startup_probe: own.startup_probe,
        stdin: own.stdin,
        stdin_once: own.stdin_once,
        termination_message_path: own.termination_message_path,
        termination_message_policy: own.termination_message_policy,
        tty: own.tty,
        volume_devices: own.volume_devices,
        volume_mounts: own.volume_mounts,
        working_dir: own.working_dir,
    }
}

fn image_without_space(container: &Container, path: &Path, errs: &mut ErrorList) {
    let image = text(container.image.as_ref());
    if image.trim() != image {
        errs.invalid(path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn unique_name<'a>(
    seen: &mut BTreeSet<&'a str>,
    container: &'a Container,
    path: &Path,
    errs: &mut ErrorList,
) {
    if !container.name.is_empty() && !seen.insert(&container.name) {
        errs.duplicate(path.child("name"), container.name.as_str());
    }
}

fn three_probes(container: &Container, path: &Path, errs: &mut ErrorList) {
    probes::strict(container.liveness_probe.as_ref(), &path.child("livenessProbe"), errs);
    probes::readiness(container.readiness_probe.as_ref(), &path.child("readinessProbe"), errs);
    probes::strict(container.startup_probe.as_ref(), &path.child("startupProbe"), errs);
}

fn init(pod: &Pod<'_>, container: &Container, path: &Path, errs: &mut ErrorList) {
    restart_rules(container, path, errs);
    if container.restart_policy.as_deref() == Some("Always") {
        probes::lifecycle(container.lifecycle.as_ref(), pod.grace, &path.child("lifecycle"), errs);
        return three_probes(container, path, errs);
    }
    for (name, set) in [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        if set {
            errs.forbidden(
                path.child(name),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
    }
    if container.resize_policy.as_ref().is_some_and(|p| !p.is_empty()) {
        let shown = serde_json::to_value(&container.resize_policy).unwrap_or_default();
        errs.invalid(path.child("resizePolicy"), shown, "must not be set for init containers");
    }
}

fn restart_rules(container: &Container, path: &Path, errs: &mut ErrorList) {
    if let Some(policy) = container.restart_policy.as_deref() {
        one_of(errs, &path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    if rules.is_empty() {
        return;
    }
    if container.restart_policy.is_none() {
        errs.required(path.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        errs.too_many(path.child("restartPolicyRules"), rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        restart_rule(rule, &path.child("restartPolicyRules").index(i), errs);
    }
}

fn restart_rule(rule: &ContainerRestartRule, path: &Path, errs: &mut ErrorList) {
    one_of(errs, &path.child("action"), &rule.action, &["Restart", "RestartAllContainers"]);
    let Some(codes) = &rule.exit_codes else {
        return errs.required(path.child("exitCodes"), "must be specified");
    };
    let path = path.child("exitCodes");
    one_of(errs, &path.child("operator"), &codes.operator, &["In", "NotIn"]);
    let values = codes.values.as_deref().unwrap_or_default();
    if values.len() > 255 {
        errs.too_many(path.child("values"), values.len(), 255);
    }
}

fn common(pod: &Pod<'_>, container: &Container, path: &Path, errs: &mut ErrorList) {
    if container.name.is_empty() {
        errs.required(path.child("name"), "");
    } else {
        named(errs, &path.child("name"), &container.name, names::dns1123_label);
    }
    if text(container.image.as_ref()).is_empty() {
        errs.required(path.child("image"), "");
    } else if !pod.template {
        image_without_space(container, path, errs);
    }
    let policy = text(container.termination_message_policy.as_ref());
    one_of(errs, &path.child("terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    let pull = text(container.image_pull_policy.as_ref());
    one_of(errs, &path.child("imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
    ports(container.ports.as_deref().unwrap_or_default(), &path.child("ports"), errs);
    if let Some(vars) = &container.env {
        env::env(vars, &pod.volume_names, &path.child("env"), errs);
    }
    if let Some(sources) = &container.env_from {
        env::env_from(sources, &path.child("envFrom"), errs);
    }
    mounts(pod, container, &path.child("volumeMounts"), errs);
    devices(pod, container, &path.child("volumeDevices"), errs);
    requirements::container(container.resources.as_ref(), &pod.claims, &path.child("resources"), errs);
    if let Some(policies) = &container.resize_policy {
        let restart = text(pod.spec.restart_policy.as_ref());
        requirements::resize(policies, restart, &path.child("resizePolicy"), errs);
    }
    if let Some(context) = &container.security_context {
        let host_users = pod.spec.host_users.unwrap_or(true);
        security::container(context, host_users, &path.child("securityContext"), errs);
    }
}

fn ports(ports: &[ContainerPort], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port.name.as_ref());
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                errs.duplicate(path.child("name"), name);
            }
            each(errs, &path.child("name"), name, messages);
        }
        if port.container_port == 0 {
            errs.required(path.child("containerPort"), "");
        } else {
            crate::check::port(errs, &path.child("containerPort"), port.container_port);
        }
        if let Some(host_port) = port.host_port.filter(|p| *p != 0) {
            crate::check::port(errs, &path.child("hostPort"), host_port);
        }
        one_of(errs, &path.child("protocol"), text(port.protocol.as_ref()), PROTOCOLS);
    }
}

fn host_port_conflicts(containers: &[Container], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|p| *p != 0) else { continue };
            let key = format!("{}/{}/{number}", text(port.protocol.as_ref()), text(port.host_ip.as_ref()));
            if seen.contains(&key) {
                errs.duplicate(path.index(i).child("ports").index(j).child("hostPort"), key);
            } else {
                seen.insert(key);
            }
        }
    }
}

fn mounts(pod: &Pod<'_>, container: &Container, list: &Path, errs: &mut ErrorList) {
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = list.index(i);
        if mount.name.is_empty() {
            errs.required(path.child("name"), "");
        }
        if !pod.volumes.contains_key(mount.name.as_str()) {
            errs.not_found(path.child("name"), mount.name.as_str());
        }
        if mount.mount_path.is_empty() {
            errs.required(path.child("mountPath"), "");
        }
        if !seen.insert(mount.mount_path.as_str()) {
            errs.invalid(path.child("mountPath"), mount.mount_path.as_str(), "must be unique");
        }
        if devices.iter().any(|d| d.name == mount.name) {
            errs.invalid(path.child("name"), mount.name.as_str(), "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.device_path == mount.mount_path) {
            let why = "must not already exist as a path in volumeDevices";
            errs.invalid(path.child("mountPath"), mount.mount_path.as_str(), why);
        }
        sub_paths(mount, list, &path, errs);
        mount_options(mount, container, list, errs);
    }
}

fn sub_paths(mount: &VolumeMount, list: &Path, path: &Path, errs: &mut ErrorList) {
    let (plain, expression) = (text(mount.sub_path.as_ref()), text(mount.sub_path_expr.as_ref()));
    if !plain.is_empty() {
        local_path(errs, &list.child("subPath"), plain);
    }
    if !expression.is_empty() {
        if !plain.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errs.invalid(path.child("subPathExpr"), expression, why);
        }
        local_path(errs, &list.child("subPathExpr"), expression);
    }
}

fn mount_options(mount: &VolumeMount, container: &Container, list: &Path, errs: &mut ErrorList) {
    if let Some(propagation) = mount.mount_propagation.as_deref() {
        let at = list.child("mountPropagation");
        one_of(errs, &at, propagation, &["Bidirectional", "HostToContainer", "None"]);
        let privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        if propagation == "Bidirectional" && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errs.forbidden(&at, why);
        }
    }
    let Some(recursive) = mount.recursive_read_only.as_deref() else { return };
    let at = list.child("recursiveReadOnly");
    one_of(errs, &at, recursive, &["Disabled", "Enabled", "IfPossible"]);
    if matches!(recursive, "Enabled" | "IfPossible") {
        if mount.read_only != Some(true) {
            errs.forbidden(&at, "may only be specified when readOnly is true");
        }
        if mount.mount_propagation.as_deref().is_some_and(|p| p != "None") {
            errs.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
        }
    }
}

fn devices(pod: &Pod<'_>, container: &Container, list: &Path, errs: &mut ErrorList) {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let (mut seen_names, mut seen_paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, device) in container.volume_devices.iter().flatten().enumerate() {
        let path = list.index(i);
        let VolumeDevice { name, device_path } = device;
        if name.is_empty() {
            errs.required(path.child("name"), "");
        } else if !seen_names.insert(name) {
            errs.invalid(path.child("name"), name.as_str(), "must be unique");
        }
        match pod.volumes.get(name.as_str()) {
            None => errs.not_found(path.child("name"), name.as_str()),
            Some(volume) if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errs.invalid(path.child("name"), name.as_str(), why);
            }
            Some(_) => {}
        }
        if device_path.is_empty() {
            errs.required(path.child("devicePath"), "");
        }
        if seen_paths.contains(device_path) {
            errs.invalid(path.child("devicePath"), device_path.as_str(), "must be unique");
        }
        let mut backsteps = ErrorList::new();
        no_backsteps(&mut backsteps, &path, device_path);
        if backsteps.is_empty() {
            seen_paths.insert(device_path);
        } else {
            errs.invalid(path.child("devicePath"), device_path.as_str(), "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|m| m.name == *name) {
            errs.invalid(path.child("name"), name.as_str(), "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.mount_path == *device_path) {
            let why = "must not already exist as a path in volumeMounts";
            errs.invalid(path.child("devicePath"), device_path.as_str(), why);
        }
    }
}
