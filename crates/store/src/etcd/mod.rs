//! The etcd body: every key below one prefix of an etcd cluster, which several API servers may share.
//!
//! etcd's own revisions are ours. One watch feeds all watches here, and a commit is acknowledged once its events
//! came through that watch. Why no client library: docs/adr/0009-etcd-store.md.

mod channel;
mod feed;
mod messages;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::channel::EtcdConfig;
use self::channel::{CallError, Channel};
use self::feed::{Feed, entry};
use self::messages::{RangeRequest, RangeResponse, TxnResponse, WatchResponse};
use crate::{Condition, Entry, Op, Range, RangeResult, Revision, Store, StoreError, Txn, Watch, prefix_end};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Entries of one answer: keeps answers at some megabytes.
const PAGE: usize = 2000;

/// The store in an etcd cluster (version 3.4 or later).
pub struct EtcdStore {
    channel: Arc<Channel>,
    prefix: String,
    feed: Arc<Feed>,
    follower: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore")
            .field("prefix", &self.prefix)
            .field("revision", &self.feed.last())
            .finish()
    }
}

fn engine(error: CallError) -> StoreError {
    StoreError::Engine(error.to_string())
}

fn wrong(why: String) -> StoreError {
    StoreError::Engine(why)
}

impl EtcdStore {
    /// Connects, and begins to follow etcd.
    ///
    /// # Errors
    /// [`StoreError::Engine`] for a configuration that cannot be used and for an etcd that does not answer.
    pub async fn connect(config: EtcdConfig) -> Result<Arc<Self>, StoreError> {
        let channel = Arc::new(Channel::new(&config).map_err(wrong)?);
        let prefix = config.prefix.trim_end_matches('/').to_owned();
        let now = newest(&channel, &prefix).await?;
        let compacted = oldest(&channel, now).await?;
        let feed = Feed::new(&prefix, now, compacted);
        let follower = tokio::spawn(feed.clone().run(channel.clone()));
        Ok(Arc::new(Self { channel, prefix, feed, follower }))
    }

    fn key(&self, key: &str) -> Bytes {
        Bytes::from([&self.prefix, key].concat())
    }

    async fn page(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        match self.channel.read(RANGE, &request.encode()).await {
            Ok(message) => RangeResponse::parse(message).map_err(wrong),
            Err(error) => Err(self.refused(error, request.revision)),
        }
    }

    /// What etcd's refusal of a revision means.
    fn refused(&self, error: CallError, asked: Revision) -> StoreError {
        match error {
            CallError::Status { code: 11, message } if message.contains("compacted") => {
                let oldest = self.feed.compacted.fetch_max(asked + 1, Ordering::AcqRel).max(asked + 1);
                StoreError::Compacted { asked, oldest }
            }
            CallError::Status { code: 11, message } if message.contains("future") => {
                StoreError::Future { asked, newest: self.feed.last() }
            }
            other => engine(other),
        }
    }

