//! Job: runs pods until a number of them has succeeded.

pub(super) mod policy;
pub(super) mod spec;
mod status;

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Affinity, PodSpec, PodTemplateSpec};
use serde_json::{Value, json};

use crate::common::{column, containers_and_images, name_warning, selector_text, text, wide_column};
use crate::def::{
    AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age, human_duration,
};
use crate::go_dump;

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "", "Status of the job."),
    column(
        "Completions",
        "string",
        "",
        "The number of pods which reached phase Succeeded. The value increases monotonically for \
         a given spec. However, it may decrease in reaction to scale down of elastic indexed \
         jobs.",
    ),
    column("Duration", "string", "", "Time required to complete the job."),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "A label query over pods that should match the pod count. Normally, the system sets this \
         field for you. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    orphan_by_default: true,
    ..ResourceDef::new::<Job>("job", &Typed::<Job, _>::new(Jobs))
};

struct Jobs;

const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const LEGACY_NAME_LABEL: &str = "job-name";
const LEGACY_UID_LABEL: &str = "controller-uid";
const SELECTOR: &str = "metav1.LabelSelector";
const TEMPLATE: &str = "core.PodTemplateSpec";

impl Strategy<Job> for Jobs {
    fn drop_disabled(&self, obj: &mut Job) {
        crate::podspec::defaults::drop_disabled(obj.spec.as_mut().and_then(|s| s.template.spec.as_mut()));
    }

    fn default(&self, obj: &mut Job) {
        default_labels(obj);
        let spec = obj.spec.get_or_insert_default();
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        let limit = if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 };
        spec.backoff_limit.get_or_insert(limit);
        spec.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
        spec.suspend.get_or_insert(false);
        let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
        spec.pod_replacement_policy.get_or_insert_with(|| replacement.to_owned());
        spec.manual_selector.get_or_insert(false);
        spec::defaults(spec);
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Job) {
        obj.status = Some(JobStatus::default());
        if obj.spec.as_ref().is_none_or(|spec| spec.manual_selector != Some(true)) {
            generate_selector(obj);
        }
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Job, old: &Job) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Job, old: &Job) {
        new.spec.clone_from(&old.spec);
    }

    fn settle(&self, obj: &mut Job) -> bool {
        default_labels(obj)
    }

    fn validate(&self, obj: &Job, errs: &mut ErrorList) {
        validate(obj, true, errs);
    }

    fn validate_update(&self, new: &Job, old: &Job, errs: &mut ErrorList) {
        let labels = old.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.labels.as_ref());
        let has = |key: &str| labels.is_some_and(|labels| labels.contains_key(key));
        validate(new, has(NAME_LABEL) && has(UID_LABEL), errs);
        if let (Some(is), Some(was)) = (&new.spec, &old.spec) {
            // Upstream checks the spec twice.
            validate_spec(is, errs);
            validate_change(is, was, started_or_active(old), errs);
        }
    }

    fn validate_status_update(&self, new: &Job, old: &Job, errs: &mut ErrorList) {
        status::validate(new, old, errs);
    }

    fn warnings(&self, new: &Job, old: Option<&Job>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            out.extend(name_warning(text(new.metadata.name.as_ref())));
        }
        if let Some(spec) = new.spec.as_ref().filter(|_| old.is_none_or(|old| old.spec != new.spec)) {
            out.extend(spec::warnings(spec, &Path::new("spec")));
        }
        out
    }

    fn row(&self, obj: &Job, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        let empty = JobStatus::default();
        let status = obj.status.as_ref().unwrap_or(&empty);
        let (containers, images) = containers_and_images(spec.map(|s| &s.template));
        let done = status.succeeded.unwrap_or(0);
        let completions = match (spec.and_then(|s| s.completions), spec.and_then(|s| s.parallelism)) {
            (Some(wanted), _) => format!("{done}/{wanted}"),
            (None, Some(parallel)) if parallel > 1 => format!("{done}/1 of {parallel}"),
            _ => format!("{done}/1"),
        };
        let duration = status.start_time.as_ref().map_or(String::new(), |start| {
            let end = status.completion_time.as_ref().map_or(now, |end| end.0);
            human_duration(end.as_second() - start.0.as_second())
        });
        vec![
            obj.metadata.name.clone().into(),
            status_cell(obj, status).into(),
            completions.into(),
            duration.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            spec.and_then(|s| s.selector.as_ref()).map_or("<none>".to_owned(), selector_text).into(),
        ]
    }

    fn selectable(&self, obj: &Job) -> Vec<(&'static str, String)> {
        let done = obj.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        vec![("status.successful", done.to_string())]
    }
}

