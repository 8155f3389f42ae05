//! The suite every [`Store`] body passes. `make` yields a fresh, empty store for each claim.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{Condition, Entry, Event, Op, Range, Revision, Store, StoreError, Txn, Watch, prefix_end};

type AnyStore = Arc<dyn Store>;

/// Runs all claims.
///
/// # Panics
/// When a claim does not hold.
pub async fn all<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = AnyStore>,
{
    revisions_are_dense_and_start_after_one(make().await).await;
    conditions_guard_every_change(make().await).await;
    transactions_are_atomic_in_one_revision(make().await).await;
    ranges_are_ordered_limited_and_counted(make().await).await;
    old_revisions_stay_readable_until_compaction(make().await).await;
    watches_replay_history_then_follow(make().await).await;
    events_arrive_before_the_commit_is_acknowledged(make().await).await;
    a_recreated_key_gets_a_new_create_revision(make().await).await;
    compaction_drops_tombstones_and_keeps_current_entries(make().await).await;
    one_of_many_concurrent_creators_wins(make().await).await;
    concurrent_writers_get_distinct_revisions(make().await).await;
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn write(store: &AnyStore, ops: Vec<Op>) -> Revision {
    store.commit(Txn { conditions: Vec::new(), ops }).await.expect("commit")
}

fn under(prefix: &str, limit: usize, revision: Option<Revision>) -> Range {
    Range { start: prefix.into(), end: prefix_end(prefix), limit, revision }
}

async fn keys(store: &AnyStore, prefix: &str, revision: Option<Revision>) -> Vec<String> {
    let result = store.range(under(prefix, 0, revision)).await.expect("range");
    result.entries.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect()
}

async fn take(watch: &mut Watch, n: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < n {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.recv());
        events.extend(batch.await.expect("events in time").expect("an open watch").iter().cloned());
    }
    assert_eq!(events.len(), n, "no more events than expected");
    events
}

fn value(entry: Option<&Entry>) -> Option<String> {
    entry.map(|e| String::from_utf8_lossy(&e.value).into_owned())
}

async fn revisions_are_dense_and_start_after_one(store: AnyStore) {
    assert_eq!(store.revision(), 1);
    assert_eq!(write(&store, vec![put("/a/1", "x")]).await, 2);
    assert_eq!(write(&store, vec![delete("/a/none")]).await, 2, "no effect, no revision");
    assert_eq!(write(&store, Vec::new()).await, 2);
    assert_eq!(write(&store, vec![put("/a/1", "y")]).await, 3);
    assert_eq!(store.revision(), 3);
    let entry = store.get("/a/1").await.expect("get").expect("present");
    assert_eq!((entry.create_revision, entry.mod_revision, &*entry.value), (2, 3, &b"y"[..]));
    assert_eq!(store.get("/a/").await.expect("get"), None);
}

async fn conditions_guard_every_change(store: AnyStore) {
    let first = write(&store, vec![put("/k", "1")]).await;
    let absent = Txn { conditions: vec![Condition::Absent("/k".into())], ops: vec![put("/k", "2")] };
    match store.commit(absent).await {
        Err(StoreError::ConditionFailed { key, current }) => {
            assert_eq!((&*key, value(current.as_ref()).as_deref()), ("/k", Some("1")));
        }
        other => panic!("expected ConditionFailed, got {other:?}"),
    }
    let at = |revision| Txn {
        conditions: vec![Condition::At("/k".into(), revision)],
        ops: vec![put("/k", "3"), put("/other", "3")],
    };
    assert!(store.commit(at(first - 1)).await.is_err());
    assert_eq!(store.get("/other").await.expect("get"), None, "a refused transaction writes nothing");
    let second = store.commit(at(first)).await.expect("holds");
    assert_eq!(second, first + 1);
    match store.commit(at(first)).await {
        Err(StoreError::ConditionFailed { current: Some(current), .. }) => {
            assert_eq!(current.mod_revision, second);
        }
        other => panic!("expected ConditionFailed, got {other:?}"),
    }
    write(&store, vec![delete("/k")]).await;
    match store.commit(at(second)).await {
        Err(StoreError::ConditionFailed { current: None, .. }) => {}
        other => panic!("expected ConditionFailed without an entry, got {other:?}"),
    }
}

