//! A program that runs beside a test, and what a failed test says last.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

/// Lines of a log that a failed test shows, and how much of each.
const LINES: usize = 40;
const WIDTH: usize = 400;

thread_local! {
    /// Why the test on this thread failed.
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A program that is killed with the value. What it printed is in a log, whose end is shown when the test fails.
#[derive(Debug)]
pub struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts it; what it prints goes to the end of `log`. Panics when it cannot be started.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log");
        let err = out.try_clone().expect("a log");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
        Self { child, log: log.to_owned() }
    }

    /// Ends it with SIGTERM and waits for its end.
    pub fn terminate(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
        show_if_failed(&self.log);
    }
}

fn end_of(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(WIDTH).collect()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// When the test fails: the end of a log, and after it once more why. Only the end of a run's output may be kept.
pub(crate) fn show_if_failed(log: &Path) {
    if !std::thread::panicking() {
        return;
    }
    let why = FAILURE.with_borrow(|why| why.clone()).unwrap_or_default();
    eprintln!("--- end of {}\n{}\n--- failed: {why}", log.display(), end_of(log));
}

/// Keeps what a panic says, for [`show_if_failed`].
pub(crate) fn keep_failures() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            FAILURE.with_borrow_mut(|why| *why = Some(info.to_string()));
            before(info);
        }));
    });
}
