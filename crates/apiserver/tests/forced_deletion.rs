//! Forced deletion of an object that someone else writes to at the same moment.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coracle_store::{Entry, MemoryStore, Op, Range, RangeResult, Revision, Store, StoreError, Txn, Watch};
use http::{Method, StatusCode};
use serde_json::json;
use support::Cluster;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A store in which some other write wins against the next deletions.
struct Contended {
    inner: Arc<MemoryStore>,
    lost: AtomicUsize,
    /// The other write is a deletion.
    deletes: bool,
}

#[async_trait]
impl Store for Contended {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }
    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }
    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        self.inner.range(range).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        if let [Op::Delete { key }] = &txn.ops[..] {
            let lose = |n: usize| n.checked_sub(1);
            if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok() {
                if self.deletes {
                    self.inner.commit(Txn { conditions: Vec::new(), ops: txn.ops.clone() }).await?;
                }
                let current = self.inner.get(key).await?;
                return Err(StoreError::ConditionFailed { key: key.clone(), current });
            }
        }
        self.inner.commit(txn).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }
}

async fn with_pod(lost: usize, deletes: bool) -> (Cluster, Arc<Contended>) {
    let store = Arc::new(Contended { inner: MemoryStore::new(), lost: AtomicUsize::new(lost), deletes });
    let cluster = Cluster::over(store.clone()).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "x" }] },
    });
    let made = cluster.post(PODS, &pod).await;
    assert_eq!(made.code, StatusCode::CREATED, "{:?}", made.bytes);
    (cluster, store)
}

async fn force_delete(cluster: &Cluster) -> support::Answer {
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0 });
    let json = [("content-type", "application/json")];
    cluster.send(Method::DELETE, &format!("{PODS}/p"), &json, &options.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_changes_between_mark_and_removal_is_removed_all_the_same() {
    let (cluster, _store) = with_pod(1, false).await;
    assert_eq!(force_delete(&cluster).await.code, StatusCode::OK);
    assert_eq!(cluster.get(&format!("{PODS}/p")).await.code, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_left_without_grace_goes_with_the_next_write_or_deletion() {
    for write in [true, false] {
        let (cluster, store) = with_pod(usize::MAX, false).await;
        assert_eq!(force_delete(&cluster).await.code, StatusCode::CONFLICT);
        let left = cluster.get(&format!("{PODS}/p")).await.json();
        assert_eq!(left["metadata"]["deletionGracePeriodSeconds"], 0);
        store.lost.store(0, Ordering::SeqCst);
        if write {
            let status = json!({ "status": { "message": "late" } });
            let patched = cluster.patch(&format!("{PODS}/p/status"), "merge-patch+json", &status).await;
            assert_eq!(patched.code, StatusCode::OK, "{:?}", patched.bytes);
        } else {
            assert_eq!(force_delete(&cluster).await.code, StatusCode::OK);
        }
        assert_eq!(cluster.get(&format!("{PODS}/p")).await.code, StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_someone_else_removes_first_counts_as_deleted() {
    let (cluster, _store) = with_pod(1, true).await;
    let answer = force_delete(&cluster).await;
    assert_eq!((answer.code, &answer.json()["metadata"]["name"]), (StatusCode::OK, &json!("p")));
    assert_eq!(cluster.get(&format!("{PODS}/p")).await.code, StatusCode::NOT_FOUND);
}
