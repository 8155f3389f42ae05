//! Tests of the documents, and of the compiled schemas against every built-in kind.

use super::*;

fn defs() -> &'static [&'static ResourceDef] {
    coracle_resources::all()
}

#[test]
fn every_kind_has_a_compiled_schema() {
    let schemas = builtin_schemas(defs());
    for def in defs() {
        let structure = schemas.structure(&type_name(def)).unwrap_or_else(|| panic!("{def:?} has no schema"));
        assert!(structure.field("kind").is_some(), "{def:?}");
    }
}

#[test]
fn references_of_the_documents_resolve() {
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }
    let mut documents = vec![v2(defs(), "v1.36.0")];
    documents
        .extend(group_versions(defs()).into_iter().filter_map(|(group, version)| v3(defs(), group, version)));
    for document in documents {
        let mut found = Vec::new();
        references(&document, &mut found);
        found.sort();
        found.dedup();
        assert!(!found.is_empty());
        for target in found {
            let pointer = target.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }
}

#[test]
fn patch_operations_state_their_kind_and_parameters() {
    let document = v3(defs(), "apps", "v1").expect("apps/v1");
    let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let expected = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    assert_eq!(path["x-kubernetes-group-version-kind"], expected);
    let names: Vec<&str> =
        path["parameters"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(path["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    let strategy =
        &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert!(strategy["description"].is_string());
}

#[test]
fn index_lists_each_group_version_with_a_hash() {
    let index = v3_index(defs());
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("url");
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    assert!(v3(defs(), "nope", "v1").is_none());
}
