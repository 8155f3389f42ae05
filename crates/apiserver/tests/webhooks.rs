//! Admission and conversion webhooks behind a real TLS server: reached by URL and by service, trusted or not, late,
//! asked again; and tokens and rights that a server elsewhere decides about.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use coracle_apiserver::{RemoteClient, RemoteConfig};
use coracle_auth::authz_webhook::{AuthorizationWebhook, WebhookAuthorizer};
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::token_webhook::TokenWebhook;
use coracle_auth::{Authenticator, Authorizer};
use coracle_store::MemoryStore;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use support::Cluster;
use support::extension::{Extension, Got};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn reply(value: &Value) -> Response<Full<Bytes>> {
    let response = Response::builder().header("content-type", "application/json");
    response.body(Full::new(Bytes::from(value.to_string()))).unwrap()
}

/// Admits, and adds to `data.seen` one letter each time.
fn mutate(got: &Got) -> Response<Full<Bytes>> {
    let review: Value = serde_json::from_slice(&got.body).unwrap();
    let seen = review["request"]["object"]["data"]["seen"].as_str().unwrap_or("").to_owned();
    let patch = json!([{ "op": "add", "path": "/data/seen", "value": format!("{seen}x") }]);
    reply(&json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
        "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch",
        "patch": base64(&patch.to_string()),
    } }))
}

async fn cluster() -> Cluster {
    Cluster::with(MemoryStore::new(), |config| config.admission = coracle_admission::plugins()).await
}

/// Mutating webhooks by name, each with where it is.
async fn configure(cluster: &Cluster, hooks: &[(&str, Value, &str)]) {
    let hooks: Vec<Value> = hooks
        .iter()
        .map(|(name, client, again)| {
            json!({ "name": name, "clientConfig": client, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "timeoutSeconds": 30, "reinvocationPolicy": again,
                "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["configmaps"] }] })
        })
        .collect();
    let config = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": "m" }, "webhooks": hooks });
    let made = cluster.post(HOOKS, &config).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
}

async fn create(cluster: &Cluster, name: &str) -> (StatusCode, Value) {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "b" } });
    let answer = cluster.post(MAPS, &map).await;
    (answer.code, answer.json())
}

fn url(extension: &Extension, path: &str) -> String {
    format!("https://127.0.0.1:{}{path}", extension.addr.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_webhooks_are_reached_by_url_and_by_service_and_asked_again() {
    let extension = Extension::start(&["hook.default.svc"], None, mutate).await;
    let cluster = cluster().await;
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "hook" },
        "spec": { "type": "ExternalName", "externalName": "localhost" } });
    assert_eq!(cluster.post("/api/v1/namespaces/default/services", &service).await.code, StatusCode::CREATED);
    let ca = base64(&extension.ca);
    let by_url = json!({ "url": url(&extension, "/m"), "caBundle": ca });
    let by_service = json!({ "caBundle": ca, "service": { "namespace": "default", "name": "hook", "path": "/m",
        "port": extension.addr.port() } });
    configure(
        &cluster,
        &[("first.example.com", by_url, "IfNeeded"), ("second.example.com", by_service, "Never")],
    )
    .await;
    let (code, made) = create(&cluster, "a").await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    // The first is asked again, as the second has changed what it saw.
    assert_eq!(made["data"]["seen"], "xxx");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_cannot_be_believed_or_reached_refuses_in_upstreams_words() {
    let extension = Extension::start(&["hook.default.svc"], None, mutate).await;
    let other = Extension::start(&["other"], None, mutate).await;
    let cluster = cluster().await;
    let at = url(&extension, "/m");
    let client = json!({ "url": at, "caBundle": base64(&other.ca) });
    configure(&cluster, &[("hook.example.com", client, "Never")]).await;
    let (code, status) = create(&cluster, "a").await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    let why = status["message"].as_str().unwrap();
    let begin = format!(
        "Internal error occurred: failed calling webhook \"hook.example.com\": failed to call webhook: \
         Post \"{at}?timeout=30s\": tls: failed to verify certificate: x509: certificate signed by unknown authority"
    );
    assert!(why.starts_with(&begin), "{why}");
    assert_eq!(cluster.delete(&format!("{HOOKS}/m")).await.code, StatusCode::OK);
    let missing =
        json!({ "caBundle": base64(&other.ca), "service": { "namespace": "default", "name": "none" } });
    configure(&cluster, &[("hook.example.com", missing, "Never")]).await;
    let found = support::eventually("the other webhook", || async {
        let (_, status) = create(&cluster, "a").await;
        let why = status["message"].as_str().unwrap_or("").to_owned();
        why.contains("none.default.svc").then_some(why)
    })
    .await;
    let end = "Post \"https://none.default.svc:443/?timeout=30s\": service \"none\" not found";
    assert!(found.ends_with(end), "{found}");
}

