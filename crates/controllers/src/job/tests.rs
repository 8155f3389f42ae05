//! Tests of the Job's counting over random histories with crashes, and of the controller over the in-memory API.

mod histories;

use std::collections::BTreeMap;

use coracle_client::testing::FakeTransport;
use coracle_client::{DeleteOptions, ListOptions};
use coracle_meta::owner::controller_of;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::indexes::Indexes;
use super::tally::index_of;
use super::*;
use crate::testing::{context_at, eventually, seeded, set_ready, test_clock};

fn job(extra: &Value) -> Job {
    let mut value = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": { "name": "j", "namespace": "ns", "uid": "j-uid" },
        "spec": {
            "completions": 3, "parallelism": 2, "backoffLimit": 6, "completionMode": "NonIndexed",
            "selector": { "matchLabels": { "job": "j" } },
            "template": {
                "metadata": { "labels": { "job": "j" } },
                "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] },
            },
        },
    });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    serde_json::from_value(value).expect("a job")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A cluster of the tests' own. The controller may be interrupted between any two of its writes.
struct World {
    job: Job,
    pods: BTreeMap<String, Arc<Pod>>,
    backoff: Backoff,
    made: usize,
    now: i64,
    /// What really happened: by uid, whether it succeeded, and its index.
    ended: BTreeMap<String, (bool, Option<i32>)>,
}

