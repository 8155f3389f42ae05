//! Tests of the level at work: seats, waiting, and what becomes of who goes away.

use coracle_auth::UserInfo;
use http::Method;
use serde_json::json;

use super::*;
use crate::http::info::Info;
use crate::http::query::Query;

fn given(shares: i32, response: serde_json::Value) -> Given {
    let level = json!({
        "metadata": { "name": "small", "uid": "level-uid" },
        "spec": {
            "type": "Limited",
            "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": response,
            },
        },
    });
    let schema = json!({
        "metadata": { "name": "by-user", "uid": "schema-uid" },
        "spec": {
            "matchingPrecedence": 500, "priorityLevelConfiguration": { "name": "small" },
            "distinguisherMethod": { "type": "ByUser" },
            "rules": [{
                "subjects": [{ "kind": "Group", "group": { "name": "devs" } }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            }],
        },
    });
    Given {
        schemas: vec![serde_json::from_value(schema).unwrap()],
        levels: vec![serde_json::from_value(level).unwrap()],
    }
}

fn queued(length: i32) -> serde_json::Value {
    json!({ "type": "Queue", "queuing": { "queues": 8, "handSize": 1, "queueLengthLimit": length } })
}

/// A server with 2 seats for the level `small`.
fn small(response: serde_json::Value) -> Arc<FlowControl> {
    let flow = FlowControl::new(2, usize::MAX);
    flow.configure(given(95, response));
    Arc::new(flow)
}

async fn ask_for(flow: &FlowControl, user: &str, patience: Duration) -> (Marks, Result<Seat, Refused>) {
    let user = UserInfo::authenticated(user, &["devs"]);
    let query = Query::new("");
    let info = Info::new(&Method::GET, "/version", &query);
    flow.admit(Asked { user: &user, info: &info, path: "/version" }, patience, |_| Work::of(1)).await
}

async fn ask(flow: &FlowControl, user: &str) -> Result<Seat, Refused> {
    ask_for(flow, user, Duration::from_secs(3600)).await.1
}