async fn transactions_are_atomic_in_one_revision(store: AnyStore) {
    let mut watch = store.watch("/", store.revision()).await.expect("watch");
    let revision = write(&store, vec![put("/x", "1"), put("/y", "1"), delete("/z")]).await;
    let events = take(&mut watch, 2).await;
    assert!(events.iter().all(|e| e.revision == revision && e.create_revision == revision));
    assert_eq!(keys(&store, "/", None).await, ["/x=1", "/y=1"]);
}

async fn ranges_are_ordered_limited_and_counted(store: AnyStore) {
    for i in (0..10).rev() {
        write(&store, vec![put(&format!("/p/{i}"), "v"), put(&format!("/q/{i}"), "v")]).await;
    }
    let page = store.range(under("/p/", 4, None)).await.expect("range");
    let names: Vec<&str> = page.entries.iter().map(|e| &*e.key).collect();
    assert_eq!(names, ["/p/0", "/p/1", "/p/2", "/p/3"]);
    assert_eq!((page.remaining, page.revision), (6, store.revision()));
    let next = Range { start: "/p/4".into(), ..under("/p/", 100, Some(page.revision)) };
    let rest = store.range(next).await.expect("range");
    assert_eq!((rest.entries.len(), rest.remaining), (6, 0));
    assert!(store.range(under("/r/", 0, None)).await.expect("range").entries.is_empty());
}

async fn old_revisions_stay_readable_until_compaction(store: AnyStore) {
    let one = write(&store, vec![put("/h/a", "1"), put("/h/b", "1")]).await;
    let two = write(&store, vec![put("/h/a", "2")]).await;
    let three = write(&store, vec![delete("/h/b"), put("/h/c", "3")]).await;
    assert_eq!(keys(&store, "/h/", Some(one)).await, ["/h/a=1", "/h/b=1"]);
    assert_eq!(keys(&store, "/h/", Some(two)).await, ["/h/a=2", "/h/b=1"]);
    assert_eq!(keys(&store, "/h/", Some(three)).await, ["/h/a=2", "/h/c=3"]);
    let limited = store.range(under("/h/", 1, Some(one))).await.expect("range");
    assert_eq!((limited.entries.len(), limited.remaining), (1, 1));
    // A page behind a key begins with the key and a zero byte.
    let behind = Range { start: "/h/a\0".into(), ..under("/h/", 0, Some(one)) };
    let behind = store.range(behind).await.expect("range");
    assert_eq!(behind.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/h/b"]);
    match store.range(under("/h/", 0, Some(three + 1))).await {
        Err(StoreError::Future { asked, newest }) => assert_eq!((asked, newest), (three + 1, three)),
        other => panic!("expected Future, got {other:?}"),
    }
    store.compact(two).await.expect("compact");
    assert_eq!(store.compacted(), two);
    match store.range(under("/h/", 0, Some(one))).await {
        Err(StoreError::Compacted { asked, oldest }) => assert_eq!((asked, oldest), (one, two)),
        other => panic!("expected Compacted, got {other:?}"),
    }
    assert_eq!(keys(&store, "/h/", Some(two)).await, ["/h/a=2", "/h/b=1"]);
    assert!(matches!(store.watch("/", one).await, Err(StoreError::Compacted { .. })));
    assert!(store.watch("/", two).await.is_ok());
    store.compact(one).await.expect("an older compaction is a no-op");
    assert_eq!(store.compacted(), two);
}

async fn watches_replay_history_then_follow(store: AnyStore) {
    let one = write(&store, vec![put("/w/a", "1")]).await;
    write(&store, vec![put("/w/a", "2"), put("/v/a", "2")]).await;
    write(&store, vec![delete("/w/a")]).await;
    let mut watch = store.watch("/w/", one).await.expect("watch");
    let mut whole = store.watch("", 0).await.expect("watch from the beginning");
    write(&store, vec![put("/w/b", "4")]).await;
    write(&store, vec![put("/v/b", "5")]).await;
    let last = write(&store, vec![put("/w/b", "6")]).await;
    let events = take(&mut watch, 4).await;
    let shown: Vec<_> = events
        .iter()
        .map(|e| {
            let now = e.value.as_ref().map(|v| String::from_utf8_lossy(v).into_owned());
            (e.revision, &*e.key, now, value(e.previous.as_ref()))
        })
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        shown,
        [
            (one + 1, "/w/a", some("2"), some("1")),
            (one + 2, "/w/a", None, some("2")),
            (one + 3, "/w/b", some("4"), None),
            (last, "/w/b", some("6"), some("4")),
        ]
    );
    assert_eq!(events[1].create_revision, one, "a deletion bears the deleted entry's create revision");
    let revisions: Vec<_> = take(&mut whole, 7).await.iter().map(|e| e.revision).collect();
    assert!(revisions.is_sorted());
    assert!(matches!(store.watch("/", last + 1).await, Err(StoreError::Future { .. })));
}