/// A job without labels of its own has those of its template; whether it got them now.
fn default_labels(obj: &mut Job) -> bool {
    let labels = obj.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.labels.clone());
    let bare = obj.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty);
    match labels.filter(|labels| bare && !labels.is_empty()) {
        Some(labels) => {
            obj.metadata.labels = Some(labels);
            true
        }
        None => false,
    }
}

fn status_cell(obj: &Job, status: &JobStatus) -> &'static str {
    let is = |kind: &str| status::first_is_true(status, kind);
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if obj.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// Gives the template labels that no other job's pods have, and selects them.
fn generate_selector(obj: &mut Job) {
    let name = text(obj.metadata.name.as_ref()).to_owned();
    let uid = text(obj.metadata.uid.as_ref()).to_owned();
    let spec = obj.spec.get_or_insert_default();
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    // A job without labels of its own has those of its template, also the generated ones.
    let shared = obj.metadata.labels.as_ref().is_some_and(|own| !own.is_empty() && own == labels);
    for (key, value) in
        [(LEGACY_NAME_LABEL, &name), (NAME_LABEL, &name), (LEGACY_UID_LABEL, &uid), (UID_LABEL, &uid)]
    {
        labels.entry(key.to_owned()).or_insert_with(|| value.clone());
    }
    // A name too long for a label is reported at the template alone.
    if shared && names::label_value(&name).is_empty() {
        obj.metadata.labels = Some(labels.clone());
    }
    let selector = spec.selector.get_or_insert_default().match_labels.get_or_insert_default();
    selector.entry(UID_LABEL.to_owned()).or_insert(uid);
}

fn validate(obj: &Job, prefixed_labels: bool, errs: &mut ErrorList) {
    let empty = JobSpec::default();
    let spec = obj.spec.as_ref().unwrap_or(&empty);
    generated_selector(obj, spec, prefixed_labels, errs);
    validate_spec(spec, errs);
    let Some(last) = spec.completions.filter(|count| *count > 0).map(|count| count - 1) else { return };
    if spec.completion_mode.as_deref() == Some("Indexed") {
        // Pods of indexed jobs have the index in their host names.
        let name = text(obj.metadata.name.as_ref());
        let longest = format!("{name}-{last}");
        if !names::dns1123_label(&longest).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {longest}");
            errs.invalid("metadata.name", name, why);
        }
    }
}

/// Checks what [`generate_selector`] made, or what a client sent in its place.
fn generated_selector(obj: &Job, spec: &JobSpec, prefixed_labels: bool, errs: &mut ErrorList) {
    let Some(selector) = spec.selector.as_ref().filter(|_| spec.manual_selector != Some(true)) else {
        return;
    };
    let (name, uid) = (text(obj.metadata.name.as_ref()), text(obj.metadata.uid.as_ref()));
    if uid.is_empty() {
        errs.required("metadata.uid", "");
    }
    let mut wanted = vec![(LEGACY_UID_LABEL, uid), (LEGACY_NAME_LABEL, name)];
    if prefixed_labels {
        wanted.extend([(UID_LABEL, uid), (NAME_LABEL, name)]);
    }
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    for (key, value) in &wanted {
        match labels.and_then(|labels| labels.get(*key)) {
            Some(held) if held == value => {}
            Some(_) => errs.invalid(path.key(key), json!(labels), format!("must be '{value}'")),
            None => errs.required(path.key(key), format!("must be '{value}'")),
        }
    }
    let wanted = wanted.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if LabelSelector::from_api(selector).is_ok_and(|selector| !selector.matches(&wanted)) {
        let at = Path::new("spec").child("selector");
        go_dump::invalid(errs, at, SELECTOR, Some(selector), "`selector` not auto-generated");
    }
}

/// Checks the spec of a job itself (not of a template for jobs): it must select its pods.
fn validate_spec(job: &JobSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    spec::validate(job, &path, errs);
    match &job.selector {
        None => errs.required(path.child("selector"), ""),
        selector => crate::check::label_selector(selector.as_ref(), &path.child("selector"), errs),
    }
    let labels = job.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let selector = LabelSelector::from_optional_api(job.selector.as_ref());
    if selector.is_ok_and(|selector| !selector.matches_option(labels)) {
        let why = "`selector` does not match template `labels`";
        errs.invalid(path.child("template").child("metadata").child("labels"), json!(labels), why);
    }
}

