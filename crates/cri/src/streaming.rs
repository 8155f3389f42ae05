//! Direct streams into containers, for callers in the same process.

use std::pin::Pin;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::service::CriError;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "plain fields")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Container id.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Allocate a terminal; stdout and stderr are then one stream (stdout).
    pub tty: bool,
    /// Whether stdin is wanted.
    pub stdin: bool,
}

/// Bytes from a process.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// Bytes to a process; dropping it closes stdin.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// A running command. Dropping it all detaches; the process of an exec is then killed (SIGKILL).
pub struct ExecSession {
    /// Input, if asked for.
    pub stdin: Option<Writer>,
    /// Output; ends when the process closed it.
    pub stdout: Reader,
    /// Error output; `None` with a terminal.
    pub stderr: Option<Reader>,
    /// Terminal resizes.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, once. 128 + signal when killed by one.
    pub exit: oneshot::Receiver<Result<i32, CriError>>,
}

/// Which container's log to reopen after rotation.
#[derive(Clone, Debug)]
pub struct LogRequest {
    /// Container id.
    pub container_id: String,
}

/// Streams beyond the unary CRI calls.
#[async_trait]
pub trait Streaming: Send + Sync + 'static {
    /// Runs a command in a running container.
    ///
    /// # Errors
    /// The container is unknown or not running, or the program could not be started.
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError>;
    /// Attaches to a container's main process.
    ///
    /// # Errors
    /// The container is unknown or not running.
    async fn attach(&self, container_id: &str, stdin: bool, tty: bool) -> Result<ExecSession, CriError>;
    /// Connects to a TCP port on the loopback address inside a sandbox.
    ///
    /// # Errors
    /// The sandbox is unknown, or nothing listens.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream, CriError>;
}

/// Streams that are had at URLs, as CRI's own calls give them.
#[async_trait]
pub trait StreamUrls: Send + Sync + 'static {
    /// Where a command's streams are to be had, once and soon.
    ///
    /// # Errors
    /// The container is unknown or not running.
    async fn command_url(
        &self,
        job: crate::remote::Job,
        wanted: crate::remote::Wanted,
    ) -> Result<String, CriError>;
    /// Where a sandbox's ports are to be had, once and soon.
    ///
    /// # Errors
    /// The sandbox is unknown.
    async fn port_forward_url(&self, sandbox_id: &str) -> Result<String, CriError>;
}

/// How streams into the containers of a runtime are had.
#[derive(Clone)]
pub enum Streams {
    /// From a runtime in this process.
    Here(std::sync::Arc<dyn Streaming>),
    /// From a runtime in another process, which serves them itself.
    Elsewhere(std::sync::Arc<dyn StreamUrls>),
}
