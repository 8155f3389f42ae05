//! What the types crate cannot express, and how it is kept apart all the same.

use serde_json::{Map, Value};

/// Where the policies of an autoscaler's scaling rules are.
const POLICIES: [&str; 2] = ["/spec/behavior/scaleUp", "/spec/behavior/scaleDown"];

/// What is there but empty, which is not the same as absent. Asked before Go's rules are applied.
#[derive(Clone, Copy)]
pub(crate) struct Empty {
    /// A workload's selector.
    selector: bool,
    /// An autoscaler's policies, as [`POLICIES`] has them.
    policies: [bool; 2],
}

impl Empty {
    pub(crate) fn of(value: &Value, kind: &str) -> Self {
        let selector = matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
            && value.pointer("/spec/selector").and_then(Value::as_object).is_some_and(Map::is_empty);
        let no_policies = |rules: &str| {
            let policies = value.pointer(rules).and_then(|rules| rules.get("policies"));
            policies.and_then(Value::as_array).is_some_and(Vec::is_empty)
        };
        Self {
            selector,
            policies: POLICIES.map(|rules| kind == "HorizontalPodAutoscaler" && no_policies(rules)),
        }
    }
}

/// Marks, in a body that Go's rules have been applied to, what the typed object would lose.
pub(crate) fn mark(value: &mut Value, kind: &str, empty: Empty) {
    absent_times(value, kind);
    if empty.selector
        && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
    {
        // An empty selector is not an absent one, but the types crate has one value for both.
        let selector = spec.entry("selector").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(selector) = selector {
            selector.insert("matchLabels".to_owned(), Value::Object(Map::new()));
        }
    }
    for (rules, empty) in POLICIES.iter().zip(empty.policies) {
        if empty && let Some(Value::Object(rules)) = value.pointer_mut(rules) {
            rules.insert("policies".to_owned(), Value::Array(Vec::new()));
        }
    }
}

/// The beginning of the clock, which no client means: an absent time that the types crate requires.
const EPOCH: &str = "1970-01-01T00:00:00.000000Z";

/// Marks times that the types crate requires and that upstream checks itself, or takes as absent.
pub(crate) fn absent_times(value: &mut Value, kind: &str) {
    let fill = |value: &mut Value, key: &str| {
        if let Some(map) = value.as_object_mut()
            && map.get(key).is_none_or(Value::is_null)
        {
            map.insert(key.to_owned(), EPOCH.into());
        }
    };
    match kind {
        "Event" if value.get("apiVersion").is_some_and(|v| v == "events.k8s.io/v1") => {
            value.get_mut("series").into_iter().for_each(|series| fill(series, "lastObservedTime"));
        }
        "PodDisruptionBudget" | "Service" | "ServiceCIDR" | "ValidatingAdmissionPolicy" => {
            conditions(value).for_each(|c| fill(c, "lastTransitionTime"));
        }
        _ => {}
    }
}

/// Shows marked times as upstream does where it lets them be absent: `null`.
pub fn show_absent_times(value: &mut Value, kind: &str) {
    if !matches!(kind, "Service" | "ServiceCIDR") {
        return;
    }
    let times = conditions(value).filter_map(|c| c.get_mut("lastTransitionTime"));
    for time in times.filter(|time| time.as_str().is_some_and(|t| t.starts_with("1970-01-01T00:00:00"))) {
        *time = Value::Null;
    }
}

fn conditions(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.pointer_mut("/status/conditions").and_then(Value::as_array_mut).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_absent_time_is_marked_and_shown_as_null() {
        let mut value = json!({ "status": { "conditions": [{ "type": "A" }, { "lastTransitionTime": null },
            { "lastTransitionTime": "2020-01-01T00:00:00Z" }] } });
        absent_times(&mut value, "Service");
        assert_eq!(value["status"]["conditions"][1]["lastTransitionTime"], EPOCH);
        show_absent_times(&mut value, "Service");
        let told = json!([{ "type": "A", "lastTransitionTime": null }, { "lastTransitionTime": null },
            { "lastTransitionTime": "2020-01-01T00:00:00Z" }]);
        assert_eq!(value["status"]["conditions"], told);
    }
}