/// Whether a job has begun to run, so that its template is fixed.
fn started_or_active(job: &Job) -> bool {
    let suspended = job.spec.as_ref().is_some_and(|s| s.suspend == Some(true));
    let Some(status) = &job.status else { return !suspended };
    let idle = status.start_time.is_none() || status::is_true(status, "Suspended");
    !(suspended && idle && status.active.unwrap_or(0) == 0)
}

fn validate_change(new: &JobSpec, old: &JobSpec, fixed: bool, errs: &mut ErrorList) {
    let path = Path::new("spec");
    validate_completions(new, old, &path.child("completions"), errs);
    go_dump::immutable(errs, path.child("selector"), SELECTOR, new.selector.as_ref(), old.selector.as_ref());
    validate_template(new, old, fixed, &path, errs);
    errs.immutable(path.child("completionMode"), &new.completion_mode, &old.completion_mode);
    let (is, was) = (new.pod_failure_policy.as_ref(), old.pod_failure_policy.as_ref());
    go_dump::immutable(errs, path.child("podFailurePolicy"), "batch.PodFailurePolicy", is, was);
    let (is, was) = (&new.backoff_limit_per_index, &old.backoff_limit_per_index);
    errs.immutable(path.child("backoffLimitPerIndex"), is, was);
    errs.immutable(path.child("managedBy"), &new.managed_by, &old.managed_by);
    let (is, was) = (new.success_policy.as_ref(), old.success_policy.as_ref());
    go_dump::immutable(errs, path.child("successPolicy"), "batch.SuccessPolicy", is, was);
}

/// Completions of indexed jobs may change together with the parallelism.
fn validate_completions(new: &JobSpec, old: &JobSpec, path: &Path, errs: &mut ErrorList) {
    if new.completion_mode.as_deref() != Some("Indexed") {
        return errs.immutable(path, &new.completions, &old.completions);
    }
    let Some(completions) = new.completions.filter(|_| new.completions != old.completions) else { return };
    if Some(completions) != new.parallelism {
        errs.invalid(path, completions, "can only be modified in tandem with spec.parallelism");
    }
}

/// The template is fixed, but for suspended jobs: those may get other nodes and other resources.
fn validate_template(new: &JobSpec, old: &JobSpec, fixed: bool, path: &Path, errs: &mut ErrorList) {
    let (template, mut before) = (&new.template, old.template.clone());
    if !fixed {
        take_directives(template, &mut before);
    }
    if old.suspend != Some(true) || fixed {
        return go_dump::immutable(errs, path.child("template"), TEMPLATE, Some(template), Some(&before));
    }
    if let (Some(is), Some(was)) = (&template.spec, &mut before.spec) {
        take_resources(is, was);
        let at = path.child("template.spec");
        go_dump::immutable(errs, at, "core.PodSpec", Some(is), Some(was));
    }
}

/// Scheduling directives of the new template count as if the old one had had them.
fn take_directives(new: &PodTemplateSpec, old: &mut PodTemplateSpec) {
    let (Some(is), Some(was)) = (&new.spec, &mut old.spec) else { return };
    match (&is.affinity, &mut was.affinity) {
        (None, Some(affinity)) => {
            affinity.node_affinity = None;
            if *affinity == Affinity::default() {
                was.affinity = None;
            }
        }
        (Some(affinity), None) => {
            was.affinity =
                Some(Affinity { node_affinity: affinity.node_affinity.clone(), ..Affinity::default() });
        }
        (Some(affinity), Some(before)) => before.node_affinity.clone_from(&affinity.node_affinity),
        (None, None) => {}
    }
    was.node_selector.clone_from(&is.node_selector);
    was.tolerations.clone_from(&is.tolerations);
    was.scheduling_gates.clone_from(&is.scheduling_gates);
    let (meta, before) = (new.metadata.clone().unwrap_or_default(), old.metadata.get_or_insert_default());
    before.annotations = meta.annotations;
    before.labels = meta.labels;
}

/// Resources of the new containers count as if the old ones had had them.
fn take_resources(new: &PodSpec, old: &mut PodSpec) {
    let init = new.init_containers.as_deref().unwrap_or_default();
    let old_init = old.init_containers.as_deref_mut().unwrap_or_default();
    for (is, was) in [(new.containers.as_slice(), old.containers.as_mut_slice()), (init, old_init)] {
        if is.len() != was.len() {
            continue;
        }
        for (is, was) in is.iter().zip(was) {
            if is.name == was.name {
                was.resources.clone_from(&is.resources);
            }
        }
    }
}