impl World {
    fn new(job: Job) -> Self {
        let (pods, ended) = (BTreeMap::new(), BTreeMap::new());
        Self { job, pods, backoff: Backoff::default(), made: 0, now: 0, ended }
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    fn is_over(&self) -> bool {
        finished(&self.status()).is_some()
    }

    fn remove(&mut self, uid: &str) {
        let gone = self
            .pods
            .get(uid)
            .is_some_and(|pod| !is_tracked(pod) && pod.metadata.deletion_timestamp.is_some());
        if gone {
            self.pods.remove(uid);
        }
    }

    fn release(&mut self, uid: &str) {
        if let Some(pod) = self.pods.get_mut(uid) {
            Arc::make_mut(pod).metadata.finalizers = None;
        }
        // A finished pod that is being deleted goes with its last finalizer.
        if self.pods.get(uid).is_some_and(|pod| podutil::is_terminal(pod)) {
            self.remove(uid);
        }
    }

    fn delete(&mut self, uid: &str) {
        let now = Time(at(self.now));
        if let Some(pod) = self.pods.get_mut(uid) {
            Arc::make_mut(pod).metadata.deletion_timestamp.get_or_insert(now);
        }
    }

    /// One pass; each write fails with a chance, as if the controller had crashed there.
    fn pass(&mut self, rng: &mut StdRng, crash: f64) {
        if self.is_over() {
            return;
        }
        let job = self.job.clone();
        let spec = job.spec.clone().expect("spec");
        let pods: Vec<Arc<Pod>> = self.pods.values().cloned().collect();
        let tally = Tally::new(&job, &spec, &pods, self.backoff, at(self.now));
        let mut outcome = Outcome {
            active: count(tally.active.len()),
            ready: tally.ready,
            terminating: tally.terminating,
            done: true,
        };
        match tally.manage() {
            Manage::Nothing | Manage::Wait(_) => {}
            Manage::Create(number, indexes) => {
                for position in 0..number {
                    if rng.random_bool(crash) {
                        return;
                    }
                    let index = indexes.get(position).copied();
                    let replaced = index.and_then(|index| tally.delayed.get(&index)).map(|pod| &**pod);
                    let mut pod = make::new_pod(&job, index, replaced);
                    self.made += 1;
                    let uid = format!("u{:05}", self.made);
                    pod.metadata.uid = Some(uid.clone());
                    pod.metadata.name = Some(uid.clone());
                    pod.metadata.creation_timestamp = Some(Time(at(self.now)));
                    self.pods.insert(uid, Arc::new(pod));
                    outcome.active += 1;
                }
            }
            Manage::End(victims) => {
                for pod in victims {
                    if rng.random_bool(crash) {
                        return;
                    }
                    self.delete(uid_of(&*pod));
                    // What the end of the Job interrupts has failed.
                    self.ended.entry(uid_of(&*pod).to_owned()).or_insert((false, index_of(&pod)));
                    outcome.active -= 1;
                    outcome.terminating += 1;
                }
            }
            Manage::Remove(victims) => {
                for pod in victims {
                    if rng.random_bool(crash) {
                        return;
                    }
                    self.release(uid_of(&*pod));
                    if rng.random_bool(crash) {
                        return;
                    }
                    self.delete(uid_of(&*pod));
                    outcome.active -= 1;
                    outcome.terminating += 1;
                }
            }
        }
        let account = account(&tally, outcome);
        if rng.random_bool(crash) {
            return;
        }
        self.job.status = Some(account.status.clone());
        self.backoff = tally.backoff;
        let mut held = account.held.clone();
        for pod in &account.release {
            if rng.random_bool(crash) {
                return;
            }
            self.release(uid_of(&**pod));
            held.remove(uid_of(&**pod));
        }
        if rng.random_bool(crash) {
            return;
        }
        self.job.status = Some(settle(&account, &held, spec.completions, tally.is_indexed()).0);
    }

    /// The kubelets work on one pod.
    fn kubelet(&mut self, rng: &mut StdRng, failing: f64) {
        if self.pods.is_empty() {
            return;
        }
        let which = rng.random_range(0..self.pods.len());
        let uid = self.pods.keys().nth(which).cloned().expect("in range");
        let now = at(self.now);
        let pod = Arc::make_mut(self.pods.get_mut(&uid).expect("there"));
        if podutil::is_terminal(pod) {
            self.remove(&uid);
            return;
        }
        if pod.metadata.deletion_timestamp.is_some() || rng.random_bool(0.5) {
            let leaving = pod.metadata.deletion_timestamp.is_some();
            let succeeds = !leaving && !rng.random_bool(failing);
            let (index, tracked) = (index_of(pod), is_tracked(pod));
            let disrupted = podutil::condition(pod, "DisruptionTarget").cloned();
            set_ready(pod, false, now);
            let conditions = &mut pod.status.get_or_insert_default().conditions;
            conditions.get_or_insert_default().extend(disrupted);
            let phase = if succeeds { "Succeeded" } else { "Failed" };
            pod.status.get_or_insert_default().phase = Some(phase.to_owned());
            if tracked {
                self.ended.insert(uid.clone(), (succeeds, index));
            }
            self.remove(&uid);
        } else {
            set_ready(pod, true, now);
        }
    }

    fn check(&self, seed: u64) {
        let status = self.status();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let length = |uids: &Option<Vec<String>>| count(uids.as_ref().map_or(0, Vec::len));
        let succeeded = status.succeeded.unwrap_or(0) + length(&uncounted.succeeded);
        let failed = status.failed.unwrap_or(0) + length(&uncounted.failed);
        let really = |good: bool| self.ended.values().filter(|(succeeds, _)| *succeeds == good).count();
        assert!(succeeded <= count(really(true)), "seed {seed}: {succeeded} counted as succeeded");
        assert!(failed <= count(really(false)), "seed {seed}: {failed} counted as failed");
        if self.job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed") {
            let done = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""), i32::MAX);
            assert_eq!(status.succeeded.unwrap_or(0), done.total());
            let truly: Indexes = self
                .ended
                .values()
                .filter(|(succeeds, _)| *succeeds)
                .filter_map(|(_, index)| *index)
                .collect();
            assert_eq!(done.overlap(&truly), done.total(), "seed {seed}: an index that did not succeed");
        }
    }
}

fn history(seed: u64, extra: &Value, failing: f64) -> World {
    let mut rng = seeded(seed);
    let mut world = World::new(job(extra));
    for step in 0..4000 {
        world.now += 5;
        let crash = if step < 3000 { 0.15 } else { 0.0 };
        world.kubelet(&mut rng, failing);
        world.pass(&mut rng, crash);
        world.check(seed);
        let active = world.pods.values().filter(|pod| podutil::is_active(pod)).count();
        assert!(active <= 3, "seed {seed}: more pods than parallelism");
        if world.is_over() {
            break;
        }
    }
    assert!(world.is_over(), "seed {seed}: {:?}", world.status());
    world
}