    /// The first condition that does not hold, from the entries as they were when the transaction was refused.
    fn failed(&self, conditions: Vec<Condition>, ranges: Vec<RangeResponse>) -> StoreError {
        for (condition, range) in conditions.into_iter().zip(ranges) {
            let current = range.kvs.into_iter().next().and_then(|kv| entry(&self.prefix, kv));
            let (key, holds) = match condition {
                Condition::Absent(key) => (key, current.is_none()),
                Condition::At(key, at) => (key, current.as_ref().is_some_and(|e| e.mod_revision == at)),
            };
            if !holds {
                return StoreError::ConditionFailed { key, current };
            }
        }
        StoreError::Engine("etcd refused a transaction whose conditions hold".into())
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// etcd's newest revision, agreed upon by a majority of its members.
async fn newest(channel: &Channel, prefix: &str) -> Result<Revision, StoreError> {
    let request =
        RangeRequest { key: Bytes::from(format!("{prefix}/")), count_only: true, ..RangeRequest::default() };
    let message = channel.read(RANGE, &request.encode()).await.map_err(engine)?;
    Ok(RangeResponse::parse(message).map_err(wrong)?.revision)
}

/// The oldest revision that can be read: a watch from the beginning either begins, or says it.
async fn oldest(channel: &Channel, now: Revision) -> Result<Revision, StoreError> {
    if now <= 1 {
        return Ok(1);
    }
    let mut stream = channel.stream(WATCH, &messages::watch(&[0], &[0], 1)).await.map_err(engine)?;
    loop {
        let response = WatchResponse::parse(stream.next().await.map_err(engine)?).map_err(wrong)?;
        if response.compact_revision > 0 {
            return Ok(response.compact_revision);
        }
        if !response.events.is_empty() {
            return Ok(1);
        }
        if response.canceled {
            return Err(StoreError::Engine(response.cancel_reason));
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn revision(&self) -> Revision {
        self.feed.last()
    }

    fn compacted(&self) -> Revision {
        self.feed.compacted.load(Ordering::Acquire)
    }

    fn shared(&self) -> bool {
        true
    }

    async fn newest(&self) -> Result<Revision, StoreError> {
        let now = newest(&self.channel, &self.prefix).await?;
        self.feed.reached(now).await?;
        Ok(self.feed.last())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let response = self.page(&RangeRequest { key: self.key(key), ..RangeRequest::default() }).await?;
        Ok(response.kvs.into_iter().next().and_then(|kv| entry(&self.prefix, kv)))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let end = if range.end.is_empty() {
            prefix_end(&self.prefix)
        } else {
            [&self.prefix, &*range.end].concat()
        };
        let mut request = RangeRequest {
            key: self.key(&range.start),
            end: end.into(),
            limit: 0,
            revision: range.revision.unwrap_or(0),
            count_only: false,
        };
        let mut result = RangeResult { entries: Vec::new(), revision: 0, remaining: 0 };
        if request.key >= request.end {
            // etcd has no empty ranges; where it is now stands in the answer to any.
            let one = RangeRequest { count_only: true, end: Bytes::new(), ..request };
            result.revision = self.page(&one).await?.revision;
            return Ok(result);
        }
        let mut total = 0;
        loop {
            let missing = if range.limit == 0 { PAGE } else { range.limit - result.entries.len() };
            request.limit = missing.min(PAGE);
            let page = self.page(&request).await?;
            if result.revision == 0 {
                result.revision = range.revision.unwrap_or(page.revision);
                request.revision = result.revision;
                total = page.count;
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            result.entries.extend(page.kvs.into_iter().filter_map(|kv| entry(&self.prefix, kv)));
            result.remaining = total.saturating_sub(result.entries.len());
            let full = range.limit > 0 && result.entries.len() >= range.limit;
            match last {
                Some(last) if result.remaining > 0 && !full => {
                    request.key = [&last[..], &[0]].concat().into();
                }
                _ => return Ok(result),
            }
        }
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let mut compare = Vec::with_capacity(txn.conditions.len());
        let mut failure = Vec::with_capacity(txn.conditions.len());
        for condition in &txn.conditions {
            let (key, at) = match condition {
                Condition::Absent(key) => (key, 0),
                Condition::At(key, at) => (key, *at),
            };
            compare.push(messages::compare(&self.key(key), at));
            failure.push(messages::get(&self.key(key)));
        }
        let ops: Vec<Bytes> = txn
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value } => messages::put(&self.key(key), value),
                Op::Delete { key } => messages::delete(&self.key(key)),
            })
            .collect();
        let message =
            self.channel.write(TXN, &messages::txn(&compare, &ops, &failure)).await.map_err(engine)?;
        let response = TxnResponse::parse(message).map_err(wrong)?;
        self.feed.reached(response.revision).await?;
        if response.succeeded {
            // Someone else's keys may have moved etcd further than ours.
            Ok(response.revision.min(self.feed.last()))
        } else {
            Err(self.failed(txn.conditions, response.ranges))
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        if !self.feed.is_at(after) {
            let newest = newest(&self.channel, &self.prefix).await?;
            if after > newest {
                return Err(StoreError::Future { asked: after, newest });
            }
            self.feed.reached(after).await?;
        }
        self.feed.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        if revision <= self.compacted() {
            return Ok(());
        }
        match self.channel.write(COMPACT, &messages::compaction(revision)).await {
            Ok(_) => {}
            // Another API server was faster.
            Err(CallError::Status { code: 11, message }) if message.contains("compacted") => {}
            Err(error) => return Err(self.refused(error, revision)),
        }
        self.feed.compacted.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }
}
