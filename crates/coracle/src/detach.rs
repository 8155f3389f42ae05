//! `up --detach`: starts this program again in the background and relays its progress until it is ready.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::cluster::{Paths, make_dir};
use crate::data_dir::{self, Owner};
use crate::error::Failure;
use crate::process::Signals;

/// The line that tells the parent that all is well.
pub const READY: &str = "\u{4}ready";
/// Begins the line that tells the parent why it is not: a [`Failure`] as JSON follows.
pub const FAILED: &str = "\u{4}failed ";

/// Starts the daemon and returns when it is ready.
///
/// # Errors
/// What the daemon failed with; or this process was interrupted, and the daemon was ended again.
pub async fn start(paths: &Paths) -> Result<(), Failure> {
    let made = !paths.data.exists();
    make_dir(&paths.data, 0o700)?;
    let log_path = paths.file("coracle.log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Failure::file("open", &log_path, &e))?;
    let mut signals = Signals::listen()?;
    let mut argv = std::env::args();
    let name = argv.next().unwrap_or_default();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(argv).arg("--daemon").current_dir("/");
    // A group of its own: Ctrl-C reaches this process only, which passes it on.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command
        .spawn()
        .map_err(|e| Failure::new(format!("cannot start in the background: {e}"), "try again"))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let Some(stdout) = child.stdout.take() else {
        return Err(Failure::new("cannot start in the background: no pipe", "try again"));
    };
    let mut lines = BufReader::new(stdout).lines();
    let mut failure = None;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.ok().flatten(),
            () = signals.recv() => {
                if let Some(pid) = pid {
                    let _ = kill(pid, Signal::SIGTERM);
                }
                continue;
            }
        };
        let Some(line) = line else { break };
        if line == READY {
            return Ok(());
        }
        match line.strip_prefix(FAILED) {
            Some(text) => failure = serde_json::from_str::<Failure>(text).ok(),
            None => println!("{line}"),
        }
    }
    let status = child.wait().await;
    let Some(failure) = failure else {
        let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        let what = format!("the cluster did not start ({status})");
        return Err(Failure::new(what, format!("see {}", log_path.display())));
    };
    // Only what this process made, and only if no other start has taken it over.
    if made
        && let Ok(_owner) = Owner::take(paths)
        && data_dir::is_new(&paths.data)
    {
        data_dir::remove(&paths.data)?;
    }
    Err(failure)
}