fn end(world: &World) -> (String, Option<String>) {
    let status = world.status();
    let end = finished(&status).expect("over").clone();
    (end.type_, end.reason)
}

#[test]
fn a_job_counts_every_pod_once_whatever_is_interrupted_and_completes() {
    for seed in 0..40 {
        let world = history(seed, &json!({ "completions": 5, "parallelism": 3, "backoffLimit": 1000 }), 0.3);
        assert_eq!(end(&world), ("Complete".into(), Some("CompletionsReached".into())));
        assert_eq!(world.status().succeeded, Some(5), "seed {seed}");
        assert!(world.status().completion_time.is_some());
    }
}

#[test]
fn an_indexed_job_completes_every_index_once() {
    for seed in 0..40 {
        let extra =
            json!({ "completions": 6, "parallelism": 3, "completionMode": "Indexed", "backoffLimit": 1000 });
        let world = history(seed, &extra, 0.3);
        assert_eq!(end(&world).0, "Complete");
        assert_eq!(world.status().completed_indexes.as_deref(), Some("0-5"), "seed {seed}");
    }
}

#[test]
fn a_job_fails_when_more_pods_failed_than_its_limit() {
    for seed in 0..30 {
        let world = history(seed, &json!({ "completions": 50, "parallelism": 3, "backoffLimit": 2 }), 0.8);
        assert_eq!(end(&world), ("Failed".into(), Some("BackoffLimitExceeded".into())), "seed {seed}");
        assert!(world.status().failed.unwrap_or(0) > 2);
        assert_eq!(world.status().active, None);
        assert!(world.status().conditions.expect("some").iter().any(|c| c.type_ == "FailureTarget"));
    }
}

#[test]
fn with_a_limit_per_index_each_index_fails_by_itself() {
    for seed in 0..30 {
        let extra = json!({ "completions": 4, "parallelism": 3, "completionMode": "Indexed",
            "backoffLimit": i32::MAX, "backoffLimitPerIndex": 1 });
        let world = history(seed, &extra, 0.7);
        let status = world.status();
        let parse = |text: Option<&String>| Indexes::parse(text.map_or("", String::as_str), 4);
        let (good, bad) = (parse(status.completed_indexes.as_ref()), parse(status.failed_indexes.as_ref()));
        assert_eq!(good.total() + bad.total(), 4, "seed {seed}");
        assert_eq!(good.overlap(&bad), 0, "seed {seed}");
        for index in (0..4).filter(|index| bad.has(*index)) {
            let failures = world.ended.values().filter(|(ok, i)| !ok && *i == Some(index)).count();
            assert!(failures >= 2, "seed {seed}: index {index} failed after {failures}");
        }
        let reason = if bad.total() > 0 { "FailedIndexes" } else { "CompletionsReached" };
        assert_eq!(end(&world).1.as_deref(), Some(reason));
    }
}