/// Waits until so many wait and run in the level.
async fn until(flow: &FlowControl, want: (usize, usize)) {
    for _ in 0..1_000_000 {
        let configured = flow.configured.read().clone();
        let small = configured.levels.iter().find(|v| v.level.name == "small").unwrap();
        let now = small.level.queues.lock().present();
        if now == want {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never {want:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_seat_of_who_ends() {
    let flow = small(queued(10));
    let (a, b) = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let theirs = flow.clone();
    let waiting = tokio::spawn(async move { ask(&theirs, "b").await.is_ok() });
    until(&flow, (1, 2)).await;
    drop(a);
    assert!(waiting.await.unwrap());
    until(&flow, (0, 1)).await;
    drop(b);
    until(&flow, (0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_or_run_are_shown_until_they_end() {
    let flow = small(queued(10));
    let now = jiff::Timestamp::UNIX_EPOCH;
    let rows = || {
        let table = flow.dump("dump_requests", true, now).unwrap();
        let rows =
            table.lines().skip(1).map(|line| line.split(',').map(str::trim).map(str::to_owned).collect());
        rows.collect::<Vec<Vec<String>>>()
    };
    let (a, b) = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let theirs = flow.clone();
    let waiting = tokio::spawn(async move { ask(&theirs, "a").await });
    until(&flow, (1, 2)).await;
    let shown = rows();
    let places: Vec<&str> = shown.iter().map(|row| row[3].as_str()).collect();
    assert_eq!(places, ["0", "-1", "-1"], "who waits, then who runs: {shown:?}");
    assert_eq!(shown[0][9], "0001-01-01T00:00:00Z");
    let fixed = |row: &[String]| [&row[..2], &row[4..5], &row[6..9], &row[10..]].concat();
    let wanted = "small by-user a 1 0 0s a get /version     ";
    assert_eq!(fixed(&shown[0]).join(" "), wanted);
    drop(a);
    let c = waiting.await.unwrap();
    assert_eq!(rows().len(), 2);
    drop((b, c));
    assert!(rows().is_empty());
    let names = flow.dump("dump_requests", false, now).unwrap();
    assert!(names.ends_with(" AdditionalLatency, StartTime\n"), "{names}");
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_while_waiting_takes_no_seat() {
    let flow = small(queued(10));
    let (a, _b) = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let theirs = flow.clone();
    let gone = tokio::spawn(async move { ask(&theirs, "b").await.is_ok() });
    until(&flow, (1, 2)).await;
    gone.abort();
    let _ = gone.await;
    until(&flow, (0, 2)).await;
    drop(a);
    until(&flow, (0, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn patience_ends_with_a_refusal_that_is_counted() {
    let flow = small(queued(10));
    let _seats = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let (_, refused) = ask_for(&flow, "b", Duration::from_secs(5)).await;
    assert_eq!(refused.err(), Some(Refused { retry_after: 1 }));
    let mut metrics = String::new();
    flow.metrics(&mut metrics);
    let count =
        "rejected_requests_total{flow_schema=\"by-user\",priority_level=\"small\",reason=\"time-out\"} 1\n";
    assert!(metrics.contains(count), "{metrics}");
    assert!(
        metrics.contains("current_inqueue_requests{flow_schema=\"by-user\",priority_level=\"small\"} 0\n")
    );
    assert!(
        metrics.contains("current_executing_seats{flow_schema=\"by-user\",priority_level=\"small\"} 2\n")
    );
}

#[tokio::test(start_paused = true)]
async fn answers_name_schema_and_level_by_uid() {
    let flow = small(json!({ "type": "Reject" }));
    let (marks, seat) = ask_for(&flow, "a", Duration::ZERO).await;
    let _seat = seat.unwrap();
    let mut headers = HeaderMap::new();
    marks.put(&mut headers);
    assert_eq!(headers["X-Kubernetes-PF-FlowSchema-UID"], "schema-uid");
    assert_eq!(headers["X-Kubernetes-PF-PriorityLevel-UID"], "level-uid");
    let _other = ask(&flow, "a").await.unwrap();
    assert!(ask(&flow, "b").await.is_err(), "the level has no queues");
}

#[tokio::test(start_paused = true)]
async fn administrators_pass_before_anything_is_configured() {
    let flow = FlowControl::new(1, usize::MAX);
    let user = UserInfo::authenticated("admin", &["system:masters"]);
    let query = Query::new("");
    let info = Info::new(&Method::GET, "/api/v1/pods", &query);
    let asked = Asked { user: &user, info: &info, path: "/api/v1/pods" };
    let mut seats = Vec::new();
    for _ in 0..100 {
        seats.push(flow.admit(asked, Duration::ZERO, |_| Work::of(1)).await.1.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_that_is_deleted_serves_who_waits_in_it() {
    let flow = small(queued(10));
    let (a, b) = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let theirs = flow.clone();
    let waiting = tokio::spawn(async move { ask(&theirs, "b").await.is_ok() });
    until(&flow, (1, 2)).await;
    flow.configure(Given::default());
    drop((a, b));
    assert!(waiting.await.unwrap());
    tokio::time::advance(PERIOD * 2).await;
    let _ = ask(&flow, "c").await;
    let left = flow.configured.read().levels.iter().any(|v| v.level.name == "small");
    assert!(!left, "it is idle and goes");
}

#[tokio::test(start_paused = true)]
async fn seats_on_a_leash_come_free_though_they_are_still_held() {
    let flow = small(queued(10));
    let (a, b) = (ask(&flow, "a").await.unwrap(), ask(&flow, "a").await.unwrap());
    let slow = b.for_at_most(Duration::from_secs(30));
    assert!(ask(&flow, "b").await.is_ok(), "half a minute later");
    until(&flow, (0, 1)).await;
    drop(slow);
    until(&flow, (0, 1)).await;
    drop(a.for_at_most(Duration::from_secs(60)));
    until(&flow, (0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn seats_of_watchers_come_free_by_time() {
    let flow = small(queued(10));
    let user = UserInfo::authenticated("a", &["devs"]);
    let query = Query::new("");
    let info = Info::new(&Method::GET, "/version", &query);
    let asked = Asked { user: &user, info: &info, path: "/version" };
    let lingers = Work { seats: 1, last: 2, lingers: Duration::from_secs(1) };
    drop(flow.admit(asked, Duration::ZERO, |_| lingers).await.1.unwrap());
    until(&flow, (0, 0)).await;
    // Both seats are still taken; nobody finishes, only time passes.
    assert!(ask(&flow, "b").await.is_ok());
}

#[tokio::test]
async fn a_flood_never_has_more_seats_than_there_are_and_others_get_theirs() {
    use std::sync::atomic::AtomicUsize;
    let flow = small(queued(10_000));
    let (running, most, flooded) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let flood = (0..200).map(|_| {
        let (flow, running, most, flooded) = (flow.clone(), running.clone(), most.clone(), flooded.clone());
        tokio::spawn(async move {
            for _ in 0..20 {
                let _seat = ask(&flow, "flood").await.unwrap();
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                flooded.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    // Hands are dealt by a secret: someone whose queue is not the flood's.
    let queue = |user: &str| {
        let mut hand = [0];
        deal::deal(flow.hasher.hash_one((&"by-user".to_owned(), user)), 8, &mut hand);
        hand
    };
    let mut names = (0..1000).map(|n| format!("other-{n}"));
    let other = names.find(|name| queue(name) != queue("flood")).unwrap();
    until(&flow, (198, 2)).await;
    let before = flooded.load(Ordering::SeqCst);
    for _ in 0..20 {
        drop(ask(&flow, &other).await.unwrap());
    }
    let meanwhile = flooded.load(Ordering::SeqCst) - before;
    assert!(meanwhile < 400, "each of 20 waited for a few of the flood, not for 198 of it: {meanwhile}");
    for task in flood {
        task.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}
