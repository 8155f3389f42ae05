//! What the types crate cannot express, and how it is kept apart all the same.

use serde_json::{Map, Value};

/// Where the policies of an autoscaler's scaling rules are.
const POLICIES: [&str; 2] = ["/spec/behavior/scaleUp", "/spec/behavior/scaleDown"];

/// Lists (`[]`) and maps, and where they are, that upstream tells from absent ones also if they are empty: the claims
/// of pods as a whole, the counters of slices that have none, what pods take beside their containers, rules, what
/// ephemeral containers may not have. A star stands for every item of a list.
const TOLD_APART: [(&str, &str, &str, &str); 19] = [
    ("Pod", "/spec/resources", "claims", "[]"),
    ("PodTemplate", "/template/spec/resources", "claims", "[]"),
    ("CronJob", "/spec/jobTemplate/spec/template/spec/resources", "claims", "[]"),
    ("Deployment", TEMPLATE, "claims", "[]"),
    ("ReplicaSet", TEMPLATE, "claims", "[]"),
    ("StatefulSet", TEMPLATE, "claims", "[]"),
    ("DaemonSet", TEMPLATE, "claims", "[]"),
    ("Job", TEMPLATE, "claims", "[]"),
    ("ReplicationController", TEMPLATE, "claims", "[]"),
    ("ResourceSlice", "/spec", "sharedCounters", "[]"),
    ("ResourceSlice", "/spec", "devices", "[]"),
    ("Ingress", "/spec", "rules", "[]"),
    ("Pod", "/spec", "overhead", "{}"),
    ("Pod", "/spec/ephemeralContainers/*", "ports", "[]"),
    ("Pod", "/spec/ephemeralContainers/*", "resizePolicy", "[]"),
    ("Pod", "/spec/ephemeralContainers/*", "restartPolicyRules", "[]"),
    ("Pod", "/spec/ephemeralContainers/*/resources", "claims", "[]"),
    ("Pod", "/spec/ephemeralContainers/*/resources", "limits", "{}"),
    ("Pod", "/spec/ephemeralContainers/*/resources", "requests", "{}"),
];
const TEMPLATE: &str = "/spec/template/spec/resources";

/// What is there but empty, which is not the same as absent. Asked before Go's rules are applied.
pub(crate) struct Empty {
    /// A workload's selector.
    selector: bool,
    /// An autoscaler's policies, as [`POLICIES`] has them.
    policies: [bool; 2],
    /// Rows of [`TOLD_APART`], and where they apply.
    told_apart: Vec<(usize, String)>,
}

impl Empty {
    pub(crate) fn of(value: &Value, kind: &str) -> Self {
        let selector = matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
            && value.pointer("/spec/selector").and_then(Value::as_object).is_some_and(Map::is_empty);
        let no_policies = |rules: &str| {
            let policies = value.pointer(rules).and_then(|rules| rules.get("policies"));
            policies.and_then(Value::as_array).is_some_and(Vec::is_empty)
        };
        let rows = TOLD_APART.iter().enumerate().filter(|(_, row)| row.0 == kind);
        let told_apart = rows
            .flat_map(|(n, (_, at, name, empty))| {
                let there = places(value, at).into_iter().filter(|at| is_told_apart(value, at, name, empty));
                there.map(move |at| (n, at))
            })
            .collect();
        Self {
            selector,
            told_apart,
            policies: POLICIES.map(|rules| kind == "HorizontalPodAutoscaler" && no_policies(rules)),
        }
    }
}

/// Where a row applies: at as many places as the list has items that its star stands for.
fn places(value: &Value, at: &str) -> Vec<String> {
    let Some((list, rest)) = at.split_once("/*") else { return vec![at.to_owned()] };
    let items = value.pointer(list).and_then(Value::as_array).map_or(0, Vec::len);
    (0..items).map(|i| format!("{list}/{i}{rest}")).collect()
}

/// Whether the object at a place has an empty list or map that counts.
fn is_told_apart(value: &Value, at: &str, name: &str, empty: &str) -> bool {
    let given = |name| value.pointer(at)?.get(name).filter(|given: &&Value| !given.is_null());
    // Where an empty one is no fault, it is as good as absent.
    let counts = match name {
        "sharedCounters" => given("devices").is_some(),
        "devices" => given("sharedCounters").is_some(),
        "rules" => given("defaultBackend").is_none(),
        _ => true,
    };
    counts && given(name).is_some_and(|given| *given == hollow(empty))
}

