//! One file per built-in kind: names, scope, defaulting, validation, update rules, columns, selectable
//! fields. Discovery, OpenAPI, tables, short names and garbage-collection lists are derived from [`all`].

use std::sync::LazyLock;

use coracle_meta::field::ErrorList;
use def::ResourceDef;
pub use gaps::show_absent_times;
use k8s_openapi::api::core::v1::Service;

mod address;
mod admissionregistration;
pub mod apiextensions;
mod apiregistration;
mod apps;
mod authentication;
mod authorization;
mod autoscaling;
mod batch;
mod certificates;
mod check;
mod common;
mod conditions;
mod coordination;
mod core;
pub mod custom;
pub mod def;
mod diff;
mod discovery;
mod events;
mod flowcontrol;
mod gaps;
mod go_dump;
mod networking;
mod node;
mod podspec;
mod policy;
mod rbac;
mod resource;
mod scheduling;
mod storage;
mod url;
pub mod version;

/// The groups, each with its kinds.
static GROUPS: &[&[&ResourceDef]] = &[
    core::KINDS,
    admissionregistration::KINDS,
    apiextensions::KINDS,
    apiregistration::KINDS,
    apps::KINDS,
    authentication::KINDS,
    authorization::KINDS,
    autoscaling::KINDS,
    batch::KINDS,
    certificates::KINDS,
    coordination::KINDS,
    discovery::KINDS,
    events::KINDS,
    flowcontrol::KINDS,
    networking::KINDS,
    node::KINDS,
    policy::KINDS,
    rbac::KINDS,
    resource::KINDS,
    scheduling::KINDS,
    storage::KINDS,
];

static ALL: LazyLock<Vec<&'static ResourceDef>> = LazyLock::new(|| GROUPS.concat());

/// Every built-in resource, group by group.
pub fn all() -> &'static [&'static ResourceDef] {
    &ALL
}

/// The resource of an API group (empty for core) by its plural name.
pub fn find(group: &str, plural: &str) -> Option<&'static ResourceDef> {
    ALL.iter().copied().find(|def| def.group == group && def.plural == plural)
}

/// Checks the addresses and IP families of a Service: the part of its validation that goes before their
/// allocation.
pub fn validate_cluster_ips(service: &Service, errs: &mut ErrorList) {
    core::validate_cluster_ips(service, errs);
}

pub use certificates::requested_organizations;

/// What every cluster has of these kinds: priority classes of the system, priority levels and flow schemas,
/// and the registrations of what is served here. In the order in which they are to be made.
pub fn bootstrap() -> Vec<serde_json::Value> {
    [scheduling::bootstrap(), flowcontrol::bootstrap(), apiregistration::bootstrap()].concat()
}

#[cfg(test)]
mod tests {
    use coracle_meta::field::ErrorList;
    use serde_json::json;

    use crate::def::Context;

    /// Folders that hold one file per kind.
    const FOLDERS: &[&str] = &[
        "admissionregistration",
        "apiextensions",
        "apiregistration",
        "apps",
        "authentication",
        "authorization",
        "autoscaling",
        "batch",
        "certificates",
        "coordination",
        "core",
        "discovery",
        "events",
        "flowcontrol",
        "networking",
        "node",
        "policy",
        "rbac",
        "resource",
        "scheduling",
        "storage",
    ];

    #[test]
    fn every_kind_has_one_file_and_one_row() {
        let src = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let mut files = Vec::new();
        for folder in FOLDERS {
            for entry in std::fs::read_dir(format!("{src}/{folder}")).expect("a folder of kinds") {
                let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
                files.extend(name.strip_suffix(".rs").map(|stem| format!("{folder}/{stem}")));
            }
        }
        let helpers = [
            "admissionregistration/matching",
            "admissionregistration/policy",
            "admissionregistration/webhook",
            "apiextensions/conditions",
            "apiextensions/internal",
            "apiextensions/props",
            "apiextensions/schema_rules",
            "apiextensions/shape",
            "apiextensions/spec",
            "apps/rolling",
            "apps/selector",
            "certificates/pem",
            "resource/claim_spec",
            "resource/device",
            "resource/shown",
        ]
        .map(str::to_owned);
        files.retain(|file| !helpers.contains(file));
        assert_eq!(files.len(), super::all().len(), "{files:?}");
    }

    #[test]
    fn rows_have_one_cell_per_column() {
        for def in super::all() {
            let body =
                json!({ "apiVersion": api_version(def), "kind": def.kind, "metadata": { "name": "a" } });
            let obj = def.strategy.decode(body).expect("an empty object decodes");
            let cells = def.strategy.row(obj.as_ref(), jiff::Timestamp::UNIX_EPOCH);
            // Upstream forgot the column of the last cell.
            let more = usize::from(def.kind == "IPAddress");
            assert_eq!(cells.len(), def.columns.len() + more, "{def:?}");
        }
    }

    fn api_version(def: &super::ResourceDef) -> String {
        if def.group.is_empty() { def.version.to_owned() } else { format!("{}/{}", def.group, def.version) }
    }

    /// Defaults, prepares and checks a new object; yields its JSON or the messages.
    fn create(group: &str, plural: &str, body: serde_json::Value) -> Result<serde_json::Value, String> {
        let def = super::find(group, plural).expect("a known resource");
        let mut obj = def.strategy.decode(body).map_err(|e| e.message().to_owned())?;
        def.strategy.default(obj.as_mut());
        def.strategy.prepare_create(Context::named("jane", jiff::Timestamp::UNIX_EPOCH), obj.as_mut());
        let mut errs = ErrorList::new();
        def.strategy.validate(obj.as_ref(), &mut errs);
        if errs.is_empty() { Ok(obj.to_value()) } else { Err(errs.aggregate()) }
    }

    #[test]
    fn a_plain_pod_gets_upstreams_defaults() {
        let pod = json!({ "metadata": { "name": "p" },
            "spec": { "containers": [
                { "name": "c", "image": "nginx:1", "ports": [{ "containerPort": 80 }] }] } });
        let made = create("", "pods", pod).expect("a valid pod");
        assert_eq!(made["status"], json!({ "phase": "Pending", "qosClass": "BestEffort" }));
        let spec = &made["spec"];
        assert_eq!(spec["enableServiceLinks"], json!(true));
        assert_eq!(spec["securityContext"], json!({}));
        assert_eq!(spec["containers"][0]["imagePullPolicy"], json!("IfNotPresent"));
        assert_eq!(spec["containers"][0]["ports"], json!([{ "containerPort": 80, "protocol": "TCP" }]));
    }

    #[test]
    fn faults_of_a_pod_are_all_reported() {
        let pod = json!({ "metadata": { "name": "p" },
            "spec": { "restartPolicy": "Sometimes", "containers": [{ "name": "C", "image": "" }] } });
        let why = create("", "pods", pod).expect_err("an invalid pod");
        assert!(why.contains("spec.containers[0].image: Required value"), "{why}");
        let supported = "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \
            \"Always\", \"OnFailure\", \"Never\"";
        assert!(why.contains(supported), "{why}");
    }

    #[test]
    fn a_deployments_selector_must_match_its_template() {
        let deployment = json!({ "metadata": { "name": "d" }, "spec": {
            "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "c" } },
                          "spec": { "containers": [{ "name": "c", "image": "x" }] } } } });
        let why = create("apps", "deployments", deployment).expect_err("labels differ");
        let expected = "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not \
            match template `labels`";
        assert_eq!(why, expected);
    }
}
