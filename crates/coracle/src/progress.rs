//! What `up` tells a person while it works: one line a step, with the time since the start.

use std::io::Write as _;
use std::sync::Mutex;
use std::time::Instant;

/// Writes progress lines to standard output.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    out: Mutex<Option<std::io::Stdout>>,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now(), out: Mutex::new(Some(std::io::stdout())) }
    }
    /// A step is done.
    pub fn step(&self, what: &str, detail: &str) {
        self.line(&format!("  ✓ {what:<13} {detail:<58} {:>6.2} s", self.started.elapsed().as_secs_f64()));
    }
    /// Any line.
    pub fn line(&self, text: &str) {
        if let Ok(mut out) = self.out.lock()
            && let Some(out) = out.as_mut()
        {
            let _ = writeln!(out, "{text}");
            let _ = out.flush();
        }
    }
    /// Says no more: standard output belongs to someone else now.
    pub fn end(&self) {
        if let Ok(mut out) = self.out.lock() {
            *out = None;
        }
    }
}
