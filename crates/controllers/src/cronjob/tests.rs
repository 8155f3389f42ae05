//! Tests of the CronJob's decisions, and of the controller over the in-memory API.

use coracle_client::testing::FakeTransport;
use coracle_client::{ListOptions, PatchKind};
use serde_json::{Value, json};

use super::*;
use crate::testing::{context_at, eventually, test_clock};

pub(super) fn cron(extra: &Value, status: &Value) -> CronJob {
    let mut value = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": { "name": "c", "namespace": "ns", "uid": "c-uid", "creationTimestamp": "2024-03-10T00:00:00Z" },
        "spec": {
            "schedule": "*/5 * * * *", "concurrencyPolicy": "Allow",
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": { "metadata": { "labels": { "from": "template" } }, "spec": { "template": {} } },
        },
        "status": status,
    });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    serde_json::from_value(value).expect("a cron job")
}

fn job(name: &str, end: Option<&str>) -> Arc<Job> {
    let conditions: Vec<Value> = end.iter().map(|kind| json!({ "type": kind, "status": "True" })).collect();
    let completion = (end == Some("Complete")).then_some("2024-03-10T01:00:00Z");
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "ns", "uid": name },
            "status": { "conditions": conditions, "startTime": "2024-03-10T00:30:00Z", "completionTime": completion },
        }))
        .expect("a job"),
    )
}

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn look(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Decision {
    decide(cron, jobs, &BTreeSet::new(), at(now))
}

fn reasons(decision: &Decision) -> Vec<&'static str> {
    decision.happenings.iter().map(|(_, reason, _)| *reason).collect()
}

#[test]
fn the_newest_missed_time_gets_one_job_named_after_its_minute() {
    let cron = cron(&json!({}), &json!({}));
    let early = look(&cron, &[], "2024-03-10T00:03:00Z");
    assert!(early.start.is_none());
    assert_eq!(early.again.map(|wait| wait.as_millis()), Some(120_100));
    let due = look(&cron, &[], "2024-03-10T00:17:30Z");
    let (made, time) = due.start.expect("due");
    assert_eq!(time, at("2024-03-10T00:15:00Z"));
    assert_eq!(made.metadata.name.as_deref(), Some("c-28500495"));
    assert_eq!(made.metadata.labels.as_ref().expect("labels")["from"], "template");
    let annotations = made.metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2024-03-10T00:15:00Z");
    assert_eq!(due.again.map(|wait| wait.as_millis()), Some(150_100));
}

