//! What is wrong with an expression: messages with positions, shown with the line they concern.

use std::fmt;

const MAX_REPORTED: usize = 100;
/// Bytes of a line beyond which it is not shown.
const MAX_SNIPPET: usize = 16384;

/// A place in the source: line from 1, column from 0, in characters. `NONE` is before everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) line: i32,
    pub(crate) column: i32,
}

impl Location {
    pub(crate) const NONE: Self = Self { line: -1, column: -1 };
}

/// The text of an expression, by characters.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) chars: Vec<char>,
    /// Offsets at which lines start.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut lines = vec![0];
        lines.extend(chars.iter().enumerate().filter(|(_, c)| **c == '\n').map(|(i, _)| i + 1));
        Self { chars, lines }
    }

    /// Where an offset is.
    pub(crate) fn location(&self, offset: usize) -> Location {
        let line = self.lines.partition_point(|start| *start <= offset);
        let column = offset - self.lines[line - 1];
        Location {
            line: i32::try_from(line).unwrap_or(i32::MAX),
            column: i32::try_from(column).unwrap_or(i32::MAX),
        }
    }

    fn snippet(&self, line: i32) -> Option<String> {
        let index = usize::try_from(line).ok()?.checked_sub(1)?;
        let start = *self.lines.get(index)?;
        if start == self.chars.len() && start == 0 {
            return None;
        }
        let end = self.lines.get(index + 1).map_or(self.chars.len(), |next| next - 1);
        Some(self.chars[start..end].iter().collect())
    }
}

#[derive(Clone, Debug)]
struct Issue {
    location: Location,
    message: String,
}

/// Why an expression does not compile.
#[derive(Clone, Debug)]
pub struct Issues {
    source: Source,
    list: Vec<Issue>,
    count: usize,
}

impl Issues {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, list: Vec::new(), count: 0 }
    }

    pub(crate) fn report(&mut self, location: Location, message: impl Into<String>) {
        self.count += 1;
        if self.count <= MAX_REPORTED {
            self.list.push(Issue { location, message: message.into() });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    fn show(&self, issue: &Issue) -> String {
        let at = issue.location;
        let mut text = format!("ERROR: <input>:{}:{}: {}", at.line, at.column + 1, issue.message);
        let Some(snippet) = self.source.snippet(at.line).filter(|line| line.len() <= MAX_SNIPPET) else {
            return text;
        };
        let snippet = snippet.replace('\t', " ");
        let column = usize::try_from(at.column).unwrap_or(0);
        let mut marks = String::new();
        for c in snippet.chars().take(column) {
            marks.push(if c.is_ascii() { '.' } else { '\u{ff0e}' });
        }
        let wide = snippet.chars().nth(column).is_some_and(|c| !c.is_ascii());
        marks.push(if wide { '\u{ff3e}' } else { '^' });
        text.push_str(&format!("\n | {snippet}\n | {marks}"));
        text
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Issue> = self.list.iter().collect();
        sorted.sort_by_key(|issue| issue.location);
        let mut shown: Vec<String> = sorted.into_iter().map(|issue| self.show(issue)).collect();
        if self.count > MAX_REPORTED {
            shown.push(format!("{} more errors were truncated", self.count - MAX_REPORTED));
        }
        f.write_str(&shown.join("\n"))
    }
}

impl std::error::Error for Issues {}
