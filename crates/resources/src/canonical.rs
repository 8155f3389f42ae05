//! Brings a decoded JSON value into the form that upstream's Go types give it: empty strings, lists and maps,
//! `false` and 0 count as absent where the Go field is no pointer, and `null` in lists and maps is the zero
//! value.

use serde_json::Value;

/// Optional strings that are pointers in Go: an empty one stays.
const POINTER_STRINGS: &[&str] = &[
    "apiGroup",
    "appProtocol",
    "cachingMode",
    "capacityKey",
    "credentialBundlePath",
    "distinctAttribute",
    "extendedResourceName",
    "failurePolicy",
    "fsGroupChangePolicy",
    "fsGroupPolicy",
    "gmsaCredentialSpec",
    "gmsaCredentialSpecName",
    "holderIdentity",
    "hostnameOverride",
    "ingressClassName",
    "initiatorName",
    "internalTrafficPolicy",
    "ipFamilyPolicy",
    "ipMode",
    "loadBalancerClass",
    "localhostProfile",
    "matchAttribute",
    "matchPolicy",
    "mountPropagation",
    "persistentVolumeName",
    "preemptionPolicy",
    "preferredHolder",
    "procMount",
    "reclaimPolicy",
    "recursiveReadOnly",
    "reinvocationPolicy",
    "resourceClaimName",
    "resourceClaimTemplateName",
    "restartPolicy",
    "runAsUserName",
    "runtimeClassName",
    "scope",
    "seLinuxChangePolicy",
    "service",
    "shareID",
    "signerName",
    "storageClassName",
    "strategy",
    "supplementalGroupsPolicy",
    "trafficDistribution",
    "volumeAttributesClassName",
    "volumeBindingMode",
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

/// Names that stand for a map in these kinds only.
const MAPS_OF: &[(&str, &str)] = &[
    ("StorageClass", "parameters"),
    ("VolumeAttachment", "attachmentMetadata"),
    ("VolumeAttributesClass", "parameters"),
];

/// Structures whose name is that of a map in other kinds.
const NO_MAPS_OF: &[(&str, &str)] = &[
    ("ResourceClaim", "capacity"),
    ("ResourceClaim", "nodeSelector"),
    ("ResourceClaimTemplate", "capacity"),
    ("ResourceSlice", "capacity"),
    ("ResourceSlice", "nodeSelector"),
    ("RuntimeClass", "overhead"),
];

/// JSON of any content, which stays as it is.
const RAW_OF: &[(&str, &str)] = &[
    ("DeviceClass", "parameters"),
    ("ResourceClaim", "data"),
    ("ResourceClaim", "parameters"),
    ("ResourceClaimTemplate", "parameters"),
];

/// Strings that are pointers in these kinds only.
const POINTER_STRINGS_OF: &[(&str, &str)] = &[
    ("IngressClass", "namespace"),
    ("MutatingWebhookConfiguration", "url"),
    ("ResourceSlice", "nodeName"),
    ("ResourceSlice", "string"),
    ("ResourceSlice", "version"),
    ("ValidatingAdmissionPolicy", "reason"),
    ("ValidatingWebhookConfiguration", "url"),
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
    "admissionReviewVersions",
    "apiGroups",
    "apiVersions",
    "args",
    "audiences",
    "bindingConditions",
    "bindingFailureConditions",
    "cidrs",
    "clusterIPs",
    "command",
    "except",
    "externalIPs",
    "finalizers",
    "groups",
    "hostnames",
    "hosts",
    "ipFamilies",
    "ips",
    "loadBalancerSourceRanges",
    "matchLabelKeys",
    "mismatchLabelKeys",
    "monitors",
    "mountOptions",
    "nameservers",
    "namespaces",
    "nonResourceURLs",
    "operations",
    "podCIDRs",
    "policyTypes",
    "portals",
    "requests",
    "resourceNames",
    "resources",
    "searches",
    "strings",
    "targetWWNs",
    "topologyKeys",
    "usages",
    "validationActions",
    "values",
    "verbs",
    "versions",
    "volumeLifecycleModes",
    "wwids",
];

fn within(list: &[&str], key: &str) -> bool {
    list.binary_search(&key).is_ok()
}

/// Tidies a whole object of the given kind.
pub(crate) fn object(value: &mut Value, kind: &str) {
    // A service's selector is a map; elsewhere the word means a structure.
    if kind == "Service"
        && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(selector) = spec.get_mut("selector")
    {
        map(selector);
        if selector.as_object().is_some_and(serde_json::Map::is_empty) {
            spec.remove("selector");
        }
        let kept = spec.remove("selector");
        fields(value, "", kind);
        if let (Some(kept), Some(spec)) = (kept, value.get_mut("spec").and_then(Value::as_object_mut)) {
            spec.insert("selector".to_owned(), kept);
        }
        return;
    }
    // Whether the reference is there at all matters, and an empty one would count as none.
    let parent =
        (kind == "IPAddress").then(|| value.pointer("/spec/parentRef").is_some_and(Value::is_object));
    fields(value, "", kind);
    if parent == Some(true)
        && let Some(Value::Object(parent)) = value.pointer_mut("/spec/parentRef")
    {
        parent.entry("group").or_insert_with(|| "".into());
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
fn fields(value: &mut Value, key: &str, kind: &str) {
    match value {
        Value::Object(object) => {
            object.retain(|key, field| {
                if RAW_OF.contains(&(kind, key)) {
                    return true;
                }
                if is_map(kind, key) && field.is_object() {
                    map(field);
                } else if key != "managedFields" {
                    fields(field, key, kind);
                }
                keep(key, field, kind)
            });
        }
        Value::Array(items) => {
            for item in items {
                if item.is_null() {
                    *item =
                        if within(TEXT_LISTS, key) { "".into() } else { Value::Object(Default::default()) };
                }
                fields(item, key, kind);
            }
        }
        _ => {}
    }
}

/// Whether the name stands for a map of data in this kind.
fn is_map(kind: &str, key: &str) -> bool {
    if within(MAPS, key) { !NO_MAPS_OF.contains(&(kind, key)) } else { MAPS_OF.contains(&(kind, key)) }
}

fn keep(key: &str, field: &Value, kind: &str) -> bool {
    match field {
        Value::String(text) => {
            !text.is_empty() || within(POINTER_STRINGS, key) || POINTER_STRINGS_OF.contains(&(kind, key))
        }
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty() || !is_map(kind, key),
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
