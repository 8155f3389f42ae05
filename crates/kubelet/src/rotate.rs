//! Log rotation: a log that reaches its size is renamed and reopened; the oldest files go.
//!
//! Idle logs cost nothing: a one-shot watch on each current log file wakes its rotator on the next write, and
//! the size is looked at some seconds later.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerFilter, ContainerState};
use tracing::warn;

use crate::context::Context;
use crate::logs::files_of;
use crate::names;

/// How long after a write the size is looked at.
const SETTLE: Duration = Duration::from_secs(10);

/// Removes a log with its rotated files.
pub fn remove(log: &Path) {
    for file in files_of(log) {
        let _ = std::fs::remove_file(file);
    }
    let _ = std::fs::remove_file(log);
}

/// Renames a log that has reached `size`, keeping at most `files` files with the new one; whether it did.
///
/// # Errors
/// The file system's.
pub fn rotate(log: &Path, size: u64, files: u32, stamp: &str) -> std::io::Result<bool> {
    if std::fs::metadata(log)?.len() < size {
        return Ok(false);
    }
    let keep = usize::try_from(files.max(2)).unwrap_or(2) - 2;
    let rotated = files_of(log);
    for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
        std::fs::remove_file(old)?;
    }
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    std::fs::rename(log, PathBuf::from(name))?;
    Ok(true)
}

/// Packs the rotated files of a log that are not packed yet; whole or not at all.
///
/// # Errors
/// The file system's; the unpacked file stays then.
pub fn compress(log: &Path) -> std::io::Result<()> {
    for file in files_of(log) {
        let name = file.to_string_lossy().into_owned();
        if name.ends_with(".gz") {
            continue;
        }
        if name.ends_with(".tmp") {
            std::fs::remove_file(&file)?;
            continue;
        }
        let temporary = PathBuf::from(format!("{name}.tmp"));
        let packed = std::fs::File::create(&temporary)?;
        let mut packer = flate2::write::GzEncoder::new(packed, flate2::Compression::default());
        std::io::copy(&mut std::fs::File::open(&file)?, &mut packer)?;
        packer.finish()?;
        std::fs::rename(&temporary, format!("{name}.gz"))?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

/// Rotates the log of one container for as long as it runs.
pub async fn keep(cx: Arc<Context>, id: String, log: PathBuf) {
    loop {
        let Ok(watch) = cx.files.next_write(&log) else { return };
        watch.changed().await;
        drop(watch);
        tokio::time::sleep(SETTLE).await;
        let stamp = cx.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
        // The file rotated last is left as it is: somebody may still read or write it. Older ones are packed now.
        let due = std::fs::metadata(&log).is_ok_and(|m| m.len() >= cx.config.log_max_size);
        if due {
            let packing = log.clone();
            let packed = tokio::task::spawn_blocking(move || compress(&packing)).await;
            if let Ok(Err(e)) = packed {
                warn!(log = %log.display(), error = %e, "rotated log not packed");
            }
        }
        match rotate(&log, cx.config.log_max_size, cx.config.log_max_files, &stamp) {
            Ok(false) => {}
            Ok(true) => {
                if let Err(e) = cx.runtime.reopen_container_log(&id).await {
                    warn!(container = id, error = %e, "log not reopened");
                    return;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => warn!(log = %log.display(), error = %e, "log not rotated"),
        }
    }
}

/// The log of a running container.
pub async fn log_of(cx: &Context, id: &str) -> Option<PathBuf> {
    let filter = ContainerFilter { id: id.to_owned(), ..ContainerFilter::default() };
    let list = cx.runtime.list_containers(filter).await.ok()?;
    let c = list.into_iter().find(|c| c.id == id && c.state == ContainerState::Running)?;
    let label = |key: &str| c.labels.get(key).map(String::as_str).unwrap_or("");
    let folder = names::log_directory(
        &cx.config.log_root,
        label(names::POD_NAMESPACE),
        label(names::POD_NAME),
        label(names::POD_UID),
    );
    Some(folder.join(&c.metadata.name).join(format!("{}.log", c.metadata.attempt)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_packed_once() {
        use std::io::Read as _;
        let dir = tempfile::tempdir().expect("directory");
        let log = dir.path().join("0.log");
        std::fs::write(dir.path().join("0.log.1"), "one\n").expect("write");
        std::fs::write(dir.path().join("0.log.2.tmp"), "half").expect("write");
        compress(&log).expect("packed");
        compress(&log).expect("nothing to do");
        let names: Vec<_> = files_of(&log).iter().map(|p| p.file_name().expect("name").to_owned()).collect();
        assert_eq!(names, ["0.log.1.gz"]);
        let file = std::fs::File::open(dir.path().join("0.log.1.gz")).expect("file");
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "one\n");
    }

    #[test]
    fn a_full_log_is_renamed_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("directory");
        let log = dir.path().join("0.log");
        for stamp in ["1", "2", "3", "4"] {
            std::fs::write(&log, "0123456789").expect("write");
            assert!(!rotate(&log, 11, 3, stamp).expect("small enough"));
            assert!(rotate(&log, 10, 3, stamp).expect("rotated"));
        }
        let names: Vec<_> = files_of(&log).iter().map(|p| p.extension().expect("stamp").to_owned()).collect();
        assert_eq!(names, ["3", "4"]);
    }
}
