//! Rules of single fields that only a whole request shows, as upstream answers it: what is dropped, doubled, forbidden
//! in its namespace, or named by a patch that nobody knows.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use coracle_store::MemoryStore;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Answer, Cluster};

const NAMESPACE: &str = "/api/v1/namespaces/default";

async fn cluster() -> Cluster {
    Cluster::with(MemoryStore::new(), |config| config.admission = coracle_admission::plugins()).await
}

fn pod(container: Value) -> Value {
    let mut container = container;
    container["name"] = "a".into();
    container["image"] = "x".into();
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "serviceAccountName": "default", "containers": [container] } })
}

async fn service_account(cluster: &Cluster) {
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let made = cluster.post(&format!("{NAMESPACE}/serviceaccounts"), &account).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
}

/// Field and message of each cause.
#[track_caller]
fn causes(answer: &Answer) -> Vec<(String, String)> {
    let status = answer.json();
    assert_eq!(answer.code, StatusCode::UNPROCESSABLE_ENTITY, "{status}");
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let all = status["details"]["causes"].as_array().unwrap();
    all.iter().map(|cause| (text(&cause["field"]), text(&cause["message"]))).collect()
}

#[track_caller]
fn check_causes(answer: &Answer, want: &[(&str, &str)]) {
    let got = causes(answer);
    let got: Vec<(&str, &str)> = got.iter().map(|(field, why)| (field.as_str(), why.as_str())).collect();
    assert_eq!(got, want);
}

