//! The etcd body against real etcd processes: the contract, a restart of etcd, and two stores on one etcd.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_store::{Condition, EtcdConfig, EtcdStore, Op, Range, Store, StoreError, Txn, contract};
use parking_lot::Mutex;

/// An etcd of the test's own on loopback.
struct Etcd {
    program: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    process: Mutex<Child>,
}

/// `$ETCD`, the one among the test's tools, or the one on the path (Debian: etcd-server).
fn program() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("ETCD") {
        return Some(given.into());
    }
    let mut places: Vec<PathBuf> = std::env::var_os("CORACLE_TOOLS").into_iter().map(Into::into).collect();
    places.extend(std::env::split_paths(&std::env::var_os("PATH")?));
    let found = places.into_iter().map(|d| d.join("etcd")).find(|p| p.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "etcd is missing: apt-get install etcd-server, or name it by $ETCD"
        );
        eprintln!("left out: there is no etcd here (apt-get install etcd-server)");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(program: &PathBuf, dir: &std::path::Path, port: u16, peer: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    Command::new(program)
        .arg("--data-dir")
        .arg(dir)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .arg(format!("--initial-cluster=default={peer}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Etcd {
    fn new(program: PathBuf) -> Arc<Self> {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let process = Mutex::new(start(&program, dir.path(), port, free_port()));
        Arc::new(Self { program, dir, port, process })
    }

    fn stop(&self) {
        let mut process = self.process.lock();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn start_again(&self) {
        *self.process.lock() = start(&self.program, self.dir.path(), self.port, free_port());
    }

    async fn store(&self) -> Arc<EtcdStore> {
        let config = EtcdConfig {
            endpoints: vec![format!("http://127.0.0.1:{}", self.port)],
            prefix: "/coracle".into(),
            ..EtcdConfig::default()
        };
        for _ in 0..200 {
            if let Ok(store) = EtcdStore::connect(config.clone()).await {
                return store;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer on port {}", self.port);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.lock().kill();
        let _ = self.process.lock().wait();
    }
}

fn put(key: &str, value: &str) -> Txn {
    let op = Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) };
    Txn { conditions: Vec::new(), ops: vec![op] }
}

fn all() -> Range {
    Range { start: "/".into(), end: "0".into(), ..Range::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_store_keeps_the_contract() {
    let Some(program) = program() else { return };
    let running: Arc<Mutex<Vec<Arc<Etcd>>>> = Arc::default();
    contract::all(|| {
        let (program, running) = (program.clone(), running.clone());
        async move {
            let etcd = Etcd::new(program);
            let store = etcd.store().await;
            let mut running = running.lock();
            running.clear();
            running.push(etcd);
            store as Arc<dyn Store>
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_on_one_etcd_see_each_others_writes_and_conditions() {
    let Some(program) = program() else { return };
    let etcd = Etcd::new(program);
    let (one, two) = (etcd.store().await, etcd.store().await);
    let mut watch = two.watch("/a/", two.revision()).await.unwrap();
    let first = one.commit(put("/a/x", "1")).await.unwrap();
    assert_eq!(two.newest().await.unwrap(), first, "a fresh read of the other waits for the write");
    assert_eq!(watch.try_recv().unwrap()[0].revision, first);
    let taken = Txn { conditions: vec![Condition::Absent("/a/x".into())], ..put("/a/x", "2") };
    assert!(matches!(two.commit(taken).await, Err(StoreError::ConditionFailed { .. })));
    two.compact(first).await.unwrap();
    one.compact(first).await.unwrap();
    assert_eq!(one.compacted(), first);
    let later = etcd.store().await;
    assert_eq!(later.compacted(), first, "a newcomer learns how far the history reaches back");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_ranges_come_in_pages_of_one_revision() {
    let Some(program) = program() else { return };
    let etcd = Etcd::new(program);
    let store = etcd.store().await;
    for hundred in 0..45 {
        let put = |i: usize| Op::Put {
            key: format!("/p/{hundred:02}-{i:02}").into(),
            value: Bytes::from_static(b"v"),
        };
        store.commit(Txn { conditions: Vec::new(), ops: (0..100).map(put).collect() }).await.unwrap();
    }
    let read = store.range(all()).await.unwrap();
    assert_eq!((read.entries.len(), read.remaining), (4500, 0));
    assert!(read.entries.is_sorted_by(|a, b| a.key < b.key));
    let part = store.range(Range { limit: 2100, ..all() }).await.unwrap();
    assert_eq!((part.entries.len(), part.remaining), (2100, 2400));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_etcd_loses_no_event() {
    let Some(program) = program() else { return };
    let etcd = Etcd::new(program);
    let (store, other) = (etcd.store().await, etcd.store().await);
    let mut watch = store.watch("", store.revision()).await.unwrap();
    store.commit(put("/k", "1")).await.unwrap();
    etcd.stop();
    assert!(
        matches!(store.commit(put("/k", "2")).await, Err(StoreError::Engine(_))),
        "a write without etcd fails"
    );
    assert!(store.newest().await.is_err(), "a fresh read without etcd fails");
    etcd.start_again();
    let mut last = Err(StoreError::Closed);
    for _ in 0..100 {
        last = other.commit(put("/k", "3")).await;
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = last.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let batch = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.unwrap().unwrap();
        seen.extend(batch.iter().map(|e| e.revision));
    }
    assert_eq!(seen.len(), 2, "each event once: {seen:?}");
}
