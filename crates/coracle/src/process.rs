//! Processes and signals: is a daemon alive, and was this one told to end.

use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cluster::Paths;
use crate::error::Failure;

/// The daemon's pid, if it lives: the pid file's process, and it is still the same one.
pub fn running(paths: &Paths) -> Option<Pid> {
    let text = std::fs::read_to_string(paths.pid()).ok()?;
    let mut words = text.split_whitespace();
    let pid: i32 = words.next()?.parse().ok()?;
    let started = words.next().unwrap_or("");
    (start_time(pid)? == started).then(|| Pid::from_raw(pid))
}

/// Start time of a live (not zombie) process in clock ticks since boot: with the pid it names a process for
/// good.
pub fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold anything; fields after it are plain.
    let rest = stat.rsplit_once(") ")?.1;
    let fields: Vec<&str> = rest.split(' ').collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19).map(|s| (*s).to_owned())).flatten()
}

/// SIGINT and SIGTERM. From its making on they no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens for both.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::new(format!("cannot listen for signals: {e}"), "try again"))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for one of them. Cancel-safe.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
