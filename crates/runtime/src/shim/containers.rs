//! The containers of a shim: start, output, signals, exit, commands, attachment.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use super::log::{LogWriter, Stream, now_nanos};
use super::spawn::{Console, Launch, helper, outcome};
use super::{Shim, exit_code};
use crate::protocol::{Exit, LaunchSpec, Reply};

/// Someone who follows a container's output.
pub(super) struct Watcher {
    pub connection: u64,
    outputs: [Option<OwnedFd>; 2],
}

/// A container from its start until the daemon forgets it.
pub(super) struct Container {
    pub spec: LaunchSpec,
    /// 0 while it is being started.
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exit>,
    pub log: LogWriter,
    /// Read ends of stdout and stderr; with a terminal, the terminal and nothing.
    pub outputs: [Option<OwnedFd>; 2],
    /// Write end of stdin.
    pub stdin: Option<OwnedFd>,
    pub watchers: Vec<Watcher>,
    /// Connections to tell when it is dead.
    stoppers: Vec<u64>,
    /// End of the grace period.
    pub kill_at: Option<Instant>,
}

impl Shim {
    pub(super) fn start_container(&mut self, connection: u64, spec: LaunchSpec) {
        let id = spec.id.clone();
        if self.containers.contains_key(&id) {
            let message = format!("container {id} is already started");
            return self.reply(connection, &Reply::Failed { message }, Vec::new());
        }
        if let Err(error) = self.try_start(connection, spec) {
            self.containers.remove(&id);
            self.reply(connection, &Reply::Failed { message: error.to_string() }, Vec::new());
        }
    }

