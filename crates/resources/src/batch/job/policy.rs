//! When a job counts as failed or succeeded: pod failure policy, success policy, replacement policy, and the
//! text form of sets of indexes.

use std::collections::BTreeSet;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule, SuccessPolicyRule,
};
use serde_json::json;

use crate::check::{named, non_negative, one_of};
use crate::go_dump;

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];
const STATUSES: &[&str] = &["False", "True", "Unknown"];
const MAX_RULES: usize = 20;
const MAX_PATTERNS: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES_TEXT: usize = 64 * 1024;

/// Checks the policies of a job's spec below `path`.
pub(super) fn validate(spec: &JobSpec, path: &Path, errs: &mut ErrorList) {
    if let Some(policy) = &spec.pod_failure_policy {
        let at = path.child("podFailurePolicy").child("rules");
        if policy.rules.len() > MAX_RULES {
            errs.too_many(&at, policy.rules.len(), MAX_RULES);
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            failure_rule(spec, rule, &at.index(i), errs);
        }
    }
    if let Some(policy) = &spec.success_policy {
        let at = path.child("successPolicy");
        if spec.completion_mode.as_deref() == Some("Indexed") {
            success_rules(spec, &policy.rules, &at.child("rules"), errs);
        } else {
            let why = "requires indexed completion mode";
            go_dump::invalid(errs, at, "batch.SuccessPolicy", Some(policy), why);
        }
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let failed: &[&str] = &["Failed"];
        let both: &[&str] = &["Failed", "TerminatingOrFailed"];
        let allowed = if spec.pod_failure_policy.is_some() { failed } else { both };
        one_of(errs, &path.child("podReplacementPolicy"), policy, allowed);
    }
}

fn quoted(set: &[&str]) -> String {
    let list: Vec<String> = set.iter().map(|item| format!("{item:?}")).collect();
    format!("valid values: [{}]", list.join(" "))
}

/// An error about a whole structure that is not shown.
fn about(path: &Path, why: &str, errs: &mut ErrorList) {
    let detail = why.to_owned();
    errs.push(Error { kind: ErrorKind::Invalid, path: path.to_string(), value: None, detail });
}

