//! The audit log of a server: what it says of requests, in whatever encoding they came and were answered.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};

use coracle_apiserver::{AuditConfig, AuditPolicy};
use coracle_store::MemoryStore;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The last event.
    fn last(&self) -> Value {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        serde_json::from_str(text.lines().last().expect("an event")).unwrap()
    }
}

/// A server that logs all of ConfigMaps.
async fn logging() -> (Cluster, Log) {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: \
                  RequestResponse\n  resources:\n  - resources: [configmaps]\n- level: None\n";
    let log = Log::default();
    let audit = AuditConfig { policy: AuditPolicy::parse(policy).unwrap(), sink: Box::new(log.clone()) };
    (Cluster::with(MemoryStore::new(), |config| config.audit = Some(audit)).await, log)
}

/// A length-delimited field of a message.
fn field(number: u8, value: &str) -> String {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 128);
    format!("{}{}{value}", char::from((number << 3) | 2), char::from(length))
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_logged_as_json_whatever_they_are_encoded_as() {
    let (cluster, log) = logging().await;
    let meta = field(1, &field(1, "m"));
    let data = field(2, &(field(1, "k") + &field(2, "v")));
    let kind = field(1, &(field(1, "v1") + &field(2, "ConfigMap")));
    let body = format!("k8s\0{kind}{}", field(2, &(meta + &data)));
    let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
    let made = cluster.send(Method::POST, MAPS, &headers, &body).await;
    assert_eq!(made.code, StatusCode::CREATED, "{:?}", made.bytes);
    assert!(made.bytes.starts_with(b"k8s\0"));
    let event = log.last();
    assert_eq!(event["requestObject"]["data"], json!({ "k": "v" }));
    assert_eq!(event["responseObject"]["metadata"]["name"], "m");
    assert_eq!(event["responseObject"]["kind"], "ConfigMap");
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));

    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\ndata: {k: w}\n";
    let made = cluster.send(Method::POST, MAPS, &headers, yaml).await;
    assert_eq!(made.code, StatusCode::CREATED);
    let event = log.last();
    assert_eq!(
        (&event["requestObject"]["data"]["k"], &event["responseObject"]["data"]["k"]),
        (&json!("w"), &json!("w"))
    );

    let listed = cluster.send(Method::GET, MAPS, &[("accept", PROTOBUF)], "").await;
    assert_eq!(listed.code, StatusCode::OK);
    let names = |event: &Value| -> Vec<String> {
        let items = event["responseObject"]["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(names(&log.last()), ["m", "other"]);
    cluster.get(MAPS).await;
    assert_eq!(names(&log.last()), ["m", "other"]);
    assert_eq!(log.last()["responseObject"]["kind"], "ConfigMapList");

    let missing = cluster.send(Method::GET, &format!("{MAPS}/none"), &[("accept", PROTOBUF)], "").await;
    assert_eq!(missing.code, StatusCode::NOT_FOUND);
    let event = log.last();
    assert_eq!(event["responseStatus"]["reason"], "NotFound");
    assert_eq!(event["responseObject"]["kind"], "Status");
}
