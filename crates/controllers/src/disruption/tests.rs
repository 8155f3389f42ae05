//! Tests of the budgets' arithmetic, and of the controller over the in-memory API.

use coracle_client::ListOptions;
use coracle_client::testing::FakeTransport;
use serde_json::Value;

use super::*;
use crate::testing::{context, eventually, play_kubelet, set_ready};

fn budget(spec: &Value, status: &Value) -> PodDisruptionBudget {
    let mut spec = spec.clone();
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    let value = json!({ "metadata": { "name": "b", "namespace": "ns", "generation": 2 }, "spec": spec, "status": status });
    serde_json::from_value(value).expect("a budget")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
    let one = |number: usize| {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("p{number}"));
        set_ready(&mut pod, number < ready, at(0));
        Arc::new(pod)
    };
    (0..ready + unready).map(one).collect()
}

#[test]
fn a_budget_demands_numbers_or_shares_of_what_the_owners_want() {
    let check = |spec: Value, pods: usize, scale: i32| demand(&budget(&spec, &json!({})), pods, scale);
    assert_eq!(check(json!({ "minAvailable": 2 }), 3, 0), Ok((3, 2)));
    assert_eq!(check(json!({ "minAvailable": "50%" }), 3, 5), Ok((5, 3)));
    assert_eq!(check(json!({ "maxUnavailable": 1 }), 3, 5), Ok((5, 4)));
    assert_eq!(check(json!({ "maxUnavailable": "30%" }), 3, 5), Ok((5, 3)));
    assert_eq!(check(json!({ "maxUnavailable": 9 }), 3, 5), Ok((5, 0)));
}

#[test]
fn what_is_healthy_beyond_the_demand_may_be_disrupted() {
    let check = |ready, unready, healthy, disrupted: Value| {
        let budget = budget(
            &json!({ "minAvailable": healthy }),
            &json!({ "disruptedPods": disrupted,
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0 }),
        );
        let expected = Expected { pods: ready + unready, healthy, unmanaged: false };
        let all = pods(usize::try_from(ready).expect("small"), usize::try_from(unready).expect("small"));
        let (status, late, again) = decide(&budget, &all, &expected, at(100));
        let reason = status.conditions.clone().expect("one")[0].reason.clone();
        (status.disruptions_allowed.unwrap_or(-1), reason, late.len(), again.map(|wait| wait.as_secs()))
    };
    assert_eq!(check(3, 0, 2, json!({})), (1, "SufficientPods".into(), 0, None));
    assert_eq!(check(2, 1, 2, json!({})), (0, "InsufficientPods".into(), 0, None));
    // An evicted pod does not count, for two minutes.
    let evicted = json!({ "p0": "1970-01-01T00:00:50Z" });
    assert_eq!(check(3, 0, 2, evicted), (0, "InsufficientPods".into(), 0, Some(71)));
    let long_ago = json!({ "p0": "1969-12-31T23:50:00Z" });
    assert_eq!(check(3, 0, 2, long_ago), (1, "SufficientPods".into(), 1, None));
}

#[tokio::test(start_paused = true)]
async fn the_status_follows_the_pods_of_a_replica_set() {
    let fake = FakeTransport::new(Clock::system());
    let (client, cx) = (fake.client(), context(&fake));
    let tasks = [tokio::spawn(run(&cx)), tokio::spawn(crate::replicaset::run(&cx))];
    let set = json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": { "replicas": 3,
        "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } } } });
    client
        .api::<ReplicaSet>()
        .create("ns", serde_json::from_value(set).expect("valid"))
        .await
        .expect("created");
    let budgets = client.api::<PodDisruptionBudget>();
    budgets.create("ns", budget(&json!({ "maxUnavailable": 1 }), &Value::Null)).await.expect("created");
    eventually(|| async {
        play_kubelet(&client).await;
        let status = budgets.get("ns", "b").await.expect("there").status.clone().unwrap_or_default();
        (status.expected_pods, status.current_healthy, status.disruptions_allowed)
            == (Some(3), Some(3), Some(1))
    })
    .await;
    // A pod that nobody manages leaves the number unknown only in shares.
    let names = client.api::<Pod>().list("ns", ListOptions::default()).await.expect("listed").len();
    assert_eq!(names, 3);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn a_pod_of_several_budgets_is_told_which_one_counts() {
    let pod = (*pods(1, 0)[0]).clone();
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    assert_eq!(ambiguity(&pod, &named(&["a"])), None);
    let told = ambiguity(&pod, &named(&["a", "b"]));
    let expected = "Pod \"\"/\"p0\" matches multiple PodDisruptionBudgets.  Chose \"a\" arbitrarily.";
    assert_eq!(told.as_deref(), Some(expected));
}
