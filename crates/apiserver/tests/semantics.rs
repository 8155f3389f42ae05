//! Rules of upstream that show only in the whole: what is read, who owns what, which write makes a revision, and what
//! a request may be made as.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::sync::Arc;

use coracle_auth::service_account::{ServiceAccountAuthenticator, TokenIssuer};
use coracle_store::{MemoryStore, Store};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Answer, Cluster};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn apply(cluster: &Cluster, target: &str, manager: &str, body: &Value) -> Answer {
    cluster.patch(&format!("{target}?fieldManager={manager}"), "apply-patch+yaml", body).await
}

#[tokio::test]
async fn yaml_bodies_are_read_by_yaml_1_1() {
    let cluster = Cluster::start().await;
    let yaml = [("content-type", "application/yaml")];
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: yes}\n";
    let answer = cluster.send(Method::POST, CONFIGMAPS, &yaml, body).await;
    assert_eq!(answer.code, StatusCode::BAD_REQUEST);
    let why = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal bool into Go struct \
               field ConfigMap.data of type string";
    assert_eq!(answer.json()["message"], why);
    let answer = cluster.send(Method::POST, CONFIGMAPS, &yaml, &body.replace("yes", "'yes'")).await;
    assert_eq!(answer.json()["data"], json!({ "x": "yes" }));
}

#[tokio::test]
async fn unknown_fields_may_nest_deeper_than_our_parser_goes() {
    let cluster = Cluster::start().await;
    let deep = format!("{}{}", "[".repeat(400), "]".repeat(400));
    let body = format!(
        "{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"a\"}},\"x\":{deep}}}"
    );
    let answer = cluster.send(Method::POST, CONFIGMAPS, &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.code, StatusCode::CREATED);
    assert_eq!(answer.headers["warning"], "299 - \"unknown field \\\"x\\\"\"");
}

#[tokio::test]
async fn an_applied_zero_value_is_owned_and_conflicts() {
    let cluster = Cluster::start().await;
    let target = "/apis/scheduling.k8s.io/v1/priorityclasses/low";
    let class = json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": "low" },
                        "value": 5, "globalDefault": false });
    let first = apply(&cluster, target, "one", &class).await.json();
    assert!(first["metadata"]["managedFields"][0]["fieldsV1"]["f:globalDefault"].is_object());
    let again = apply(&cluster, target, "one", &class).await.json();
    assert_eq!(again["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let other = apply(&cluster, target, "two", &class).await;
    assert_eq!(other.code, StatusCode::CONFLICT);
    assert_eq!(other.json()["details"]["causes"][0]["field"], ".globalDefault");
}

#[tokio::test]
async fn the_first_write_that_changes_nothing_makes_a_revision_where_the_reader_adds_defaults() {
    let cluster = Cluster::start().await;
    let target = "/api/v1/namespaces/default/persistentvolumeclaims/c";
    let claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "c" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let mut revisions = Vec::new();
    for _ in 0..3 {
        let answer = apply(&cluster, target, "one", &claim).await.json();
        assert_eq!(answer["status"], json!({ "phase": "Pending" }));
        revisions.push(answer["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
    }
    assert_ne!(revisions[0], revisions[1]);
    assert_eq!(revisions[1], revisions[2]);
}

#[tokio::test]
async fn a_dry_run_shows_the_revision_that_the_client_named() {
    let cluster = Cluster::start().await;
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "resourceVersion": "0" } });
    let shown = cluster.post(&format!("{CONFIGMAPS}?dryRun=All"), &map).await.json();
    assert_eq!(shown["metadata"]["resourceVersion"], "0");
    let made = cluster.post(CONFIGMAPS, &map).await.json();
    assert_ne!(made["metadata"]["resourceVersion"], "0");
}

