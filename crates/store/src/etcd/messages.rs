//! etcd's messages, as far as the store uses them (etcd API v3, `etcdserverpb` and `mvccpb`).

use bytes::Bytes;
use coracle_grpc::{DecodeError, Value, Writer};

use crate::Revision;

/// Calls `field` for each field of a message, in order.
fn read(message: Bytes, mut field: impl FnMut(u32, Value)) -> Result<(), String> {
    let each = |number, value| {
        field(number, value);
        Ok::<_, DecodeError>(())
    };
    coracle_grpc::read(message, each).map_err(|e| format!("a message from etcd cannot be read: {e}"))
}

/// `mvccpb.KeyValue`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) key: Bytes,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) value: Bytes,
}

impl KeyValue {
    fn parse(message: Bytes) -> Result<Self, String> {
        let mut kv = Self::default();
        read(message, |field, value| match field {
            1 => kv.key = value.bytes(),
            2 => kv.create_revision = value.number(),
            3 => kv.mod_revision = value.number(),
            5 => kv.value = value.bytes(),
            _ => {}
        })?;
        Ok(kv)
    }
}

/// `RangeRequest`.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeRequest {
    pub(super) key: Bytes,
    /// Empty: the one key.
    pub(super) end: Bytes,
    pub(super) limit: usize,
    /// Zero: the newest.
    pub(super) revision: Revision,
    pub(super) count_only: bool,
}

impl RangeRequest {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Writer::default().bytes(1, &self.key);
        if !self.end.is_empty() {
            out = out.bytes(2, &self.end);
        }
        out.number(3, self.limit as u64).number(4, self.revision).flag(9, self.count_only).done()
    }
}

/// `RangeResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeResponse {
    pub(super) revision: Revision,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) count: usize,
}

/// The revision in a `ResponseHeader`.
fn header(message: Bytes) -> Result<Revision, String> {
    let mut revision = 0;
    read(message, |field, value| {
        if field == 3 {
            revision = value.number();
        }
    })?;
    Ok(revision)
}

/// Fields of a message in lists by number: for messages whose fields are messages.
fn parts(message: Bytes) -> Result<Vec<(u32, Value)>, String> {
    let mut all = Vec::new();
    read(message, |field, value| all.push((field, value)))?;
    Ok(all)
}

impl RangeResponse {
    pub(super) fn parse(message: Bytes) -> Result<Self, String> {
        let mut response = Self::default();
        for (field, value) in parts(message)? {
            match field {
                1 => response.revision = header(value.bytes())?,
                2 => response.kvs.push(KeyValue::parse(value.bytes())?),
                4 => response.count = usize::try_from(value.number()).unwrap_or(usize::MAX),
                _ => {}
            }
        }
        Ok(response)
    }
}

/// A `Compare` of a key's last write; zero: the key does not exist.
pub(super) fn compare(key: &[u8], mod_revision: Revision) -> Bytes {
    // result EQUAL is 0; target MOD is 2.
    Writer::default().number(2, 2).bytes(3, key).chosen(6, mod_revision).done()
}

/// A `RequestOp` that writes.
pub(super) fn put(key: &[u8], value: &[u8]) -> Bytes {
    Writer::default().bytes(2, &Writer::default().bytes(1, key).bytes(2, value).done()).done()
}

/// A `RequestOp` that deletes.
pub(super) fn delete(key: &[u8]) -> Bytes {
    Writer::default().bytes(3, &Writer::default().bytes(1, key).done()).done()
}

/// A `RequestOp` that reads one key.
pub(super) fn get(key: &[u8]) -> Bytes {
    let range = RangeRequest { key: Bytes::copy_from_slice(key), ..RangeRequest::default() };
    Writer::default().bytes(1, &range.encode()).done()
}

/// `TxnRequest`.
pub(super) fn txn(compare: &[Bytes], success: &[Bytes], failure: &[Bytes]) -> Bytes {
    let mut out = Writer::default();
    for (field, messages) in [(1, compare), (2, success), (3, failure)] {
        for message in messages {
            out = out.bytes(field, message);
        }
    }
    out.done()
}

