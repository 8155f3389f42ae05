//! Tests of the Deployment's decisions, and of a rollout together with the ReplicaSet controller.

mod histories;
mod whole;

use coracle_client::testing::FakeTransport;
use coracle_client::{ListOptions, PatchKind};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::{self, Decision, decide};
use super::util::{REVISION, annotation, size};
use super::*;
use crate::testing::{context, eventually};

fn deployment(replicas: i32, image: &str, extra: &Value) -> Deployment {
    let mut value = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "ns", "uid": "d-uid", "generation": 1 },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "strategy": { "type": "RollingUpdate",
                "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] },
            },
        },
    });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    serde_json::from_value(value).expect("a deployment")
}

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).expect("in range")
}

/// Plays the writes of a decision, with every pod available at once.
fn play(deployment: &mut Deployment, sets: &mut Vec<ReplicaSet>) -> Decision {
    let decision = decide(deployment, sets.clone(), &|_| false, true, now());
    for write in &decision.writes {
        let (Write::Create(set, _) | Write::Update(set, _) | Write::Delete(set)) = write;
        sets.retain(|s| s.metadata.name != set.metadata.name);
        if !matches!(write, Write::Delete(_)) {
            let mut set = (**set).clone();
            let count = size(&set);
            set.metadata.uid = set.metadata.name.clone();
            let status = set.status.get_or_insert_default();
            status.replicas = count;
            status.ready_replicas = Some(count);
            status.available_replicas = Some(count);
            sets.push(set);
        }
    }
    if let Some(revision) = &decision.revision {
        *deployment = super::decide::with_revision(deployment, revision);
    }
    if let Some(status) = &decision.status {
        deployment.status = Some(status.clone());
    }
    decision
}

fn messages(decision: &Decision) -> Vec<String> {
    let of = |write: &Write| match write {
        Write::Create(_, happenings) | Write::Update(_, happenings) => {
            happenings.iter().map(|(.., message)| message.clone()).collect()
        }
        Write::Delete(set) => vec![format!("deleted {}", name_of(&**set))],
    };
    decision.writes.iter().flat_map(of).collect()
}

fn progress(deployment: &Deployment) -> String {
    let status = deployment.status.clone().unwrap_or_default();
    let condition = util::condition(&status, "Progressing").cloned();
    condition.and_then(|c| c.reason).unwrap_or_default()
}

fn settle(deployment: &mut Deployment, sets: &mut Vec<ReplicaSet>) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..30 {
        let decision = play(deployment, sets);
        all.extend(messages(&decision));
        if decision.writes.is_empty() && decision.status.is_none() {
            return all;
        }
    }
    panic!("does not settle: {all:?}");
}

#[test]
fn a_new_deployment_gets_one_replica_set_of_its_size_and_completes() {
    let (mut d, mut sets) = (deployment(3, "a", &json!({})), Vec::new());
    let first = play(&mut d, &mut sets);
    let name = sets[0].metadata.name.clone().expect("named");
    assert_eq!(messages(&first), [format!("Scaled up replica set {name} from 0 to 3")]);
    assert_eq!(progress(&d), "NewReplicaSetCreated");
    assert_eq!(annotation(&d.metadata, REVISION), Some("1"));
    settle(&mut d, &mut sets);
    assert_eq!(progress(&d), "NewReplicaSetAvailable");
    assert_eq!(d.status.as_ref().and_then(|s| s.available_replicas), Some(3));
    assert!(sets[0].metadata.labels.as_ref().expect("labels").contains_key("pod-template-hash"));
}

