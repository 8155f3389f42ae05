//! Priority and fairness, limits and time-outs over HTTPS.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use bytes::Bytes;
use coracle_apiserver::RequestLimits;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Answer, Cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NOBODY: (&str, &str) = ("authorization", "Bearer nobodytoken");
const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// Lets `nobody` do everything, under a priority level of a single seat that refuses what is too much.
async fn one_seat_for_nobody(cluster: &Cluster) {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "n" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "n" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody" }],
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "n" },
        "rules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
    });
    let level = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": { "name": "one" },
        "spec": { "type": "Limited", "limited": {
            "nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
            "limitResponse": { "type": "Reject" },
        } },
    });
    let schema = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": { "name": "nobody" },
        "spec": {
            "matchingPrecedence": 2, "priorityLevelConfiguration": { "name": "one" },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "nobody" } }],
                "resourceRules": [{
                    "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
                }],
            }],
        },
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    for (path, body) in [
        (format!("{rbac}/clusterroles"), role),
        (format!("{rbac}/clusterrolebindings"), binding),
        (format!("{FLOW}/prioritylevelconfigurations"), level),
        (format!("{FLOW}/flowschemas"), schema),
    ] {
        let made = cluster.post(&path, &body).await;
        assert_eq!(made.code, StatusCode::CREATED, "{path}: {}", String::from_utf8_lossy(&made.bytes));
    }
    let uid = cluster.get(&format!("{FLOW}/flowschemas/nobody")).await.json()["metadata"]["uid"].clone();
    until(|| async {
        let answer = cluster.send(Method::GET, MAPS, &[NOBODY], "").await;
        answer
            .headers
            .get("x-kubernetes-pf-flowschema-uid")
            .is_some_and(|v| Some(v.to_str().unwrap()) == uid.as_str())
    })
    .await;
}

/// Waits for a condition.
async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("the condition holds within a minute");
}

async fn list(cluster: &Cluster) -> Answer {
    cluster.send(Method::GET, MAPS, &[NOBODY], "").await
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_without_a_free_seat_refuses_and_all_others_are_served() {
    let limits = RequestLimits { in_flight: 2, mutating_in_flight: 0, ..RequestLimits::UPSTREAM };
    let cluster = Cluster::limited(limits).await;
    one_seat_for_nobody(&cluster).await;
    // A write that does not send its body holds the seat.
    let headers = [NOBODY, ("content-type", "application/json")];
    let mut slow = cluster.upload(Method::POST, MAPS, &headers).await;
    until(|| async { list(&cluster).await.code == StatusCode::TOO_MANY_REQUESTS }).await;
    let refused = list(&cluster).await;
    assert_eq!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap().max(1), 1);
    assert_eq!(refused.bytes, "Too many requests, please try again later.\n");
    assert!(refused.headers.contains_key("x-kubernetes-pf-prioritylevel-uid"));
    assert_eq!(cluster.get(MAPS).await.code, StatusCode::OK, "administrators are exempt");
    let metrics = String::from_utf8(cluster.get("/metrics").await.bytes.to_vec()).unwrap();
    let running =
        "apiserver_flowcontrol_current_executing_requests{flow_schema=\"nobody\",priority_level=\"one\"} 1\n";
    assert!(metrics.contains(running), "{metrics}");
    assert!(metrics.contains(
        "rejected_requests_total{flow_schema=\"nobody\",priority_level=\"one\",reason=\"concurrency-limit\"}"
    ));
    assert!(
        metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"one\"} 1\n"),
        "{metrics}"
    );
    let dump = cluster.get("/debug/api_priority_and_fairness/dump_priority_levels").await;
    let dump = String::from_utf8(dump.bytes.to_vec()).unwrap();
    assert!(dump.lines().any(|line| line.starts_with("one,") && line.contains("false,")), "{dump}");

    slow.send(Bytes::from(map("slow").to_string())).await;
    assert_eq!(slow.finish().await.code, StatusCode::CREATED);
    until(|| async { list(&cluster).await.code == StatusCode::OK }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_holds_its_seat_only_until_it_has_begun() {
    let limits = RequestLimits { in_flight: 2, mutating_in_flight: 0, ..RequestLimits::UPSTREAM };
    let cluster = Cluster::limited(limits).await;
    one_seat_for_nobody(&cluster).await;
    assert_eq!(cluster.post(MAPS, &map("there")).await.code, StatusCode::CREATED);
    let mut watches = Vec::new();
    for _ in 0..3 {
        until(|| async { list(&cluster).await.code == StatusCode::OK }).await;
        let watch = cluster.open(Method::GET, &format!("{MAPS}?watch=1"), &[NOBODY], "").await;
        assert_eq!(watch.status(), StatusCode::OK);
        watches.push(watch);
    }
    until(|| async { list(&cluster).await.code == StatusCode::OK }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fairness_the_plain_limits_refuse_all_but_administrators() {
    let limits =
        RequestLimits { in_flight: 1, mutating_in_flight: 1, fair: false, ..RequestLimits::UPSTREAM };
    let cluster = Cluster::limited(limits).await;
    let headers = [("content-type", "application/json")];
    let mut slow = cluster.upload(Method::POST, MAPS, &headers).await;
    let post = || cluster.send(Method::POST, MAPS, &[NOBODY], "{}");
    until(|| async { post().await.code == StatusCode::TOO_MANY_REQUESTS }).await;
    assert_eq!(post().await.headers["retry-after"], "1");
    assert_eq!(cluster.post(MAPS, &map("other")).await.code, StatusCode::CREATED);
    assert_eq!(list(&cluster).await.code, StatusCode::FORBIDDEN, "reads have a limit of their own");
    slow.send(Bytes::from(map("slow").to_string())).await;
    assert_eq!(slow.finish().await.code, StatusCode::CREATED);
    until(|| async { post().await.code == StatusCode::FORBIDDEN }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_too_long_is_answered_with_504() {
    let cluster = Cluster::start().await;
    let headers = [("content-type", "application/json")];
    let slow = cluster.upload(Method::POST, &format!("{MAPS}?timeout=50ms"), &headers).await;
    let answer = slow.answer().await;
    assert_eq!(answer.code, StatusCode::GATEWAY_TIMEOUT);
    let status = answer.json();
    assert_eq!(status["reason"], "Timeout");
    assert_eq!(status["message"], "Timeout: request did not complete within the allotted timeout");
    let bad = cluster.post(&format!("{MAPS}?timeout=soon"), &map("m")).await;
    assert_eq!(bad.code, StatusCode::BAD_REQUEST);
    let why = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
    assert_eq!(bad.json()["message"], why);
}
