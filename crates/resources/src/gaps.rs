//! What the types crate cannot express, and how it is kept apart all the same.

use serde_json::{Map, Value};

/// Marks, in a body that Go's rules have been applied to, what the typed object would lose.
pub(crate) fn mark(value: &mut Value, kind: &str, empty_selector: bool) {
    absent_times(value, kind);
    if empty_selector && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        // An empty selector is not an absent one, but the types crate has one value for both.
        let selector = spec.entry("selector").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(selector) = selector {
            selector.insert("matchLabels".to_owned(), Value::Object(Map::new()));
        }
    }
}

/// Whether a workload has a selector that selects everything. Asked before empty values are taken out.
pub(crate) fn has_empty_selector(value: &Value, kind: &str) -> bool {
    matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        && value.pointer("/spec/selector").and_then(Value::as_object).is_some_and(Map::is_empty)
}

/// Times that the types crate requires and that upstream checks itself: absent ones are the beginning of the
/// clock, which no client means.
fn absent_times(value: &mut Value, kind: &str) {
    const EPOCH: &str = "1970-01-01T00:00:00.000000Z";
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
        "PodDisruptionBudget" => {
            let conditions = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
            conditions.into_iter().flatten().for_each(|c| fill(c, "lastTransitionTime"));
        }
        _ => {}
    }
}
