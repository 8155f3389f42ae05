//! The verbs over HTTPS, on a store in memory.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": labels },
        "data": { "k": "v" },
    })
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_lives_from_create_to_delete_with_rising_versions() {
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, &map("a", json!({}))).await;
    assert_eq!(made.code, StatusCode::CREATED);
    let made = made.json();
    let first: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(cluster.post(MAPS, &map("a", json!({}))).await.code, StatusCode::CONFLICT);

    let mut stale = made.clone();
    stale["data"]["k"] = "w".into();
    let at = format!("{MAPS}/a");
    let put = |body: Value| cluster_put(&cluster, &at, body);
    let second = put(stale.clone()).await.json();
    assert!(second["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > first);
    let conflict = put(stale).await;
    assert_eq!((conflict.code, conflict.json()["reason"].as_str()), (StatusCode::CONFLICT, Some("Conflict")));
    // The same again changes nothing, not even the version.
    assert_eq!(put(second.clone()).await.json(), second);

    let gone = cluster.delete(&at).await.json();
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    assert_eq!(cluster.get(&at).await.json()["message"], "configmaps \"a\" not found");
}

async fn cluster_put(cluster: &Cluster, at: &str, body: Value) -> support::Answer {
    cluster.send(Method::PUT, at, &[("content-type", "application/json")], &body.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_is_found_again_after_a_restart_over_the_same_store() {
    let store = coracle_store::MemoryStore::new();
    let cluster = Cluster::over(store.clone()).await;
    let big = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "big" },
        "data": { "k": "\"metadata\":{".repeat(100) },
    });
    let made = cluster.post(MAPS, &big).await.json();
    let again = Cluster::over(store).await;
    assert_eq!(again.get(&format!("{MAPS}/big")).await.json(), made);
    let past = again.get(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    assert_eq!((past.code, past.json()["reason"].as_str()), (StatusCode::GONE, Some("Expired")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_pages_show_one_snapshot_while_objects_change() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.post(MAPS, &map(name, json!({ "n": name }))).await;
    }
    let page = cluster.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((names(&page), &page["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(1)));
    assert!(page["items"][0].get("kind").is_none(), "list items carry no type");
    cluster.delete(&format!("{MAPS}/c")).await;
    cluster.post(MAPS, &map("d", json!({}))).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
    assert_eq!(names(&rest), ["c"], "as it was when the first page was read");
    assert_eq!(rest["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    let selected = cluster.get(&format!("{MAPS}?labelSelector=n%20in%20(a,d)")).await.json();
    assert_eq!(names(&selected), ["a"]);
    let selected = cluster.get("/api/v1/configmaps?fieldSelector=metadata.name%3Db").await.json();
    assert_eq!(names(&selected), ["b"]);
}

/// Reads `n` watch events.
async fn events(response: http::Response<hyper::body::Incoming>, n: usize) -> Vec<Value> {
    let (mut body, mut text, mut out) = (response.into_body(), String::new(), Vec::new());
    while out.len() < n {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame()).await;
        let frame = frame.expect("an event in time").expect("the watch goes on").unwrap();
        text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
        while let Some((line, rest)) = text.split_once('\n') {
            out.push(serde_json::from_str(line).unwrap());
            text = rest.to_owned();
        }
    }
    out
}

fn kinds(events: &[Value]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|e| (e["type"].as_str().unwrap(), e["object"]["metadata"]["name"].as_str().unwrap_or("")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_replays_the_past_and_shows_objects_entering_and_leaving_the_selector() {
    let cluster = Cluster::start().await;
    let version = cluster.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    cluster.post(MAPS, &map("a", json!({ "s": "y" }))).await;
    let target = format!("{MAPS}?watch=1&resourceVersion={version}&labelSelector=s%3Dy");
    let watch = cluster.open(Method::GET, &target, &[], "").await;
    assert_eq!(watch.status(), StatusCode::OK);
    let at = format!("{MAPS}/a");
    cluster.patch(&at, "merge-patch+json", &json!({ "data": { "k": "2" } })).await;
    cluster.patch(&at, "merge-patch+json", &json!({ "metadata": { "labels": { "s": "n" } } })).await;
    cluster.patch(&at, "merge-patch+json", &json!({ "metadata": { "labels": { "s": "y" } } })).await;
    cluster.delete(&at).await;
    let seen = events(watch, 5).await;
    let want = [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "a"), ("DELETED", "a")];
    assert_eq!(kinds(&seen), want);
    let left = seen[2]["object"].clone();
    assert_eq!(left["metadata"]["labels"]["s"], "y", "what leaves the selector is shown as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_with_initial_events_ends_them_with_a_marked_bookmark() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("a", json!({}))).await;
    let target = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let watch = cluster.open(Method::GET, &target, &[], "").await;
    cluster.post(MAPS, &map("b", json!({}))).await;
    let seen = events(watch, 3).await;
    assert_eq!(kinds(&seen), [("ADDED", "a"), ("BOOKMARK", ""), ("ADDED", "b")]);
    let annotations = &seen[1]["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_of_all_four_types_change_the_object() {
    let cluster = Cluster::start().await;
    let target = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": {
            "selector": { "matchLabels": { "app": "d" } },
            "template": {
                "metadata": { "labels": { "app": "d" } },
                "spec": { "containers": [{ "name": "c", "image": "one" }] },
            },
        },
    });
    assert_eq!(cluster.post(target, &deployment).await.code, StatusCode::CREATED);
    let at = format!("{target}/d");
    let template =
        |containers: Value| json!({ "spec": { "template": { "spec": { "containers": containers } } } });
    let merged = template(json!([{ "name": "side", "image": "two" }]));
    let after = cluster.patch(&at, "strategic-merge-patch+json", &merged).await.json();
    assert_eq!(after["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(after["metadata"]["generation"], 2);
    let ops = json!([{ "op": "replace", "path": "/spec/replicas", "value": 5 }]);
    assert_eq!(cluster.patch(&at, "json-patch+json", &ops).await.json()["spec"]["replicas"], 5);
    let merge = json!({ "metadata": { "annotations": { "a": "b" } } });
    assert_eq!(cluster.patch(&at, "merge-patch+json", &merge).await.code, StatusCode::OK);
    let applied = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": { "replicas": 7 },
    });
    let conflict = cluster.patch(&format!("{at}?fieldManager=x"), "apply-patch+yaml", &applied).await;
    assert_eq!(conflict.code, StatusCode::CONFLICT);
    let forced = format!("{at}?fieldManager=x&force=true");
    let forced = cluster.patch(&forced, "apply-patch+yaml", &applied).await.json();
    assert_eq!(forced["spec"]["replicas"], 7);
    let scale = cluster.get(&format!("{at}/scale")).await.json();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(7), &json!("app=d")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizer_holds_an_object_until_it_is_removed() {
    let cluster = Cluster::start().await;
    let mut held = map("a", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(MAPS, &held).await;
    let at = format!("{MAPS}/a");
    let marked = cluster.delete(&at).await.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(cluster.get(&at).await.code, StatusCode::OK);
    cluster.patch(&at, "merge-patch+json", &json!({ "metadata": { "finalizers": null } })).await;
    assert_eq!(cluster.get(&at).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_get_addresses_and_ports_that_are_free_again_when_deleted() {
    let cluster = Cluster::start().await;
    let target = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": {
                "type": "NodePort", "clusterIP": ip, "selector": { "app": "x" },
                "ports": [{ "port": 80, "nodePort": 30080 }],
            },
        })
    };
    let made = cluster.post(target, &service("a", "10.96.7.7")).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    assert_eq!(made.json()["spec"]["clusterIPs"], json!(["10.96.7.7"]));
    let taken = cluster.post(target, &service("b", "10.96.7.7")).await;
    assert_eq!(taken.code, StatusCode::UNPROCESSABLE_ENTITY);
    cluster.delete(&format!("{target}/a")).await;
    assert_eq!(cluster.post(target, &service("b", "10.96.7.7")).await.code, StatusCode::CREATED);
    let own = cluster.get(&format!("{target}/kubernetes")).await.json();
    assert_eq!(own["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_upstreams_codes_and_texts() {
    let cluster = Cluster::start().await;
    let as_nobody = [("authorization", "Bearer nobodytoken")];
    let refused = cluster.send(Method::GET, "/api/v1/namespaces/y/pods", &as_nobody, "").await;
    let want = "pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" \
                in the namespace \"y\"";
    assert_eq!((refused.code, refused.json()["message"].as_str().unwrap()), (StatusCode::FORBIDDEN, want));
    let wrong = cluster.send(Method::GET, MAPS, &[("authorization", "Bearer wrong")], "").await;
    assert_eq!(wrong.code, StatusCode::UNAUTHORIZED);
    let unknown = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "foo": 1 });
    let strict = cluster.post(&format!("{MAPS}?fieldValidation=Strict"), &unknown).await;
    let want = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
                unknown field \"foo\"";
    assert_eq!(strict.json()["message"], want);
    let warned = cluster.post(MAPS, &unknown).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"foo\\\"\"");
    assert_eq!(cluster.get("/nope").await.bytes, "404 page not found\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_metadata_are_made_on_demand() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("a", json!({}))).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = cluster.send(Method::GET, MAPS, &accept, "").await.json();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let html = cluster.send(Method::GET, MAPS, &[("accept", "text/html")], "").await;
    assert_eq!(html.code, StatusCode::NOT_ACCEPTABLE);
    let discovery = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let groups = cluster.send(Method::GET, "/apis", &discovery, "").await.json();
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
}
