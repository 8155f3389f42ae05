//! Brings a decoded JSON value into the form that upstream's Go types give it: empty strings, lists and maps,
//! `false` and 0 count as absent where the Go field is no pointer, and `null` in lists and maps is the zero
//! value.

use serde_json::Value;

/// Optional strings that are pointers in Go: an empty one stays.
const POINTER_STRINGS: &[&str] = &[
    "apiGroup",
    "appProtocol",
    "cachingMode",
    "credentialBundlePath",
    "fsGroupChangePolicy",
    "gmsaCredentialSpec",
    "gmsaCredentialSpecName",
    "holderIdentity",
    "hostnameOverride",
    "initiatorName",
    "internalTrafficPolicy",
    "ipFamilyPolicy",
    "ipMode",
    "loadBalancerClass",
    "localhostProfile",
    "mountPropagation",
    "preemptionPolicy",
    "preferredHolder",
    "procMount",
    "recursiveReadOnly",
    "resourceClaimName",
    "resourceClaimTemplateName",
    "restartPolicy",
    "runAsUserName",
    "runtimeClassName",
    "seLinuxChangePolicy",
    "service",
    "signerName",
    "storageClassName",
    "strategy",
    "supplementalGroupsPolicy",
    "trafficDistribution",
    "volumeAttributesClassName",
    "volumeMode",
    "zone",
];

/// Maps from text to text or amounts: their entries are data, not fields.
const MAPS: &[&str] = &[
    "allocatable",
    "allocatedResources",
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "deprecatedTopology",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "overhead",
    "requests",
    "stringData",
    "userAnnotations",
    "volumeAttributes",
];

/// Optional booleans that are no pointers in Go.
const PLAIN_BOOLS: &[&str] = &[
    "chapAuthDiscovery",
    "chapAuthSession",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "sslEnabled",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];

/// Optional numbers that are no pointers in Go.
const PLAIN_NUMBERS: &[&str] = &[
    "availableReplicas",
    "fullyLabeledReplicas",
    "healthCheckNodePort",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "partition",
    "readyReplicas",
    "unavailableReplicas",
    "updatedReplicas",
];

/// Lists of text, where `null` stands for the empty text.
const TEXT_LISTS: &[&str] = &[
    "accessModes",
    "addresses",
    "apiGroups",
    "args",
    "audiences",
    "clusterIPs",
    "command",
    "externalIPs",
    "finalizers",
    "groups",
    "hostnames",
    "ipFamilies",
    "loadBalancerSourceRanges",
    "matchLabelKeys",
    "mismatchLabelKeys",
    "monitors",
    "nameservers",
    "namespaces",
    "nonResourceURLs",
    "podCIDRs",
    "portals",
    "resourceNames",
    "resources",
    "searches",
    "targetWWNs",
    "values",
    "verbs",
    "wwids",
];

fn within(list: &[&str], key: &str) -> bool {
    list.binary_search(&key).is_ok()
}

/// Tidies a whole object of the given kind.
pub(crate) fn object(value: &mut Value, kind: &str) {
    // A service's selector is a map; elsewhere the word means a structure.
    if matches!(kind, "Service" | "ReplicationController")
        && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(selector) = spec.get_mut("selector")
    {
        map(selector);
        if selector.as_object().is_some_and(serde_json::Map::is_empty) {
            spec.remove("selector");
        }
        let kept = spec.remove("selector");
        fields(value, "");
        if let (Some(kept), Some(spec)) = (kept, value.get_mut("spec").and_then(Value::as_object_mut)) {
            spec.insert("selector".to_owned(), kept);
        }
        return;
    }
    fields(value, "");
    absent_times(value, kind);
    // An empty selector is not an absent one, but the types crate has one value for both.
    if matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        && let Some(selector) = value.pointer_mut("/spec/selector").and_then(Value::as_object_mut)
        && selector.is_empty()
    {
        selector.insert("matchLabels".to_owned(), Value::Object(serde_json::Map::new()));
    }
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

/// The entries of a map: null is the empty text.
fn map(value: &mut Value) {
    for entry in value.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        if entry.is_null() {
            *entry = "".into();
        }
    }
}

/// The fields of a structure, or the items of the list `key`.
fn fields(value: &mut Value, key: &str) {
    match value {
        Value::Object(object) => {
            object.retain(|key, field| {
                if within(MAPS, key) && field.is_object() {
                    map(field);
                } else if key != "managedFields" {
                    fields(field, key);
                }
                keep(key, field)
            });
        }
        Value::Array(items) => {
            for item in items {
                if item.is_null() {
                    *item =
                        if within(TEXT_LISTS, key) { "".into() } else { Value::Object(Default::default()) };
                }
                fields(item, key);
            }
        }
        _ => {}
    }
}

fn keep(key: &str, field: &Value) -> bool {
    match field {
        Value::String(text) => !text.is_empty() || within(POINTER_STRINGS, key),
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty() || !within(MAPS, key),
        Value::Bool(flag) => *flag || !within(PLAIN_BOOLS, key),
        Value::Number(number) => number.as_i64() != Some(0) || !within(PLAIN_NUMBERS, key),
        Value::Null => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn lists_are_sorted_for_search() {
        for list in
            [super::POINTER_STRINGS, super::MAPS, super::PLAIN_BOOLS, super::PLAIN_NUMBERS, super::TEXT_LISTS]
        {
            assert!(list.is_sorted(), "{list:?}");
        }
    }

    #[test]
    fn empty_values_count_as_absent_unless_they_are_data() {
        let mut value = json!({
            "metadata": { "labels": {}, "annotations": { "a": "" }, "generateName": "" },
            "spec": { "selector": {}, "tolerations": [], "hostNetwork": false, "securityContext": {},
                      "containers": [{ "args": [null], "name": "c" }], "preemptionPolicy": "" },
        });
        super::object(&mut value, "Pod");
        let expected = json!({
            "metadata": { "annotations": { "a": "" } },
            "spec": { "selector": {}, "securityContext": {}, "containers": [{ "args": [""], "name": "c" }],
                      "preemptionPolicy": "" },
        });
        assert_eq!(value, expected);
    }
}
