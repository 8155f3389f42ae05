//! Deployment: declarative updates of a set of pods.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::selector;
use crate::check::{go_struct, int_or_percent, non_negative};
use crate::common::{column, containers_and_images, name_warning, selector_text, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age};
use crate::podspec::{defaults, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "", "Number of the pod with ready state"),
    column(
        "Up-to-date",
        "string",
        "",
        "Total number of non-terminating pods targeted by this deployment that have the desired \
         template spec.",
    ),
    column(
        "Available",
        "string",
        "",
        "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted \
         by this deployment.",
    ),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones \
         affected by this deployment. It must match the pod template's labels.",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["deploy"],
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
    ..ResourceDef::new::<Deployment>("deployment", &Typed::<Deployment, _>::new(Deployments))
};

struct Deployments;

impl Strategy<Deployment> for Deployments {
    fn drop_disabled(&self, obj: &mut Deployment) {
        crate::podspec::defaults::drop_disabled(obj.spec.as_mut().and_then(|s| s.template.spec.as_mut()));
    }

    fn default(&self, obj: &mut Deployment) {
        let spec = obj.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let strategy = spec.strategy.get_or_insert_default();
        defaults::string(&mut strategy.type_, "RollingUpdate");
        if text(strategy.type_.as_ref()) == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_default();
            let quarter = || IntOrString::String("25%".to_owned());
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        defaults::template(&mut spec.template);
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Deployment) {
        obj.status = Some(DeploymentStatus::default());
        obj.metadata.generation = Some(1);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Deployment, old: &Deployment) {
        new.status.clone_from(&old.status);
        // Annotations of a deployment count as its content.
        let annotations = |d: &Deployment| d.metadata.annotations.clone().unwrap_or_default();
        if annotations(new) != annotations(old) {
            new.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Deployment, old: &Deployment) {
        new.spec.clone_from(&old.spec);
        new.metadata.labels.clone_from(&old.metadata.labels);
    }

    fn validate(&self, obj: &Deployment, errs: &mut ErrorList) {
        if let Some(spec) = &obj.spec {
            validate_spec(spec, errs);
        }
    }

    fn validate_update(&self, new: &Deployment, old: &Deployment, errs: &mut ErrorList) {
        self.validate(new, errs);
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            selector::immutable(&new.selector, &old.selector, errs);
        }
    }

    fn validate_status_update(&self, new: &Deployment, old: &Deployment, errs: &mut ErrorList) {
        let empty = DeploymentStatus::default();
        let status = new.status.as_ref().unwrap_or(&empty);
        let before = old.status.as_ref().unwrap_or(&empty);
        validate_status(status, before, errs);
    }

    fn warnings(&self, new: &Deployment, old: Option<&Deployment>) -> Vec<String> {
        if old.is_some_and(|old| old.spec == new.spec) {
            return Vec::new();
        }
        let name = text(new.metadata.name.as_ref());
        let mut out: Vec<String> =
            if old.is_none() { name_warning(name).into_iter().collect() } else { Vec::new() };
        let Some(template) = new.spec.as_ref().map(|s| &s.template) else { return out };
        let path = Path::new("spec").child("template").child("spec");
        let spec = template.spec.as_ref();
        out.extend(
            spec.map(|spec| warnings::of(spec, template.metadata.as_ref(), &path)).unwrap_or_default(),
        );
        out
    }

    fn row(&self, obj: &Deployment, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let (containers, images) = containers_and_images(spec.map(|s| &s.template));
        let ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
        vec![
            obj.metadata.name.clone().into(),
            format!("{ready}/{}", spec.and_then(|s| s.replicas).unwrap_or(0)).into(),
            status.and_then(|s| s.updated_replicas).unwrap_or(0).into(),
            status.and_then(|s| s.available_replicas).unwrap_or(0).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            spec.map_or(String::new(), |s| selector_text(&s.selector)).into(),
        ]
    }
}