fn failure_rule(spec: &JobSpec, rule: &PodFailurePolicyRule, path: &Path, errs: &mut ErrorList) {
    let at = path.child("action");
    match rule.action.as_str() {
        "" => errs.required(at, quoted(ACTIONS)),
        "FailIndex" => {
            if spec.backoff_limit_per_index.is_none() {
                errs.invalid(at, "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
        }
        action => one_of(errs, &at, action, ACTIONS),
    }
    let conditions = rule.on_pod_conditions.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        exit_codes(spec, codes, &path.child("onExitCodes"), errs);
    }
    pod_conditions(conditions, &path.child("onPodConditions"), errs);
    match (rule.on_exit_codes.is_some(), conditions.is_empty()) {
        (true, false) => {
            about(path, "specifying both OnExitCodes and OnPodConditions is not supported", errs)
        }
        (false, true) => about(path, "specifying one of OnExitCodes and OnPodConditions is required", errs),
        _ => {}
    }
}

fn pod_conditions(patterns: &[PodFailurePolicyOnPodConditionsPattern], path: &Path, errs: &mut ErrorList) {
    if patterns.len() > MAX_PATTERNS {
        errs.too_many(path, patterns.len(), MAX_PATTERNS);
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let path = path.index(i);
        named(errs, &path.child("type"), &pattern.type_, names::qualified_name);
        match pattern.status.as_deref().unwrap_or("") {
            "" => errs.required(path.child("status"), quoted(STATUSES)),
            status => one_of(errs, &path.child("status"), status, STATUSES),
        }
    }
}

fn exit_codes(
    spec: &JobSpec,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
    path: &Path,
    errs: &mut ErrorList,
) {
    match wanted.operator.as_str() {
        "" => errs.required(path.child("operator"), quoted(OPERATORS)),
        operator => one_of(errs, &path.child("operator"), operator, OPERATORS),
    }
    if let Some(name) = &wanted.container_name {
        let pod = spec.template.spec.as_ref();
        let containers =
            pod.iter().flat_map(|p| p.containers.iter().chain(p.init_containers.iter().flatten()));
        if !containers.into_iter().any(|container| container.name == *name) {
            let why = "must be one of the container or initContainer names in the pod template";
            errs.invalid(path.child("containerName"), name.as_str(), why);
        }
    }
    let (at, values) = (path.child("values"), &wanted.values);
    if values.is_empty() {
        errs.invalid(&at, serde_json::Value::Null, "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errs.too_many(&at, values.len(), MAX_EXIT_CODES);
    }
    let mut seen = BTreeSet::new();
    for (i, value) in values.iter().enumerate() {
        if wanted.operator == "In" && *value == 0 {
            errs.invalid(at.index(i), *value, "must not be 0 for the In operator");
        }
        if !seen.insert(value) {
            errs.duplicate(at.index(i), *value);
        }
    }
    if !values.is_sorted() {
        errs.invalid(at, json!(values), "must be ordered");
    }
}

fn success_rules(spec: &JobSpec, rules: &[SuccessPolicyRule], path: &Path, errs: &mut ErrorList) {
    if rules.is_empty() {
        errs.required(path, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > MAX_RULES {
        errs.too_many(path, rules.len(), MAX_RULES);
    }
    let completions = spec.completions.unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        success_rule(rule, completions, &path.index(i), errs);
    }
}

fn success_rule(rule: &SuccessPolicyRule, completions: i32, path: &Path, errs: &mut ErrorList) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        errs.required(path, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut total = 0;
    if let Some(indexes) = &rule.succeeded_indexes {
        let at = path.child("succeededIndexes");
        if indexes.len() > MAX_INDEXES_TEXT {
            errs.too_long(&at, MAX_INDEXES_TEXT);
        }
        match intervals(indexes, completions) {
            Ok(list) => total = list.iter().map(|(low, high)| high - low + 1).sum(),
            Err(why) => {
                errs.invalid(at, indexes.as_str(), format!("error parsing succeededIndexes: {why}"));
            }
        }
    }
    let Some(count) = rule.succeeded_count else { return };
    let at = path.child("succeededCount");
    non_negative(errs, &at, i64::from(count));
    if count > completions {
        let why =
            format!("must be less than or equal to {completions} (the number of specified completions)");
        errs.invalid(&at, count, why);
    }
    if rule.succeeded_indexes.is_some() && i64::from(count) > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errs.invalid(at, count, why);
    }
}

/// The intervals of a text such as `0,2-4`, below `completions` and in order.
///
/// # Errors
/// Upstream's text.
pub(super) fn intervals(text: &str, completions: i32) -> Result<Vec<(i64, i64)>, String> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (low, high) = interval(part, completions)?;
        if let Some((_, last)) = out.last().filter(|(_, last)| *last >= low) {
            return Err(format!("non-increasing order, previous: {last}, current: {low}"));
        }
        out.push((low, high));
    }
    Ok(out)
}

/// One interval: `3`, or `3-5`.
///
/// # Errors
/// Upstream's text.
pub(super) fn interval(text: &str, completions: i32) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts \
             separated by '-'"
        ));
    }
    let index = |part: &str| -> Result<i64, String> {
        let value: i64 =
            part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if value >= i64::from(completions) {
            return Err(format!("too large index: {part:?}"));
        }
        Ok(value)
    };
    let low = index(parts[0])?;
    let Some(high) = parts.get(1) else { return Ok((low, low)) };
    let high = index(high)?;
    if low >= high {
        return Err(format!("non-increasing order, previous: {low}, current: {high}"));
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::intervals;

    #[test]
    fn indexes_are_intervals_in_order_below_the_completions() {
        assert_eq!(intervals("0,2-3", 4), Ok(vec![(0, 0), (2, 3)]));
        assert_eq!(intervals("", 4), Ok(Vec::new()));
        assert_eq!(intervals("4", 4), Err("too large index: \"4\"".to_owned()));
        let order = Err("non-increasing order, previous: 2, current: 1".to_owned());
        assert_eq!(intervals("2,1", 4), order);
    }
}
