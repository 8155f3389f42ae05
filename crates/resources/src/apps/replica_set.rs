//! ReplicaSet: keeps a number of identical pods.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::Value;

use super::selector;
use crate::check::non_negative;
use crate::common::{column, containers_and_images, name_warning, or_else, selector_text, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age};
use crate::podspec::{defaults, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Desired",
        "integer",
        "",
        "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero \
         and unspecified. Defaults to 1. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    ),
    column(
        "Current",
        "integer",
        "",
        "Replicas is the most recently observed number of non-terminating pods. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    ),
    column(
        "Ready",
        "integer",
        "",
        "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
    ),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "Selector is a label query over pods that should match the replica count. Label keys and values \
         that must match in order to be controlled by this replica set. It must match the pod \
         template's labels. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    scale: Some(ScalePaths {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    has_generation: true,
    recheck: Recheck::Change,
    ..ResourceDef::new::<ReplicaSet>("replicaset", &Typed::<ReplicaSet, _>::new(ReplicaSets))
};

struct ReplicaSets;

impl Strategy<ReplicaSet> for ReplicaSets {
    fn drop_disabled(&self, obj: &mut ReplicaSet) {
        crate::podspec::defaults::drop_disabled(
            obj.spec.as_mut().and_then(|s| s.template.as_mut()?.spec.as_mut()),
        );
    }

    fn default(&self, obj: &mut ReplicaSet) {
        let spec = obj.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        defaults::template(spec.template.get_or_insert_default());
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ReplicaSet) {
        obj.status = Some(ReplicaSetStatus::default());
        obj.metadata.generation = Some(1);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ReplicaSet, old: &ReplicaSet) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut ReplicaSet, old: &ReplicaSet) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &ReplicaSet, errs: &mut ErrorList) {
        let Some(spec) = &obj.spec else { return };
        let path = Path::new("spec");
        non_negative(errs, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
        let ready = spec.min_ready_seconds.unwrap_or(0);
        non_negative(errs, &path.child("minReadySeconds"), i64::from(ready));
        selector::check(&spec.selector, spec.template.as_ref(), errs);
    }

    fn validate_update(&self, new: &ReplicaSet, old: &ReplicaSet, errs: &mut ErrorList) {
        self.validate(new, errs);
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            selector::immutable(&new.selector, &old.selector, errs);
        }
    }

    fn validate_status_update(&self, new: &ReplicaSet, _: &ReplicaSet, errs: &mut ErrorList) {
        if let Some(status) = &new.status {
            validate_status(status, errs);
        }
    }

    fn warnings(&self, new: &ReplicaSet, old: Option<&ReplicaSet>) -> Vec<String> {
        if old.is_some_and(|old| old.spec == new.spec) {
            return Vec::new();
        }
        let name = text(new.metadata.name.as_ref());
        let mut out: Vec<String> =
            if old.is_none() { name_warning(name).into_iter().collect() } else { Vec::new() };
        let Some(template) = new.spec.as_ref().and_then(|s| s.template.as_ref()) else { return out };
        let path = Path::new("spec").child("template").child("spec");
        let spec = template.spec.as_ref();
        out.extend(
            spec.map(|spec| warnings::of(spec, template.metadata.as_ref(), &path)).unwrap_or_default(),
        );
        out
    }

    fn row(&self, obj: &ReplicaSet, now: Timestamp) -> Vec<Value> {
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
            or_else(&spec.map_or(String::new(), |s| selector_text(&s.selector)), "<none>"),
        ]
    }
}

fn validate_status(status: &ReplicaSetStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let number = |value: Option<i32>| i64::from(value.unwrap_or(0));
    let total = i64::from(status.replicas);
    let (ready, available) = (number(status.ready_replicas), number(status.available_replicas));
    let labelled = number(status.fully_labeled_replicas);
    for (field, value) in [
        ("replicas", total),
        ("fullyLabeledReplicas", labelled),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("observedGeneration", status.observed_generation.unwrap_or(0)),
    ] {
        non_negative(errs, &path.child(field), value);
    }
    for (field, value) in
        [("fullyLabeledReplicas", labelled), ("readyReplicas", ready), ("availableReplicas", available)]
    {
        if value > total {
            errs.invalid(path.child(field), value, "cannot be greater than status.replicas");
        }
    }
    if available > ready {
        errs.invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
}
