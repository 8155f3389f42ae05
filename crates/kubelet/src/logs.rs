//! Container logs: the CRI format, reading with options, following.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; `P` marks a part of a longer line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;

mod follow;

pub use follow::{Follow, follow};

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written, as text.
    pub time: &'a str,
    /// Whether it came from standard error.
    pub stderr: bool,
    /// Whether the text goes on in the next line.
    pub partial: bool,
    /// The text, without the line feed.
    pub text: &'a [u8],
}

/// Parses a line (without its line feed); `None` if it is none of the CRI format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = parts.next()?.split(|b| *b == b':').any(|tag| tag == b"P");
    Some(Line { time, stderr, partial, text: parts.next().unwrap_or_default() })
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// Both.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Begin so many lines before the end.
    pub tail: Option<usize>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit: Option<u64>,
    /// Which streams.
    pub streams: Streams,
}

/// Turns raw log lines into what the client sees, keeping to the options.
#[derive(Clone, Debug)]
pub struct Formatter {
    options: LogOptions,
    left: Option<u64>,
    /// Inside a long line: no time stamp before the next part.
    inside: bool,
}

impl Formatter {
    /// A formatter at the beginning of its output.
    pub fn new(options: &LogOptions) -> Self {
        Self { options: options.clone(), left: options.limit, inside: false }
    }

    /// Whether the byte limit is used up.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what the client sees of a raw line (without line feed).
    pub fn write(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(raw) else { return };
        let wanted = match self.options.streams {
            Streams::All => true,
            Streams::Stdout => !line.stderr,
            Streams::Stderr => line.stderr,
        };
        let fresh = self
            .options
            .since
            .is_none_or(|since| line.time.parse::<Timestamp>().is_ok_and(|time| time >= since));
        if !wanted || !fresh || self.is_full() {
            return;
        }
        let begin = out.len();
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.inside = line.partial;
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            out.truncate(begin + room.min(out.len() - begin));
            *left -= (out.len() - begin) as u64;
        }
    }
}

/// Rotated files of a log (`0.log.<time>`), oldest first, then the log itself.
pub fn files_of(log: &Path) -> Vec<PathBuf> {
    let name = log.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{name}.");
    let entries = log.parent().and_then(|p| std::fs::read_dir(p).ok());
    let mut rotated: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect();
    rotated.sort();
    rotated
}

/// Byte offset at which the last `lines` complete output lines begin.
///
/// # Errors
/// The file system's.
pub fn tail_offset(file: &mut File, lines: usize) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut position, mut seen) = (end, 0);
    let mut block = Vec::new();
    while position > 0 {
        let begin = position.saturating_sub(BLOCK);
        block.resize(usize::try_from(position - begin).unwrap_or(0), 0);
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block)?;
        for (i, byte) in block.iter().enumerate().rev() {
            let at = begin + i as u64;
            if *byte == b'\n' && at + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok(at + 1);
                }
            }
        }
        position = begin;
    }
    Ok(0)
}

/// The end of a log as text, for termination messages.
pub fn tail_text(log: &Path, lines: usize, bytes: usize) -> String {
    let Ok(file) = File::open(log) else { return String::new() };
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    let options = LogOptions::default();
    let mut formatter = Formatter::new(&options);
    for raw in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        let mut out = Vec::new();
        formatter.write(&raw, &mut out);
        last.push_back(out);
        if last.len() > lines {
            last.pop_front();
        }
    }
    let all: Vec<u8> = last.into_iter().flatten().collect();
    let begin = all.len().saturating_sub(bytes);
    String::from_utf8_lossy(&all[begin..]).into_owned()
}

/// A piece of output.
pub type Chunk = Bytes;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const T: &str = "2026-11-21T10:00:00.5Z";

    fn format(lines: &[String], options: LogOptions) -> String {
        let mut formatter = Formatter::new(&options);
        let mut out = Vec::new();
        for line in lines {
            formatter.write(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn parts_are_joined_and_stamped_once() {
        let lines = [format!("{T} stdout P hello "), format!("{T} stdout F world"), format!("{T} stderr F")];
        assert_eq!(format(&lines, LogOptions::default()), "hello world\n\n");
        let stamped = LogOptions { timestamps: true, streams: Streams::Stdout, ..LogOptions::default() };
        assert_eq!(format(&lines, stamped), format!("{T} hello world\n"));
    }

    #[test]
    fn limit_and_since_cut() {
        let lines = [format!("{T} stdout F abc"), "2026-11-21T11:00:00Z stdout F def".to_owned()];
        let limited = LogOptions { limit: Some(5), ..LogOptions::default() };
        assert_eq!(format(&lines, limited), "abc\nd");
        let since = LogOptions { since: "2026-11-21T10:30:00Z".parse().ok(), ..LogOptions::default() };
        assert_eq!(format(&lines, since), "def\n");
    }

    #[test]
    fn garbage_is_left_out() {
        assert_eq!(parse(b"no log line"), None);
        assert_eq!(parse(b"x stdout"), None);
    }

    #[test]
    fn tail_begins_at_the_last_lines() {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(b"a\nbb\nccc\n").expect("write");
        let offsets: Vec<u64> = (0..5).map(|n| tail_offset(&mut file, n).expect("offset")).collect();
        assert_eq!(offsets, [9, 5, 2, 0, 0]);
    }
}
