//! Damaged files of the embedded store: every flipped byte is either reported or harmless.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use coracle_store::{EmbeddedConfig, EmbeddedStore, Op, Range, Store, StoreError, Txn, prefix_end};

fn open(dir: &Path) -> Result<Arc<EmbeddedStore>, StoreError> {
    EmbeddedStore::open(EmbeddedConfig { dir: dir.join("store") })
}

/// The files of a directory tree: name, length, and the bytes up to the last that is not zero.
fn files(root: &Path, dir: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(root, &entry.path()));
            continue;
        }
        // The journal is mostly a hole: its first part has all of these few writes.
        let length = entry.metadata().unwrap().len();
        let mut bytes = Vec::new();
        std::fs::File::open(entry.path()).unwrap().take(64 << 10).read_to_end(&mut bytes).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        bytes.truncate(used);
        found.push((entry.path().strip_prefix(root).unwrap().to_owned(), length, bytes));
    }
    found.sort();
    found
}

fn lay(dir: &Path, files: &[(PathBuf, u64, Vec<u8>)]) {
    for (name, length, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(*length).unwrap();
    }
}

async fn contents(store: &dyn Store) -> Result<Vec<(String, Bytes)>, StoreError> {
    let range = Range { start: "/".into(), end: prefix_end("/"), ..Range::default() };
    Ok(store.range(range).await?.entries.into_iter().map(|e| (e.key.to_string(), e.value)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_byte_in_any_file_is_reported_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("good")).unwrap();
    for i in 0..60 {
        let key: Arc<str> = format!("/k/{}", i % 25).into();
        let op = if i % 7 == 6 {
            Op::Delete { key }
        } else {
            Op::Put { key, value: format!("value {i} {}", "x".repeat(i * 5)).into() }
        };
        store.commit(Txn { conditions: Vec::new(), ops: vec![op] }).await.unwrap();
    }
    let want = contents(&*store).await.unwrap();
    drop(store);
    let good = dir.path().join("good");
    let good = files(&good, &good);
    let (mut reported, mut tried) = (0, 0);
    for n in 0..good.len() {
        let (name, used) = (good[n].0.display().to_string(), good[n].2.len());
        let trials = if name.ends_with(".jnl") { 100 } else { 6 };
        for at in (0..used).step_by((used / trials).max(1)) {
            let trial = dir.path().join("trial");
            let mut spoiled = good.clone();
            spoiled[n].2[at] ^= 0x55;
            lay(&trial, &spoiled);
            tried += 1;
            let outcome = match open(&trial) {
                Err(e) => Err(e),
                Ok(store) => contents(&*store).await,
            };
            match outcome {
                Ok(found) => assert_eq!(found, want, "{name} at {at}"),
                Err(e) => {
                    reported += 1;
                    let told = matches!(e, StoreError::Corrupted { .. } | StoreError::Format { .. });
                    assert!(told, "{name} at {at}: {e}");
                }
            }
            std::fs::remove_dir_all(&trial).unwrap();
        }
    }
    assert!(reported > 40 && tried > reported, "{reported} of {tried}");
}