/// Marks, in a body that Go's rules have been applied to, what the typed object would lose.
pub(crate) fn mark(value: &mut Value, kind: &str, empty: Empty) {
    absent_times(value, kind);
    empty_texts(value, kind);
    if empty.selector
        && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
    {
        // An empty selector is not an absent one, but the types crate has one value for both.
        let selector = spec.entry("selector").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(selector) = selector {
            selector.insert("matchLabels".to_owned(), Value::Object(Map::new()));
        }
    }
    for (n, at) in &empty.told_apart {
        let (_, _, name, of) = TOLD_APART[*n];
        put(value, at, name, hollow(of));
    }
    for (rules, empty) in POLICIES.iter().zip(empty.policies) {
        if empty && let Some(Value::Object(rules)) = value.pointer_mut(rules) {
            rules.insert("policies".to_owned(), Value::Array(Vec::new()));
        }
    }
}

/// An empty list or map.
fn hollow(of: &str) -> Value {
    if of == "[]" { Value::Array(Vec::new()) } else { Value::Object(Map::new()) }
}

/// Puts a value into the object at a place.
fn put(value: &mut Value, at: &str, name: &str, new: Value) {
    let mut place = value;
    for step in at.split('/').skip(1) {
        place = match place {
            Value::Object(map) => map.entry(step).or_insert_with(|| Value::Object(Map::new())),
            Value::Array(items) => match step.parse().ok().and_then(|i: usize| items.get_mut(i)) {
                Some(item) => item,
                None => return,
            },
            _ => return,
        };
    }
    if let Value::Object(map) = place {
        map.insert(name.to_owned(), new);
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

/// An empty text where the types crate requires one, which upstream tells from an absent one, and refuses.
pub(crate) const EMPTY_TEXT: &str = "\u{0}";

/// Marks empty texts that upstream does not take for absent.
fn empty_texts(value: &mut Value, kind: &str) {
    fn each<'v>(value: Option<&'v mut Value>, key: &str) -> impl Iterator<Item = &'v mut Value> {
        value.and_then(|v| v.get_mut(key)).and_then(Value::as_array_mut).into_iter().flatten()
    }
    let set = |text: Option<&mut Value>| {
        if let Some(text) = text.filter(|text| *text == "") {
            *text = EMPTY_TEXT.into();
        }
    };
    match kind {
        "Ingress" => {
            let rules = each(value.get_mut("spec"), "rules");
            rules
                .flat_map(|rule| each(rule.get_mut("http"), "paths"))
                .for_each(|p| set(p.get_mut("pathType")));
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            each(Some(value), "webhooks").for_each(|hook| set(hook.get_mut("sideEffects")));
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
    fn a_list_that_is_refused_although_empty_is_kept() {
        let body = json!({ "spec": { "template": { "spec": { "resources": { "claims": [] } } } } });
        let empty = Empty::of(&body, "Deployment");
        let mut value = json!({ "spec": { "template": { "spec": {} } } });
        mark(&mut value, "Deployment", empty);
        assert_eq!(value, body);
        let body = json!({ "spec": { "overhead": {} } });
        let mut value = json!({ "spec": {} });
        mark(&mut value, "Pod", Empty::of(&body, "Pod"));
        assert_eq!(value, body);
        let body = json!({ "spec": { "ephemeralContainers": [{}, { "ports": [], "resources": { "limits": {} } }] } });
        let mut value = json!({ "spec": { "ephemeralContainers": [{}, { "resources": {} }] } });
        mark(&mut value, "Pod", Empty::of(&body, "Pod"));
        assert_eq!(value, body);
        let mut value = json!({ "spec": {} });
        mark(&mut value, "Deployment", Empty::of(&json!({ "spec": {} }), "Deployment"));
        assert_eq!(value, json!({ "spec": {} }));
    }

    #[test]
    fn an_empty_text_is_told_from_an_absent_one() {
        let mut value = json!({ "webhooks": [{ "sideEffects": "" }, {}, { "sideEffects": "None" }] });
        empty_texts(&mut value, "MutatingWebhookConfiguration");
        let wanted = json!({ "webhooks": [{ "sideEffects": EMPTY_TEXT }, {}, { "sideEffects": "None" }] });
        assert_eq!(value, wanted);
    }

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