#[test]
fn success_failure_and_deadline_policies_end_a_job_early() {
    let rules = json!({ "rules": [{ "succeededCount": 2 }] });
    let extra =
        json!({ "completions": 20, "parallelism": 2, "completionMode": "Indexed", "successPolicy": rules });
    let world = history(3, &extra, 0.0);
    assert_eq!(end(&world), ("Complete".into(), Some("SuccessPolicy".into())));
    let rules = json!({ "rules": [{ "action": "FailJob",
        "onPodConditions": [{ "type": "Ready", "status": "False" }] }] });
    let world = history(4, &json!({ "podFailurePolicy": rules }), 1.0);
    assert_eq!(end(&world), ("Failed".into(), Some("PodFailurePolicy".into())));
    let late = job(&json!({ "activeDeadlineSeconds": 60 }));
    let spec = late.spec.clone().expect("spec");
    let started =
        Job { status: Some(JobStatus { start_time: Some(Time(at(0))), ..JobStatus::default() }), ..late };
    let tally = |now| Tally::new(&started, &spec, &[], Backoff::default(), at(now));
    assert_eq!(tally(20).again.map(|wait| wait.as_secs()), Some(40));
    assert_eq!(tally(60).end.and_then(|end| end.reason).as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn a_suspended_job_removes_its_pods_uncounted_and_starts_anew_later() {
    let mut rng = seeded(5);
    let mut world = World::new(job(&json!({})));
    world.pass(&mut rng, 0.0);
    assert_eq!(world.pods.len(), 2);
    world.job.spec.as_mut().expect("spec").suspend = Some(true);
    world.now = 100;
    world.pass(&mut rng, 0.0);
    let status = world.status();
    let suspended = tally::condition(&status, "Suspended").expect("suspended");
    assert_eq!((suspended.status.as_str(), status.start_time.clone(), status.active), ("True", None, None));
    for _ in 0..50 {
        world.kubelet(&mut rng, 0.0);
        world.pass(&mut rng, 0.0);
    }
    assert_eq!((world.pods.len(), world.status().failed), (0, None));
    world.job.spec.as_mut().expect("spec").suspend = Some(false);
    world.pass(&mut rng, 0.0);
    assert_eq!(world.status().start_time.map(|t| t.0), Some(at(100)));
    assert_eq!(world.pods.len(), 2);
}

#[test]
fn indexed_pods_know_their_index() {
    let job = job(&json!({ "completionMode": "Indexed", "backoffLimitPerIndex": 3 }));
    let first = make::new_pod(&job, Some(2), None);
    assert_eq!(first.metadata.generate_name.as_deref(), Some("j-2-"));
    assert_eq!(first.metadata.labels.as_ref().expect("labels")[tally::INDEX], "2");
    assert_eq!(first.metadata.annotations.as_ref().expect("annotations")[tally::FAILURES], "0");
    let spec = first.spec.clone().expect("spec");
    assert_eq!(spec.hostname.as_deref(), Some("j-2"));
    assert_eq!(spec.containers[0].env.as_ref().expect("env")[0].name, "JOB_COMPLETION_INDEX");
    let second = make::new_pod(&job, Some(2), Some(&first));
    assert_eq!(second.metadata.annotations.expect("annotations")[tally::FAILURES], "1");
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_to_completion_and_its_pods_are_free_to_go() {
    let clock = test_clock();
    let fake = FakeTransport::new(clock.clone());
    let client = fake.client();
    let cx = context_at(&fake, clock);
    let tasks = [tokio::spawn(run(&cx)), tokio::spawn(run_orphans(&cx))];
    let (jobs, pods) = (client.api::<Job>(), client.api::<Pod>());
    jobs.create("ns", job(&json!({}))).await.expect("created");
    let finish = |phase: &'static str, most: usize| {
        let pods = pods.clone();
        async move {
            let all = pods.list("ns", ListOptions::default()).await.expect("listed");
            for pod in all.iter().filter(|pod| !podutil::is_terminal(pod)).take(most) {
                let patch = json!({ "status": { "phase": phase } });
                pods.patch_status("ns", name_of(&**pod), PatchKind::Merge, patch).await.expect("patched");
            }
            all.len()
        }
    };
    eventually(|| async { finish("Failed", 0).await == 2 }).await;
    finish("Failed", 1).await;
    let status = || async { jobs.get("ns", "j").await.expect("there").status.clone().unwrap_or_default() };
    eventually(|| async { status().await.failed == Some(1) }).await;
    eventually(|| async {
        finish("Succeeded", 9).await;
        finished(&status().await).is_some_and(|end| end.type_ == "Complete")
    })
    .await;
    assert_eq!((status().await.succeeded, status().await.failed), (Some(3), Some(1)));
    let all = pods.list("ns", ListOptions::default()).await.expect("listed");
    assert!(all.iter().all(|pod| !is_tracked(pod) && controller_of(&pod.metadata).is_some()));
    // The pods of a job that goes away are released too.
    jobs.create(
        "ns",
        Job {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("gone".into()),
                ..Default::default()
            },
            ..job(&json!({}))
        },
    )
    .await
    .expect("created");
    eventually(|| async { pods.list("ns", ListOptions::default()).await.expect("listed").len() == 6 }).await;
    jobs.delete("ns", "gone", DeleteOptions::default()).await.expect("deleted");
    eventually(|| async {
        pods.list("ns", ListOptions::default()).await.expect("listed").iter().all(|pod| !is_tracked(pod))
    })
    .await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
