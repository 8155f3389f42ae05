//! Numbers of rolling updates, and a status field that workloads have in common.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number of an int, or of a percentage; 0 for what is neither.
pub(super) fn amount(value: Option<&IntOrString>) -> i64 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => i64::from(*number),
        Some(IntOrString::String(text)) => {
            coracle_meta::int_or_string::percent(text).or_else(|| text.parse().ok()).unwrap_or(0)
        }
    }
}

/// A percentage may not be above 100.
pub(super) fn at_most_all(value: Option<&IntOrString>, path: &Path, errs: &mut ErrorList) {
    if let Some(IntOrString::String(text)) = value
        && amount(value) > 100
    {
        errs.invalid(path, text.as_str(), "must not be greater than 100%");
    }
}

/// `status.collisionCount` may not become smaller.
pub(super) fn not_decremented(new: Option<i32>, old: Option<i32>, errs: &mut ErrorList) {
    if new.unwrap_or(0) < old.unwrap_or(0) {
        let at = Path::new("status").child("collisionCount");
        errs.invalid(at, new.unwrap_or(0), "cannot be decremented");
    }
}