/// Validating or mutating, with one webhook that has a second for its answer and never gives one.
async fn silent(cluster: &Cluster, kind: &str, at: &str, policy: &str) -> String {
    let plural = format!("{}s", kind.to_lowercase());
    let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
    let hook = json!({ "name": "silent.example.com", "clientConfig": { "url": at }, "failurePolicy": policy,
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
        "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["configmaps"] }] });
    let config = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": { "name": "silent" }, "webhooks": [hook] });
    let made = cluster.post(&path, &config).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    format!("{path}/silent")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_in_its_time_refuses_or_passes_as_its_policy_says() {
    // Connections are accepted by the kernel, and nobody ever speaks.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("https://{}/m", listener.local_addr().unwrap());
    let cluster = cluster().await;
    for (kind, step) in
        [("MutatingWebhookConfiguration", "admit"), ("ValidatingWebhookConfiguration", "validating")]
    {
        let path = silent(&cluster, kind, &at, "Fail").await;
        let (code, status) = create(&cluster, step).await;
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR, "{status}");
        let why = format!(
            "Internal error occurred: failed calling webhook \"silent.example.com\": failed to call webhook: \
             Post \"{at}?timeout=1s\": context deadline exceeded"
        );
        assert_eq!(status["message"], why);
        let cause = json!([{ "message": why.trim_start_matches("Internal error occurred: ") }]);
        assert_eq!(status["details"]["causes"], cause);
        assert_eq!(cluster.delete(&path).await.code, StatusCode::OK);

        let path = silent(&cluster, kind, &at, "Ignore").await;
        let (code, made) = create(&cluster, step).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        assert_eq!(cluster.delete(&path).await.code, StatusCode::OK);

        let metrics = String::from_utf8(cluster.get("/metrics").await.bytes.to_vec()).unwrap();
        let open = format!(
            "apiserver_admission_webhook_fail_open_count{{name=\"silent.example.com\",type=\"{step}\"}} 1"
        );
        let closed = format!(
            "apiserver_admission_webhook_rejection_count{{error_type=\"calling_webhook_error\",\
             name=\"silent.example.com\",operation=\"CREATE\",rejection_code=\"503\",type=\"{step}\"}} 1"
        );
        for line in [open, closed] {
            assert!(metrics.lines().any(|l| l == line), "{line} not in\n{metrics}");
        }
    }
}

/// Converts `example.com/v1` into `v2` and back: `a` becomes `b`.
fn convert(got: &Got) -> Response<Full<Bytes>> {
    let review: Value = serde_json::from_slice(&got.body).unwrap();
    let wanted = &review["request"]["desiredAPIVersion"];
    let (from, to) = if wanted == "example.com/v2" { ("a", "b") } else { ("b", "a") };
    let objects: Vec<Value> = review["request"]["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = wanted.clone();
            object["spec"] = json!({ to: object["spec"][from] });
            object
        })
        .collect();
    reply(&json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
        "uid": review["request"]["uid"], "convertedObjects": objects, "result": { "status": "Success" } } }))
}

