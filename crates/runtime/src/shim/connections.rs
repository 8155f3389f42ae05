//! The shim's side of the protocol: connections, requests, replies.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Shim;
use crate::protocol::{Envelope, Inbox, Reply, Request, ShimContainer, VERSION, encode, send};

/// Replies a peer may leave unread before it is cut off.
const MOST_QUEUED: usize = 1024;

/// A daemon's connection.
pub(super) struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    subscribed: bool,
    /// The command it runs.
    pub exec: Option<i32>,
    /// The container whose stdin it feeds.
    pub feeds: Option<String>,
}

impl Connection {
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
    pub fn interest(&self) -> i16 {
        if self.queue.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT }
    }
    /// Sends what the socket takes; `false` if the peer is gone.
    fn flush(&mut self) -> bool {
        while let Some((bytes, fds)) = self.queue.front_mut() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            match send(self.stream.as_raw_fd(), bytes, &raw) {
                Ok(sent) if sent == bytes.len() => {
                    self.queue.pop_front();
                }
                Ok(sent) => {
                    bytes.drain(..sent);
                    fds.clear();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Shim {
    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.new_id();
            let connection = Connection {
                stream,
                inbox: Inbox::default(),
                queue: VecDeque::new(),
                subscribed: false,
                exec: None,
                feeds: None,
            };
            self.connections.insert(id, connection);
        }
    }

    /// Reads what a peer sent and answers it.
    pub(super) fn converse(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let fd = connection.fd();
        let mut gone = !connection.flush();
        loop {
            match connection.inbox.receive(fd) {
                Ok(0) => {
                    gone = true;
                    break;
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match connection.inbox.next::<Envelope>() {
                Ok(Some(envelope)) => {
                    let fds = std::mem::take(&mut connection.inbox.fds);
                    self.handle(id, envelope.request, fds);
                }
                Ok(None) => break,
                Err(error) => {
                    // A newer daemon's request: say so instead of hanging up.
                    let message = format!("shim version {VERSION} does not understand: {error}");
                    self.reply(id, &Reply::Failed { message }, Vec::new());
                    gone = true;
                    break;
                }
            }
        }
        if gone {
            self.hang_up(id);
        }
    }

    fn handle(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::State => {
                let containers = self.containers.iter().filter(|(_, c)| c.pid != 0 || c.exit.is_some());
                let containers = containers
                    .map(|(id, c)| {
                        let exit = c.exit.clone();
                        (id.clone(), ShimContainer { pid: c.pid, started_at: c.started_at, exit })
                    })
                    .collect();
                let state = Reply::State { version: VERSION, pause_pid: self.pause_pid, containers };
                self.reply(connection, &state, Vec::new());
            }
            Request::Subscribe => {
                if let Some(c) = self.connections.get_mut(&connection) {
                    c.subscribed = true;
                }
                self.reply(connection, &Reply::Done, Vec::new());
            }
            Request::Start(spec) => self.start_container(connection, spec),
            Request::Stop { id, signal, grace_ms } => {
                self.stop_container(connection, &id, signal, Duration::from_millis(grace_ms));
            }
            Request::Reopen { id } => {
                let reply = match self.containers.get_mut(&id).map(|c| c.log.reopen()) {
                    Some(Ok(())) => Reply::Done,
                    Some(Err(e)) => Reply::Failed { message: format!("cannot reopen log: {e}") },
                    None => Reply::Unknown,
                };
                self.reply(connection, &reply, Vec::new());
            }
            Request::Exec { id, args, tty } => self.exec_in_container(connection, &id, &args, tty, fds),
            Request::Attach { id, stdin } => self.attach(connection, id, stdin, fds),
            Request::Forget { id } => {
                let known = self.containers.get(&id).map(|c| c.exit.is_some());
                let reply = match known {
                    Some(false) => Reply::Failed { message: format!("container {id} is running") },
                    Some(true) => {
                        self.containers.remove(&id);
                        Reply::Done
                    }
                    None => Reply::Done,
                };
                self.reply(connection, &reply, Vec::new());
            }
            Request::Shutdown => {
                self.ending = Some(connection);
                let now = Instant::now();
                for container in self.containers.values_mut().filter(|c| c.exit.is_none()) {
                    container.kill_at = Some(now);
                }
                self.kill_overdue();
                if self.pause_pid != 0 {
                    let pid = nix::unistd::Pid::from_raw(self.pause_pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
                }
            }
        }
    }

    /// Queues a reply and sends what can be sent.
    pub(super) fn reply(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.queue.push_back((encode(reply), fds));
        if !connection.flush() || connection.queue.len() > MOST_QUEUED {
            self.hang_up(id);
        }
    }

    /// Sends to all subscribers.
    pub(super) fn broadcast(&mut self, reply: &Reply) {
        let ids: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
        for id in ids {
            self.reply(id, reply, Vec::new());
        }
    }

    /// Drops a connection with what hangs on it: the command it ran, the output it watched.
    fn hang_up(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(pid) = connection.exec
            && self.execs.remove(&pid).is_some()
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        for container in self.containers.values_mut() {
            container.watchers.retain(|w| w.connection != id);
        }
        if let Some(container) = connection.feeds.and_then(|c| self.containers.get_mut(&c))
            && container.spec.stdin_once
        {
            container.stdin = None;
        }
    }
}
