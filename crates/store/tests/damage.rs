//! Damaged files of the embedded store: every flipped byte is either reported or harmless.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use coracle_store::{EmbeddedConfig, EmbeddedStore, Op, Range, Store, StoreError, Txn, prefix_end};

fn open(dir: &Path) -> Result<Arc<EmbeddedStore>, StoreError> {
    EmbeddedStore::open(EmbeddedConfig { dir: dir.join("store") })
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // The journal is mostly a hole.
            let bytes = std::fs::read(entry.path()).unwrap();
            let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
            std::fs::write(&target, &bytes[..used]).unwrap();
            std::fs::File::options().write(true).open(&target).unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
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
    let (mut reported, mut tried) = (0, 0);
    for file in files(&dir.path().join("good")) {
        let name = file.strip_prefix(dir.path().join("good")).unwrap().to_owned();
        let bytes = std::fs::read(&file).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        let step = (used / 40).max(1);
        for at in (0..used).step_by(step) {
            let trial = dir.path().join("trial");
            copy(&dir.path().join("good"), &trial);
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            std::fs::write(trial.join(&name), &bytes[..used]).unwrap();
            tried += 1;
            let outcome = match open(&trial) {
                Err(e) => Err(e),
                Ok(store) => contents(&*store).await,
            };
            match outcome {
                Ok(found) => assert_eq!(found, want, "{} at {at}", name.display()),
                Err(e) => {
                    reported += 1;
                    assert!(
                        matches!(e, StoreError::Corrupted { .. } | StoreError::Format { .. }),
                        "{} at {at}: {e}",
                        name.display()
                    );
                }
            }
            std::fs::remove_dir_all(&trial).unwrap();
        }
    }
    assert!(reported > 40 && tried > reported, "{reported} of {tried}");
}
