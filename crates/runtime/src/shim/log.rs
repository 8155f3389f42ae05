//! Writes a container's output in the CRI log format: `time stream tag line`, where the tag is `F` for a full
//! line and `P` for a part of one (lines are cut at 16 KiB).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest piece of a line.
const LONGEST: usize = 16 << 10;

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    file: Option<File>,
    pending: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl LogWriter {
    /// Opens the log for appending; an empty path discards all.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut log =
            Self { path: path.to_owned(), file: None, pending: [Vec::new(), Vec::new()], out: Vec::new() };
        log.reopen()?;
        Ok(log)
    }
    /// Opens the path again, after rotation.
    pub fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        Ok(())
    }
    /// Takes output as it comes.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let now = timestamp();
        let mut out = std::mem::take(&mut self.out);
        let pending = &mut self.pending[stream as usize];
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            if pending.is_empty() {
                pieces(&mut out, &now, stream, &bytes[..end], b'F');
            } else {
                pending.extend_from_slice(&bytes[..end]);
                pieces(&mut out, &now, stream, pending, b'F');
                pending.clear();
            }
            bytes = &bytes[end + 1..];
        }
        pending.extend_from_slice(bytes);
        if pending.len() > LONGEST {
            let whole = pending.len() / LONGEST * LONGEST;
            pieces(&mut out, &now, stream, &pending[..whole], b'P');
            pending.drain(..whole);
        }
        self.flush(out);
    }
    /// The stream ended: what is left of a line is written as a part.
    pub fn end(&mut self, stream: Stream) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if pending.is_empty() || self.file.is_none() {
            return;
        }
        let mut out = std::mem::take(&mut self.out);
        pieces(&mut out, &timestamp(), stream, &pending, b'P');
        self.flush(out);
    }
    /// One write per batch, so that a reader sees whole lines. A full disk loses output, never the container.
    fn flush(&mut self, mut out: Vec<u8>) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&out);
        }
        out.clear();
        if out.capacity() <= 128 << 10 {
            self.out = out;
        }
    }
}

fn pieces(out: &mut Vec<u8>, now: &str, stream: Stream, line: &[u8], last: u8) {
    let name: &[u8] = if stream == Stream::Stdout { b" stdout " } else { b" stderr " };
    let mut rest = line;
    loop {
        let (piece, tag) = if rest.len() > LONGEST { (&rest[..LONGEST], b'P') } else { (rest, last) };
        out.extend_from_slice(now.as_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(&[tag, b' ']);
        out.extend_from_slice(piece);
        out.push(b'\n');
        rest = &rest[piece.len()..];
        if rest.is_empty() {
            return;
        }
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

fn timestamp() -> String {
    let now = jiff::Timestamp::from_nanosecond(i128::from(now_nanos())).unwrap_or_default();
    format!("{now:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(parts: &[&[u8]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let mut log = LogWriter::open(&path).unwrap();
        for part in parts {
            log.write(Stream::Stdout, part);
        }
        log.end(Stream::Stdout);
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_joined_over_reads_and_a_rest_is_partial() {
        assert_eq!(
            written(&[b"a\nb", b"c\n\nend"]),
            ["stdout F a", "stdout F bc", "stdout F ", "stdout P end"]
        );
    }

    #[test]
    fn long_line_is_cut_into_parts() {
        let long = vec![b'x'; LONGEST + 10];
        let lines = written(&[&long, b"\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("stdout P ") && lines[0].len() == LONGEST + 9);
        assert_eq!(lines[1], format!("stdout F {}", "x".repeat(10)));
    }

    #[test]
    fn time_has_nine_digits_and_zulu() {
        let t = timestamp();
        assert_eq!((t.len(), t.ends_with('Z')), (30, true), "{t}");
    }
}
