//! What goes wrong for a person at the command line: what, why, and what to do about it.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::up::Undo;

/// A failure to print and exit with. Each has one sentence for what happened and one for what to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    what: String,
    hint: String,
    status: i32,
    #[serde(skip)]
    undo: Option<Box<Undo>>,
}

impl Failure {
    /// `what` happened; `hint` says what to do (may be empty).
    pub fn new(what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { what: what.to_string(), hint: hint.into(), status: 1, undo: None }
    }
    /// The configuration file cannot be used.
    pub fn config(path: &Path, why: impl fmt::Display) -> Self {
        Self::new(
            format!("configuration file {}: {why}", path.display()),
            "mend the file or leave out --config",
        )
    }
    /// The command line makes no sense.
    pub fn usage(what: impl fmt::Display) -> Self {
        Self { status: 2, ..Self::new(what, "see `coracle --help`") }
    }
    /// Ctrl-C or SIGTERM came before the work was done.
    pub fn interrupted(hint: &str) -> Self {
        Self { status: 130, ..Self::new("interrupted", hint) }
    }
    /// The time was over before the work was done.
    pub fn late(what: impl fmt::Display) -> Self {
        Self { status: 2, ..Self::new(what, "give it longer with --timeout") }
    }
    /// The same, with a hint unless it has one.
    #[must_use]
    pub fn or_hint(self, hint: &str) -> Self {
        if self.hint.is_empty() { Self { hint: hint.into(), ..self } } else { self }
    }
    /// A file operation failed.
    pub fn file(doing: &str, path: &Path, why: &std::io::Error) -> Self {
        let hint = match why.kind() {
            std::io::ErrorKind::StorageFull => "free some disk space and try again",
            std::io::ErrorKind::PermissionDenied => "run it with sudo, or name a path that you may use",
            std::io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is read-only: choose another --data-dir"
            }
            _ => "check the path",
        };
        Self::new(format!("cannot {doing} {}: {why}", path.display()), hint)
    }
    /// The same, with what is to be taken back when everything has ended.
    #[must_use]
    pub fn undoing(self, undo: Undo) -> Self {
        Self { undo: Some(Box::new(undo)), ..self }
    }
    /// What is to be taken back.
    pub fn take_undo(&mut self) -> Option<Undo> {
        self.undo.take().map(|undo| *undo)
    }
    /// The process's exit status.
    pub fn status(&self) -> i32 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.hint.is_empty() {
            write!(f, "\n  → {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