#[tokio::test]
async fn messages_show_empty_values_as_they_were_sent() {
    let cluster = Cluster::start().await;
    let mut set = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "a" },
        "spec": { "selector": { "matchLabels": { "a": "b" } },
                  "template": { "metadata": { "labels": {} },
                                "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    let target = "/apis/apps/v1/namespaces/default/replicasets?dryRun=All";
    let told =
        async |set: &Value| cluster.post(target, set).await.json()["details"]["causes"][0]["message"].clone();
    assert_eq!(told(&set).await, "Invalid value: {}: `selector` does not match template `labels`");
    set["spec"]["template"]["metadata"] = json!({});
    assert_eq!(told(&set).await, "Invalid value: null: `selector` does not match template `labels`");
}

#[tokio::test]
async fn values_that_do_not_fit_a_schema_are_told_by_their_go_types() {
    let cluster = Cluster::start().await;
    let crd = |schema: Value| {
        json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "as.example.com" }, "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "as", "kind": "A" }, "versions": [{ "name": "v1", "served": true,
                "storage": true, "schema": { "openAPIV3Schema": schema } }] } })
    };
    let target = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All";
    let answer = cluster.post(target, &crd(json!({ "type": "object", "allOf": {} }))).await.json();
    let why = "CustomResourceDefinition in version \"v1\" cannot be handled as a CustomResourceDefinition: json: cannot \
               unmarshal object into Go struct field JSONSchemaProps.spec.versions.schema.openAPIV3Schema.allOf of \
               type []v1.JSONSchemaProps";
    assert_eq!(answer["message"], why);
    let answer = cluster.post(target, &crd(json!({ "type": "object", "allOf": [] }))).await;
    assert_eq!(answer.code, StatusCode::CREATED);
}

/// Gives the user `nobody` a cluster role of these rules.
async fn grant(cluster: &Cluster, rules: Value) {
    let group = "rbac.authorization.k8s.io";
    let role = json!({ "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": { "name": "r" },
                       "rules": rules });
    let binding = json!({ "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
        "metadata": { "name": "r" }, "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "r" },
        "subjects": [{ "kind": "User", "name": "nobody", "apiGroup": group }] });
    for (plural, object) in [("clusterroles", &role), ("clusterrolebindings", &binding)] {
        let made = cluster.post(&format!("/apis/{group}/v1/{plural}"), object).await;
        assert_eq!(made.code, StatusCode::CREATED, "{}", made.json());
    }
}

#[tokio::test]
async fn constrained_impersonation_takes_the_right_to_the_deed_and_to_the_user() {
    let cluster = Cluster::start().await;
    let as_jane = [("authorization", "Bearer nobodytoken"), ("impersonate-user", "jane")];
    let refused = cluster.send(Method::GET, CONFIGMAPS, &as_jane, "").await;
    let why = "configmaps is forbidden: User \"nobody\" cannot impersonate-on:user-info:list resource \"configmaps\" in \
               API group \"\" in the namespace \"default\"";
    assert_eq!((refused.code, &refused.json()["message"]), (StatusCode::FORBIDDEN, &json!(why)));
    grant(
        &cluster,
        json!([
            { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["impersonate-on:user-info:list"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["jane"],
              "verbs": ["impersonate:user-info"] },
        ]),
    )
    .await;
    // Now jane's own rights count, and she has none.
    let refused = cluster.send(Method::GET, CONFIGMAPS, &as_jane, "").await;
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("User \"jane\" cannot list resource \"configmaps\""), "{message}");
    // What the right to the deed does not cover is refused in the name of who asks.
    let refused = cluster.send(Method::GET, "/api/v1/nodes", &as_jane, "").await;
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("User \"nobody\" cannot impersonate-on:user-info:list"), "{message}");
    let as_admin = [as_jane[0], as_jane[1], ("impersonate-group", "system:masters")];
    let refused = cluster.send(Method::GET, CONFIGMAPS, &as_admin, "").await;
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("impersonating the system:masters group is not allowed"), "{message}");
    let shown = String::from_utf8(cluster.get("/metrics").await.bytes.to_vec()).unwrap();
    let line = "apiserver_impersonation_attempts_total{decision=\"allowed\",mode=\"user-info\"} 1";
    assert!(shown.lines().any(|l| l == line), "{shown}");
}

