//! Custom resources from the definition on: served at run time, pruned, defaulted, validated, converted, and gone
//! with their definition.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use coracle_store::{MemoryStore, Store};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Answer, Cluster};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.example.com";
const V1: &str = "/apis/example.com/v1/namespaces/default/things";
const V2: &str = "/apis/example.com/v2/namespaces/default/things";

fn schema(spec: Value) -> Value {
    json!({ "openAPIV3Schema": { "type": "object", "properties": {
        "spec": spec, "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } } })
}

fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({ "name": name, "served": true, "storage": storage, "schema": schema(spec) })
}

fn definition(versions: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced", "versions": versions,
                  "names": { "kind": "Thing", "plural": "things", "shortNames": ["th"] } },
    })
}

fn plain() -> Value {
    json!({ "type": "object", "properties": { "a": { "type": "string", "maxLength": 5 },
        "n": { "type": "integer", "default": 7 } } })
}

fn thing(api_version: &str, spec: Value) -> Value {
    json!({ "apiVersion": api_version, "kind": "Thing", "metadata": { "name": "t" }, "spec": spec })
}

/// Asks until the answer has the code.
async fn until(cluster: &Cluster, path: &str, code: StatusCode) -> Answer {
    for _ in 0..4000 {
        let answer = cluster.get(path).await;
        if answer.code == code {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path} never answered {code}");
}

async fn defined(versions: Value) -> Cluster {
    let cluster = Cluster::start().await;
    let made = cluster.post(DEFINITIONS, &definition(versions)).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    until(&cluster, V1, StatusCode::OK).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definition_is_established_and_published() {
    let cluster = defined(json!([version("v1", true, plain())])).await;
    let crd = cluster.get(CRD).await.json();
    let conditions: Vec<&str> =
        crd["status"]["conditions"].as_array().unwrap().iter().filter_map(|c| c["type"].as_str()).collect();
    assert_eq!(conditions, ["NamesAccepted", "Established"]);
    assert_eq!(crd["status"]["acceptedNames"]["listKind"], "ThingList");
    let resources = cluster.get("/apis/example.com/v1").await.json();
    assert_eq!(resources["resources"][0]["shortNames"], json!(["th"]));
    let document = cluster.get("/openapi/v3/apis/example.com/v1").await.json();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["com.example.v1.Thing"]["properties"]["spec"]["properties"]["n"]["default"], 7);
    let v2 = cluster.get("/openapi/v2").await.json();
    assert!(v2["definitions"].get("com.example.v1.ThingList").is_some());
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.com";
    until(&cluster, service, StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_pruned_defaulted_and_validated() {
    let cluster = defined(json!([version("v1", true, plain())])).await;
    let made = cluster.post(V1, &thing("example.com/v1", json!({ "a": "x", "zzz": 1 }))).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    assert_eq!(made.headers["warning"], "299 - \"unknown field \\\"spec.zzz\\\"\"");
    assert_eq!(made.json()["spec"], json!({ "a": "x", "n": 7 }));
    assert_eq!(made.json()["metadata"]["generation"], 1);
    let patch = json!({ "spec": { "a": "too long" } });
    let refused = cluster.patch(&format!("{V1}/t"), "merge-patch+json", &patch).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY);
    let why = "Thing.example.com \"t\" is invalid: spec.a: Too long: may not be more than 5 bytes";
    assert_eq!(refused.json()["message"], why);
    let strategic = cluster.patch(&format!("{V1}/t"), "strategic-merge-patch+json", &json!({})).await;
    assert_eq!(strategic.code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let applied = thing("example.com/v1", json!({ "a": "y" }));
    let applied =
        cluster.patch(&format!("{V1}/t?fieldManager=m&force=true"), "apply-patch+yaml", &applied).await;
    assert_eq!(applied.json()["metadata"]["generation"], 2, "{}", applied.json());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_show_what_their_schema_has() {
    let second = json!({ "type": "object", "properties": { "a": { "type": "string" } } });
    let cluster = defined(json!([version("v1", true, plain()), version("v2", false, second)])).await;
    let made = cluster.post(V2, &thing("example.com/v2", json!({ "a": "x" }))).await;
    assert_eq!(made.json()["apiVersion"], "example.com/v2", "{}", made.json());
    let first = cluster.get(&format!("{V1}/t")).await.json();
    assert_eq!((&first["apiVersion"], &first["spec"]["n"]), (&json!("example.com/v1"), &json!(7)));
    let list = cluster.get(V2).await.json();
    assert_eq!((&list["kind"], &list["items"][0]["spec"]), (&json!("ThingList"), &json!({ "a": "x" })));
    let put = json!({ "spec": { "a": "z" } });
    let changed = cluster.patch(&format!("{V2}/t"), "merge-patch+json", &put).await;
    assert_eq!(changed.json()["spec"], json!({ "a": "z" }), "{}", changed.json());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_a_version_that_is_not_stored_select() {
    let fields = || json!({ "type": "object", "properties": { "a": { "type": "string" } } });
    let mut second = version("v2", false, fields());
    // As upstream, whose check forgets a schema that all versions share.
    second["schema"]["openAPIV3Schema"]["description"] = "another".into();
    second["selectableFields"] = json!([{ "jsonPath": ".spec.a" }]);
    let cluster = defined(json!([version("v1", true, fields()), second])).await;
    for (name, a) in [("one", "x"), ("two", "y"), ("three", "x")] {
        let mut made = thing("example.com/v2", json!({ "a": a }));
        made["metadata"]["name"] = name.into();
        cluster.post(V2, &made).await;
    }
    let names = |list: Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().into())
            .collect()
    };
    let selected = cluster.get(&format!("{V2}?fieldSelector=spec.a=x")).await.json();
    assert_eq!(names(selected), ["one", "three"]);
    let page = cluster.get(&format!("{V2}?fieldSelector=spec.a=x&limit=1")).await.json();
    let rest = page["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(names(page), ["one"]);
    let page = cluster.get(&format!("{V2}?fieldSelector=spec.a=x&limit=1&continue={rest}")).await.json();
    assert_eq!(names(page), ["three"]);
    let refused = cluster.get(&format!("{V1}?fieldSelector=spec.a=x")).await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST, "not a field of v1");
    let from = cluster.get(V2).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    for (name, a) in [("one", "y"), ("two", "z"), ("three", "x")] {
        let change = json!({ "metadata": { "labels": { "changed": "yes" } }, "spec": { "a": a } });
        cluster.patch(&format!("{V2}/{name}"), "merge-patch+json", &change).await;
    }
    let watch = format!("{V2}?watch=1&fieldSelector=spec.a=x&resourceVersion={from}&timeoutSeconds=1");
    let watched = cluster.get(&watch).await;
    let events = String::from_utf8(watched.bytes.to_vec()).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = events
        .iter()
        .map(|e| (e["type"].as_str().unwrap(), e["object"]["metadata"]["name"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("DELETED", "one"), ("MODIFIED", "three")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_schema_counts_for_what_is_stored() {
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let cluster = defined(json!([version("v1", true, open)])).await;
    cluster.post(V1, &thing("example.com/v1", json!({ "z": 1 }))).await;
    let mut crd = cluster.get(CRD).await.json();
    crd["spec"]["versions"] = json!([version("v1", true, plain())]);
    let headers = [("content-type", "application/json")];
    let changed = cluster.send(Method::PUT, CRD, &headers, &crd.to_string()).await;
    assert_eq!(changed.code, StatusCode::OK, "{}", changed.json());
    assert_eq!(cluster.get(&format!("{V1}/t")).await.json()["spec"], json!({ "n": 7 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_are_served_again_after_a_restart() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let first = Cluster::over(store.clone()).await;
    first.post(DEFINITIONS, &definition(json!([version("v1", true, plain())]))).await;
    until(&first, V1, StatusCode::OK).await;
    first.post(V1, &thing("example.com/v1", json!({ "a": "x" }))).await;
    let second = Cluster::over(store).await;
    let found = second.get(&format!("{V1}/t")).await;
    assert_eq!((found.code, &found.json()["spec"]["a"]), (StatusCode::OK, &json!("x")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_definition_takes_its_objects_along() {
    let cluster = defined(json!([version("v1", true, plain())])).await;
    cluster.post(V1, &thing("example.com/v1", json!({}))).await;
    let gone = cluster.delete(CRD).await.json();
    let told =
        gone["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Terminating").cloned();
    assert_eq!(told.unwrap()["reason"], "InstanceDeletionPending");
    until(&cluster, CRD, StatusCode::NOT_FOUND).await;
    until(&cluster, V1, StatusCode::NOT_FOUND).await;
    // The next definition of that name begins without objects.
    cluster.post(DEFINITIONS, &definition(json!([version("v1", true, plain())]))).await;
    let list = until(&cluster, V1, StatusCode::OK).await.json();
    assert_eq!(list["items"], json!([]));
}

#[test]
fn hostile_schemas_are_refused_or_bounded() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Unoptimized frames are large.
    let runtime = runtime.worker_threads(2).enable_all().thread_stack_size(8 << 20).build();
    runtime.expect("a runtime").block_on(hostile_schemas());
}

async fn hostile_schemas() {
    let cluster = Cluster::start().await;
    let bomb = json!({ "type": "object", "properties": {
        "p": { "type": "string", "pattern": "((a{1000}){1000}){1000}" } } });
    let refused = cluster.post(DEFINITIONS, &definition(json!([version("v1", true, bomb)]))).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY);
    let mut deep = json!({ "type": "string" });
    for _ in 0..500 {
        deep = json!({ "type": "object", "properties": { "p": deep } });
    }
    let refused = cluster.post(DEFINITIONS, &definition(json!([version("v1", true, deep)]))).await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{}", refused.json());
    let wide: serde_json::Map<String, Value> = (0..4000)
        .map(|i| (format!("f{i}"), json!({ "type": "string", "description": "x".repeat(100) })))
        .collect();
    let wide = json!({ "type": "object", "properties": wide });
    let made = cluster.post(DEFINITIONS, &definition(json!([version("v1", true, wide)]))).await;
    assert_eq!(made.code, StatusCode::CREATED);
    until(&cluster, V1, StatusCode::OK).await;
    let made = cluster.post(V1, &thing("example.com/v1", json!({ "f3999": "y" }))).await;
    assert_eq!(made.json()["spec"]["f3999"], "y");
}
