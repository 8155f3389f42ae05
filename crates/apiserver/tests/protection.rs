//! Certificates that change while the server runs, Secrets encrypted in the store, who reads too slowly, and the end.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::{Encryption, RequestLimits};
use coracle_store::{EmbeddedConfig, EmbeddedStore, SealedStore, Store};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Cluster, eventually};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const WORD: &str = "correct-horse-battery-staple";
const KEY_1: &str = "c2VjcmV0IGlzIHNlY3VyZSwgSSB0aGluaywgb3Igbm8=";
const KEY_2: &str = "dGhpcyBpcyBwYXNzd29yZCBvZiAzMiBieXRlcyBsb24=";

fn secret(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
        "stringData": { "password": WORD }, "type": "Opaque",
    })
}

fn configuration(keys: &[(&str, &str)]) -> String {
    let keys: Vec<String> = keys.iter().map(|(n, s)| format!("{{name: {n}, secret: \"{s}\"}}")).collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers: [{{aesgcm: {{keys: [{}]}}}}, {{identity: {{}}}}]\n",
        keys.join(", ")
    )
}

/// Whether any file below a directory has these bytes in it.
fn found(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return found(&path, bytes);
        }
        std::fs::read(&path).unwrap().windows(bytes.len()).any(|w| w == bytes)
    })
}

/// Neither the word nor its form in JSON is anywhere.
fn leaks(dir: &Path) -> bool {
    found(dir, WORD.as_bytes()) || found(dir, b"Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZ")
}

async fn server(dir: &Path, keys: &[(&str, &str)]) -> (Cluster, Arc<Encryption>, Arc<dyn Store>) {
    let raw: Arc<dyn Store> = EmbeddedStore::open(EmbeddedConfig { dir: dir.to_owned() }).unwrap();
    let encryption = Encryption::new(&configuration(keys)).unwrap();
    let cluster = Cluster::over(SealedStore::new(raw.clone(), encryption.clone())).await;
    (cluster, encryption, raw)
}

async fn begins(raw: &Arc<dyn Store>, name: &str, with: &str) -> bool {
    let entry = raw.get(&format!("/registry/core/secrets/default/{name}")).await.unwrap().unwrap();
    entry.value.starts_with(with.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_of_the_store_has_a_secret_in_it_and_keys_rotate_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, encryption, raw) = server(dir.path(), &[("key1", KEY_1)]).await;
    for name in ["a", "b"] {
        assert_eq!(cluster.post(SECRETS, &secret(name)).await.code, StatusCode::CREATED);
    }
    let labels = json!({ "metadata": { "labels": { "x": "y" } } });
    let patched = cluster.patch(&format!("{SECRETS}/a"), "merge-patch+json", &labels).await;
    assert_eq!(patched.code, StatusCode::OK);
    let read = cluster.get(&format!("{SECRETS}/a")).await.json();
    assert_eq!(read["data"]["password"], "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==");
    assert!(!leaks(dir.path()));
    assert!(begins(&raw, "a", "k8s:enc:aesgcm:v1:key1:").await);
    // A ConfigMap is what it was: else the search above would prove nothing.
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { "plain": "plain-to-see" },
    });
    assert_eq!(cluster.post("/api/v1/namespaces/default/configmaps", &map).await.code, StatusCode::CREATED);
    assert!(found(dir.path(), b"plain-to-see"));

    encryption.replace(&configuration(&[("key2", KEY_2), ("key1", KEY_1)])).unwrap();
    // An update that changes nothing writes what the old key encrypted with the new one, once.
    let version = |secret: &Value| secret["metadata"]["resourceVersion"].clone();
    let put = |body: Value| {
        let (cluster, body) = (&cluster, body.to_string());
        async move {
            let headers = [("content-type", "application/json")];
            cluster.send(Method::PUT, &format!("{SECRETS}/a"), &headers, &body).await.json()
        }
    };
    let rewritten = put(read.clone()).await;
    assert_ne!(version(&rewritten), version(&read));
    assert!(
        begins(&raw, "a", "k8s:enc:aesgcm:v1:key2:").await
            && begins(&raw, "b", "k8s:enc:aesgcm:v1:key1:").await
    );
    assert_eq!(version(&put(rewritten.clone()).await), version(&rewritten));
    assert!(!leaks(dir.path()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_reads_what_was_encrypted_and_refuses_to_begin_without_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, ..) = server(dir.path(), &[("key1", KEY_1)]).await;
    assert_eq!(cluster.post(SECRETS, &secret("a")).await.code, StatusCode::CREATED);
    drop(cluster);
    let (cluster, ..) = reopened(dir.path(), &[("key2", KEY_2), ("key1", KEY_1)]).await;
    let read = cluster.get(&format!("{SECRETS}/a")).await.json();
    assert_eq!(read["data"]["password"], "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==");
    drop(cluster);
    let raw = opened(dir.path()).await;
    let stranger = Encryption::new(&configuration(&[("key2", KEY_2)])).unwrap();
    let sealed = SealedStore::new(raw, stranger);
    let all = coracle_store::Range { start: "/".into(), end: "0".into(), ..Default::default() };
    let why = sealed.range(all).await.unwrap_err().to_string();
    assert_eq!(
        why,
        "value of /registry/core/secrets/default/a: no matching key was found for the provided AES transformer"
    );
}

