//! Discovery with extension servers: their groups and versions among those of this server, in the order that
//! APIServices ask for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::names::compare_versions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::{Value, json};

use super::{Extension, GROUP, api_services};
use crate::server::Server;

/// Where the two forms of a group have what.
struct Form {
    /// Pointer to the name.
    name: &'static str,
    /// Makes an empty group.
    empty: fn(&str) -> Value,
    /// What a version is without anything else.
    version: fn(&Extension) -> Value,
}

/// As in `/apis`.
const PLAIN: Form = Form {
    name: "/name",
    empty: |group| json!({ "name": group, "versions": [] }),
    version: |e| json!({ "groupVersion": format!("{}/{}", e.group, e.version), "version": e.version }),
};

/// As in aggregated discovery.
const AGGREGATED: Form = Form {
    name: "/metadata/name",
    empty: |group| json!({ "metadata": { "name": group }, "versions": [] }),
    version: |e| {
        let learned = e.learned.read();
        let none = || json!({ "version": e.version });
        let mut version = learned.version.clone().unwrap_or_else(none);
        let fresh = learned.fresh && e.available;
        version["freshness"] = if fresh { "Current" } else { "Stale" }.into();
        version
    },
};

/// The groups of `/apis` with those of extension servers.
pub(crate) fn groups(server: &Server, groups: Vec<Value>) -> Vec<Value> {
    let mut all = merged(server, groups, &PLAIN);
    prefer(&mut all);
    all
}

/// The groups of aggregated discovery with those of extension servers.
pub(crate) fn aggregated(server: &Server, groups: Vec<Value>) -> Vec<Value> {
    merged(server, groups, &AGGREGATED)
}

/// One group of `/apis` with its versions on extension servers; `own` is what this server serves of it.
pub(crate) fn group(server: &Server, name: &str, own: Option<Value>) -> Option<Value> {
    if !server.aggregation.routes().has_group(name) {
        return own;
    }
    let mut all = merged(server, own.into_iter().collect(), &PLAIN);
    prefer(&mut all);
    all.into_iter().find(|g| g["name"] == name)
}

/// The first version of a group is preferred.
fn prefer(groups: &mut [Value]) {
    for group in groups {
        group["preferredVersion"] = group["versions"][0].clone();
    }
}

fn merged(server: &Server, mut groups: Vec<Value>, form: &Form) -> Vec<Value> {
    let routes = server.aggregation.routes();
    if routes.is_empty() {
        return groups;
    }
    let name_of = |group: &Value| group.pointer(form.name).and_then(Value::as_str).unwrap_or("").to_owned();
    for extension in routes.extensions() {
        let at = groups.iter().position(|g| name_of(g) == extension.group).unwrap_or_else(|| {
            groups.push((form.empty)(&extension.group));
            groups.len() - 1
        });
        let Some(versions) = groups[at]["versions"].as_array_mut() else { continue };
        versions.retain(|v| v["version"] != extension.version.as_str());
        versions.push((form.version)(extension));
    }
    let order = Order::new(&api_services(&*server.cache));
    for group in &mut groups {
        let name = name_of(group);
        if let Some(versions) = group["versions"].as_array_mut() {
            let text = |v: &Value| v["version"].as_str().unwrap_or("").to_owned();
            versions.sort_by(|a, b| order.versions(&name, &text(a), &text(b)));
        }
    }
    groups.sort_by_cached_key(|group| order.group(&name_of(group)));
    groups
}

/// The order that APIServices ask for.
struct Order {
    /// Highest priority of a group's APIServices, and the name of the first that has it.
    groups: BTreeMap<String, (Reverse<i32>, String)>,
    versions: BTreeMap<(String, String), i32>,
}

impl Order {
    fn new(services: &[Arc<APIService>]) -> Self {
        let mut order = Self { groups: BTreeMap::new(), versions: BTreeMap::new() };
        for service in services {
            let Some(spec) = &service.spec else { continue };
            let group = spec.group.clone().unwrap_or_default();
            let rank =
                (Reverse(spec.group_priority_minimum), service.metadata.name.clone().unwrap_or_default());
            let best = order.groups.entry(group.clone()).or_insert_with(|| rank.clone());
            if rank < *best {
                *best = rank;
            }
            order.versions.insert((group, spec.version.clone().unwrap_or_default()), spec.version_priority);
        }
        order
    }

    /// A group's place: its own group comes first, one that no APIService names last.
    fn group(&self, group: &str) -> (Reverse<i32>, String) {
        if group == GROUP {
            return (Reverse(i32::MAX), String::new());
        }
        let last = || (Reverse(0), group.to_owned());
        self.groups.get(group).cloned().unwrap_or_else(last)
    }

    fn versions(&self, group: &str, a: &str, b: &str) -> std::cmp::Ordering {
        let of =
            |version: &str| self.versions.get(&(group.to_owned(), version.to_owned())).copied().unwrap_or(0);
        of(b).cmp(&of(a)).then_with(|| compare_versions(b, a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_versions_stand_by_priority_then_by_name() {
        let service = |name: &str, group: i32, version: i32| {
            let (v, g) = name.split_once('.').expect("a version and a group");
            Arc::new(
                serde_json::from_value(
                    json!({ "metadata": { "name": name }, "spec": { "group": g, "version": v,
                    "groupPriorityMinimum": group, "versionPriority": version } }),
                )
                .expect("an APIService"),
            )
        };
        let order = Order::new(&[
            service("v1.apps", 17800, 15),
            service("v1alpha1.b", 2000, 15),
            service("v1.a", 1000, 15),
            service("v2.b", 1500, 10),
            service("v1beta1.b", 1500, 15),
        ]);
        let mut groups = ["a", "unknown", "b", "apps", GROUP];
        groups.sort_by_key(|g| order.group(g));
        assert_eq!(groups, [GROUP, "apps", "b", "a", "unknown"]);
        let mut versions = ["v2", "v1alpha1", "v1beta1"];
        versions.sort_by(|a, b| order.versions("b", a, b));
        assert_eq!(versions, ["v1beta1", "v1alpha1", "v2"]);
    }
}
