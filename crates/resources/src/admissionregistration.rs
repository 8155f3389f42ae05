//! The `admissionregistration.k8s.io` group, `v1`, and what its kinds share.

mod matching;
mod mutating_admission_policy;
mod mutating_admission_policy_binding;
mod mutating_webhook_configuration;
mod policy;
mod validating_admission_policy;
mod validating_admission_policy_binding;
mod validating_webhook_configuration;
mod webhook;

pub(crate) use webhook::{webhook_service, webhook_url};

use coracle_meta::field::{ErrorList, Path};

use crate::check::one_of;
use crate::common::text;
use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &mutating_admission_policy::DEF,
    &mutating_admission_policy_binding::DEF,
    &mutating_webhook_configuration::DEF,
    &validating_admission_policy::DEF,
    &validating_admission_policy_binding::DEF,
    &validating_webhook_configuration::DEF,
];

const CATEGORIES: &[&str] = &["api-extensions"];
const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
/// Names with this end are those of configuration from files.
const STATIC_SUFFIX: &str = ".static.k8s.io";

/// The warning about a name that belongs to configuration from files; given for new objects.
fn name_warnings(name: Option<&String>, new: bool) -> Vec<String> {
    if !new || !text(name).ends_with(STATIC_SUFFIX) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with {STATIC_SUFFIX:?} are reserved for static manifest-based \
         configurations and cannot be managed via the API"
    )]
}

/// A policy of a closed set that must be there.
fn needed(value: Option<&String>, set: &[&str], path: &Path, errs: &mut ErrorList) {
    match value {
        None => errs.required(path, ""),
        Some(value) => one_of(errs, path, value, set),
    }
}