fn validate_spec(spec: &DeploymentSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    non_negative(errs, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
    selector::check(&spec.selector, Some(&spec.template), errs);
    if let Some(strategy) = &spec.strategy {
        validate_strategy(strategy, &path.child("strategy"), errs);
    }
    let ready = spec.min_ready_seconds.unwrap_or(0);
    non_negative(errs, &path.child("minReadySeconds"), i64::from(ready));
    if let Some(limit) = spec.revision_history_limit {
        non_negative(errs, &path.child("revisionHistoryLimit"), i64::from(limit));
    }
    if let Some(deadline) = spec.progress_deadline_seconds {
        let at = path.child("progressDeadlineSeconds");
        non_negative(errs, &at, i64::from(deadline));
        if deadline <= ready {
            errs.invalid(at, deadline, "must be greater than minReadySeconds");
        }
    }
}

fn validate_strategy(strategy: &DeploymentStrategy, path: &Path, errs: &mut ErrorList) {
    let rolling = strategy.rolling_update.as_ref();
    match text(strategy.type_.as_ref()) {
        "Recreate" if rolling.is_some() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errs.forbidden(path.child("rollingUpdate"), why);
        }
        "Recreate" => {}
        "RollingUpdate" => match rolling {
            Some(rolling) => validate_rolling(rolling, &path.child("rollingUpdate"), errs),
            None => {
                errs.required(path.child("rollingUpdate"), "this should be defaulted and never be nil");
            }
        },
        other => {
            let rolling = rolling.map_or("null".to_owned(), |r| {
                go_struct(&[("MaxUnavailable", json!(r.max_unavailable)), ("MaxSurge", json!(r.max_surge))])
            });
            errs.push(coracle_meta::field::Error {
                kind: ErrorKind::NotSupported,
                path: path.to_string(),
                value: Some(format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", json!(other))),
                detail: "supported values: \"Recreate\", \"RollingUpdate\"".to_owned(),
            });
        }
    }
}

/// The number of an int, or of a percentage.
fn amount(value: Option<&IntOrString>) -> Option<i64> {
    match value? {
        IntOrString::Int(number) => Some(i64::from(*number)),
        IntOrString::String(text) => coracle_meta::int_or_string::percent(text),
    }
}

fn validate_rolling(rolling: &RollingUpdateDeployment, path: &Path, errs: &mut ErrorList) {
    let (down, up) = (rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
    let at = path.child("maxUnavailable");
    if let Some(value) = down {
        int_or_percent(errs, &at, value);
    }
    if let Some(value) = up {
        int_or_percent(errs, &path.child("maxSurge"), value);
    }
    let zero = |value: Option<&IntOrString>| match (value, amount(value)) {
        (None, _) => true,
        (Some(IntOrString::String(_)), None) => true,
        (_, amount) => amount == Some(0),
    };
    if zero(down) && zero(up) {
        errs.invalid(&at, json!(down), "may not be 0 when `maxSurge` is 0");
    }
    if let Some(IntOrString::String(text)) = down
        && amount(down).is_some_and(|percent| percent > 100)
    {
        errs.invalid(&at, text.as_str(), "must not be greater than 100%");
    }
}

fn validate_status(status: &DeploymentStatus, old: &DeploymentStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let number = |value: Option<i32>| i64::from(value.unwrap_or(0));
    non_negative(errs, &path.child("observedGeneration"), status.observed_generation.unwrap_or(0));
    let (total, ready) = (number(status.replicas), number(status.ready_replicas));
    let available = number(status.available_replicas);
    for (field, value) in [
        ("replicas", total),
        ("updatedReplicas", number(status.updated_replicas)),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("unavailableReplicas", number(status.unavailable_replicas)),
    ] {
        non_negative(errs, &path.child(field), value);
    }
    let above = "cannot be greater than status.replicas";
    for (field, value) in [
        ("updatedReplicas", number(status.updated_replicas)),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ] {
        if value > total {
            errs.invalid(path.child(field), value, above);
        }
    }
    if available > ready {
        errs.invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
    let at = path.child("collisionCount");
    if let Some(count) = status.collision_count {
        non_negative(errs, &at, i64::from(count));
    }
    if number(status.collision_count) < number(old.collision_count) {
        errs.invalid(at, number(status.collision_count), "cannot be decremented");
    }
}
