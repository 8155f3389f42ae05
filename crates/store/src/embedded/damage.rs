//! The engine's errors in the store's words, with the damaged file where that can be told.

use std::any::Any;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// How the engine's own version file begins.
const MAGIC: &[u8] = b"FJL";

/// The engine's errors in the store's words.
pub(super) fn translate(dir: &Path, error: fjall::Error) -> StoreError {
    let path = dir.display().to_string();
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
            ErrorKind::NotFound
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput => {
                corrupted(dir, &format!("missing, cut off or damaged ({e})"), "a data file")
            }
            _ => StoreError::Engine(format!("{path}: {e}")),
        },
        fjall::Error::Poisoned => StoreError::Engine(format!(
            "an earlier write to {path} failed, nothing more is accepted; make room or replace the disk, \
             then restart"
        )),
        fjall::Error::Locked => StoreError::InUse { path, pid: None },
        fjall::Error::InvalidVersion(_) => {
            corrupted(dir, "it is of another version or damaged", "data/version")
        }
        fjall::Error::JournalRecovery(e) => corrupted(dir, &format!("wrong content ({e:?})"), &journals(dir)),
        other => {
            corrupted(dir, &format!("wrong checksum or structure ({other:?})"), "a file in data/keyspaces")
        }
    }
}

/// What a panic of the engine while it opens its files means. It does not tell which file it read.
pub(super) fn panicked(dir: &Path, why: &(dyn Any + Send)) -> StoreError {
    let text = why
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| why.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given");
    let reason = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let otherwise = format!("{} or a file in data/keyspaces", journals(dir));
    corrupted(dir, &format!("wrong structure ({reason})"), &otherwise)
}

fn corrupted(dir: &Path, what: &str, otherwise: &str) -> StoreError {
    let file = culprit(dir).map_or_else(
        || otherwise.to_owned(),
        |file| file.strip_prefix(dir).unwrap_or(&file).display().to_string(),
    );
    StoreError::Corrupted { path: dir.display().to_string(), detail: format!("{file}: {what}") }
}

/// The file that is to blame, if a look at what must hold of them tells.
fn culprit(dir: &Path) -> Option<PathBuf> {
    let version = dir.join("data/version");
    if !fs::read(&version).is_ok_and(|bytes| bytes.starts_with(MAGIC)) {
        return Some(version);
    }
    for keyspace in fs::read_dir(dir.join("data/keyspaces")).ok()?.flatten() {
        let current = keyspace.path().join("current");
        let id = fs::read(&current).ok().and_then(|b| Some(u64::from_le_bytes(b.get(..8)?.try_into().ok()?)));
        let Some(id) = id else { return Some(current) };
        let manifest = keyspace.path().join(format!("v{id}"));
        if !manifest.exists() {
            // Either may be at fault; one of a number nobody ever reached is surely wrong.
            return Some(if id > 1 << 40 { current } else { manifest });
        }
        if manifest.metadata().is_ok_and(|m| m.len() == 0) {
            return Some(manifest);
        }
    }
    None
}

/// The journals there are, as alternatives.
pub(super) fn journals(dir: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(dir.join("data"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".jnl"))
        .map(|name| format!("data/{name}"))
        .collect();
    names.sort();
    if names.is_empty() { "data/0.jnl".to_owned() } else { names.join(" or ") }
}
