//! The shim: one small process per pod. It is the parent of the pod's containers, writes their logs, keeps
//! their exit codes and outlives the daemon. One thread, one `poll` loop, no async runtime: so it may fork,
//! and it touches little memory.

mod connections;
mod containers;
pub(crate) mod executor;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod pause;
mod spawn;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use connections::Connection;
use containers::Container;
use spawn::{Launch, ReportFd};

use crate::cgroup::Hierarchies;
use crate::protocol::Reply;

/// Name of the socket in a sandbox's directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the file that holds `pid start-time` of the shim.
pub(crate) const PID_FILE: &str = "shim.pid";

/// `__shim DIR CGROUP pause[=USERNS]|-`: serves the socket given as descriptor 0 until told to end.
pub(crate) fn run(args: &[String]) -> i32 {
    let [dir, cgroup, pause] = args else { return 2 };
    match Shim::start(PathBuf::from(dir), cgroup, pause).and_then(|mut shim| shim.serve()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("shim: {error}");
            1
        }
    }
}

/// What woke the loop.
#[derive(Clone, Debug)]
enum Token {
    Signal,
    Listener,
    Connection(u64),
    Launch(u64),
    Output(String, usize),
}

struct Shim {
    dir: PathBuf,
    hierarchies: Hierarchies,
    listener: UnixListener,
    signals: OwnedFd,
    #[expect(dead_code, reason = "held open")]
    report: ReportFd,
    /// 0 without a shared process namespace, or when it has ended.
    pause_pid: i32,
    next_id: u64,
    connections: HashMap<u64, Connection>,
    containers: HashMap<String, Container>,
    launches: HashMap<u64, Launch>,
    /// Commands run by exec: process id to connection.
    execs: HashMap<i32, u64>,
    /// Children that ended before anyone claimed them.
    early: HashMap<i32, i32>,
    /// The connection that asked for the end.
    ending: Option<u64>,
}

impl Shim {
    fn start(dir: PathBuf, cgroup: &str, pause: &str) -> io::Result<Self> {
        // SAFETY: plain system calls on our own process; descriptor 0 is the listening socket the daemon
        // gave us, which nothing else owns.
        let listener = unsafe {
            libc::setsid();
            libc::prctl(libc::PR_SET_NAME, c"coracle-shim".as_ptr());
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
            UnixListener::from_raw_fd(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 4))
        };
        listener.set_nonblocking(true)?;
        let report = ReportFd::reserve()?;
        std::env::set_current_dir("/")?;
        let stat = fs::read_to_string("/proc/self/stat")?;
        fs::write(dir.join(PID_FILE), format!("{} {}", std::process::id(), start_time(&stat).unwrap_or(0)))?;
        let hierarchies = Hierarchies::detect();
        hierarchies.join(cgroup);
        let _ = fs::write("/proc/self/oom_score_adj", "-998");
        let signals = spawn::block_signals()?;
        let mut shim = Self {
            dir,
            hierarchies,
            listener,
            signals,
            report,
            pause_pid: 0,
            next_id: 0,
            connections: HashMap::new(),
            containers: HashMap::new(),
            launches: HashMap::new(),
            execs: HashMap::new(),
            early: HashMap::new(),
            ending: None,
        };
        if let Some(users) = pause.strip_prefix("pause=") {
            // A directory that is always there, and that its users can reach.
            shim.pause_pid = spawn::pause(Path::new("/proc"), Some(Path::new(users)))?;
        } else if pause == "pause" {
            let root = shim.dir.join("empty");
            fs::create_dir_all(&root)?;
            shim.pause_pid = spawn::pause(&root, None)?;
        }
        Ok(shim)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut polled: Vec<libc::pollfd> = Vec::new();
        let mut tokens = Vec::new();
        while !self.may_end() {
            polled.clear();
            tokens.clear();
            self.wanted(|fd, events, token| {
                polled.push(libc::pollfd { fd, events, revents: 0 });
                tokens.push(token);
            });
            // SAFETY: the array is ours and as long as we say.
            let count = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, self.timeout()) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
                continue;
            }
            let ready = polled.iter().zip(&tokens).filter(|(p, _)| p.revents != 0);
            for token in ready.map(|(_, t)| t.clone()).collect::<Vec<_>>() {
                match token {
                    Token::Signal => self.reap(),
                    Token::Listener => self.accept(),
                    Token::Connection(id) => self.converse(id),
                    Token::Launch(id) => self.hear_launch(id),
                    Token::Output(id, stream) => self.copy_output(&id, stream),
                }
            }
            self.kill_overdue();
        }
        if let Some(id) = self.ending {
            self.reply(id, &Reply::Done, Vec::new());
        }
        let _ = crate::files::remove_file(&self.dir.join(SOCKET));
        Ok(())
    }

    /// Tells `add` every descriptor to watch.
    fn wanted(&self, mut add: impl FnMut(RawFd, i16, Token)) {
        add(self.signals.as_raw_fd(), libc::POLLIN, Token::Signal);
        add(self.listener.as_raw_fd(), libc::POLLIN, Token::Listener);
        for (id, connection) in &self.connections {
            add(connection.fd(), connection.interest(), Token::Connection(*id));
        }
        for (id, launch) in &self.launches {
            add(launch.report.as_raw_fd(), libc::POLLIN, Token::Launch(*id));
        }
        for (id, container) in &self.containers {
            for (stream, fd) in container.outputs.iter().enumerate() {
                if let Some(fd) = fd {
                    add(fd.as_raw_fd(), libc::POLLIN, Token::Output(id.clone(), stream));
                }
            }
        }
    }

    /// Milliseconds until the next grace period ends, rounded up; -1 for none.
    fn timeout(&self) -> i32 {
        let next = self.containers.values().filter_map(|c| c.kill_at).min();
        next.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            i32::try_from(left).unwrap_or(i32::MAX)
        })
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn may_end(&self) -> bool {
        self.ending.is_some()
            && self.launches.is_empty()
            && self.pause_pid == 0
            && self.containers.values().all(|c| c.exit.is_some())
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        let mut buffer = [0u8; 1024];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        loop {
            let mut status = 0;
            // SAFETY: waitpid writes the status we give it.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            self.ended(pid, status);
        }
        if self.launches.is_empty() {
            self.early.clear();
        }
    }

    fn ended(&mut self, pid: i32, status: i32) {
        if let Some(connection) = self.execs.remove(&pid) {
            self.reply(connection, &Reply::ExecExited { code: exit_code(status).0 }, Vec::new());
        } else if pid == self.pause_pid {
            self.pause_pid = 0;
            self.broadcast(&Reply::PauseExited);
        } else if let Some((id, _)) = self.containers.iter().find(|(_, c)| c.pid == pid && c.exit.is_none()) {
            let id = id.clone();
            self.container_ended(&id, status);
        } else {
            self.early.insert(pid, status);
        }
    }
}

/// Exit code as a shell would give it, and the signal that killed the process.
fn exit_code(status: i32) -> (i32, i32) {
    if libc::WIFEXITED(status) {
        (libc::WEXITSTATUS(status), 0)
    } else {
        (128 + libc::WTERMSIG(status), libc::WTERMSIG(status))
    }
}

/// When a process started, in clock ticks since boot: with its id it names one process for ever.
pub(crate) fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_field_22_whatever_the_name() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(start_time(stat), Some(777));
    }
}
