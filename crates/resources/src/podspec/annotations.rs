//! Checks of annotations that mean something to pods.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::text;

/// Marks the API's copy of a static pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Checks the annotations of a pod or template.
pub(crate) fn check(meta: &ObjectMeta, spec: Option<&PodSpec>, path: &Path, errs: &mut ErrorList) {
    let Some(annotations) = &meta.annotations else { return };
    if let Some(value) = annotations.get(MIRROR)
        && text(spec.and_then(|s| s.node_name.as_ref())).is_empty()
    {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errs.invalid(path.key(MIRROR), value.as_str(), why);
    }
    if let Some(cost) = annotations.get(DELETION_COST) {
        let plain = !cost.starts_with('+') && (cost == "0" || !cost.trim_start_matches('-').starts_with('0'));
        if !plain || cost.parse::<i32>().is_err() {
            errs.invalid(path.key(DELETION_COST), cost.as_str(), "must be a 32bit integer");
        }
    }
}
