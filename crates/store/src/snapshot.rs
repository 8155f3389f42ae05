//! A store in one file: every current entry with its revisions, as things lie in the store (what is sealed stays
//! sealed), compressed, and with a checksum at the end.
//!
//! `CORACLE-SNAPSHOT-1\n`, then a zstd stream of a JSON header and of records (lengths are big-endian `u32`), then the
//! SHA-256 of all before.

use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{Condition, Entry, Op, Range, Revision, ShiftedStore, Store, StoreError, Txn};

const MAGIC: &[u8] = b"CORACLE-SNAPSHOT-1\n";
const DIGEST: u64 = 32;
/// Entries that are read or written at a time.
const PAGE: usize = 500;
/// Longest key or value that is believed.
const LONGEST: u32 = 64 << 20;

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The store's revision.
    pub revision: Revision,
    /// Number of keys.
    pub keys: u64,
}

/// Why a snapshot cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be read or written.
    #[error("snapshot: {0}")]
    File(#[from] io::Error),
    /// The file is something else.
    #[error("this is not a snapshot of coracle")]
    Foreign,
    /// The file is not what was written.
    #[error("the snapshot is damaged or cut off: its checksum does not match")]
    Checksum,
    /// Where it should go is not empty.
    #[error("the store to restore into is not empty: it has {0}")]
    NotEmpty(String),
}

/// Compresses and counts on the way to the file.
struct Encoder {
    zstd: zstd::stream::write::Encoder<'static, Vec<u8>>,
    digest: Sha256,
}

impl Encoder {
    fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::stream::write::Encoder::new(Vec::new(), 3)?, digest: Sha256::new() })
    }

    fn field(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.zstd.write_all(&length.to_be_bytes())?;
        self.zstd.write_all(bytes)
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.field(entry.key.as_bytes())?;
        self.zstd.write_all(&entry.create_revision.to_be_bytes())?;
        self.zstd.write_all(&entry.mod_revision.to_be_bytes())?;
        self.field(&entry.value)
    }

    /// What has been made so far.
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.zstd.get_mut())
    }
}

/// Writes a snapshot of the store as it is at one revision, while it goes on.
///
/// # Errors
/// The store's and the sink's; also when history is compacted meanwhile, then try again.
pub async fn save(
    store: &dyn Store,
    sink: &mut (impl AsyncWrite + Unpin),
) -> Result<SnapshotInfo, SnapshotError> {
    let revision = store.newest().await?;
    let mut encoder = Encoder::new()?;
    encoder.digest.update(MAGIC);
    sink.write_all(MAGIC).await?;
    encoder.field(format!("{{\"revision\":{revision}}}").as_bytes())?;
    let mut info = SnapshotInfo { revision, keys: 0 };
    let mut start = "/".to_owned();
    loop {
        let range = Range { start, end: crate::prefix_end("/"), limit: PAGE, revision: Some(revision) };
        let page = store.range(range).await?;
        for entry in &page.entries {
            encoder.entry(entry)?;
            info.keys += 1;
        }
        let made = encoder.take();
        encoder.digest.update(&made);
        sink.write_all(&made).await?;
        match page.entries.last() {
            Some(last) if page.remaining > 0 => start = format!("{}\0", last.key),
            _ => break,
        }
    }
    let Encoder { zstd, mut digest } = encoder;
    let rest = zstd.finish()?;
    digest.update(&rest);
    sink.write_all(&rest).await?;
    sink.write_all(&digest.finalize()).await?;
    sink.flush().await?;
    Ok(info)
}

/// A snapshot that is read, its checksum already known to be right.
pub struct SnapshotReader<F: Read> {
    records: zstd::stream::read::Decoder<'static, io::BufReader<io::Take<F>>>,
    revision: Revision,
}

impl<F: Read> std::fmt::Debug for SnapshotReader<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl<F: Read + Seek> SnapshotReader<F> {
    /// Checks a file from beginning to end, and begins to read it.
    ///
    /// # Errors
    /// It is no snapshot, or not whole.
    pub fn open(mut file: F) -> Result<Self, SnapshotError> {
        let size = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut magic = [0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(SnapshotError::Foreign);
        }
        let body = size.checked_sub(MAGIC.len() as u64 + DIGEST).ok_or(SnapshotError::Checksum)?;
        let mut digest = Sha256::new();
        digest.update(MAGIC);
        io::copy(&mut (&mut file).take(body), &mut digest)?;
        let mut wanted = [0; 32];
        file.read_exact(&mut wanted)?;
        if digest.finalize()[..] != wanted {
            return Err(SnapshotError::Checksum);
        }
        file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
        let mut records = zstd::stream::read::Decoder::new(file.take(body))?;
        let head = field(&mut records)?.ok_or(SnapshotError::Checksum)?;
        let head =
            std::str::from_utf8(&head).ok().and_then(|h| h.strip_prefix("{\"revision\":")?.strip_suffix('}'));
        let revision = head.and_then(|h| h.parse().ok()).ok_or(SnapshotError::Foreign)?;
        Ok(Self { records, revision })
    }
}

/// The next field; none at the end.
fn field(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if from.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let length = u32::from_be_bytes(length);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

impl<F: Read> SnapshotReader<F> {
    /// The revision that it is of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    fn entry(&mut self) -> io::Result<Option<Entry>> {
        let Some(key) = field(&mut self.records)? else { return Ok(None) };
        let key = String::from_utf8(key).map_err(io::Error::other)?;
        let mut number = || {
            let mut bytes = [0; 8];
            self.records.read_exact(&mut bytes).map(|()| u64::from_be_bytes(bytes))
        };
        let (create_revision, mod_revision) = (number()?, number()?);
        let value = field(&mut self.records)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Some(Entry { key: key.into(), value: Bytes::from(value), create_revision, mod_revision }))
    }
}