    fn try_start(&mut self, connection: u64, spec: LaunchSpec) -> io::Result<()> {
        let log = LogWriter::open(&spec.log_path).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot open log {}: {e}", spec.log_path.display()))
        })?;
        let mut container = Container {
            pid: 0,
            started_at: 0,
            exit: None,
            log,
            outputs: [None, None],
            stdin: None,
            watchers: Vec::new(),
            stoppers: Vec::new(),
            kill_at: None,
            spec,
        };
        let bundle = container.spec.bundle.to_string_lossy().into_owned();
        let (report, console) = if container.spec.tty {
            let console = Console::listen(&container.spec.bundle, "console.sock")?;
            let path = console.path().to_string_lossy().into_owned();
            let null = [Stdio::null(), Stdio::null(), Stdio::null()];
            (helper(&["__create", &bundle, &path], null)?, Some(console))
        } else {
            let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
            let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
            for fd in [&out_read, &err_read] {
                rustix::io::ioctl_fionbio(fd, true)?;
            }
            container.outputs = [Some(out_read), Some(err_read)];
            let stdin = if container.spec.stdin {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                container.stdin = Some(write);
                Stdio::from(read)
            } else {
                Stdio::null()
            };
            (helper(&["__create", &bundle], [stdin, out_write.into(), err_write.into()])?, None)
        };
        let id = container.spec.id.clone();
        self.containers.insert(id.clone(), container);
        let key = self.new_id();
        let launch = Launch { report, text: Vec::new(), container: id, connection, exec: false, console };
        self.launches.insert(key, launch);
        Ok(())
    }

    pub(super) fn exec_in_container(
        &mut self,
        connection: u64,
        id: &str,
        args: &[String],
        tty: bool,
        fds: Vec<OwnedFd>,
    ) {
        let Some(container) = self.containers.get(id).filter(|c| c.pid != 0 && c.exit.is_none()) else {
            return self.reply(connection, &Reply::Unknown, Vec::new());
        };
        let bundle = container.spec.bundle.clone();
        let key = self.new_id();
        let started = (|| {
            let console =
                if tty { Some(Console::listen(&bundle, &format!("exec{key}.sock"))?) } else { None };
            let console_path = console.as_ref().map(|c| c.path().to_string_lossy().into_owned());
            let bundle = bundle.to_string_lossy().into_owned();
            let mut command = vec!["__exec", &bundle, console_path.as_deref().unwrap_or("-")];
            command.extend(args.iter().map(String::as_str));
            let mut fds = fds.into_iter().map(Stdio::from);
            let mut next = || fds.next().unwrap_or_else(Stdio::null);
            let report = helper(&command, [next(), next(), next()])?;
            Ok::<_, io::Error>((report, console))
        })();
        match started {
            Ok((report, console)) => {
                let container = id.to_owned();
                let launch = Launch { report, text: Vec::new(), container, connection, exec: true, console };
                self.launches.insert(key, launch);
            }
            Err(e) => self.reply(connection, &Reply::Failed { message: e.to_string() }, Vec::new()),
        }
    }

    /// Reads a helper's report; at its end the program runs, or nothing does.
    pub(super) fn hear_launch(&mut self, key: u64) {
        let Some(launch) = self.launches.get_mut(&key) else { return };
        let mut buffer = [0u8; 4096];
        loop {
            match rustix::io::read(&launch.report, &mut buffer) {
                Ok(0) => break,
                Ok(n) => launch.text.extend_from_slice(&buffer[..n]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => break,
            }
        }
        let Some(launch) = self.launches.remove(&key) else { return };
        let result = outcome(&launch.text);
        if launch.exec {
            self.exec_launched(launch, result)
        } else {
            self.container_launched(launch, result)
        }
        if self.launches.is_empty() {
            self.early.clear();
        }
    }

    fn container_launched(&mut self, launch: Launch, result: Result<i32, String>) {
        let Some(container) = self.containers.get_mut(&launch.container) else { return };
        let terminal = launch.console.filter(|_| result.is_ok()).map(Console::take).transpose();
        let result = result.and_then(|pid| match terminal {
            Ok(terminal) => Ok((pid, terminal)),
            Err(e) => Err(format!("cannot get the container's terminal: {e}")),
        });
        match result {
            Ok((pid, terminal)) => {
                container.pid = pid;
                container.started_at = now_nanos();
                if let Some(master) = terminal {
                    let _ = rustix::io::ioctl_fionbio(&master, true);
                    container.outputs[0] = Some(master);
                }
                let reply = Reply::Started { pid, started_at: container.started_at };
                self.reply(launch.connection, &reply, Vec::new());
                if let Some(status) = self.early.remove(&pid) {
                    self.container_ended(&launch.container, status);
                }
            }
            Err(message) => {
                let spec = container.spec.clone();
                let stoppers = std::mem::take(&mut container.stoppers);
                self.hierarchies.kill(&spec.cgroup);
                let _ = crate::files::remove_tree(&spec.library_root.join(&spec.id));
                self.containers.remove(&launch.container);
                self.reply(launch.connection, &Reply::Failed { message }, Vec::new());
                for connection in stoppers {
                    self.reply(connection, &Reply::Done, Vec::new());
                }
            }
        }
    }

    fn exec_launched(&mut self, launch: Launch, result: Result<i32, String>) {
        let terminal = launch.console.filter(|_| result.is_ok()).map(Console::take).transpose();
        let result = result.and_then(|pid| terminal.map(|t| (pid, t)).map_err(|e| e.to_string()));
        match result {
            Ok((pid, terminal)) => {
                let reply = Reply::Started { pid, started_at: now_nanos() };
                self.reply(launch.connection, &reply, terminal.into_iter().collect());
                if let Some(status) = self.early.remove(&pid) {
                    let code = exit_code(status).0;
                    self.reply(launch.connection, &Reply::ExecExited { code }, Vec::new());
                } else if let Some(connection) = self.connections.get_mut(&launch.connection) {
                    connection.exec = Some(pid);
                    self.execs.insert(pid, launch.connection);
                } else {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            Err(message) => self.reply(launch.connection, &Reply::Failed { message }, Vec::new()),
        }
    }

    pub(super) fn attach(&mut self, connection: u64, id: String, stdin: bool, fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.get_mut(&id).filter(|c| c.pid != 0 && c.exit.is_none()) else {
            return self.reply(connection, &Reply::Unknown, Vec::new());
        };
        let mut fds = fds.into_iter();
        let outputs = [fds.next(), fds.next()];
        for fd in outputs.iter().flatten() {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        container.watchers.push(Watcher { connection, outputs });
        let tty = container.spec.tty;
        let passed = if !tty && stdin && container.spec.stdin_once {
            // The first one attached has it alone: when he closes it, the container reads the end.
            container.stdin.take()
        } else {
            let source = if tty { &container.outputs[0] } else { &container.stdin };
            source.as_ref().filter(|_| stdin || tty).and_then(|fd| fd.try_clone().ok())
        };
        if stdin && let Some(c) = self.connections.get_mut(&connection) {
            c.feeds = Some(id);
        }
        self.reply(connection, &Reply::Attached { tty }, passed.into_iter().collect());
    }

    /// Copies what a container wrote to its log and to those attached, without ever waiting for them.
    pub(super) fn copy_output(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let name = if stream == 0 { Stream::Stdout } else { Stream::Stderr };
        let mut buffer = [0u8; 64 << 10];
        // At most so much at a time: a container that floods must not starve the others.
        for _ in 0..16 {
            let Some(fd) = &container.outputs[stream] else { return };
            match rustix::io::read(fd, &mut buffer) {
                Ok(n) if n > 0 => {
                    container.log.write(name, &buffer[..n]);
                    container.watchers.retain(|w| match &w.outputs[stream] {
                        Some(fd) => rustix::io::write(fd, &buffer[..n]) == Ok(n),
                        None => true,
                    });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // The end; for a terminal, EIO.
                _ => {
                    container.log.end(name);
                    container.outputs[stream] = None;
                    for watcher in &mut container.watchers {
                        watcher.outputs[stream] = None;
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn stop_container(&mut self, connection: u64, id: &str, signal: i32, grace: Duration) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.reply(connection, &Reply::Unknown, Vec::new());
        };
        if container.exit.is_some() {
            return self.reply(connection, &Reply::Done, Vec::new());
        }
        container.stoppers.push(connection);
        // A later, shorter grace period replaces an earlier one.
        let at = Instant::now() + grace;
        container.kill_at = Some(container.kill_at.map_or(at, |old| old.min(at)));
        if !grace.is_zero()
            && container.pid != 0
            && let Ok(signal) = Signal::try_from(signal)
        {
            let _ = kill(Pid::from_raw(container.pid), signal);
        }
        self.kill_overdue();
    }

    /// Kills what did not end within its grace period.
    pub(super) fn kill_overdue(&mut self) {
        let now = Instant::now();
        for container in self.containers.values_mut() {
            if container.exit.is_none() && container.kill_at.is_some_and(|at| at <= now) {
                // A container still being started dies with its cgroup and is asked again when it runs.
                container.kill_at = (container.pid == 0).then(|| now + Duration::from_millis(5));
                if container.pid != 0 {
                    let _ = kill(Pid::from_raw(container.pid), Signal::SIGKILL);
                }
                self.hierarchies.kill(&container.spec.cgroup);
            }
        }
    }

    pub(super) fn container_ended(&mut self, id: &str, status: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let cgroup = container.spec.cgroup.clone();
        let oom_killed = self.hierarchies.oom_kills(&cgroup) > 0;
        // What the main process left behind goes too; matters where the process namespace is shared.
        self.hierarchies.kill(&cgroup);
        let (code, signal) = exit_code(status);
        let exit = Exit {
            code,
            signal,
            oom_killed,
            started_at: container.started_at,
            finished_at: now_nanos(),
            reason: String::new(),
            message: String::new(),
        };
        container.kill_at = None;
        container.stdin = None;
        for stream in 0..2 {
            self.copy_output(id, stream);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Err(error) = crate::files::write_json(&container.spec.bundle.join("exit.json"), &exit) {
            eprintln!("shim: cannot record exit of {id}: {error}");
        }
        let _ = crate::files::remove_tree(&container.spec.library_root.join(id));
        container.exit = Some(exit.clone());
        let stoppers = std::mem::take(&mut container.stoppers);
        let watchers: Vec<u64> = container.watchers.iter().map(|w| w.connection).collect();
        self.broadcast(&Reply::Exited { id: id.to_owned(), exit });
        for connection in stoppers {
            self.reply(connection, &Reply::Done, Vec::new());
        }
        for connection in watchers {
            self.reply(connection, &Reply::ExecExited { code }, Vec::new());
        }
    }
}