#[test]
fn the_current_set_is_the_one_of_the_template_and_may_be_yet_to_come() {
    let recreate = json!({ "strategy": { "type": "Recreate" } });
    let (mut d, mut sets) = (deployment(3, "a", &recreate), Vec::new());
    settle(&mut d, &mut sets);
    assert_eq!(sets.iter().filter(|set| is_current(&d, set)).count(), 1);
    d.spec = deployment(3, "b", &recreate).spec;
    // The change is seen, and the old pods are told to go first.
    play(&mut d, &mut sets);
    assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), [0]);
    assert!(!is_current(&d, &sets[0]));
    settle(&mut d, &mut sets);
    assert_eq!(sets.iter().filter(|set| is_current(&d, set)).map(size).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_rolling_update_stays_within_surge_and_unavailability() {
    let (mut d, mut sets) = (deployment(4, "a", &json!({})), Vec::new());
    settle(&mut d, &mut sets);
    d.spec = deployment(4, "b", &json!({})).spec;
    for _ in 0..30 {
        play(&mut d, &mut sets);
        let total: i32 = sets.iter().map(size).sum();
        assert!((3..=5).contains(&total), "{total} pods");
    }
    assert_eq!(sets.iter().map(size).max(), Some(4));
    assert_eq!(sets.iter().map(size).sum::<i32>(), 4);
    assert_eq!(annotation(&d.metadata, REVISION), Some("2"));
    assert_eq!(progress(&d), "NewReplicaSetAvailable");
}

#[test]
fn going_back_gives_the_old_replica_set_a_new_revision() {
    let (mut d, mut sets) = (deployment(2, "a", &json!({})), Vec::new());
    settle(&mut d, &mut sets);
    d.spec = deployment(2, "b", &json!({})).spec;
    settle(&mut d, &mut sets);
    d.spec = deployment(2, "a", &json!({})).spec;
    settle(&mut d, &mut sets);
    assert_eq!(sets.len(), 2);
    let revisions: Vec<_> = sets.iter().map(|s| (size(s), annotation(&s.metadata, REVISION))).collect();
    assert!(revisions.contains(&(2, Some("3"))) && revisions.contains(&(0, Some("2"))), "{revisions:?}");
}

#[test]
fn a_version_remembers_the_last_one_that_was_ready_before_it() {
    let recreate = json!({ "strategy": { "type": "Recreate" } });
    let (mut d, mut sets) = (deployment(2, "good", &recreate), Vec::new());
    settle(&mut d, &mut sets);
    let good = sets[0].metadata.name.clone();
    // Two versions whose pods never become available.
    for image in ["bad", "worse"] {
        d.spec = deployment(2, image, &recreate).spec;
        for _ in 0..5 {
            play(&mut d, &mut sets);
            for set in sets.iter_mut().filter(|set| set.metadata.name != good) {
                set.status.get_or_insert_default().available_replicas = None;
            }
        }
    }
    let newest = sets.iter().max_by_key(|set| util::number(&set.metadata, REVISION)).expect("some");
    assert_eq!(annotation(&newest.metadata, REVISION), Some("3"));
    assert_eq!(annotation(&newest.metadata, crate::revisions::LAST_READY), good.as_deref());
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let recreate = json!({ "strategy": { "type": "Recreate" } });
    let (mut d, mut sets) = (deployment(2, "a", &recreate), Vec::new());
    settle(&mut d, &mut sets);
    d.spec = deployment(2, "b", &recreate).spec;
    play(&mut d, &mut sets);
    assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), [0]);
    let waiting = decide(&d, sets.clone(), &|_| true, true, now());
    assert!(waiting.writes.is_empty());
    settle(&mut d, &mut sets);
    assert_eq!(sets.iter().map(size).max(), Some(2));
}

#[test]
fn a_paused_deployment_scales_in_proportion_but_does_not_roll() {
    let (mut d, mut sets) = (deployment(10, "a", &json!({})), Vec::new());
    settle(&mut d, &mut sets);
    d.spec = deployment(10, "b", &json!({})).spec;
    play(&mut d, &mut sets);
    d.spec = deployment(20, "b", &json!({ "paused": true })).spec;
    settle(&mut d, &mut sets);
    assert_eq!(progress(&d), "DeploymentPaused");
    let mut sizes: Vec<i32> = sets.iter().map(size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<i32>(), 25);
    assert_eq!(sizes, [6, 19]);
}

