//! Reads a log file, and goes on as it grows: woken by inotify and by the container's end, across rotations.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::{Chunk, Formatter, LogOptions, tail_offset};
use coracle_stdx::files::{Watch, Watcher};

/// Bytes read at once.
const BLOCK: usize = 64 * 1024;

/// What a follower works on.
pub struct Follow {
    /// The log file.
    pub path: PathBuf,
    /// What is wanted.
    pub options: LogOptions,
    /// Wakes on changes.
    pub watcher: Watcher,
}

struct Reader {
    file: File,
    inode: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode, rest: Vec::new() })
    }

    /// Everything readable now, formatted; `false` at the end of the file.
    fn read(&mut self, formatter: &mut Formatter, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let begin = self.rest.len();
        self.rest.resize(begin + BLOCK, 0);
        let got = self.file.read(&mut self.rest[begin..])?;
        self.rest.truncate(begin + got);
        let whole = self.rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for line in self.rest[..whole].split_inclusive(|b| *b == b'\n') {
            formatter.write(&line[..line.len() - 1], out);
        }
        self.rest.drain(..whole);
        Ok(got > 0)
    }

    fn is_current(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| m.ino() == self.inode)
    }
}

/// Sends the log through `output` until its end: with `follow`, until `alive` says that the container has
/// ended and everything was read. `changed` completes when `alive` may have changed.
///
/// # Errors
/// The file cannot be read. That the client is gone is no error.
pub async fn follow<A, C, F>(
    job: Follow,
    output: mpsc::Sender<Chunk>,
    mut alive: A,
    mut changed: C,
) -> std::io::Result<()>
where
    A: FnMut() -> bool + Send,
    C: FnMut() -> F + Send,
    F: Future<Output = ()> + Send,
{
    let Follow { path, options, watcher } = job;
    let watch: Option<Watch> = match path.parent() {
        Some(folder) if options.follow => Some(watcher.directory(folder)?),
        _ => None,
    };
    let mut reader = Reader::open(&path)?;
    if let Some(lines) = options.tail {
        let offset = tail_offset(&mut reader.file, lines)?;
        reader.file.seek(SeekFrom::Start(offset))?;
    }
    let mut formatter = Formatter::new(&options);
    loop {
        // Asked before reading: what was written before the end is read in any case.
        let running = alive();
        let mut out = Vec::new();
        while !formatter.is_full() {
            let more = reader.read(&mut formatter, &mut out)?;
            if !out.is_empty() && output.send(Chunk::from(std::mem::take(&mut out))).await.is_err() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| !formatter.is_full()) else { return Ok(()) };
        if !reader.is_current(&path) {
            // Rotated. Until the new file was there, the writer may have gone on with the old one.
            if let Ok(next) = Reader::open(&path) {
                let mut rest = Vec::new();
                while reader.read(&mut formatter, &mut rest)? {}
                if !rest.is_empty() && output.send(Chunk::from(rest)).await.is_err() {
                    return Ok(());
                }
                reader = next;
                continue;
            }
        }
        if !running {
            return Ok(());
        }
        tokio::select! {
            () = watch.changed() => {}
            () = changed() => {}
            () = output.closed() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn following_sees_new_lines_across_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t stdout F one\n").expect("write");
        let running = Arc::new(AtomicBool::new(true));
        let ended = Arc::new(tokio::sync::Notify::new());
        let job = Follow {
            path: path.clone(),
            options: LogOptions { follow: true, ..LogOptions::default() },
            watcher: Watcher::new().expect("inotify"),
        };
        let (sender, mut output) = mpsc::channel(8);
        let (alive, change) = (running.clone(), ended.clone());
        let task = tokio::spawn(follow(
            job,
            sender,
            move || alive.load(Ordering::SeqCst),
            move || {
                let change = change.clone();
                async move { change.notified().await }
            },
        ));
        let mut next = async || {
            let chunk = tokio::time::timeout(Duration::from_secs(5), output.recv()).await;
            String::from_utf8(chunk.expect("in time").unwrap_or_default().to_vec()).expect("text")
        };
        assert_eq!(next().await, "one\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).expect("rotate");
        std::fs::write(&path, "t stdout F two\n").expect("write");
        assert_eq!(next().await, "two\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"t stdout F three\n").expect("write");
        assert_eq!(next().await, "three\n");
        running.store(false, Ordering::SeqCst);
        ended.notify_one();
        assert_eq!(next().await, "");
        task.await.expect("task").expect("no error");
    }
}
