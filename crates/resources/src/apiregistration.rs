//! The `apiregistration.k8s.io` group, `v1`, and the objects for what this server serves itself.

mod api_service;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&api_service::DEF];

/// Label of the objects that the server makes at its start.
const AUTO_MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Group, version, priority of the group and of the version, as upstream ranks what it serves itself.
const PRIORITIES: &[(&str, &str, i32, i32)] = &[
    ("", "v1", 18000, 1),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("apps", "v1", 17800, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("networking.k8s.io", "v1", 17200, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("resource.k8s.io", "v1", 16200, 21),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("storage.k8s.io", "v1", 16800, 15),
];

/// The APIServices of what is served here; the aggregator's own group has none.
pub(crate) fn bootstrap() -> Vec<Value> {
    let served: BTreeSet<(&str, &str)> = crate::all().iter().map(|def| (def.group, def.version)).collect();
    let ours = PRIORITIES.iter().filter(|(group, version, ..)| served.contains(&(*group, *version)));
    ours.map(|(group, version, of_group, of_version)| {
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": { "name": format!("{version}.{group}"), "labels": { AUTO_MANAGED: "onstart" } },
            "spec": { "group": group, "version": version,
                      "groupPriorityMinimum": of_group, "versionPriority": of_version },
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_group_version_served_has_its_object() {
        let names: Vec<String> = super::bootstrap()
            .iter()
            .filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        for def in crate::all().iter().filter(|def| def.group != "apiregistration.k8s.io") {
            let name = format!("{}.{}", def.version, def.group);
            assert!(names.contains(&name), "{name}");
        }
    }
}