#[test]
fn history_beyond_the_limit_is_removed_when_complete() {
    let limit = json!({ "revisionHistoryLimit": 1 });
    let (mut d, mut sets) = (deployment(1, "a", &limit), Vec::new());
    for image in ["a", "b", "c", "d"] {
        d.spec = deployment(1, image, &limit).spec;
        settle(&mut d, &mut sets);
    }
    assert_eq!(sets.len(), 2);
}

#[test]
fn a_rollout_without_progress_is_timed_out_and_looked_at_in_time() {
    let (mut d, mut sets) = (deployment(1, "a", &json!({})), Vec::new());
    play(&mut d, &mut sets);
    sets[0].status = None;
    let waiting = decide(&d, sets.clone(), &|_| false, true, now());
    assert_eq!(waiting.check_again.map(|wait| wait.as_secs()), Some(601));
    let later = Timestamp::from_second(1_000_601).expect("in range");
    let late = decide(&d, sets.clone(), &|_| false, true, later);
    d.status = late.status;
    assert_eq!(progress(&d), "ProgressDeadlineExceeded");
}

#[test]
fn one_that_waits_for_its_turn_keeps_its_template_and_follows_its_size() {
    use crate::rollouts::Progress as Rollout;
    let (mut d, mut sets) = (deployment(2, "a", &json!({})), Vec::new());
    assert_eq!(decide::progress(&d, &sets), Rollout::Idle, "a first version replaces nothing");
    settle(&mut d, &mut sets);
    assert_eq!(decide::progress(&d, &sets), Rollout::Idle);
    d.spec = deployment(3, "b", &json!({})).spec;
    assert_eq!(decide::progress(&d, &sets), Rollout::Due(None));
    let waits = decide::decide(&d, sets.clone(), &|_| false, false, now());
    let said = messages(&waits);
    assert!(said.len() == 1 && said[0].ends_with("from 2 to 3"), "{said:?}");
    play(&mut d, &mut sets);
    play(&mut d, &mut sets);
    assert_eq!(decide::progress(&d, &sets), Rollout::Begun);
    settle(&mut d, &mut sets);
    assert_eq!(decide::progress(&d, &sets), Rollout::Idle);
    d.spec = deployment(3, "c", &json!({ "paused": true })).spec;
    assert_eq!(decide::progress(&d, &sets), Rollout::Idle, "one that is paused holds nobody up");
}

#[tokio::test(start_paused = true)]
async fn deployment_and_replica_set_controllers_roll_real_objects() {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let cx = context(&fake);
    let tasks = [tokio::spawn(run(&cx)), tokio::spawn(crate::replicaset::run(&cx))];
    let (api, pods) = (client.api::<Deployment>(), client.api::<Pod>());
    api.create("ns", deployment(3, "a", &json!({}))).await.expect("created");
    let ready = || async {
        for pod in pods.list("ns", ListOptions::default()).await.expect("listed") {
            if !podutil::is_ready(&pod) {
                let ready = json!({ "status": { "phase": "Running",
                    "conditions": [{ "type": "Ready", "status": "True" }] } });
                let _ = pods.patch_status("ns", name_of(&*pod), PatchKind::Merge, ready).await;
            }
        }
    };
    let complete = |image: &'static str| {
        let (api, pods) = (api.clone(), pods.clone());
        async move {
            let d = api.get("ns", "web").await.expect("there");
            let all = pods.list("ns", ListOptions::default()).await.expect("listed");
            let current = all.iter().filter(|pod| {
                pod.spec.as_ref().is_some_and(|spec| spec.containers[0].image.as_deref() == Some(image))
            });
            progress(&d) == "NewReplicaSetAvailable" && all.len() == 3 && current.count() == 3
        }
    };
    eventually(|| async {
        ready().await;
        complete("a").await
    })
    .await;
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "b" }] } } } });
    api.patch("ns", "web", PatchKind::Merge, image).await.expect("patched");
    eventually(|| async {
        ready().await;
        complete("b").await
    })
    .await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
