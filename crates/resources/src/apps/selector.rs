//! Checks of the selector and template that workloads have in common.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::selector::LabelSelector;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use serde_json::{Value, json};

use crate::check::{has_selector, label_selector};
use crate::common::text;
use crate::go_dump;
use crate::podspec::validation;

/// Checks selector and template of a workload that keeps its pods running.
pub(super) fn check(selector: &Selector, template: Option<&PodTemplateSpec>, errs: &mut ErrorList) {
    let spec = Path::new("spec");
    let at = spec.child("selector");
    let mut compiled = None;
    if has_selector(selector) {
        label_selector(Some(selector), &at, errs);
        compiled = LabelSelector::from_api(selector).ok();
        if compiled.is_none() {
            about(selector, "invalid label selector", &at, errs);
            return;
        }
    } else if !is_absent(selector) {
        errs.invalid(&at, json!({}), "empty selector is invalid for deployment");
        compiled = Some(LabelSelector::everything());
    } else {
        errs.required(&at, "");
    }
    let path = spec.child("template");
    let Some(template) = template else { return errs.required(path, "") };
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if !compiled.is_some_and(|selector| selector.matches_option(labels)) {
        let shown = labels.map_or(Value::Null, |l| json!(l));
        let why = "`selector` does not match template `labels`";
        errs.invalid(path.child("metadata").child("labels"), shown, why);
    }
    validation::template(template, &path, errs);
    let Some(pod) = &template.spec else { return };
    let at = path.child("spec");
    let restart = text(pod.restart_policy.as_ref());
    if restart != "Always" {
        errs.not_supported(at.child("restartPolicy"), restart, &["Always"]);
    }
    if pod.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errs.forbidden(at.child("activeDeadlineSeconds"), why);
    }
}

/// An error about the whole selector, printed in Go's field order.
fn about(selector: &Selector, why: &str, path: &Path, errs: &mut ErrorList) {
    let shown = (!is_absent(selector)).then_some(selector);
    go_dump::invalid(errs, path, "metav1.LabelSelector", shown, why);
}

/// Whether no selector was given. (An empty one has an empty `matchLabels`, see `gaps`.)
pub(crate) fn is_absent(selector: &Selector) -> bool {
    selector.match_labels.is_none() && selector.match_expressions.is_none()
}

/// The selector of a workload cannot change.
pub(super) fn immutable(new: &Selector, old: &Selector, errs: &mut ErrorList) {
    if new != old {
        about(new, "field is immutable", &Path::new("spec").child("selector"), errs);
    }
}
