//! A connection whose peer takes nothing for too long is closed, so that who reads slowly, or not at all, does not
//! hold what is to be written for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A stream that fails when a write makes no progress for `limit`.
pub(super) struct Stall<S> {
    inner: S,
    limit: Duration,
    /// The connection carries something that may rest as long as its user wants, e.g. a shell.
    patient: Arc<AtomicBool>,
    /// Runs while a write waits.
    over: Option<Pin<Box<Sleep>>>,
}

impl<S> Stall<S> {
    pub(super) fn new(inner: S, limit: Duration, patient: Arc<AtomicBool>) -> Self {
        Self { inner, limit, patient, over: None }
    }

    /// The outcome of a write, or of the wait for it.
    fn judged<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() || self.patient.load(Ordering::Relaxed) {
            self.over = None;
            return outcome;
        }
        let limit = self.limit;
        let over = self.over.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        over.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.judged(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.judged(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_flush(cx);
        this.judged(outcome, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.judged(outcome, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair(patient: bool) -> (Stall<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(4);
        (Stall::new(ours, Duration::from_secs(60), Arc::new(AtomicBool::new(patient))), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_the_connection_and_who_takes_a_little_does_not() {
        let (mut ours, mut theirs) = pair(false);
        let writer = tokio::spawn(async move {
            let written = ours.write_all(&[7; 12]).await;
            (written.is_ok(), ours.write_all(&[7; 12]).await.map_err(|e| e.kind()))
        });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        }
        let (slow, stalled) = writer.await.unwrap();
        assert!(slow, "a little every 50 seconds is enough");
        assert_eq!(stalled, Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shell_may_rest() {
        let (mut ours, mut theirs) = pair(true);
        let writer = tokio::spawn(async move { ours.write_all(&[7; 8]).await.is_ok() });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        theirs.read_exact(&mut [0; 8]).await.unwrap();
        assert!(writer.await.unwrap());
    }
}
