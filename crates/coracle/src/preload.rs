//! Image archives in a directory, imported at each start unless that was done before: nodes without a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use coracle_runtime::Runtime;

/// What was imported, by file name: size and time of the file.
const DONE: &str = ".imported.json";

type Stamp = (u64, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok().filter(|m| m.is_file())?;
    let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((meta.len(), time.as_secs()))
}

fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"].iter().any(|end| name.ends_with(end))
}

/// The archives that are new or have changed.
fn due(directory: &Path, done: &BTreeMap<String, Stamp>) -> Vec<(String, PathBuf, Stamp)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            let stamp = stamp(&e.path()).filter(|_| is_archive(&name))?;
            (done.get(&name) != Some(&stamp)).then(|| (name, e.path(), stamp))
        })
        .collect();
    found.sort();
    found
}

/// Imports what is due. What fails is told and tried again at the next start.
pub async fn run(runtime: Arc<Runtime>, directory: PathBuf) {
    let record = directory.join(DONE);
    let read = std::fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut done: BTreeMap<String, Stamp> = read.unwrap_or_default();
    for (name, path, stamp) in due(&directory, &done) {
        match runtime.import_image(&path).await {
            Ok(names) => {
                tracing::info!(archive = name, images = names.join(", "), "images imported");
                done.insert(name, stamp);
                let text = serde_json::to_vec(&done).unwrap_or_default();
                if let Err(e) = std::fs::write(&record, text) {
                    tracing::warn!("{}: {e}", record.display());
                }
            }
            Err(e) => tracing::warn!(archive = name, "images not imported: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_archives_are_due() {
        let dir = std::env::temp_dir().join(format!("preload-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        std::fs::write(dir.join("a.tar"), "x").expect("file");
        std::fs::write(dir.join("notes.txt"), "x").expect("file");
        let first = due(&dir, &BTreeMap::new());
        assert_eq!(first.iter().map(|d| d.0.as_str()).collect::<Vec<_>>(), ["a.tar"]);
        let done = first.into_iter().map(|(name, _, stamp)| (name, stamp)).collect();
        assert!(due(&dir, &done).is_empty());
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