fn warnings(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_signal_is_not_kept_but_owned_by_who_sent_it() {
    let cluster = cluster().await;
    service_account(&cluster).await;
    let made = cluster
        .post(&format!("{NAMESPACE}/pods"), &pod(json!({ "lifecycle": { "stopSignal": "SIGTERM" } })))
        .await;
    let made = made.json();
    assert_eq!(made["spec"]["containers"][0].get("lifecycle"), None, "{made}");
    let owned =
        made.pointer("/metadata/managedFields/0/fieldsV1/f:spec/f:containers/k:{\"name\":\"a\"}/f:lifecycle");
    assert_eq!(owned, Some(&json!({ ".": {}, "f:stopSignal": {} })));
}

#[tokio::test(flavor = "multi_thread")]
async fn doubled_ports_are_refused_or_warned_of() {
    let cluster = cluster().await;
    service_account(&cluster).await;
    let pods = format!("{NAMESPACE}/pods?dryRun=All");
    let named =
        pod(json!({ "ports": [{ "containerPort": 80, "name": "a" }, { "containerPort": 81, "name": "a" }] }));
    check_causes(
        &cluster.post(&pods, &named).await,
        &[("spec.containers[0].ports[1].name", "Duplicate value: \"a\"")],
    );
    let on_host = pod(
        json!({ "ports": [{ "containerPort": 80, "hostPort": 80 }, { "containerPort": 81, "hostPort": 80 }] }),
    );
    check_causes(
        &cluster.post(&pods, &on_host).await,
        &[("spec.containers[0].ports[1].hostPort", "Duplicate value: \"TCP//80\"")],
    );
    let same = pod(json!({ "ports": [{ "containerPort": 80 }, { "containerPort": 80 }] }));
    let answer = cluster.post(&pods, &same).await;
    assert_eq!(answer.code, StatusCode::CREATED);
    let warned =
        "299 - \"spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]\"";
    assert_eq!(warnings(&answer), [warned]);

    let services = format!("{NAMESPACE}/services?dryRun=All");
    let service = |ports: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" }, "spec": { "ports": ports } });
    let twice = service(json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 80 }]));
    // The field's internal form, which has no names of JSON.
    let value = "{\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}";
    check_causes(
        &cluster.post(&services, &twice).await,
        &[("spec.ports[1]", &format!("Duplicate value: {value}"))],
    );
    let named = service(json!([{ "name": "a", "port": 80 }, { "name": "a", "port": 81 }]));
    check_causes(&cluster.post(&services, &named).await, &[("spec.ports[1].name", "Duplicate value: \"a\"")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_access_to_devices_is_for_namespaces_that_are_labelled_for_it() {
    let cluster = cluster().await;
    let claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let requests = json!([{ "name": "r", "exactly": { "deviceClassName": "c", "adminAccess": true } }]);
    let claim = json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": { "name": "c" },
        "spec": { "devices": { "requests": requests } } });
    let why = "Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the \
               containing namespace";
    check_causes(&cluster.post(claims, &claim).await, &[("spec.devices.requests[0].adminAccess", why)]);
    let label = json!({ "metadata": { "labels": { "resource.kubernetes.io/admin-access": "true" } } });
    assert_eq!(cluster.patch(NAMESPACE, "merge-patch+json", &label).await.code, StatusCode::OK);
    let made = cluster.post(claims, &claim).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_class_is_looked_up_only_by_a_name_that_one_can_have() {
    let cluster = cluster().await;
    service_account(&cluster).await;
    let named = |name: &str| {
        let mut pod = pod(json!({}));
        pod["spec"]["runtimeClassName"] = name.into();
        pod
    };
    let pods = format!("{NAMESPACE}/pods");
    let answer = cluster.post(&pods, &named("a/b")).await;
    assert_eq!(answer.code, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["message"], "invalid resource name \"a/b\": [may not contain '/']");
    let answer = cluster.post(&pods, &named("none")).await;
    assert_eq!(answer.code, StatusCode::FORBIDDEN);
    assert_eq!(
        answer.json()["message"],
        "pods \"p\" is forbidden: pod rejected: RuntimeClass \"none\" not found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_patch_may_neither_name_what_nobody_knows_nor_say_a_thing_twice_where_that_is_asked() {
    let cluster = cluster().await;
    let maps = format!("{NAMESPACE}/configmaps");
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" } });
    assert_eq!(cluster.post(&maps, &map).await.code, StatusCode::CREATED);
    let patch = async |validation: &str, text: &str| {
        let target = format!("{maps}/m?fieldValidation={validation}");
        let headers = [("content-type", "application/json-patch+json")];
        cluster.send(Method::PATCH, &target, &headers, text).await
    };
    let unknown = r#"[{"op":"add","path":"/foo","value":1}]"#;
    let refused = async |text: &str, why: &str| {
        let answer = patch("Strict", text).await;
        assert_eq!(answer.code, StatusCode::UNPROCESSABLE_ENTITY);
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: "), "{message}");
        assert!(message.ends_with(&format!(": strict decoding error: {why}")), "{message}");
    };
    refused(unknown, "unknown field \"foo\"").await;
    let answer = patch("Warn", unknown).await;
    assert_eq!(
        (answer.code, warnings(&answer)),
        (StatusCode::OK, vec!["299 - \"unknown field \\\"foo\\\"\""])
    );
    let answer = patch("Ignore", unknown).await;
    assert_eq!((answer.code, warnings(&answer)), (StatusCode::OK, vec![]));
    let doubled = r#"[{"op":"add","path":"/data","value":{},"op":"add","foo":1}]"#;
    refused(doubled, "json patch duplicate field \"[0].op\", json patch unknown field \"[0].foo\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_order_of_gos_types_and_custom_resources_that_of_names() {
    let cluster = cluster().await;
    let map = json!({ "metadata": { "name": "a" }, "kind": "ConfigMap", "apiVersion": "v1", "data": { "k": "<v>" } });
    let maps = format!("{NAMESPACE}/configmaps");
    let text = |answer: &Answer| String::from_utf8_lossy(&answer.bytes).into_owned();
    let made = text(&cluster.post(&maps, &map).await);
    let head = r#"{"kind":"ConfigMap","apiVersion":"v1","#;
    assert!(made.starts_with(head) && made.ends_with("}\n"), "{made}");
    let list = text(&cluster.get(&format!("{maps}?limit=1")).await);
    assert!(list.starts_with(r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"#), "{list}");
    let pretty = text(&cluster.get(&format!("{maps}/a?pretty=1")).await);
    let head = "{\n  \"kind\": \"ConfigMap\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n    \"name\": \"a\",\n    \
                \"namespace\": \"default\",\n    \"uid\": ";
    assert!(pretty.starts_with(head) && pretty.ends_with('}'), "{pretty}");
    assert!(pretty.contains(r#""k": "\u003cv\u003e""#), "{pretty}");
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "ports": [{ "port": 80 }] } });
    let made = text(&cluster.post(&format!("{NAMESPACE}/services"), &service).await);
    assert!(made.starts_with(r#"{"kind":"Service","apiVersion":"v1","metadata":{"#), "{made}");
    assert!(made.contains(r#""ports":[{"protocol":"TCP","port":80,"targetPort":80}]"#), "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn components_are_the_store_and_what_runs_here_or_elsewhere() {
    let cluster = cluster().await;
    let list = cluster.get("/api/v1/componentstatuses").await.json();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|c| c["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["controller-manager", "scheduler", "etcd-0"]);
    // The test's servers say that the scheduler runs within them.
    let here = cluster.get("/api/v1/componentstatuses/scheduler").await.json();
    assert_eq!(here["conditions"], json!([{ "type": "Healthy", "status": "True", "message": "ok" }]));
    assert_eq!(cluster.get("/api/v1/componentstatuses/etcd-1").await.code, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_value_that_does_not_fit_its_type_is_a_fault() {
    let cluster = cluster().await;
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "b" }, "binaryData": { "a": "!" } });
    let path = format!("{NAMESPACE}/configmaps/b?fieldManager=m");
    let answer = cluster.patch(&path, "apply-patch+yaml", &config).await;
    assert_eq!(answer.code, StatusCode::INTERNAL_SERVER_ERROR);
    let why = "failed to convert new object (/b; /v1, Kind=ConfigMap) to proper version: unable to convert unstructured \
               object to /v1, Kind=ConfigMap: error decoding from json: illegal base64 data at input byte 0";
    assert_eq!(answer.json()["message"], why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_an_account_without_a_name_leaves_its_fields_without_owners() {
    let cluster = cluster().await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "a" },
        "secrets": [{ "kind": "Secret" }] });
    let made = cluster.post(&format!("{NAMESPACE}/serviceaccounts"), &account).await.json();
    assert_eq!(made["metadata"].get("managedFields"), None, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_containers_of_templates_are_checked_whole() {
    let cluster = cluster().await;
    let ephemeral = json!([{ "name": "a", "image": "x ", "ports": [{ "containerPort": 80 }], "targetContainerName": "z",
        "lifecycle": {} }]);
    let template = json!({ "metadata": { "labels": { "a": "b" } },
        "spec": { "containers": [{ "name": "a", "image": "x" }], "ephemeralContainers": ephemeral } });
    let made = json!({ "apiVersion": "v1", "kind": "PodTemplate", "metadata": { "name": "t" }, "template": template });
    let answer = cluster.post(&format!("{NAMESPACE}/podtemplates"), &made).await;
    let at = "template.spec.ephemeralContainers";
    let why = "Forbidden: cannot be set for an Ephemeral Container";
    let (image, name, target, ports, lifecycle) = (
        format!("{at}[0].image"),
        format!("{at}[0].name"),
        format!("{at}[0].targetContainerName"),
        format!("{at}[0].ports"),
        format!("{at}[0].lifecycle"),
    );
    let mut got = causes(&answer);
    let mut want: Vec<(String, String)> = [
        (&*image, "Invalid value: \"x \": must not have leading or trailing whitespace"),
        (&name, "Duplicate value: \"a\""),
        (&target, "Not found: \"z\""),
        (&ports, why),
        (&lifecycle, why),
        (at, "Forbidden: ephemeral containers not allowed in pod template"),
    ]
    .map(|(field, why)| (field.to_owned(), why.to_owned()))
    .into();
    got.sort();
    want.sort();
    assert_eq!(got, want);
}
