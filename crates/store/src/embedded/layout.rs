//! How keys and values lie on the disk.
//!
//! - keyspace `versions`: `<key> 0 <mod revision> <create revision> <kind>` → value. A key's versions lie
//!   together, oldest first; the index is rebuilt from these keys alone, without reading a value.
//! - keyspace `log`: `<revision> <n>` → `<kind> <create revision> <previous mod revision> <key>`: what
//!   happened, for watches of the past and for compaction. A previous revision of 0 means there was none.
//! - keyspace `meta`: `format`, `compacted`.
//!
//! Numbers are big-endian, so the order of bytes is the order of numbers.

use std::sync::Arc;

use crate::Revision;

/// What a version or a log record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value.
    Put,
    /// A tombstone.
    Delete,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Put => 0,
            Self::Delete => 1,
        }
    }
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Put),
            1 => Some(Self::Delete),
            _ => None,
        }
    }
}

/// Revisions of one version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) create: Revision,
    pub(super) modified: Revision,
}

/// Bytes of a version's key after the key itself.
const SUFFIX: usize = 1 + 8 + 8 + 1;

pub(super) fn version_key(key: &str, slot: Slot, kind: Kind) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + SUFFIX);
    bytes.extend_from_slice(key.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&slot.modified.to_be_bytes());
    bytes.extend_from_slice(&slot.create.to_be_bytes());
    bytes.push(kind.byte());
    bytes
}

pub(super) fn parse_version_key(bytes: &[u8]) -> Option<(&str, Slot, Kind)> {
    let (key, suffix) = bytes.split_at_checked(bytes.len().checked_sub(SUFFIX)?)?;
    let modified = number(suffix.get(1..9)?)?;
    let create = number(suffix.get(9..17)?)?;
    let kind = Kind::from_byte(*suffix.get(17)?)?;
    let key = std::str::from_utf8(key).ok().filter(|_| suffix[0] == 0)?;
    Some((key, Slot { create, modified }, kind))
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) revision: Revision,
    pub(super) n: u32,
    pub(super) kind: Kind,
    pub(super) create: Revision,
    /// 0: there was no previous version.
    pub(super) previous: Revision,
    pub(super) key: Arc<str>,
}

impl Record {
    pub(super) fn slot(&self) -> Slot {
        Slot { create: self.create, modified: self.revision }
    }
    /// The version this one replaced; it has the same create revision.
    pub(super) fn previous_slot(&self) -> Option<Slot> {
        (self.previous != 0).then_some(Slot { create: self.create, modified: self.previous })
    }
    pub(super) fn encode_key(&self) -> [u8; 12] {
        log_key(self.revision, self.n)
    }
    pub(super) fn encode_value(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(17 + self.key.len());
        bytes.push(self.kind.byte());
        bytes.extend_from_slice(&self.create.to_be_bytes());
        bytes.extend_from_slice(&self.previous.to_be_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        bytes
    }
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        Some(Self {
            revision: number(key.get(..8)?)?,
            n: u32::from_be_bytes(key.get(8..12)?.try_into().ok()?),
            kind: Kind::from_byte(*value.first()?)?,
            create: number(value.get(1..9)?)?,
            previous: number(value.get(9..17)?)?,
            key: std::str::from_utf8(value.get(17..)?).ok()?.into(),
        })
    }
}

pub(super) fn log_key(revision: Revision, n: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&revision.to_be_bytes());
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    bytes
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_keys_read_back_and_sort_by_key_then_revision() {
        let slot = |modified| Slot { create: 3, modified };
        let key = version_key("/a/b", slot(7), Kind::Delete);
        assert_eq!(parse_version_key(&key), Some(("/a/b", slot(7), Kind::Delete)));
        let mut all = [
            version_key("/a/b-c", slot(3), Kind::Put),
            version_key("/a/b", slot(300), Kind::Put),
            version_key("/a/b", slot(7), Kind::Put),
            version_key("/a/b/c", slot(3), Kind::Put),
        ];
        all.sort();
        let shown: Vec<_> =
            all.iter().filter_map(|k| parse_version_key(k)).map(|(k, s, _)| (k, s.modified)).collect();
        assert_eq!(shown, [("/a/b", 7), ("/a/b", 300), ("/a/b-c", 3), ("/a/b/c", 3)]);
        assert_eq!(parse_version_key(b"short"), None);
    }
}