#[tokio::test]
async fn the_server_tells_how_it_runs_and_was_started() {
    let flags = [("secure-port".to_owned(), "6443".to_owned())].into();
    let store = coracle_store::MemoryStore::new();
    let cluster = Cluster::with(store, |config| config.flags = flags).await;
    let text = String::from_utf8(cluster.get("/flagz").await.bytes.to_vec()).unwrap();
    assert!(text.starts_with("\napiserver flagz\n") && text.ends_with("\nsecure-port:6443\n"), "{text}");
    let named = |kind: &str| format!("application/json;v=v1alpha1;g=config.k8s.io;as={kind}");
    let wanted = named("Statusz");
    let status = cluster.send(Method::GET, "/statusz", &[("accept", &wanted)], "").await.json();
    assert_eq!(
        (status["kind"].as_str(), status["emulationVersion"].as_str()),
        (Some("Statusz"), Some("1.36"))
    );
    let plain = cluster.send(Method::GET, "/statusz", &[("accept", "application/json")], "").await;
    assert_eq!(plain.code, StatusCode::NOT_ACCEPTABLE);
    let checks = String::from_utf8(cluster.get("/metrics/slis").await.bytes.to_vec()).unwrap();
    assert!(checks.contains("kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 1"), "{checks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_use_of_a_token_in_a_secret_is_written_down_with_its_day() {
    let key = coracle_auth::pki::generate_key().unwrap();
    let issuer = Arc::new(TokenIssuer::new(&key, "https://issuer", vec!["api".into()]).unwrap());
    let (theirs, shared) = (issuer.clone(), issuer.clone());
    let cluster = Cluster::with(MemoryStore::new(), |config| {
        config.token_issuer = Some(issuer);
        let tokens = std::mem::replace(&mut config.authenticators, Box::new(|_| Vec::new()));
        config.authenticators = Box::new(move |reader| {
            let accounts =
                ServiceAccountAuthenticator::new(theirs, reader.clone(), coracle_stdx::Clock::system());
            let mut all = tokens(reader);
            all.push(Arc::new(accounts));
            all
        });
    })
    .await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "old" } });
    let account = cluster.post(accounts, &account).await.json();
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let token = shared.issue_legacy("default", "old", uid, "kept");
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "kept" },
        "stringData": { "token": token } });
    assert_eq!(cluster.post(secrets, &secret).await.code, StatusCode::CREATED);
    let bearer = format!("Bearer {token}");
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" }).to_string();
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = cluster.send(Method::POST, review, &headers, &body).await;
    assert_ne!(answer.code, StatusCode::UNAUTHORIZED, "{}", answer.json());
    support::eventually("the label", || async {
        let secret = cluster.get(&format!("{secrets}/kept")).await.json();
        secret["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].as_str().map(str::to_owned)
    })
    .await;
    let since =
        "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let day = cluster.get(since).await.json()["data"]["since"].as_str().map(str::to_owned);
    assert!(day.is_some_and(|day| day.parse::<jiff::civil::Date>().is_ok()));
}

#[tokio::test]
async fn a_compacted_state_is_gone_even_if_nothing_has_changed_since() {
    let store = MemoryStore::new();
    let cluster = Cluster::over(store.clone()).await;
    for name in ["a", "b", "c"] {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
        assert_eq!(cluster.post(CONFIGMAPS, &map).await.code, StatusCode::CREATED);
    }
    let page = cluster.get(&format!("{CONFIGMAPS}?limit=1")).await.json();
    let (token, at) = (&page["metadata"]["continue"], &page["metadata"]["resourceVersion"]);
    let next = format!("{CONFIGMAPS}?limit=1&continue={}", token.as_str().unwrap());
    let exact = format!("{CONFIGMAPS}?resourceVersionMatch=Exact&resourceVersion={}", at.as_str().unwrap());
    // Others write; the ConfigMaps stay as they are.
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } });
    assert_eq!(cluster.post("/api/v1/namespaces", &namespace).await.code, StatusCode::CREATED);
    assert_eq!(cluster.get(&next).await.json()["items"][0]["metadata"]["name"], "b");
    assert_eq!(cluster.get(&exact).await.json()["items"].as_array().map(Vec::len), Some(3));
    store.compact(store.revision()).await.unwrap();
    assert_eq!(cluster.get(&exact).await.code, StatusCode::GONE);
    let gone = cluster.get(&next).await;
    assert_eq!(gone.code, StatusCode::GONE);
    // With what it is told the client goes on, at the newest state.
    let token = gone.json()["metadata"]["continue"].as_str().map(str::to_owned).expect("a token");
    let rest = cluster.get(&format!("{CONFIGMAPS}?continue={token}")).await.json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(2));
}
