//! An APIService with a real extension server behind it: availability, proxying, discovery, OpenAPI.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use bytes::Bytes;
use coracle_apiserver::Tls;
use coracle_auth::FrontProxy;
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_stdx::Clock;
use coracle_store::MemoryStore;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::Cluster;
use support::extension::{Extension, Got};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NAME: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.wardle.example.com";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";

/// Certificates of the proxy that this API server is to extension servers.
struct Proxy {
    ca: String,
    own: Tls,
}

fn proxy() -> Proxy {
    let clock = Clock::system();
    let ca = CertificateAuthority::create("front-proxy-ca", &clock).unwrap();
    let issue = Issue { common_name: "front-proxy-client".into(), client: true, days: 1, ..Issue::default() };
    let pem = ca.issue(issue, &clock).unwrap();
    Proxy { ca: ca.cert_pem().to_owned(), own: Tls { cert_pem: pem.cert, key_pem: pem.key } }
}

async fn cluster(proxy: &Proxy) -> Cluster {
    let list = |text: &str| vec![text.to_owned()];
    let front_proxy = FrontProxy {
        ca_pem: proxy.ca.clone(),
        allowed_names: list("front-proxy-client"),
        username_headers: list("X-Remote-User"),
        uid_headers: list("X-Remote-Uid"),
        group_headers: list("X-Remote-Group"),
        extra_prefixes: list("X-Remote-Extra-"),
    };
    let own = proxy.own.clone();
    Cluster::with(MemoryStore::new(), move |config| {
        config.proxy_client = Some(own);
        config.front_proxy = Some(front_proxy);
    })
    .await
}

/// What the extension server says about itself, and an echo of who asks below its resources.
fn answer(got: &Got) -> Response<Full<Bytes>> {
    let text = |value: Value| Full::new(Bytes::from(value.to_string()));
    let path = got.parts.uri.path();
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let resources = json!([{ "resource": "flunders", "singularResource": "flunder", "scope": "Namespaced",
        "responseKind": { "group": "", "version": "", "kind": "Flunder" }, "verbs": ["get", "list"] }]);
    let response = Response::builder().header("content-type", "application/json");
    match path {
        "/apis" => Response::builder().header("content-type", aggregated).body(text(json!({ "items": [{
            "metadata": { "name": "wardle.example.com" },
            "versions": [{ "version": "v1alpha1", "resources": resources }] }] }))),
        "/openapi/v2" => response.body(text(json!({
            "paths": { format!("{FLUNDERS}/"): {} }, "definitions": {} }))),
        "/openapi/v3" => response.body(text(json!({ "paths": { "apis/wardle.example.com/v1alpha1":
            { "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1" } } }))),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => response.body(text(json!({ "openapi": "3.0.0" }))),
        "/apis/wardle.example.com/v1alpha1" => response.body(text(json!({ "kind": "APIResourceList" }))),
        path if path.ends_with("/moved") => {
            Response::builder().status(302).header("location", "https://elsewhere").body(text(json!({})))
        }
        _ => {
            let headers: Vec<(String, String)> = got
                .parts
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
                .collect();
            response.header("access-control-allow-origin", "*").body(text(json!({
                "method": got.parts.method.as_str(), "target": got.parts.uri.path_and_query().unwrap().as_str(),
                "headers": headers, "body": String::from_utf8_lossy(&got.body), "certified": got.client.is_some(),
            })))
        }
    }
    .unwrap()
}

/// Service `default/wardle`, which is this machine: endpoints may not be loopback addresses.
async fn serve(cluster: &Cluster) {
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "wardle" },
        "spec": { "type": "ExternalName", "externalName": "localhost" } });
    assert_eq!(cluster.post("/api/v1/namespaces/default/services", &service).await.code, StatusCode::CREATED);
}

