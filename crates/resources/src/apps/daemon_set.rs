//! DaemonSet: one pod on each node.

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, DaemonSetStatus, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{rolling, selector};
use crate::check::{has_selector, int_or_percent, label_selector, non_negative, one_of};
use crate::common::{column, containers_and_images, format_labels, selector_text, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::{defaults, validation, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Desired",
        "integer",
        "",
        "The total number of nodes that should be running the daemon pod (including nodes \
         correctly running the daemon pod). More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    column(
        "Current",
        "integer",
        "",
        "The number of nodes that are running at least 1 daemon pod and are supposed to run the \
         daemon pod. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    column(
        "Ready",
        "integer",
        "",
        "numberReady is the number of nodes that should be running the daemon pod and have one \
         or more of the daemon pod running with a Ready Condition.",
    ),
    column("Up-to-date", "integer", "", "The total number of nodes that are running updated daemon pod"),
    column(
        "Available",
        "integer",
        "",
        "The number of nodes that should be running the daemon pod and have one or more of the \
         daemon pod running and available (ready for at least spec.minReadySeconds)",
    ),
    column(
        "Node Selector",
        "string",
        "",
        "NodeSelector is a selector which must be true for the pod to fit on a node. Selector \
         which must match a node's labels for the pod to be scheduled on that node. More info: \
         https://kubernetes.io/docs/concepts/configuration/assign-pod-node/",
    ),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "A label query over pods that are managed by the daemon set. Must match in order to be \
         controlled. It must match the pod template's labels. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    hidden_annotations: &[TEMPLATE_GENERATION],
    ..ResourceDef::new::<DaemonSet>("daemonset", &Typed::<DaemonSet, _>::new(DaemonSets))
};

struct DaemonSets;

/// Counts the changes of the template; a field of the spec inside upstream.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy<DaemonSet> for DaemonSets {
    fn drop_disabled(&self, obj: &mut DaemonSet) {
        crate::podspec::defaults::drop_disabled(obj.spec.as_mut().and_then(|s| s.template.spec.as_mut()));
    }

    fn default(&self, obj: &mut DaemonSet) {
        let spec = obj.spec.get_or_insert_default();
        let strategy = spec.update_strategy.get_or_insert_default();
        defaults::string(&mut strategy.type_, "RollingUpdate");
        if text(strategy.type_.as_ref()) == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        spec.revision_history_limit.get_or_insert(10);
        defaults::template(&mut spec.template);
        obj.status.get_or_insert_default();
        let generation = template_generation(obj);
        set_template_generation(obj, generation);
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut DaemonSet) {
        obj.status = Some(DaemonSetStatus::default());
        let generation = template_generation(obj).max(1);
        set_template_generation(obj, generation);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut DaemonSet, old: &DaemonSet) {
        new.status.clone_from(&old.status);
        let mut generation = template_generation(old);
        let template = |obj: &DaemonSet| obj.spec.as_ref().map(|s| s.template.clone());
        if template(new) != template(old) {
            generation += 1;
        }
        set_template_generation(new, generation);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut DaemonSet, old: &DaemonSet) {
        new.spec.clone_from(&old.spec);
        set_template_generation(new, template_generation(old));
    }

    fn validate(&self, obj: &DaemonSet, errs: &mut ErrorList) {
        let Some(spec) = &obj.spec else { return };
        validate_spec(spec, errs);
        let at = Path::new("spec").child("templateGeneration");
        non_negative(errs, &at, template_generation(obj));
    }

    fn validate_update(&self, new: &DaemonSet, old: &DaemonSet, errs: &mut ErrorList) {
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            selector::immutable(&new.selector, &old.selector, errs);
        }
        self.validate(new, errs);
    }

    fn validate_status_update(&self, new: &DaemonSet, old: &DaemonSet, errs: &mut ErrorList) {
        let empty = DaemonSetStatus::default();
        validate_status(new.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty), errs);
    }

    fn warnings(&self, new: &DaemonSet, old: Option<&DaemonSet>) -> Vec<String> {
        if old.is_some_and(|old| template_generation(old) == template_generation(new)) {
            return Vec::new();
        }
        let Some(template) = new.spec.as_ref().map(|s| &s.template) else { return Vec::new() };
        let path = Path::new("spec").child("template").child("spec");
        let spec = template.spec.as_ref();
        spec.map(|spec| warnings::of(spec, template.metadata.as_ref(), &path)).unwrap_or_default()
    }

    fn row(&self, obj: &DaemonSet, now: Timestamp) -> Vec<Value> {
        let empty = DaemonSetStatus::default();
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref().unwrap_or(&empty));
        let (containers, images) = containers_and_images(spec.map(|s| &s.template));
        let nodes = spec.and_then(|s| s.template.spec.as_ref()).and_then(|pod| pod.node_selector.as_ref());
        vec![
            obj.metadata.name.clone().into(),
            status.desired_number_scheduled.into(),
            status.current_number_scheduled.into(),
            status.number_ready.into(),
            status.updated_number_scheduled.unwrap_or(0).into(),
            status.number_available.unwrap_or(0).into(),
            format_labels(nodes).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            spec.map_or(String::new(), |s| selector_text(&s.selector)).into(),
        ]
    }
}

