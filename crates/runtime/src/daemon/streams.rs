//! Streams into containers: exec, attach, port-forward. The shim passes descriptors; the bytes go directly
//! between the process and us.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use coracle_cri::streaming::{Reader, Writer};
use coracle_cri::v1::ExecSyncResponse;
use coracle_cri::{CriError, ExecRequest, ExecSession, TerminalSize};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::shim_client::{ShimConnection, unexpected};
use super::{ContainerEntry, Runtime};
use crate::protocol::{Reply, Request};

/// Most output of [`Runtime::run_to_end`] that is kept, per stream; as containerd's.
const MOST_OUTPUT: u64 = 16 << 20;
/// How long output may trail behind a command's end, if something it left behind keeps its streams open.
const TRAILING: Duration = Duration::from_secs(1);

fn internal(error: io::Error) -> CriError {
    CriError::Internal(error.to_string())
}

fn not_running(id: &str) -> CriError {
    CriError::FailedPrecondition(format!("container {id:?} is not running"))
}

impl Runtime {
    fn running(&self, id: &str) -> Result<(Arc<ContainerEntry>, ShimConnection), CriError> {
        let container = self.container(id)?;
        if container.now.lock().state != coracle_cri::v1::ContainerState::Running {
            return Err(not_running(id));
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        let connection = ShimConnection::open(&sandbox.dir).map_err(|_| not_running(id))?;
        Ok((container, connection))
    }

    pub(super) async fn run(&self, request: ExecRequest) -> Result<ExecSession, CriError> {
        let (_, mut connection) = self.running(&request.container_id)?;
        let wanted = Request::Exec {
            id: request.container_id.clone(),
            args: request.command.clone(),
            tty: request.tty,
        };
        let mut ours = Pipes::default();
        let theirs = if request.tty { Vec::new() } else { ours.open(request.stdin).map_err(internal)? };
        let raw: Vec<_> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        let reply = connection.call(&wanted, &raw).await;
        drop(theirs);
        match reply {
            Ok((Reply::Started { .. }, fds)) => {
                let terminal = fds.into_iter().next().map(Terminal::new).transpose().map_err(internal)?;
                ours.session(connection, terminal, request.stdin).map_err(internal)
            }
            Ok((Reply::Unknown, _)) => Err(not_running(&request.container_id)),
            Ok((Reply::Failed { message }, _)) => Err(CriError::Internal(format!(
                "failed to exec in container: OCI runtime exec failed: exec failed: \
                 unable to start container process: {message}: unknown"
            ))),
            other => Err(unexpected("failed to exec in container", other.map(|(r, _)| r))),
        }
    }

    pub(super) async fn join_streams(&self, id: &str, stdin: bool) -> Result<ExecSession, CriError> {
        let (container, mut connection) = self.running(id)?;
        let mut ours = Pipes::default();
        let theirs = ours.open(false).map_err(internal)?;
        // A reader that is slow for a moment must not be dropped at once.
        for fd in &theirs[1..] {
            let _ = rustix::pipe::fcntl_setpipe_size(fd, 1 << 20);
        }
        let tty = container.record.config.tty;
        let raw: Vec<_> = theirs[1..].iter().map(AsRawFd::as_raw_fd).collect();
        let reply = connection.call(&Request::Attach { id: id.to_owned(), stdin }, &raw).await;
        drop(theirs);
        match reply {
            Ok((Reply::Attached { .. }, fds)) => {
                let passed = fds.into_iter().next();
                let mut terminal = None;
                if tty {
                    terminal = passed.map(Terminal::new).transpose().map_err(internal)?;
                    ours.stderr = None;
                } else if let Some(fd) = passed {
                    ours.stdin = Some(pipe::Sender::from_owned_fd(fd).map_err(internal)?);
                }
                ours.attached(connection, terminal, stdin)
            }
            Ok((Reply::Unknown, _)) => Err(not_running(id)),
            other => Err(unexpected("failed to attach container", other.map(|(r, _)| r))),
        }
    }

    pub(super) async fn run_to_end(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, CriError> {
        let request = ExecRequest { container_id: id.to_owned(), command, tty: false, stdin: false };
        let limit = u64::try_from(timeout).ok().filter(|t| *t > 0).map(Duration::from_secs);
        let work = async {
            let session = self.run(request).await?;
            let out = tokio::spawn(collect(session.stdout));
            let err = tokio::spawn(async move {
                match session.stderr {
                    Some(stream) => collect(stream).await,
                    None => Vec::new(),
                }
            });
            let _resize = session.resize;
            let code = session.exit.await.map_err(|_| CriError::Unavailable("the shim is gone".into()))??;
            let (stdout, stderr) = (finish(out).await, finish(err).await);
            Ok(ExecSyncResponse { stdout, stderr, exit_code: code })
        };
        match limit {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                Err(CriError::DeadlineExceeded(format!(
                    "failed to exec in container: timeout {}s exceeded: context deadline exceeded",
                    limit.as_secs()
                )))
            }),
        }
    }