fn definition(client: &Value) -> Value {
    let version = |name: &str, storage: bool, field: &str| {
        json!({ "name": name, "served": true, "storage": storage, "schema": { "openAPIV3Schema": {
            "type": "object", "properties": { "spec": { "type": "object",
                "properties": { field: { "type": "string" } } } } } } })
    };
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.com" }, "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "kind": "Thing", "plural": "things" },
            "versions": [version("v1", true, "a"), version("v2", false, "b")],
            "conversion": { "strategy": "Webhook",
                "webhook": { "clientConfig": client, "conversionReviewVersions": ["v1"] } } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_converted_by_a_webhook_until_it_cannot_be_believed() {
    let extension = Extension::start(&["hook.default.svc"], None, convert).await;
    let other = Extension::start(&["other"], None, convert).await;
    let cluster = Cluster::start().await;
    let at = url(&extension, "/c");
    let crd = definition(&json!({ "url": at, "caBundle": base64(&extension.ca) }));
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(cluster.post(crds, &crd).await.code, StatusCode::CREATED);
    let list = |version: &str| format!("/apis/example.com/{version}/namespaces/default/things");
    support::eventually("the definition", || async {
        (cluster.get(&list("v1")).await.code == StatusCode::OK).then_some(())
    })
    .await;
    let thing = json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": "t" },
        "spec": { "a": "text" } });
    assert_eq!(cluster.post(&list("v1"), &thing).await.code, StatusCode::CREATED);
    let one = format!("{}/t", list("v2"));
    assert_eq!(cluster.get(&one).await.json()["spec"], json!({ "b": "text" }));
    let distrust = json!({ "spec": { "conversion": { "webhook": { "clientConfig": {
        "caBundle": base64(&other.ca) } } } } });
    let patched = cluster.patch(&format!("{crds}/things.example.com"), "merge-patch+json", &distrust).await;
    assert_eq!(patched.code, StatusCode::OK, "{}", patched.json());
    let why = support::eventually("a refusal", || async {
        let answer = cluster.get(&one).await;
        (answer.code == StatusCode::INTERNAL_SERVER_ERROR).then(|| answer.json()["message"].clone())
    })
    .await;
    let begin = format!(
        "conversion webhook for example.com/v1, Kind=Thing failed: Post \"{at}?timeout=30s\": tls: failed to verify \
         certificate: x509: certificate signed by unknown authority"
    );
    assert!(why.as_str().unwrap().starts_with(&begin), "{why}");
}

/// Knows token `secret` as `jane`; lets `jane` list pods and forbids her the rest of the core group.
fn decide(got: &Got) -> Response<Full<Bytes>> {
    let review: Value = serde_json::from_slice(&got.body).unwrap();
    let status = if review["kind"] == "TokenReview" {
        let known = review["spec"]["token"] == "secret";
        json!({ "authenticated": known, "user": { "username": "jane" } })
    } else {
        assert_eq!(review["spec"]["user"], "jane");
        let about = &review["spec"]["resourceAttributes"];
        let pods = about["resource"] == "pods" && about["verb"] == "list";
        json!({ "allowed": pods, "denied": !pods, "reason": "the server says so" })
    };
    reply(&json!({ "apiVersion": review["apiVersion"], "kind": review["kind"], "status": status }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_elsewhere_says_who_somebody_is_and_what_they_may() {
    let extension = Extension::start(&["auth"], None, decide).await;
    let at = url(&extension, "/");
    let config = RemoteConfig { ca_pem: Some(extension.ca.clone()), ..RemoteConfig::default() };
    let remote = Arc::new(RemoteClient::new(&config).unwrap());
    let (asked, address) = (remote.clone(), at.clone());
    let cluster = Cluster::with(MemoryStore::new(), move |config| {
        let minute = Duration::from_secs(60);
        let tokens = TokenWebhook::new(asked.clone(), &address, "v1", Vec::new(), minute);
        let hook = AuthorizationWebhook {
            name: "default".into(),
            url: address,
            version: "v1".into(),
            allowed_for: minute,
            refused_for: minute,
            timeout: minute,
            deny_on_failure: true,
            conditions: Vec::new(),
        };
        let hook = WebhookAuthorizer::new(hook, asked);
        config.authenticators = Box::new(move |_| vec![Arc::new(tokens) as Arc<dyn Authenticator>]);
        config.authorizers = Box::new(move |reader| {
            let all: Vec<Arc<dyn Authorizer>> = vec![Arc::new(hook), Arc::new(RbacAuthorizer::new(reader))];
            all
        });
    })
    .await;
    let get = |path: &'static str, token: &'static str| {
        let cluster = &cluster;
        async move {
            let token = format!("Bearer {token}");
            cluster.send(Method::GET, path, &[("authorization", &token)], "").await
        }
    };
    assert_eq!(get("/api/v1/pods", "secret").await.code, StatusCode::OK);
    let refused = get("/api/v1/nodes", "secret").await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    let why = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(why.ends_with("at the cluster scope: the server says so"), "{why}");
    assert_eq!(get("/api/v1/pods", "other").await.code, StatusCode::UNAUTHORIZED);
}
