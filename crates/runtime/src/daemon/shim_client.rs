//! The daemon's side of the protocol with a shim.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_cri::CriError;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::protocol::{Envelope, Inbox, Reply, Request, VERSION, encode, send};
use crate::shim::SOCKET;

/// A connection to a shim.
pub(super) struct ShimConnection {
    stream: UnixStream,
    inbox: Inbox,
}

impl ShimConnection {
    /// Connects to the shim of a sandbox directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let at = File::open(dir)?;
        let stream = StdStream::connect(crate::files::short_path(&at, SOCKET))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, inbox: Inbox::default() })
    }

    /// Sends a request and waits for the first reply, with the descriptors that came along.
    pub async fn call(&mut self, request: &Request, fds: &[RawFd]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let bytes = encode(&Envelope { version: VERSION, request: request.clone() });
        let (mut sent, mut fds) = (0, fds);
        while sent < bytes.len() {
            self.stream.writable().await?;
            let raw = self.stream.as_raw_fd();
            match self.stream.try_io(Interest::WRITABLE, || send(raw, &bytes[sent..], fds)) {
                Ok(n) => {
                    sent += n;
                    fds = &[];
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        self.next().await
    }

    /// The next message. Safe to cancel.
    pub async fn next(&mut self) -> io::Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(reply) = self.inbox.next()? {
                return Ok((reply, std::mem::take(&mut self.inbox.fds)));
            }
            self.stream.readable().await?;
            let (raw, inbox) = (self.stream.as_raw_fd(), &mut self.inbox);
            match self.stream.try_io(Interest::READABLE, || inbox.receive(raw)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// One request on a connection of its own.
pub(super) async fn ask(dir: &Path, request: Request) -> io::Result<Reply> {
    Ok(ShimConnection::open(dir)?.call(&request, &[]).await?.0)
}

/// What to tell a CRI client about an unexpected end or reply of a shim.
pub(super) fn unexpected(what: &str, reply: io::Result<Reply>) -> CriError {
    match reply {
        Ok(Reply::Failed { message }) => CriError::Internal(message),
        Ok(other) => CriError::Internal(format!("{what}: unexpected reply {other:?} of the shim")),
        Err(e) => CriError::Unavailable(format!("{what}: the shim does not answer: {e}")),
    }
}

/// Starts the shim of a sandbox. It can be connected to at once: the socket exists before it does. `pause` is its
/// argument of that name.
pub(super) fn start(dir: &Path, cgroup: &str, pause: &str) -> io::Result<Child> {
    let at = File::open(dir)?;
    crate::files::remove_file(&dir.join(SOCKET))?;
    let listener = UnixListener::bind(crate::files::short_path(&at, SOCKET))?;
    let log = File::options().create(true).append(true).open(dir.join("shim.log"))?;
    Command::new("/proc/self/exe")
        .arg("__shim")
        .arg(dir)
        .arg(cgroup)
        .arg(pause)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot start the shim: {e}")))
}
