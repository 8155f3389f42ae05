//! Pod: containers that run together on a node.

use coracle_meta::field::{ErrorList, Path};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::common::text;
use crate::def::{Context, ResourceDef, Strategy, Subresource, Typed};
use crate::podspec::validation::{self, Place};
use crate::podspec::{annotations, defaults, warnings};

mod ephemeral;
mod match_labels;
mod resize;
mod status;
mod table;
mod update;

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    columns: table::COLUMNS,
    has_generation: true,
    returns_deleted: true,
    ..ResourceDef::new::<Pod>("pod", &Typed::<Pod, _>::new(Pods))
};

struct Pods;

impl Strategy<Pod> for Pods {
    fn drop_disabled(&self, obj: &mut Pod) {
        crate::podspec::defaults::drop_disabled(obj.spec.as_mut());
    }

    fn default(&self, obj: &mut Pod) {
        obj.spec.get_or_insert_default();
        obj.status.get_or_insert_default();
        defaults::pod(obj);
        status::pair_addresses(obj);
    }

    fn prepare_create(&self, cx: Context<'_>, obj: &mut Pod) {
        obj.metadata.generation = Some(1);
        match_labels::apply(obj);
        let grace = obj.spec.as_mut().and_then(|s| s.termination_grace_period_seconds.as_mut());
        if let Some(seconds) = grace.filter(|seconds| **seconds < 0) {
            *seconds = 1;
        }
        let gates = obj.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref()).unwrap_or_default();
        let gated = !gates.is_empty();
        obj.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(coracle_meta::pod::qos(obj).to_owned()),
            conditions: gated.then(|| vec![scheduling_gated(cx)]),
            ..PodStatus::default()
        });
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Pod, old: &Pod) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Pod, old: &Pod) {
        status::prepare(new, old);
    }

    fn prepare_part_update(&self, part: Subresource, cx: Context<'_>, new: &mut Pod, old: &Pod) {
        match part {
            Subresource::EphemeralContainers => ephemeral::prepare(new, old),
            Subresource::Resize => resize::prepare(new, old),
            _ => self.prepare_update(cx, new, old),
        }
    }

    fn validate(&self, obj: &Pod, errs: &mut ErrorList) {
        check(obj, Place::NewPod, errs);
    }

    fn validate_update(&self, new: &Pod, old: &Pod, errs: &mut ErrorList) {
        check(new, Place::Pod, errs);
        // Upstream looks at annotations twice on the way, and clients see both causes.
        let at = Path::new("metadata").child("annotations");
        annotations::check(&new.metadata, new.spec.as_ref(), &at, errs);
        update::validate(new, old, errs);
    }

    fn validate_part_update(&self, part: Subresource, new: &Pod, old: &Pod, errs: &mut ErrorList) {
        match part {
            Subresource::EphemeralContainers => {
                check(new, Place::Pod, errs);
                ephemeral::validate(new, old, errs);
            }
            Subresource::Resize => {
                check(new, Place::Pod, errs);
                resize::validate(new, old, errs);
            }
            _ => self.validate_update(new, old, errs),
        }
    }

    fn validate_status_update(&self, new: &Pod, old: &Pod, errs: &mut ErrorList) {
        status::validate(new, old, errs);
    }

    fn completed(&self, obj: &Pod) -> Option<(&'static str, &'static str)> {
        match coracle_meta::pod::phase(obj) {
            "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
            "Failed" => Some(("Failed", "The pod failed.")),
            _ => None,
        }
    }

    fn warnings(&self, new: &Pod, old: Option<&Pod>) -> Vec<String> {
        let mut out = Vec::new();
        // Updates of pods are frequent and rarely made by people.
        if old.is_some() {
            return out;
        }
        let name = text(new.metadata.name.as_ref());
        let messages = coracle_meta::names::dns1123_label(name);
        if !name.is_empty() && !messages.is_empty() {
            out.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising \
                 behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        if let Some(spec) = &new.spec {
            out.extend(warnings::of(spec, Some(&new.metadata), &Path::new("spec")));
        }
        out
    }

    fn graceful_deletion(&self, obj: &Pod, asked: Option<i64>) -> Option<i64> {
        let own = obj.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let unscheduled = obj.spec.as_ref().is_none_or(|s| text(s.node_name.as_ref()).is_empty());
        let seconds = match asked.or(own) {
            _ if unscheduled || coracle_meta::pod::is_terminal(obj) => 0,
            None => 0,
            Some(seconds) if seconds < 0 => 1,
            Some(seconds) => seconds,
        };
        Some(seconds)
    }

    fn row(&self, obj: &Pod, now: Timestamp) -> Vec<Value> {
        table::row(obj, now)
    }

    fn selectable(&self, obj: &Pod) -> Vec<(&'static str, String)> {
        let spec = obj.spec.as_ref();
        let status = obj.status.as_ref();
        let own = |value: Option<&String>| text(value).to_owned();
        let pod_ip = status.and_then(|s| s.pod_ips.iter().flatten().next()).map(|ip| &ip.ip);
        vec![
            ("spec.nodeName", own(spec.and_then(|s| s.node_name.as_ref()))),
            ("spec.restartPolicy", own(spec.and_then(|s| s.restart_policy.as_ref()))),
            ("spec.schedulerName", own(spec.and_then(|s| s.scheduler_name.as_ref()))),
            ("spec.serviceAccountName", own(spec.and_then(|s| s.service_account_name.as_ref()))),
            ("spec.hostNetwork", spec.and_then(|s| s.host_network).unwrap_or(false).to_string()),
            ("status.phase", own(status.and_then(|s| s.phase.as_ref()))),
            ("status.podIP", own(pod_ip)),
            ("status.podIPs", String::new()),
            ("status.nominatedNodeName", own(status.and_then(|s| s.nominated_node_name.as_ref()))),
        ]
    }
}

fn scheduling_gated(cx: Context<'_>) -> PodCondition {
    PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("SchedulingGated".to_owned()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
        last_transition_time: Some(Time(cx.now)),
        ..PodCondition::default()
    }
}

fn check(pod: &Pod, place: Place, errs: &mut ErrorList) {
    let meta = Path::new("metadata").child("annotations");
    annotations::check(&pod.metadata, pod.spec.as_ref(), &meta, errs);
    if let Some(spec) = &pod.spec {
        validation::spec(spec, place, &Path::new("spec"), errs);
    }
}
