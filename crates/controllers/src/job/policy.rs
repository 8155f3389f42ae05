//! What a failed pod means to its Job, and when enough indexes succeeded: pure.

use coracle_meta::pod as podutil;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicyRule,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::runtime::name_of;

/// Whether pods are replaced only once they failed for good, not when their deletion begins.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_failure_policy.is_some() || spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// Whether a pod has failed, for this Job.
pub(super) fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let phase = podutil::phase(pod);
    let leaving = pod.metadata.deletion_timestamp.is_some() && phase != "Succeeded";
    phase == "Failed" || (leaving && !replaces_only_failed(spec))
}

/// What a failure does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It counts towards the limits.
    Counts,
    /// It does not count.
    Ignored,
    /// It counts, and the index has failed.
    FailsIndex,
    /// It counts, and the Job has failed for this reason.
    FailsJob(String),
}

/// The effect of a pod's failure: that of the first rule that matches.
pub(super) fn effect(spec: &JobSpec, pod: &Pod) -> Effect {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| policy.rules.iter());
    for (index, rule) in rules.enumerate() {
        let Some(why) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Effect::Ignored,
            "FailIndex" => Effect::FailsIndex,
            "FailJob" => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
                Effect::FailsJob(why(&format!("{namespace}/{}", name_of(pod)), &rule.action, index))
            }
            _ => Effect::Counts,
        };
    }
    Effect::Counts
}

/// Makes the message of pod, action and position of the rule.
type Why<'a> = Box<dyn Fn(&str, &str, usize) -> String + 'a>;

fn matched<'a>(rule: &'a PodFailurePolicyRule, pod: &'a Pod) -> Option<Why<'a>> {
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let find = |list: Option<&'a Vec<ContainerStatus>>| {
            list.into_iter()
                .flatten()
                .find_map(|container| exit_code(codes, container).map(|c| (container, c)))
        };
        let found = find(status.container_statuses.as_ref());
        let (container, code) = found.or_else(|| find(status.init_container_statuses.as_ref()))?;
        return Some(Box::new(move |pod, action, index| {
            let name = &container.name;
            format!(
                "Container {name} for pod {pod} failed with exit code {code} matching {action} rule at index {index}"
            )
        }));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let wanted = |type_: &str, status: &str| {
        patterns.iter().any(|p| p.type_ == type_ && p.status.as_deref().unwrap_or("True") == status)
    };
    let found = status.conditions.iter().flatten().find(|c| wanted(&c.type_, &c.status))?;
    Some(Box::new(move |pod, action, index| {
        format!("Pod {pod} has condition {} matching {action} rule at index {index}", found.type_)
    }))
}

/// The container's exit code, if the rule is about it.
fn exit_code(codes: &PodFailurePolicyOnExitCodesRequirement, container: &ContainerStatus) -> Option<i32> {
    let terminated = container.state.as_ref()?.terminated.as_ref()?;
    let named = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
    let code = terminated.exit_code;
    let listed = codes.values.contains(&code);
    let applies = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (named && code != 0 && applies).then_some(code)
}

/// The message of the first rule of the success policy that the succeeded indexes meet.
pub(super) fn success(job: &Job, succeeded: &Indexes) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let rules = spec.success_policy.as_ref()?.rules.iter();
    if succeeded.total() == 0 {
        return None;
    }
    let completions = spec.completions.unwrap_or(0);
    let met = |rule: &SuccessPolicyRule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(indexes), count) => {
            let wanted = Indexes::parse(indexes, completions);
            let have = succeeded.overlap(&wanted);
            wanted.total() > 0 && (have == wanted.total() || count.is_some_and(|count| have >= count))
        }
        (None, Some(count)) => succeeded.total() >= count,
        (None, None) => false,
    };
    let index = rules.clone().position(met)?;
    Some(format!("Matched rules at index {index}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(extra: &Value) -> JobSpec {
        let mut spec = json!({ "template": {}, "completions": 10, "completionMode": "Indexed" });
        for (key, extra) in extra.as_object().into_iter().flatten() {
            spec[key] = extra.clone();
        }
        serde_json::from_value(spec).expect("a spec")
    }

    fn pod(code: i32, conditions: &Value) -> Pod {
        let container = json!({ "name": "main", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
            "state": { "terminated": { "exitCode": code } } });
        serde_json::from_value(json!({ "metadata": { "name": "p", "namespace": "ns" },
            "status": { "phase": "Failed", "containerStatuses": [container], "conditions": conditions } }))
        .expect("a pod")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = json!({ "podFailurePolicy": { "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            { "action": "FailJob", "onExitCodes": { "containerName": "main", "operator": "In", "values": [42] } },
            { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [7] } },
            { "action": "Count", "onExitCodes": { "operator": "NotIn", "values": [1] } },
        ] } });
        let spec = spec(&rules);
        let disrupted = json!([{ "type": "DisruptionTarget", "status": "True" }]);
        assert_eq!(effect(&spec, &pod(42, &disrupted)), Effect::Ignored);
        let message = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(effect(&spec, &pod(42, &json!([]))), Effect::FailsJob(message.into()));
        assert_eq!(effect(&spec, &pod(7, &json!([]))), Effect::FailsIndex);
        assert_eq!(effect(&spec, &pod(1, &json!([]))), Effect::Counts);
    }

    #[test]
    fn a_success_policy_is_met_by_indexes_or_their_number() {
        let check = |rules: Value, succeeded: &str| {
            let job =
                Job { spec: Some(spec(&json!({ "successPolicy": { "rules": rules } }))), ..Job::default() };
            success(&job, &Indexes::parse(succeeded, 10))
        };
        let first = json!([{ "succeededIndexes": "0,2" }, { "succeededCount": 4 }]);
        assert_eq!(check(first.clone(), "0"), None);
        assert_eq!(check(first.clone(), "0-2").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(check(first, "3-6").as_deref(), Some("Matched rules at index 1"));
        let some = json!([{ "succeededIndexes": "0-5", "succeededCount": 2 }]);
        assert_eq!(check(some.clone(), "5-9"), None);
        assert!(check(some, "4-5").is_some());
    }
}