async fn events_arrive_before_the_commit_is_acknowledged(store: AnyStore) {
    let mut watch = store.watch("/e/", store.revision()).await.expect("watch");
    for i in 0..20 {
        let revision = write(&store, vec![put("/e/k", &i.to_string())]).await;
        let batch = watch.try_recv().expect("the event is here when the commit returns");
        assert_eq!(batch[0].revision, revision);
    }
}

async fn a_recreated_key_gets_a_new_create_revision(store: AnyStore) {
    write(&store, vec![put("/r", "1")]).await;
    write(&store, vec![delete("/r")]).await;
    let again = write(&store, vec![put("/r", "2")]).await;
    let entry = store.get("/r").await.expect("get").expect("present");
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));
}

async fn compaction_drops_tombstones_and_keeps_current_entries(store: AnyStore) {
    for i in 0..100 {
        write(&store, vec![put("/c/hot", &i.to_string()), put(&format!("/c/gone-{i}"), "x")]).await;
    }
    for i in 0..100 {
        write(&store, vec![delete(&format!("/c/gone-{i}"))]).await;
    }
    let newest = store.revision();
    store.compact(newest).await.expect("compact");
    assert_eq!(keys(&store, "/c/", None).await, ["/c/hot=99"]);
    assert_eq!(keys(&store, "/c/", Some(newest)).await, ["/c/hot=99"]);
    assert_eq!(store.revision(), newest);
    let mut watch = store.watch("/c/", newest).await.expect("watch");
    let revision = write(&store, vec![put("/c/hot", "100")]).await;
    let events = take(&mut watch, 1).await;
    assert_eq!((events[0].revision, value(events[0].previous.as_ref())), (revision, Some("99".into())));
    assert!(matches!(store.compact(revision + 1).await, Err(StoreError::Future { .. })));
}

async fn one_of_many_concurrent_creators_wins(store: AnyStore) {
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..32 {
        let store = store.clone();
        tasks.spawn(async move {
            let key: Arc<str> = "/one".into();
            let ops = vec![put("/one", &i.to_string())];
            store.commit(Txn { conditions: vec![Condition::Absent(key)], ops }).await.is_ok()
        });
    }
    let won = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(won, 1);
}

async fn concurrent_writers_get_distinct_revisions(store: AnyStore) {
    let before = store.revision();
    let mut watch = store.watch("/m/", before).await.expect("watch");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..16 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut got = Vec::new();
            for j in 0..10 {
                got.push(write(&store, vec![put(&format!("/m/{i}-{j}"), "v")]).await);
            }
            got
        });
    }
    let mut revisions: Vec<Revision> = tasks.join_all().await.concat();
    revisions.sort_unstable();
    assert_eq!(revisions, (before + 1..=before + 160).collect::<Vec<_>>());
    let seen: Vec<Revision> = take(&mut watch, 160).await.iter().map(|e| e.revision).collect();
    assert_eq!(seen, revisions, "events come in order, without gaps");
}
