//! ReplicationController: keeps a number of identical pods; ReplicaSet's predecessor.

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerSpec, ReplicationControllerStatus,
};
use serde_json::{Value, json};

use crate::check::{non_negative, one_of};
use crate::common::{column, containers_and_images, format_labels, name_warning, text, wide_column};
use crate::def::{
    AGE, Column, Context, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age, dns1123_subdomain,
};
use crate::podspec::{defaults, validation, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Desired",
        "integer",
        "",
        "Replicas is the number of desired replicas. This is a pointer to distinguish between \
         explicit zero and unspecified. Defaults to 1. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
    ),
    column(
        "Current",
        "integer",
        "",
        "Replicas is the most recently observed number of replicas. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
    ),
    column("Ready", "integer", "", "The number of ready replicas for this replication controller."),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "Selector is a label query over pods that should match the Replicas count. If Selector \
         is empty, it is defaulted to the labels present on the Pod template. Label keys and \
         values that must match in order to be controlled by this replication controller, if \
         empty defaulted to labels on Pod template. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    scale: Some(ScalePaths {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    has_generation: true,
    orphan_by_default: true,
    ..ResourceDef::new::<ReplicationController>(
        "replicationcontroller",
        &Typed::<ReplicationController, _>::new(Controllers),
    )
};

struct Controllers;

impl Strategy<ReplicationController> for Controllers {
    fn drop_disabled(&self, obj: &mut ReplicationController) {
        crate::podspec::defaults::drop_disabled(
            obj.spec.as_mut().and_then(|s| s.template.as_mut()?.spec.as_mut()),
        );
    }

    fn default(&self, obj: &mut ReplicationController) {
        let spec = obj.spec.get_or_insert_default();
        let labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.clone());
        if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
            let empty = |map: &Option<BTreeMap<_, _>>| map.as_ref().is_none_or(BTreeMap::is_empty);
            if empty(&spec.selector) {
                spec.selector = Some(labels.clone());
            }
            if empty(&obj.metadata.labels) {
                obj.metadata.labels = Some(labels);
            }
        }
        spec.replicas.get_or_insert(1);
        spec.template.iter_mut().for_each(defaults::template);
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ReplicationController) {
        obj.status = Some(ReplicationControllerStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ReplicationController, old: &ReplicationController) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut ReplicationController,
        old: &ReplicationController,
    ) {
        new.spec.clone_from(&old.spec);
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // The limit is in the words of the declarative rules, which upstream checks names of this kind by.
        let messages = dns1123_subdomain(name, prefix).into_iter();
        messages.map(|m| m.replace("no more than 253 characters", "no more than 253 bytes")).collect()
    }

    fn validate(&self, obj: &ReplicationController, errs: &mut ErrorList) {
        let empty = ReplicationControllerSpec::default();
        validate_spec(obj.spec.as_ref().unwrap_or(&empty), errs);
    }

    fn validate_status_update(
        &self,
        new: &ReplicationController,
        _: &ReplicationController,
        errs: &mut ErrorList,
    ) {
        if let Some(status) = &new.status {
            validate_status(status, errs);
        }
    }

    fn warnings(&self, new: &ReplicationController, old: Option<&ReplicationController>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            out.extend(name_warning(text(new.metadata.name.as_ref())));
        }
        // Upstream looks at the old template when there is one.
        let shown = match old {
            Some(old) if old.spec == new.spec => return out,
            Some(old) => old,
            None => new,
        };
        let Some(template) = shown.spec.as_ref().and_then(|s| s.template.as_ref()) else { return out };
        let path = Path::new("spec").child("template").child("spec");
        if let Some(pod) = &template.spec {
            out.extend(warnings::of(pod, template.metadata.as_ref(), &path));
        }
        out
    }

    fn row(&self, obj: &ReplicationController, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let (containers, images) = containers_and_images(spec.and_then(|s| s.template.as_ref()));
        vec![
            obj.metadata.name.clone().into(),
            spec.and_then(|s| s.replicas).unwrap_or(0).into(),
            status.map_or(0, |s| s.replicas).into(),
            status.and_then(|s| s.ready_replicas).unwrap_or(0).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            format_labels(spec.and_then(|s| s.selector.as_ref())).into(),
        ]
    }

    fn selectable(&self, obj: &ReplicationController) -> Vec<(&'static str, String)> {
        vec![("status.replicas", obj.status.as_ref().map_or(0, |s| s.replicas).to_string())]
    }
}

fn validate_spec(spec: &ReplicationControllerSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    non_negative(errs, &path.child("minReadySeconds"), i64::from(spec.min_ready_seconds.unwrap_or(0)));
    let empty = BTreeMap::new();
    let selector = spec.selector.as_ref().unwrap_or(&empty);
    if selector.is_empty() {
        errs.required(path.child("selector"), "");
    }
    match spec.replicas {
        None => errs.required(path.child("replicas"), ""),
        Some(replicas) => non_negative(errs, &path.child("replicas"), i64::from(replicas)),
    }
    match &spec.template {
        None => errs.required(path.child("template"), ""),
        Some(template) => validate_template(template, selector, &path.child("template"), errs),
    }
}

fn validate_template(
    template: &PodTemplateSpec,
    selector: &BTreeMap<String, String>,
    path: &Path,
    errs: &mut ErrorList,
) {
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if !selector.is_empty() && !LabelSelector::from_map(selector).matches_option(labels) {
        let why = "`selector` does not match template `labels`";
        errs.invalid(path.child("metadata").child("labels"), json!(labels), why);
    }
    validation::template(template, path, errs);
    let Some(pod) = &template.spec else { return };
    let at = path.child("spec");
    one_of(errs, &at.child("restartPolicy"), text(pod.restart_policy.as_ref()), &["Always"]);
    if pod.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in ReplicationController is not Supported";
        errs.forbidden(at.child("activeDeadlineSeconds"), why);
    }
}

fn validate_status(status: &ReplicationControllerStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let number = |value: Option<i32>| i64::from(value.unwrap_or(0));
    let total = i64::from(status.replicas);
    let (ready, available) = (number(status.ready_replicas), number(status.available_replicas));
    let parts = [
        ("fullyLabeledReplicas", number(status.fully_labeled_replicas)),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ];
    non_negative(errs, &path.child("replicas"), total);
    for (field, value) in parts {
        non_negative(errs, &path.child(field), value);
    }
    non_negative(errs, &path.child("observedGeneration"), status.observed_generation.unwrap_or(0));
    for (field, value) in parts.into_iter().filter(|(_, value)| *value > total) {
        errs.invalid(path.child(field), value, "cannot be greater than status.replicas");
    }
    if available > ready {
        errs.invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
}
