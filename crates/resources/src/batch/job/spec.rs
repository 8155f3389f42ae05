//! The spec of jobs, also that of the jobs a CronJob makes.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::batch::v1::JobSpec;

use super::policy;
use crate::check::{named, non_negative, one_of};
use crate::common::text;
use crate::podspec::{self, defaults as pod_defaults, validation};

/// Most pods at a time of an indexed job, and most failed indexes.
const MAX_INDEXED: i32 = 100_000;
/// Above this number of completions the next limit holds.
const MANY_COMPLETIONS: i32 = 100_000;
/// Most pods at a time, and most failed indexes, of a job with many completions.
const MAX_OF_MANY: i32 = 10_000;

/// Defaults of what a job's spec holds, without those of the job itself.
pub(crate) fn defaults(spec: &mut JobSpec) {
    let rules = spec.pod_failure_policy.iter_mut().flat_map(|policy| &mut policy.rules);
    for pattern in rules.flat_map(|rule| rule.on_pod_conditions.iter_mut().flatten()) {
        pod_defaults::string(&mut pattern.status, "True");
    }
    pod_defaults::template(&mut spec.template);
}

/// Warnings about a job's spec below `path`.
pub(crate) fn warnings(spec: &JobSpec, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let many =
        spec.completions.unwrap_or(0) > MANY_COMPLETIONS && spec.parallelism.unwrap_or(0) > MAX_OF_MANY;
    if many && spec.completion_mode.as_deref() == Some("Indexed") {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than \
             10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    if let Some(pod) = &spec.template.spec {
        let at = path.child("template").child("spec");
        out.extend(podspec::warnings::of(pod, spec.template.metadata.as_ref(), &at));
    }
    out
}

/// Checks a job's spec below `path`, without its selector.
pub(crate) fn validate(spec: &JobSpec, path: &Path, errs: &mut ErrorList) {
    for (field, value) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ] {
        non_negative(errs, &path.child(field), value.unwrap_or(0));
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errs.required(path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = &spec.managed_by {
        domain_prefixed_path(manager, &path.child("managedBy"), errs);
        if manager.len() > 63 {
            errs.too_long(path.child("managedBy"), 63);
        }
    }
    if let Some(mode) = &spec.completion_mode {
        one_of(errs, &path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    match spec.completion_mode.as_deref() {
        Some("Indexed") => indexed(spec, path, errs),
        None | Some("NonIndexed") => {
            let why = "requires indexed completion mode";
            if let Some(limit) = spec.backoff_limit_per_index {
                errs.invalid(path.child("backoffLimitPerIndex"), limit, why);
            }
            if let Some(limit) = spec.max_failed_indexes {
                errs.invalid(path.child("maxFailedIndexes"), limit, why);
            }
        }
        Some(_) => {}
    }
    policy::validate(spec, path, errs);
    validation::template(&spec.template, &path.child("template"), errs);
    restart_policy(spec, &path.child("template").child("spec").child("restartPolicy"), errs);
}

fn indexed(spec: &JobSpec, path: &Path, errs: &mut ErrorList) {
    if spec.completions.is_none() {
        errs.required(path.child("completions"), "when completion mode is Indexed");
    }
    let failed_at = path.child("maxFailedIndexes");
    let parallel_at = path.child("parallelism");
    let parallelism = spec.parallelism.unwrap_or(0);
    if parallelism > MAX_INDEXED {
        let why = format!("must be less than or equal to {MAX_INDEXED} when completion mode is Indexed");
        errs.invalid(&parallel_at, parallelism, why);
    }
    let failed = spec.max_failed_indexes.unwrap_or(0);
    if spec.completions.is_some_and(|completions| failed > completions) {
        errs.invalid(&failed_at, failed, "must be less than or equal to completions");
    }
    if failed > MAX_INDEXED {
        errs.invalid(&failed_at, failed, format!("must be less than or equal to {MAX_INDEXED}"));
    }
    let many = spec.completions.is_some_and(|completions| completions > MANY_COMPLETIONS);
    if !many || spec.backoff_limit_per_index.is_none() {
        return;
    }
    let why = format!(
        "must be less than or equal to {MAX_OF_MANY} when completions are above {MANY_COMPLETIONS} and used with \
         backoff limit per index"
    );
    if spec.max_failed_indexes.is_none() {
        let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errs.required(&failed_at, why);
    }
    if parallelism > MAX_OF_MANY {
        errs.invalid(&parallel_at, parallelism, why.as_str());
    }
    if failed > MAX_OF_MANY {
        errs.invalid(&failed_at, failed, why);
    }
}

fn restart_policy(spec: &JobSpec, path: &Path, errs: &mut ErrorList) {
    match text(spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_ref())) {
        "" | "Always" => errs.required(path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errs.invalid(path, "OnFailure", why);
        }
        policy => one_of(errs, path, policy, &["OnFailure", "Never"]),
    }
}

/// A name such as `acme.io/foo`.
fn domain_prefixed_path(value: &str, path: &Path, errs: &mut ErrorList) {
    if value.is_empty() {
        return errs.required(path, "");
    }
    let parts = value.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty());
    let Some((host, rest)) = parts else {
        return errs.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    named(errs, path, host, names::dns1123_subdomain);
    let legal = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !rest.chars().all(legal) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errs.invalid(path, rest, why);
    }
}