fn template_generation(obj: &DaemonSet) -> i64 {
    let annotations = obj.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(TEMPLATE_GENERATION)?.parse().ok()).unwrap_or(0)
}

fn set_template_generation(obj: &mut DaemonSet, generation: i64) {
    let annotations = obj.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string());
}

fn validate_spec(spec: &DaemonSetSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let (selector, at) = (&spec.selector, path.child("selector"));
    label_selector(Some(selector), &at, errs);
    let absent = selector::is_absent(selector);
    let compiled = if absent { Ok(LabelSelector::nothing()) } else { LabelSelector::from_api(selector) };
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if compiled.is_ok_and(|selector| !selector.matches_option(labels)) {
        let why = "`selector` does not match template `labels`";
        errs.invalid(path.child("template").child("metadata").child("labels"), json!(labels), why);
    }
    if !absent && !has_selector(selector) {
        let why = "empty selector is invalid for daemonset";
        go_dump::invalid(errs, &at, "metav1.LabelSelector", Some(selector), why);
    }
    validation::template(&spec.template, &path.child("template"), errs);
    if let Some(pod) = &spec.template.spec {
        let at = path.child("template").child("spec");
        one_of(errs, &at.child("restartPolicy"), text(pod.restart_policy.as_ref()), &["Always"]);
        if pod.active_deadline_seconds.is_some() {
            let why = "activeDeadlineSeconds in DaemonSet is not Supported";
            errs.forbidden(at.child("activeDeadlineSeconds"), why);
        }
    }
    non_negative(errs, &path.child("minReadySeconds"), i64::from(spec.min_ready_seconds.unwrap_or(0)));
    if let Some(strategy) = &spec.update_strategy {
        validate_strategy(strategy, &path.child("updateStrategy"), errs);
    }
    if let Some(limit) = spec.revision_history_limit {
        non_negative(errs, &path.child("revisionHistoryLimit"), i64::from(limit));
    }
}

fn validate_strategy(strategy: &DaemonSetUpdateStrategy, path: &Path, errs: &mut ErrorList) {
    match (text(strategy.type_.as_ref()), &strategy.rolling_update) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errs.required(path.child("rollingUpdate"), ""),
        ("RollingUpdate", Some(rolling)) => validate_rolling(rolling, &path.child("rollingUpdate"), errs),
        _ => errs.push(Error {
            kind: ErrorKind::NotSupported,
            path: path.to_string(),
            value: Some(go_dump::show("apps.DaemonSetUpdateStrategy", Some(strategy))),
            detail: "supported values: \"RollingUpdate\", \"OnDelete\"".to_owned(),
        }),
    }
}

fn validate_rolling(rolling: &RollingUpdateDaemonSet, path: &Path, errs: &mut ErrorList) {
    let (down, up) = (rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref());
    let (down_at, up_at) = (path.child("maxUnavailable"), path.child("maxSurge"));
    for (value, at) in [(down, &down_at), (up, &up_at)] {
        if let Some(value) = value {
            int_or_percent(errs, at, value);
        }
        rolling::at_most_all(value, at, errs);
    }
    match (rolling::amount(down) != 0, rolling::amount(up) != 0) {
        (true, true) => errs.invalid(up_at, json!(up), "may not be set when maxUnavailable is non-zero"),
        (false, false) => errs.required(down_at, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

fn validate_status(status: &DaemonSetStatus, old: &DaemonSetStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let number = |value: Option<i32>| i64::from(value.unwrap_or(0));
    for (field, value) in [
        ("currentNumberScheduled", i64::from(status.current_number_scheduled)),
        ("numberMisscheduled", i64::from(status.number_misscheduled)),
        ("desiredNumberScheduled", i64::from(status.desired_number_scheduled)),
        ("numberReady", i64::from(status.number_ready)),
        ("observedGeneration", status.observed_generation.unwrap_or(0)),
        ("updatedNumberScheduled", number(status.updated_number_scheduled)),
        ("numberAvailable", number(status.number_available)),
        ("numberUnavailable", number(status.number_unavailable)),
        ("collisionCount", number(status.collision_count)),
    ] {
        non_negative(errs, &path.child(field), value);
    }
    rolling::not_decremented(status.collision_count, old.collision_count, errs);
}
