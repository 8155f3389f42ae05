//! Defaulting of pod specs: what upstream's v1 defaulting fills in.

use std::collections::BTreeMap;

use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, DownwardAPIVolumeFile, EnvVar, EphemeralContainer, HTTPGetAction, Lifecycle,
    ObjectFieldSelector, Pod, PodSpec, PodTemplateSpec, Probe, ResourceFieldSelector, ResourceRequirements,
    Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::image::default_pull_policy;
use crate::common::text;

/// Sets an absent or empty string.
pub(crate) fn string(field: &mut Option<String>, value: &str) {
    if text(field.as_ref()).is_empty() {
        *field = Some(value.to_owned());
    }
}

/// Sets an absent or zero number.
fn number(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

/// Brings a quantity into canonical form; leaves what does not parse for validation.
pub(crate) fn canonical(quantity: &mut Quantity) {
    if let Ok(parsed) = Number::parse(&quantity.0) {
        quantity.0 = parsed.to_string();
    }
}

/// Brings an amount into canonical form, rounded up to thousandths.
fn canonical_milli(quantity: &mut Quantity) {
    let Ok(parsed) = Number::parse(&quantity.0) else { return };
    let rounded = Number::from_milli(parsed.milli());
    quantity.0 = if rounded == parsed { parsed.to_string() } else { rounded.to_string() };
}

/// Brings a resource list into canonical form.
pub(crate) fn canonical_list(list: &mut Option<BTreeMap<String, Quantity>>) {
    list.iter_mut().flatten().for_each(|(_, quantity)| canonical_milli(quantity));
}

/// Defaults of a pod: those of its spec, and those that templates do not get.
pub(crate) fn pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    pod_spec(spec);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(resources) = &mut container.resources {
            requests_from_limits(resources);
        }
    }
    pod_level_requests(spec);
    if spec.enable_service_links.is_none() {
        spec.enable_service_links = Some(true);
    }
    if spec.host_network == Some(true) {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            for port in container.ports.iter_mut().flatten() {
                number(&mut port.host_port, port.container_port);
            }
        }
    }
}

/// Takes out what only features give a meaning that are off by default upstream: custom stop signals, and groups of
/// pods that are scheduled together.
pub(crate) fn drop_disabled(spec: Option<&mut PodSpec>) {
    let Some(spec) = spec else { return };
    spec.scheduling_group = None;
    let usual = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    let usual = usual.map(|container| &mut container.lifecycle);
    let ephemeral = spec.ephemeral_containers.iter_mut().flatten().map(|container| &mut container.lifecycle);
    for lifecycle in usual.chain(ephemeral) {
        let signal = lifecycle.as_mut().and_then(|hooks| hooks.stop_signal.take());
        if signal.is_some() && *lifecycle == Some(Lifecycle::default()) {
            *lifecycle = None;
        }
    }
}

/// Defaults of a template.
pub(crate) fn template(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    pod_spec(template.spec.get_or_insert_default());
}

fn pod_spec(spec: &mut PodSpec) {
    string(&mut spec.dns_policy, "ClusterFirst");
    string(&mut spec.restart_policy, "Always");
    string(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    if text(spec.service_account_name.as_ref()).is_empty() {
        spec.service_account_name = spec.service_account.take().filter(|name| !name.is_empty());
    }
    spec.service_account.clone_from(&spec.service_account_name);
    for flag in [&mut spec.host_network, &mut spec.host_pid, &mut spec.host_ipc] {
        if *flag == Some(false) {
            *flag = None;
        }
    }
    spec.volumes.iter_mut().flatten().for_each(volume);
    spec.containers.iter_mut().for_each(container);
    spec.init_containers.iter_mut().flatten().for_each(container);
    spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral_container);
    canonical_list(&mut spec.overhead);
    if let Some(resources) = &mut spec.resources {
        canonical_list(&mut resources.limits);
        canonical_list(&mut resources.requests);
    }
}

/// The fields in which containers and ephemeral containers are alike.
struct Common<'a> {
    image: Option<&'a String>,
    image_pull_policy: &'a mut Option<String>,
    termination_message_path: &'a mut Option<String>,
    termination_message_policy: &'a mut Option<String>,
    ports: &'a mut Option<Vec<ContainerPort>>,
    env: &'a mut Option<Vec<EnvVar>>,
    resources: &'a mut Option<ResourceRequirements>,
    probes: [&'a mut Option<Probe>; 3],
    lifecycle: &'a mut Option<Lifecycle>,
}

macro_rules! common_of {
    ($container:ident) => {
        Common {
            image: $container.image.as_ref(),
            image_pull_policy: &mut $container.image_pull_policy,
            termination_message_path: &mut $container.termination_message_path,
            termination_message_policy: &mut $container.termination_message_policy,
            ports: &mut $container.ports,
            env: &mut $container.env,
            resources: &mut $container.resources,
            probes: [
                &mut $container.liveness_probe,
                &mut $container.readiness_probe,
                &mut $container.startup_probe,
            ],
            lifecycle: &mut $container.lifecycle,
        }
    };
}

