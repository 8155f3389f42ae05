//! The embedded store from outside: the contract, restarts, kill -9, damage, a full disk, two openers.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_store::{EmbeddedConfig, EmbeddedStore, Op, Range, Store, StoreError, Txn, prefix_end};

fn open(dir: &Path) -> Result<Arc<EmbeddedStore>, StoreError> {
    EmbeddedStore::open(EmbeddedConfig { dir: dir.to_owned() })
}

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { conditions: Vec::new(), ops: vec![Op::Put { key: key.into(), value: value.into() }] }
}

fn delete(key: &str) -> Txn {
    Txn { conditions: Vec::new(), ops: vec![Op::Delete { key: key.into() }] }
}

async fn all(store: &dyn Store) -> HashMap<String, (u64, Bytes)> {
    let range = Range { start: "/".into(), end: prefix_end("/"), ..Range::default() };
    let result = store.range(range).await.expect("range");
    result.entries.into_iter().map(|e| (e.key.to_string(), (e.mod_revision, e.value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a directory");
    let next = std::sync::atomic::AtomicUsize::new(0);
    coracle_store::contract::all(|| {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.path().join(n.to_string());
        async move { open(&path).expect("open") as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_values_history_and_revision() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("open");
    for i in 0..300 {
        store.commit(put(&format!("/k/{:03}", i % 150), vec![b'x'; 3000])).await.expect("commit");
    }
    let last = store.commit(delete("/k/000")).await.expect("commit");
    drop(store);
    let store = open(dir.path()).expect("reopen");
    assert_eq!(store.revision(), last);
    assert_eq!(all(&*store).await.len(), 149);
    let mut watch = store.watch("/k/000", 1).await.expect("watch");
    let events = watch.recv().await.expect("history");
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [2, 152, last]);
    store.compact(last).await.expect("compact");
    drop(store);
    let store = open(dir.path()).expect("reopen");
    assert_eq!((store.revision(), store.compacted()), (last, last), "a compacted tail keeps its revision");
    assert_eq!(all(&*store).await.len(), 149);
    assert_eq!(store.commit(put("/n", "1")).await.expect("commit"), last + 1);
}

/// Bytes in the tables of the engine.
fn in_tables(dir: &Path) -> u64 {
    let mut sum = 0;
    let mut folders = vec![dir.join("data/keyspaces")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) => sum += found.len(),
                Err(_) => {}
            }
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn once_writes_have_become_few_what_they_left_in_memory_goes_to_the_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("open");
    // Not to be compressed to nothing (xorshift).
    let mut random = 1u32;
    let mut byte = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random.to_le_bytes()[0]
    };
    for i in 0..300 {
        let value: Vec<u8> = std::iter::repeat_with(&mut byte).take(8000).collect();
        store.commit(put(&format!("/k/{i:03}"), value)).await.expect("commit");
    }
    let before = all(&*store).await;
    store.rest().await.expect("nothing done: these writes are new");
    let in_memory = in_tables(dir.path());
    assert!(in_memory < 1 << 20, "{in_memory}");
    store.rest().await.expect("rest");
    let wait = async {
        while in_tables(dir.path()) < in_memory + (1 << 20) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("tables are written");
    assert_eq!(all(&*store).await, before);
    drop(store);
    assert_eq!(all(&*open(dir.path()).expect("open")).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_opener_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = open(dir.path()).expect("open");
    let error = open(dir.path()).expect_err("in use");
    let text = error.to_string();
    assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_journal_is_reported_and_not_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("open");
    for i in 0..50 {
        store.commit(put(&format!("/k/{i}"), vec![b'x'; 500])).await.expect("commit");
    }
    drop(store);
    let journal = std::fs::read_dir(dir.path().join("data"))
        .expect("data")
        .filter_map(|f| f.ok().map(|f| f.path()))
        .find(|p| p.extension().is_some_and(|e| e == "jnl"))
        .expect("a journal");
    let intact = std::fs::read(&journal).expect("read");
    let end = intact.iter().rposition(|b| *b != 0).expect("content");
    for position in [end / 3, end / 2, end / 2 + 1, end / 2 + 7, end - 20] {
        let mut bytes = intact.clone();
        bytes[position] ^= 0x55;
        std::fs::write(&journal, &bytes).expect("write");
        match open(dir.path()) {
            Err(StoreError::Corrupted { detail, .. }) => assert!(!detail.is_empty()),
            Err(other) => panic!("byte {position}: expected Corrupted, got {other}"),
            Ok(_) => panic!("byte {position}: damage went unnoticed"),
        }
    }
    std::fs::write(&journal, &intact).expect("write");
    assert_eq!(all(&*open(dir.path()).expect("intact again")).await.len(), 50);
}

/// Needs root for a small tmpfs; says so and passes otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_refuses_writes_acknowledges_nothing_and_recovers() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "none"]).arg(dir.path()).status();
    if !mount.is_ok_and(|s| s.success()) {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    }
    let mounted = Mounted(dir.path());
    let store = open(&dir.path().join("s")).expect("open");
    let mut written = 0u64;
    let error = loop {
        // Not compressible: the engine compresses what is.
        let noise: Vec<u8> = (0..100_000u64).map(|i| ((i * i + i * written) >> 7) as u8).collect();
        match store.commit(put(&format!("/k/{written}"), noise)).await {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 1000, "the disk never filled");
    };
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    let revision = store.revision();
    assert_eq!(revision, written + 1);
    assert_eq!(store.get(&format!("/k/{written}")).await.expect("get"), None);
    assert!(store.commit(delete("/k/0")).await.is_ok(), "deletions still work");
    drop(store);
    let store = open(&dir.path().join("s")).expect("reopen on a full disk");
    assert_eq!(all(&*store).await.len() as u64, written - 1);
    drop(store);
    drop(mounted);
}

/// Unmounts, also when the test fails.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Not a test of its own: the writer that `killed_store_keeps_every_acknowledged_write` starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_writer() {
    let Ok(dir) = std::env::var("STORE_CHILD_DIR") else { return };
    let store = open(Path::new(&dir)).expect("open");
    let round = store.revision();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let store = store.clone();
        tasks.spawn(async move {
            for i in 0.. {
                let key = format!("/k/{writer}/{}", i % 40);
                let value = format!("{round}-{i}-{}", "v".repeat(i % 5000));
                let result = if i % 7 == 6 {
                    (store.commit(delete(&key)).await, "-".to_owned())
                } else {
                    (store.commit(put(&key, value.clone())).await, format!("{round}-{i}-"))
                };
                let revision = result.0.expect("commit");
                println!("ACK {revision} {key} {}", result.1);
                if writer == 0 && i % 100 == 99 {
                    store.compact(revision.saturating_sub(500)).await.expect("compact");
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_store_keeps_every_acknowledged_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged: HashMap<String, (u64, String)> = HashMap::new();
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_writer", "--nocapture"])
            .env("STORE_CHILD_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let out = child.stdout.take().expect("its output");
        let (first, started) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok).filter(|l| l.contains("ACK "));
            let note = |_: &String| first.send(()).unwrap_or_default();
            lines.inspect(note).collect::<Vec<_>>()
        });
        started.recv_timeout(Duration::from_secs(60)).expect("the child writes");
        tokio::time::sleep(Duration::from_millis(20 + round * 137)).await;
        child.kill().expect("kill -9");
        child.wait().expect("its end");
        for line in reader.join().expect("lines") {
            let line = &line[line.find("ACK ").unwrap_or(0)..];
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, revision, key, value] = fields[..] else { continue };
            let Ok(revision) = revision.parse::<u64>() else { continue };
            let entry = acknowledged.entry(key.into()).or_default();
            if revision > entry.0 && (value == "-" || value.ends_with('-')) {
                *entry = (revision, value.into());
            }
        }
        let newest = acknowledged.values().map(|(r, _)| *r).max().unwrap_or(0);
        assert!(newest > 1, "the child wrote something");
        let store = open(dir.path()).expect("recovery");
        assert!(store.revision() >= newest);
        let found = all(&*store).await;
        for (key, (revision, value)) in &acknowledged {
            match found.get(key) {
                // A later write that was not acknowledged may be there; an acknowledged one must be.
                Some((r, v)) => assert!(
                    r > revision || (r == revision && v.starts_with(value.as_bytes())),
                    "{key}: acknowledged {value} at {revision}, found revision {r}"
                ),
                None if value == "-" => {}
                None => {
                    let mut watch = store.watch(key, store.compacted()).await.expect("watch");
                    let mut last = None;
                    while let Some(batch) = watch.try_recv() {
                        last = batch.last().map(|e| (e.revision, e.value.is_none())).or(last);
                    }
                    assert!(last.is_some_and(|(r, gone)| gone && r > *revision), "{key} is lost: {last:?}");
                }
            }
        }
    }
}