/// `TxnResponse`: of its responses only those to reads.
#[derive(Debug, Default)]
pub(super) struct TxnResponse {
    pub(super) revision: Revision,
    pub(super) succeeded: bool,
    pub(super) ranges: Vec<RangeResponse>,
}

impl TxnResponse {
    pub(super) fn parse(message: Bytes) -> Result<Self, String> {
        let mut response = Self::default();
        for (field, value) in parts(message)? {
            match field {
                1 => response.revision = header(value.bytes())?,
                2 => response.succeeded = value.number() != 0,
                3 => {
                    for (kind, inner) in parts(value.bytes())? {
                        if kind == 1 {
                            response.ranges.push(RangeResponse::parse(inner.bytes())?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(response)
    }
}

/// `CompactionRequest`.
pub(super) fn compaction(revision: Revision) -> Bytes {
    Writer::default().number(1, revision).done()
}

/// A `WatchRequest` that creates a watch with previous values, in fragments where it is large.
pub(super) fn watch(key: &[u8], end: &[u8], start: Revision) -> Bytes {
    let create =
        Writer::default().bytes(1, key).bytes(2, end).number(3, start).flag(6, true).flag(8, true).done();
    Writer::default().bytes(1, &create).done()
}

/// A `WatchRequest` that asks how far the watch is.
pub(super) fn progress() -> Bytes {
    Writer::default().bytes(3, b"").done()
}

/// `mvccpb.Event`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WatchEvent {
    pub(super) deleted: bool,
    pub(super) kv: KeyValue,
    pub(super) previous: Option<KeyValue>,
}

/// `WatchResponse`.
#[derive(Debug, Default)]
pub(super) struct WatchResponse {
    pub(super) revision: Revision,
    pub(super) created: bool,
    pub(super) canceled: bool,
    /// Set when the start of the watch is compacted.
    pub(super) compact_revision: Revision,
    pub(super) cancel_reason: String,
    /// More of the same revision follows.
    pub(super) fragment: bool,
    pub(super) events: Vec<WatchEvent>,
}

impl WatchResponse {
    pub(super) fn parse(message: Bytes) -> Result<Self, String> {
        let mut response = Self::default();
        for (field, value) in parts(message)? {
            match field {
                1 => response.revision = header(value.bytes())?,
                3 => response.created = value.number() != 0,
                4 => response.canceled = value.number() != 0,
                5 => response.compact_revision = value.number(),
                6 => response.cancel_reason = String::from_utf8_lossy(&value.bytes()).into_owned(),
                7 => response.fragment = value.number() != 0,
                11 => response.events.push(WatchEvent::parse(value.bytes())?),
                _ => {}
            }
        }
        Ok(response)
    }
}

impl WatchEvent {
    fn parse(message: Bytes) -> Result<Self, String> {
        let mut event = Self::default();
        for (field, value) in parts(message)? {
            match field {
                1 => event.deleted = value.number() == 1,
                2 => event.kv = KeyValue::parse(value.bytes())?,
                3 => event.previous = Some(KeyValue::parse(value.bytes())?),
                _ => {}
            }
        }
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_key_is_compared_with_a_zero_that_is_written() {
        assert_eq!(compare(b"k", 0)[..], [0x10, 2, 0x1a, 1, b'k', 0x30, 0]);
    }

    #[test]
    fn a_watch_response_is_read_with_its_events() {
        let kv = Writer::default().bytes(1, b"/a").number(2, 4).number(3, 7).bytes(5, b"v").done();
        let old = Writer::default().bytes(1, b"/a").number(2, 4).number(3, 5).bytes(5, b"u").done();
        let event = Writer::default().bytes(2, &kv).bytes(3, &old).done();
        let gone = Writer::default().number(1, 1).bytes(2, &kv).done();
        let head = Writer::default().number(1, 99).number(3, 7).done();
        let response = Writer::default().bytes(1, &head).bytes(11, &event).bytes(11, &gone).done();
        let read = WatchResponse::parse(response).unwrap();
        assert_eq!((read.revision, read.created, read.events.len()), (7, false, 2));
        assert_eq!(read.events[0].previous.as_ref().unwrap().mod_revision, 5);
        assert!(!read.events[0].deleted && read.events[1].deleted);
        assert_eq!(&read.events[0].kv.value[..], b"v");
    }
}