fn container(container: &mut Container) {
    common(common_of!(container));
}

/// Defaults of an ephemeral container.
pub(crate) fn ephemeral_container(container: &mut EphemeralContainer) {
    common(common_of!(container));
}

fn common(parts: Common<'_>) {
    string(parts.image_pull_policy, default_pull_policy(text(parts.image)));
    string(parts.termination_message_path, "/dev/termination-log");
    string(parts.termination_message_policy, "File");
    for port in parts.ports.iter_mut().flatten() {
        string(&mut port.protocol, "TCP");
        port.host_port = port.host_port.filter(|number| *number != 0);
    }
    for source in parts.env.iter_mut().flatten().filter_map(|e| e.value_from.as_mut()) {
        source.field_ref.iter_mut().for_each(field_ref);
        source.resource_field_ref.iter_mut().for_each(resource_field_ref);
        source.file_key_ref.iter_mut().for_each(|f| {
            f.optional.get_or_insert(false);
        });
    }
    let resources = parts.resources.get_or_insert_default();
    canonical_list(&mut resources.limits);
    canonical_list(&mut resources.requests);
    parts.probes.into_iter().flatten().for_each(probe);
    if let Some(lifecycle) = parts.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            handler.http_get.iter_mut().for_each(http_get);
        }
    }
}

fn http_get(action: &mut HTTPGetAction) {
    string(&mut action.path, "/");
    string(&mut action.scheme, "HTTP");
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    probe.initial_delay_seconds = probe.initial_delay_seconds.filter(|seconds| *seconds != 0);
    probe.http_get.iter_mut().for_each(http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn field_ref(selector: &mut ObjectFieldSelector) {
    string(&mut selector.api_version, "v1");
}

fn resource_field_ref(selector: &mut ResourceFieldSelector) {
    canonical(selector.divisor.get_or_insert_with(|| Quantity("0".to_owned())));
}

fn requests_from_limits(resources: &mut ResourceRequirements) {
    let Some(limits) = resources.limits.as_ref().filter(|limits| !limits.is_empty()) else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, quantity) in limits {
        requests.entry(name.clone()).or_insert_with(|| quantity.clone());
    }
}

/// Whether a resource may be set for a pod as a whole.
pub(crate) fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

fn pod_level_requests(spec: &mut PodSpec) {
    let used = spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| !l.is_empty());
    if !used {
        return;
    }
    let whole =
        Pod { spec: Some(PodSpec { resources: None, overhead: None, ..spec.clone() }), ..Pod::default() };
    let containers = coracle_meta::pod::requests(&whole);
    let Some(resources) = &mut spec.resources else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, quantity) in containers {
        if is_pod_level(&name) {
            requests.entry(name).or_insert_with(|| Quantity(quantity.to_string()));
        }
    }
    for (name, quantity) in resources.limits.iter().flatten() {
        if is_pod_level(name) {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
    if requests.is_empty() {
        resources.requests = None;
    }
}

/// The mode of files in volumes, unless given: 0644.
const FILE_MODE: i32 = 0o644;

fn downward_item(item: &mut DownwardAPIVolumeFile) {
    item.field_ref.iter_mut().for_each(field_ref);
    item.resource_field_ref.iter_mut().for_each(resource_field_ref);
}

fn volume(volume: &mut Volume) {
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        downward.items.iter_mut().flatten().for_each(downward_item);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            // Trust bundles are off, as by default upstream, so the field is not kept.
            source.cluster_trust_bundle = None;
            if let Some(certificate) = &mut source.pod_certificate {
                certificate.max_expiration_seconds.get_or_insert(86400);
            }
            source.downward_api.iter_mut().flat_map(|d| d.items.iter_mut().flatten()).for_each(downward_item);
        }
    }
    if let Some(empty_dir) = &mut volume.empty_dir {
        empty_dir.size_limit.iter_mut().for_each(canonical);
    }
    if let Some(host_path) = &mut volume.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(image) = &mut volume.image {
        let policy = default_pull_policy(text(image.reference.as_ref()));
        string(&mut image.pull_policy, policy);
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        template.metadata.get_or_insert_default();
        template.spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
        let resources = template.spec.resources.get_or_insert_default();
        canonical_list(&mut resources.limits);
        canonical_list(&mut resources.requests);
    }
    network_volume(volume);
}

/// Defaults of network storage.
pub(crate) fn network_volume(volume: &mut Volume) {
    if let Some(iscsi) = &mut volume.iscsi {
        string(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        string(&mut rbd.pool, "rbd");
        string(&mut rbd.user, "admin");
        string(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        disk.caching_mode.get_or_insert_with(|| "ReadWrite".to_owned());
        disk.kind.get_or_insert_with(|| "Shared".to_owned());
        disk.fs_type.get_or_insert_with(|| "ext4".to_owned());
        disk.read_only.get_or_insert(false);
    }
    if let Some(scale_io) = &mut volume.scale_io {
        string(&mut scale_io.storage_mode, "ThinProvisioned");
        string(&mut scale_io.fs_type, "xfs");
    }
}
