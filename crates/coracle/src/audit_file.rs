//! The file of the audit log: put aside when it is full, and removed when there are too many or they are too old.
//! Old files are named as upstream names them: `audit-2026-01-02T03-04-05.678.log`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_stdx::Clock;
use jiff::Timestamp;

/// When a file is full, and what becomes of old ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a file; 0 is upstream's 100 MB.
    pub size: u64,
    /// Old files that are kept; 0 is all.
    pub files: usize,
    /// How long they are kept; 0 is for ever.
    pub age: Duration,
}

/// A log that rotates.
pub struct AuditFile {
    path: PathBuf,
    limits: Limits,
    clock: Clock,
    file: File,
    written: u64,
}

const FORM: &str = "%Y-%m-%dT%H-%M-%S%.3f";

impl AuditFile {
    /// Opens the file to append to it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: PathBuf, limits: Limits, clock: Clock) -> std::io::Result<Self> {
        let file = appending(&path)?;
        let written = file.metadata()?.len();
        let size = if limits.size == 0 { 100 << 20 } else { limits.size };
        Ok(Self { path, limits: Limits { size, ..limits }, clock, file, written })
    }

    /// What the names of old files begin and end with.
    fn parts(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let ending = self.path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        (format!("{}-", text(self.path.file_stem())), ending)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let (begin, end) = self.parts();
        let now = self.clock.now();
        let aside = self.folder().join(format!("{begin}{}{end}", now.strftime(FORM)));
        std::fs::rename(&self.path, aside)?;
        self.file = appending(&self.path)?;
        self.written = 0;
        self.tidy(now);
        Ok(())
    }

    /// Removes old files beyond the limits. What cannot be removed stays.
    fn tidy(&self, now: Timestamp) {
        let (begin, end) = self.parts();
        let Ok(entries) = std::fs::read_dir(self.folder()) else { return };
        let mut old: Vec<(Timestamp, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_string_lossy().into_owned();
                let stamp = name.strip_prefix(&begin)?.strip_suffix(&end)?;
                let time = jiff::civil::DateTime::strptime(FORM, stamp).ok()?;
                Some((time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp(), path))
            })
            .collect();
        old.sort_by(|a, b| b.cmp(a));
        for (i, (time, path)) in old.into_iter().enumerate() {
            let many = self.limits.files != 0 && i >= self.limits.files;
            let aged =
                !self.limits.age.is_zero() && now.duration_since(time).unsigned_abs() > self.limits.age;
            if many || aged {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn appending(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for AuditFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = bytes.len() as u64;
        if self.written > 0 && self.written + length > self.limits.size {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let second = Arc::new(AtomicI64::new(1_700_000_000));
        let source = second.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(source.load(Ordering::Relaxed)).unwrap());
        let limits = Limits { size: 10, files: 2, age: Duration::from_secs(100) };
        let path = dir.path().join("audit.log");
        let mut log = AuditFile::open(path.clone(), limits, clock).unwrap();
        for line in ["one 45678\n", "two 45678\n", "three\n", "4\n", "five 5678\n", "six 45678\n"] {
            log.write_all(line.as_bytes()).unwrap();
            second.fetch_add(1, Ordering::Relaxed);
        }
        let names = || {
            let mut names: Vec<String> = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "six 45678\n");
        let kept = ["audit-2023-11-14T22-13-24.000.log", "audit-2023-11-14T22-13-25.000.log", "audit.log"];
        assert_eq!(names(), kept);
        assert_eq!(std::fs::read_to_string(dir.path().join(kept[0])).unwrap(), "three\n4\n");
        second.fetch_add(1000, Ordering::Relaxed);
        log.write_all(b"seven 678\n").unwrap();
        assert_eq!(names().len(), 2, "what was put aside long ago is gone");
    }
}