async fn register(cluster: &Cluster, ca: &str, port: u16) {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let api = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": { "name": "v1alpha1.wardle.example.com" },
        "spec": { "group": "wardle.example.com", "version": "v1alpha1", "caBundle": ca,
            "groupPriorityMinimum": 20000, "versionPriority": 15,
            "service": { "namespace": "default", "name": "wardle", "port": port } },
    });
    let made = cluster.post("/apis/apiregistration.k8s.io/v1/apiservices", &api).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
}

/// Waits until the condition has this reason, and tells its status and message.
async fn condition(cluster: &Cluster, reason: &str) -> (String, String) {
    let find = || async {
        let found = cluster.get(NAME).await.json();
        let condition = found["status"]["conditions"][0].clone();
        let text = |field: &str| condition[field].as_str().unwrap_or("").to_owned();
        (text("reason") == reason).then(|| (text("status"), text("message")))
    };
    support::eventually(reason, find).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_an_available_server_with_who_asks_and_nothing_that_proves_it() {
    let proxy = proxy();
    let extension = Extension::start(&["wardle.default.svc"], Some(&proxy.ca), answer).await;
    let cluster = cluster(&proxy).await;
    serve(&cluster).await;
    register(&cluster, &extension.ca, extension.addr.port()).await;
    let told = condition(&cluster, "Passed").await;
    assert_eq!(told, ("True".into(), "all checks passed".into()));
    let path = format!("{FLUNDERS}?fieldSelector=a%3Db");
    let headers = [("x-remote-user", "mallory"), ("x-remote-group", "system:masters"), ("accept", "*/*")];
    let answer = support::eventually("a route", || async {
        let answer = cluster.send(Method::POST, &path, &headers, "{\"a\":1}").await;
        (answer.code == StatusCode::OK).then_some(answer)
    })
    .await;
    assert!(answer.headers.get("access-control-allow-origin").is_none());
    let seen = answer.json();
    assert_eq!((&seen["method"], &seen["body"]), (&json!("POST"), &json!("{\"a\":1}")));
    assert_eq!((&seen["target"], &seen["certified"]), (&json!(path), &json!(true)));
    let sent = |name: &str| -> Vec<String> {
        let headers = seen["headers"].as_array().unwrap().iter().filter(|h| h[0] == name);
        headers.map(|h| h[1].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(sent("x-remote-user"), ["admin"]);
    assert_eq!(sent("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert_eq!(sent("authorization"), [""; 0]);
    assert_eq!(sent("x-forwarded-proto"), ["https"]);
    let moved = cluster.get(&format!("{FLUNDERS}/moved")).await;
    let why = "the backend attempted to redirect this request, which is not permitted";
    assert_eq!((moved.code, &moved.bytes[..]), (StatusCode::BAD_GATEWAY, why.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_runs_through_to_the_extension_server() {
    let proxy = proxy();
    let extension = Extension::start(&["wardle.default.svc"], Some(&proxy.ca), answer).await;
    let cluster = cluster(&proxy).await;
    serve(&cluster).await;
    register(&cluster, &extension.ca, extension.addr.port()).await;
    condition(&cluster, "Passed").await;
    let headers = [("connection", "Upgrade"), ("upgrade", "echo")];
    let response = support::eventually("an upgrade", || async {
        let response = cluster.open(Method::GET, FLUNDERS, &headers, "").await;
        (response.status() == StatusCode::SWITCHING_PROTOCOLS).then_some(response)
    })
    .await;
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b" says hello").await.unwrap();
    let mut heard = [0; 16];
    io.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"admin says hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_openapi_show_what_an_extension_server_serves_until_it_goes() {
    let proxy = proxy();
    let extension = Extension::start(&["wardle.default.svc"], Some(&proxy.ca), answer).await;
    let cluster = cluster(&proxy).await;
    serve(&cluster).await;
    register(&cluster, &extension.ca, extension.addr.port()).await;
    let aggregated = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let version = |wanted: &'static str| {
        let cluster = &cluster;
        support::eventually(wanted, move || async move {
            let all = cluster.send(Method::GET, "/apis", &[aggregated], "").await.json();
            let groups = all["items"].as_array().unwrap();
            let at = groups.iter().position(|g| g["metadata"]["name"] == "wardle.example.com")?;
            let version = groups[at]["versions"][0].clone();
            (version["freshness"] == wanted).then_some((at, version))
        })
    };
    let (at, found) = version("Current").await;
    // Its priority is above all but that of the group that makes the rules.
    assert_eq!((at, &found["resources"][0]["resource"]), (1, &json!("flunders")));
    let group = cluster.get("/apis/wardle.example.com").await.json();
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    let list = cluster.get("/apis/wardle.example.com/v1alpha1").await.json();
    assert_eq!(list["kind"], "APIResourceList");
    let index = cluster.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"].clone();
    assert_eq!(cluster.get(url.as_str().unwrap()).await.json(), json!({ "openapi": "3.0.0" }));
    let whole = cluster.get("/openapi/v2").await.json();
    assert!(whole["paths"].get(format!("{FLUNDERS}/")).is_some());
    let elsewhere = json!({ "spec": { "service": { "port": 1 } } });
    assert_eq!(cluster.patch(NAME, "merge-patch+json", &elsewhere).await.code, StatusCode::OK);
    let (_, stale) = version("Stale").await;
    assert_eq!(stale["version"], "v1alpha1");
    let (status, why) = condition(&cluster, "FailedDiscoveryCheck").await;
    let url = "https://localhost:1/apis/wardle.example.com/v1alpha1";
    let begin = format!("failing or missing response from {url}: Get \"{url}\": dial tcp ");
    assert!(why.starts_with(&begin) && why.ends_with(":1: connect: connection refused"), "{why}");
    assert_eq!(status, "False");
    assert_eq!(cluster.delete(NAME).await.code, StatusCode::OK);
    support::eventually("the group's end", || async {
        (cluster.get("/apis/wardle.example.com").await.code == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_to_be_believed_or_reached_is_unavailable_and_answers_nothing() {
    let proxy = proxy();
    let extension = Extension::start(&["wardle.default.svc"], None, answer).await;
    let cluster = cluster(&proxy).await;
    register(&cluster, &proxy.ca, extension.addr.port()).await;
    let missing = condition(&cluster, "ServiceNotFound").await;
    assert_eq!(missing.1, "service/wardle in \"default\" is not present");
    serve(&cluster).await;
    let (_, why) = condition(&cluster, "FailedDiscoveryCheck").await;
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert!(why.ends_with(unknown), "{why}");
    let answer = cluster.get(FLUNDERS).await;
    assert_eq!(answer.code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(&answer.bytes[..], b"service unavailable\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_servers_find_out_whom_to_believe_and_a_proxy_asks_for_others() {
    let proxy = proxy();
    let cluster = cluster(&proxy).await;
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let found = support::eventually("the ConfigMap", || async {
        let found = cluster.get(map).await;
        (found.code == StatusCode::OK).then(|| found.json())
    })
    .await;
    assert_eq!(found["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    assert_eq!(found["data"]["requestheader-client-ca-file"], proxy.ca.as_str());
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let who = |headers: Vec<(&'static str, &'static str)>, certified: bool| {
        let (cluster, own, review) = (&cluster, certified.then(|| proxy.own.clone()), review.clone());
        async move {
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            let answer = cluster.as_client(own.as_ref(), path, &headers, &review).await;
            (answer.code, answer.json()["status"]["userInfo"].clone())
        }
    };
    let jane = vec![("x-remote-user", "jane"), ("x-remote-group", "system:masters"), ("x-remote-uid", "7")];
    let (code, user) = who(jane.clone(), true).await;
    assert_eq!((code, &user["username"], &user["uid"]), (StatusCode::CREATED, &json!("jane"), &json!("7")));
    assert_eq!(user["groups"], json!(["system:masters", "system:authenticated"]));
    // Without the proxy's certificate the headers are worth nothing.
    let (code, _) = who(jane, false).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
}