    pub(super) async fn forward(&self, sandbox: &str, port: u16) -> Result<tokio::net::TcpStream, CriError> {
        let sandbox = self.sandbox(sandbox)?;
        if !sandbox.state.lock().ready {
            return Err(CriError::FailedPrecondition(format!("sandbox {:?} is not running", sandbox.id)));
        }
        let namespace =
            (!sandbox.config.namespaces.host_network).then(|| self.namespaces(&sandbox.id).network());
        let id = sandbox.id.clone();
        let stream = tokio::task::spawn_blocking(move || crate::namespaces::connect_inside(namespace, port))
            .await
            .map_err(|e| CriError::Internal(e.to_string()))?
            .map_err(|e| {
                CriError::Unavailable(format!(
                    "failed to connect to localhost:{port} inside namespace of sandbox {id:?}: {e}"
                ))
            })?;
        stream.set_nonblocking(true).map_err(internal)?;
        tokio::net::TcpStream::from_std(stream).map_err(internal)
    }
}

async fn collect(stream: Reader) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(MOST_OUTPUT);
    let _ = limited.read_to_end(&mut bytes).await;
    if bytes.len() as u64 == MOST_OUTPUT {
        // Keep it flowing: the command must not block.
        let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    }
    bytes
}

async fn finish(task: tokio::task::JoinHandle<Vec<u8>>) -> Vec<u8> {
    match tokio::time::timeout(TRAILING, task).await {
        Ok(Ok(bytes)) => bytes,
        _ => Vec::new(),
    }
}

/// Our ends of a process's streams.
#[derive(Default)]
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    /// Opens pipes; the other ends in order stdin, stdout, stderr.
    fn open(&mut self, stdin: bool) -> io::Result<Vec<OwnedFd>> {
        let input = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            self.stdin = Some(pipe::Sender::from_owned_fd(write)?);
            read
        } else {
            std::fs::File::open("/dev/null")?.into()
        };
        let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
        self.stdout = Some(pipe::Receiver::from_owned_fd(out_read)?);
        self.stderr = Some(pipe::Receiver::from_owned_fd(err_read)?);
        Ok(vec![input, out_write, err_write])
    }

    fn session(
        self,
        connection: ShimConnection,
        terminal: Option<Terminal>,
        stdin: bool,
    ) -> io::Result<ExecSession> {
        let (input, stdout): (Option<Writer>, Reader) = match (&terminal, self.stdout) {
            (Some(t), _) => (stdin.then(|| Box::pin(t.clone()) as Writer), Box::pin(t.clone())),
            (None, Some(out)) => (self.stdin.map(|s| Box::pin(s) as Writer), Box::pin(out)),
            (None, None) => return Err(io::Error::other("the shim sent no terminal")),
        };
        let (resize, exit) = supervise(connection, terminal);
        let stderr = self.stderr.map(|s| Box::pin(s) as Reader);
        Ok(ExecSession { stdin: input, stdout, stderr, resize, exit })
    }

    /// As [`Self::session`], but output comes by pipe also with a terminal, since the log needs it too.
    fn attached(
        self,
        connection: ShimConnection,
        terminal: Option<Terminal>,
        stdin: bool,
    ) -> Result<ExecSession, CriError> {
        let input = match (&terminal, self.stdin) {
            (Some(t), _) if stdin => Some(Box::pin(t.clone()) as Writer),
            (_, pipe) => pipe.map(|s| Box::pin(s) as Writer),
        };
        let stdout = self.stdout.ok_or_else(|| CriError::Internal("no output".into()))?;
        let stderr = self.stderr.map(|s| Box::pin(s) as Reader);
        let (resize, exit) = supervise(connection, terminal);
        Ok(ExecSession { stdin: input, stdout: Box::pin(stdout), stderr, resize, exit })
    }
}

/// Holds the shim's connection while the session lives: passes resizes on and the exit code back.
fn supervise(
    mut connection: ShimConnection,
    terminal: Option<Terminal>,
) -> (mpsc::Sender<TerminalSize>, oneshot::Receiver<Result<i32, CriError>>) {
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(16);
    let (mut done, exit) = oneshot::channel();
    tokio::spawn(async move {
        let mut resizable = true;
        loop {
            tokio::select! {
                size = sizes.recv(), if resizable => match (size, &terminal) {
                    (Some(size), Some(terminal)) => terminal.resize(size),
                    (Some(_), None) => {}
                    (None, _) => resizable = false,
                },
                reply = connection.next() => {
                    let result = match reply {
                        Ok((Reply::ExecExited { code }, _)) => Ok(code),
                        Ok(_) => continue,
                        Err(e) => Err(CriError::Unavailable(format!("the shim is gone: {e}"))),
                    };
                    let _ = done.send(result);
                    return;
                }
                // Nobody waits any more: hanging up kills the command.
                () = done.closed() => return,
            }
        }
    });
    (resize, exit)
}

/// The master side of a pseudo-terminal. Clones share it.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an OwnedFd is owned by what we build here: it stays open, and the same, until dropped.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(Arc::new(registered.map_err(io::Error::from)?)))
    }
    fn resize(&self, size: TerminalSize) {
        let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads one initialised winsize.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let mut bytes = [0u8; 16 << 10];
            let most = bytes.len().min(buffer.remaining());
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut bytes[..most])?)) {
                Ok(Ok(n)) => {
                    buffer.put_slice(&bytes[..n]);
                    return Poll::Ready(Ok(()));
                }
                // The last process that had it open is gone.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