impl<F: Read> Iterator for SnapshotReader<F> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entry().transpose()
    }
}

/// Writes the entries of a snapshot into an empty store, at revisions of its own that are later than `revision`.
///
/// # Errors
/// The store is not empty, or fails; the snapshot cannot be read on.
pub async fn load(
    store: Arc<dyn Store>,
    revision: Revision,
    entries: impl Iterator<Item = io::Result<Entry>>,
) -> Result<SnapshotInfo, SnapshotError> {
    let range = Range { start: "/".into(), end: crate::prefix_end("/"), limit: 1, revision: None };
    if let Some(entry) = store.range(range).await?.entries.first() {
        return Err(SnapshotError::NotEmpty(entry.key.to_string()));
    }
    let store = ShiftedStore::begin(store, revision).await?;
    let mut info = SnapshotInfo { revision: store.revision(), keys: 0 };
    for entry in entries {
        let Entry { key, value, .. } = entry?;
        let conditions = vec![Condition::Absent(key.clone())];
        let txn = Txn { conditions, ops: vec![Op::Put { key, value }] };
        info.revision = store.commit(txn).await?;
        info.keys += 1;
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{EmbeddedConfig, EmbeddedStore, MemoryStore};

    async fn put(store: &dyn Store, key: &str, value: &str) {
        let op = Op::Put { key: key.into(), value: Bytes::from(value.to_owned()) };
        store.commit(Txn { conditions: Vec::new(), ops: vec![op] }).await.unwrap();
    }

    async fn filled(store: &dyn Store) {
        for i in 0..1203 {
            put(store, &format!("/registry/core/pods/a/p{i:04}"), &format!("{{\"n\":{i}}}")).await;
        }
        put(store, "/registry/core/pods/a/p0007", "changed").await;
        let gone = Op::Delete { key: "/registry/core/pods/a/p0008".into() };
        store.commit(Txn { conditions: Vec::new(), ops: vec![gone] }).await.unwrap();
    }

    async fn all(store: &dyn Store) -> Vec<Entry> {
        let range = Range { start: "/".into(), end: "0".into(), ..Range::default() };
        store.range(range).await.unwrap().entries
    }

    #[tokio::test]
    async fn a_restored_store_has_the_same_entries_and_a_later_revision() {
        let source = MemoryStore::new();
        filled(&*source).await;
        let mut file = Vec::new();
        let info = save(&*source, &mut file).await.unwrap();
        assert_eq!(info, SnapshotInfo { revision: source.revision(), keys: 1202 });
        // What comes later is not in it.
        put(&*source, "/registry/core/pods/a/later", "{}").await;
        let dir = tempfile::tempdir().unwrap();
        let reader = SnapshotReader::open(Cursor::new(&file)).unwrap();
        let to = dir.path().join("store");
        let restored = EmbeddedStore::restore(&to, reader.revision() + 1000, reader).unwrap();
        assert_eq!(restored.keys, 1202);
        let store = EmbeddedStore::open(EmbeddedConfig { dir: to.clone() }).unwrap();
        let mut before = all(&*source).await;
        before.retain(|e| !e.key.ends_with("later"));
        assert_eq!(all(&*store).await, before);
        assert_eq!(store.revision(), info.revision + 1000);
        let stale = store.watch("/", info.revision).await;
        assert!(matches!(stale, Err(StoreError::Compacted { .. })), "who watched before has to list again");
        put(&*store, "/registry/core/pods/a/new", "{}").await;
        assert_eq!(store.revision(), info.revision + 1001);
        drop(store);
        let again = EmbeddedStore::open(EmbeddedConfig { dir: to.clone() }).unwrap();
        assert_eq!(again.revision(), info.revision + 1001);
        drop(again);
        let twice = EmbeddedStore::restore(&to, 5000, std::iter::empty());
        assert!(matches!(twice, Err(SnapshotError::NotEmpty(_))));
    }

    #[tokio::test]
    async fn a_snapshot_goes_into_any_empty_store() {
        let (source, target) = (MemoryStore::new(), MemoryStore::new());
        filled(&*source).await;
        let mut file = Vec::new();
        save(&*source, &mut file).await.unwrap();
        let reader = SnapshotReader::open(Cursor::new(&file)).unwrap();
        load(target.clone(), 5000, reader).await.unwrap();
        let plain = |entries: Vec<Entry>| entries.into_iter().map(|e| (e.key, e.value)).collect::<Vec<_>>();
        assert_eq!(plain(all(&*source).await), plain(all(&*target).await));
        assert!(matches!(load(target.clone(), 1, std::iter::empty()).await, Err(SnapshotError::NotEmpty(_))));
    }

    #[tokio::test]
    async fn damage_is_noticed_before_anything_is_restored() {
        let source = MemoryStore::new();
        filled(&*source).await;
        let mut file = Vec::new();
        save(&*source, &mut file).await.unwrap();
        let open = |bytes: &[u8]| SnapshotReader::open(Cursor::new(bytes.to_vec())).err();
        assert!(open(&file).is_none());
        assert!(matches!(open(&file[..file.len() - 1]), Some(SnapshotError::Checksum)));
        let mut bent = file.clone();
        bent[file.len() / 2] ^= 1;
        assert!(matches!(open(&bent), Some(SnapshotError::Checksum)));
        assert!(matches!(open(b"PK\x03\x04"), Some(SnapshotError::Foreign)));
        assert!(matches!(open(MAGIC), Some(SnapshotError::Checksum)));
    }
}