#[test]
fn schedules_follow_their_time_zone_over_the_change_of_clocks() {
    // On this day clocks in New York go from 01:59 to 03:00.
    let zoned = cron(&json!({ "schedule": "0 4 * * *", "timeZone": "America/New_York" }), &json!({}));
    let (made, time) = look(&zoned, &[], "2024-03-10T08:00:01Z").start.expect("due");
    assert_eq!(time, at("2024-03-10T08:00:00Z"));
    let annotations = made.metadata.annotations.expect("annotations");
    assert_eq!(annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2024-03-10T04:00:00-04:00");
    let unknown = cron(&json!({ "timeZone": "Moon/Crater" }), &json!({}));
    let decision = look(&unknown, &[], "2024-03-10T08:00:01Z");
    assert_eq!((reasons(&decision), decision.start.is_none()), (vec!["UnknownTimeZone"], true));
}

#[test]
fn a_time_past_its_deadline_is_missed_and_many_missed_times_are_told() {
    let late = cron(&json!({ "startingDeadlineSeconds": 60 }), &json!({}));
    // Within the last minute nothing was due.
    let decision = look(&late, &[], "2024-03-10T00:17:30Z");
    assert!(decision.start.is_none() && decision.happenings.is_empty());
    assert!(look(&late, &[], "2024-03-10T00:15:30Z").start.is_some());
    let many = look(&cron(&json!({}), &json!({})), &[], "2024-03-12T00:00:01Z");
    assert_eq!(reasons(&many), ["TooManyMissedTimes"]);
    assert_eq!(many.start.expect("due").1, at("2024-03-12T00:00:00Z"));
}

#[test]
fn the_concurrency_policy_decides_about_a_job_that_still_runs() {
    let active = json!({ "active": [{ "name": "old", "namespace": "ns", "uid": "old" }],
        "lastScheduleTime": "2024-03-10T00:05:00Z" });
    let run = [job("old", None)];
    let check = |policy: &str| {
        look(&cron(&json!({ "concurrencyPolicy": policy }), &active), &run, "2024-03-10T00:10:01Z")
    };
    let allow = check("Allow");
    assert!(allow.start.is_some() && allow.replace.is_empty());
    let forbid = check("Forbid");
    assert!(forbid.start.is_none());
    assert_eq!(reasons(&forbid), ["JobAlreadyActive"]);
    let replace = check("Replace");
    assert_eq!((replace.start.is_some(), replace.replace.len()), (true, 1));
    let suspended = look(&cron(&json!({ "suspend": true }), &active), &run, "2024-03-10T00:10:01Z");
    assert!(suspended.start.is_none() && suspended.again.is_none());
}

#[test]
fn a_time_is_never_used_twice() {
    let same = json!({ "lastScheduleTime": "2024-03-10T00:10:00Z" });
    assert!(look(&cron(&json!({}), &same), &[], "2024-03-10T00:10:20Z").start.is_none());
    let listed = json!({ "active": [{ "name": "c-28500490", "namespace": "ns", "uid": "u" }] });
    assert!(look(&cron(&json!({}), &listed), &[], "2024-03-10T00:10:20Z").start.is_none());
}

#[test]
fn finished_jobs_leave_the_list_and_the_history_keeps_the_newest() {
    let active = json!({ "active": [{ "name": "a", "namespace": "ns", "uid": "a" }] });
    let jobs = [job("a", Some("Complete")), job("b", Some("Complete")), job("f", Some("Failed"))];
    let decision = look(&cron(&json!({ "suspend": true }), &active), &jobs, "2024-03-10T02:00:00Z");
    assert_eq!(decision.status.active, None);
    assert_eq!(decision.status.last_successful_time.map(|t| t.0), Some(at("2024-03-10T01:00:00Z")));
    let removed: Vec<&str> = decision.remove.iter().map(|job| name_of(&**job)).collect();
    assert_eq!(removed, ["a"]);
    let (kind, reason, message) = &decision.happenings[0];
    assert_eq!((*kind, *reason), (EventType::Normal, "SawCompletedJob"));
    assert_eq!(message, "Saw completed job: a, condition: Complete");
    let gone = BTreeSet::from(["a".to_owned()]);
    let missing = decide(&cron(&json!({ "suspend": true }), &active), &[], &gone, at("2024-03-10T02:00:00Z"));
    assert_eq!((reasons(&missing), missing.status.active), (vec!["MissingJob"], None));
}

#[tokio::test(start_paused = true)]
async fn jobs_are_started_on_time_and_cleaned_up() {
    let clock = test_clock();
    let fake = FakeTransport::new(clock.clone());
    let client = fake.client();
    let task = tokio::spawn(run(&context_at(&fake, clock)));
    let (crons, jobs) = (client.api::<CronJob>(), client.api::<Job>());
    let mut minutely = cron(&json!({ "schedule": "* * * * *", "concurrencyPolicy": "Forbid" }), &json!({}));
    minutely.metadata.creation_timestamp = None;
    crons.create("ns", minutely).await.expect("created");
    let list = || async { jobs.list("ns", ListOptions::default()).await.expect("listed") };
    for round in 0..4 {
        for _ in 0..3 {
            tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        }
        let running = || async {
            list()
                .await
                .into_iter()
                .filter(|job| job.status.as_ref().and_then(crate::job::finished).is_none())
                .collect::<Vec<_>>()
        };
        eventually(|| async { running().await.len() == 1 }).await;
        let name = name_of(&*running().await[0]).to_owned();
        assert_eq!(name, format!("c-{}", round + 1));
        let done = json!({ "status": { "conditions": [{ "type": "Complete", "status": "True" }],
            "completionTime": "1970-01-01T00:00:00Z", "startTime": format!("1970-01-01T00:0{}:00Z", round + 1) } });
        jobs.patch_status("ns", &name, PatchKind::Merge, done).await.expect("patched");
    }
    eventually(|| async { list().await.len() == 1 }).await;
    let status = crons.get("ns", "c").await.expect("there").status.clone().unwrap_or_default();
    assert_eq!(status.last_schedule_time.map(|t| t.0.as_second()), Some(240));
    assert_eq!(status.active, None);
    task.abort();
}