/// Opens a store again as soon as the server before has let go of it.
async fn opened(dir: &Path) -> Arc<dyn Store> {
    for _ in 0..600 {
        match EmbeddedStore::open(EmbeddedConfig { dir: dir.to_owned() }) {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
    panic!("the store stays in use");
}

async fn reopened(dir: &Path, keys: &[(&str, &str)]) -> (Cluster, Arc<Encryption>) {
    let raw = opened(dir).await;
    let encryption = Encryption::new(&configuration(keys)).unwrap();
    (Cluster::over(SealedStore::new(raw, encryption.clone())).await, encryption)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_get_the_certificate_of_now_and_old_ones_live_on() {
    let cluster = Cluster::start().await;
    let before = cluster.served_certificate().await;
    let mut old = cluster.keep_alive().await;
    assert_eq!(old.get("/version").await, StatusCode::OK);
    let fresh = cluster.issue();
    assert!(
        cluster
            .api()
            .renew(Some(coracle_apiserver::Tls { cert_pem: "rubbish".into(), ..fresh.clone() }), None)
            .is_err()
    );
    assert_eq!(cluster.served_certificate().await, before, "what cannot be used is not taken up");
    cluster.api().renew(Some(fresh), None).unwrap();
    assert_ne!(cluster.served_certificate().await, before);
    assert_eq!(old.get("/version").await, StatusCode::OK, "the connection is the old one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_an_answer_loses_the_connection() {
    let limits = RequestLimits { timeout: std::time::Duration::from_secs(3), ..RequestLimits::UPSTREAM };
    let cluster = Cluster::limited(limits).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for i in 0..16 {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("m{i}") },
            "data": { "k": "x".repeat(900_000) },
        });
        assert_eq!(cluster.post(maps, &body).await.code, StatusCode::CREATED);
    }
    // Fourteen megabytes: more than any buffer between us.
    let answer = cluster.open(Method::GET, maps, &[], "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let seats =
        "apiserver_flowcontrol_current_executing_seats{flow_schema=\"exempt\",priority_level=\"exempt\"}";
    // Only the request that asks for the metrics holds a seat.
    let one = format!("{seats} 1\n");
    let given_back = async {
        loop {
            let metrics = cluster.get("/metrics").await;
            if String::from_utf8_lossy(&metrics.bytes).contains(&one) {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), given_back)
        .await
        .expect("the seats are given back, long before the time is over");
    tokio::time::sleep(limits.timeout).await;
    let rest = http_body_util::BodyExt::collect(answer.into_body()).await;
    assert!(rest.is_err(), "the answer is cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_answers_what_is_under_way_and_does_not_wait_for_watches() {
    let cluster = Arc::new(Cluster::start().await);
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut idle = cluster.keep_alive().await;
    assert_eq!(idle.get("/version").await, StatusCode::OK);
    let watch = cluster.open(Method::GET, &format!("{maps}?watch=true"), &[], "").await;
    assert_eq!(watch.status(), StatusCode::OK);
    let json = [("content-type", "application/json")];
    let mut upload = cluster.upload(Method::POST, maps, &json).await;
    upload.send("{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",".into()).await;
    let ending = cluster.clone();
    let second = Duration::from_secs(1);
    let end = tokio::spawn(async move { ending.api().end(second, 60 * second).await });
    // For a while it serves as before, but says that it is about to end.
    eventually("it is not ready", || async {
        let ready = cluster.get("/readyz?verbose").await;
        (ready.code == StatusCode::INTERNAL_SERVER_ERROR).then_some(ready.bytes)
    })
    .await;
    let one = cluster.get("/readyz/shutdown").await;
    assert_eq!(one.bytes.as_ref(), b"internal server error: process is shutting down\n");
    assert_eq!(cluster.get("/livez").await.code, StatusCode::OK);
    eventually("it takes no more connections", || async { cluster.refuses().await.then_some(()) }).await;
    assert!(!end.is_finished(), "a request is still under way");
    upload.send("\"metadata\":{\"name\":\"late\"}}".into()).await;
    assert_eq!(upload.finish().await.code, StatusCode::CREATED);
    end.await.expect("it ends, whoever watches");
    drop(watch);
}
