//! A client on a Unix socket: calls with one answer, and calls with many.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::frame::{framed, unframed};
use crate::message::Message;
use crate::status::{Code, Status, failure};

/// What may be under way unread; lists of pods are larger than HTTP/2's default of 64 KiB.
const WINDOW: u32 = 8 << 20;

/// A connection to a server on a Unix socket, made at the first call and anew when it was lost.
pub struct Channel {
    path: PathBuf,
    sender: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.path.display())
    }
}

impl Channel {
    /// A channel to the socket at `path`; nothing is done yet.
    pub fn unix(path: &Path) -> Self {
        Self { path: path.to_owned(), sender: Mutex::default() }
    }

    /// Where the server listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, Status> {
        let mut current = self.sender.lock().await;
        if let Some(sender) = current.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let refused = |e: &dyn std::fmt::Display| {
            let at = self.path.display();
            Status::new(Code::Unavailable, format!("cannot connect to unix://{at}: {e}"))
        };
        let stream = UnixStream::connect(&self.path).await.map_err(|e| refused(&e))?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| refused(&e))?;
        // Ends when the last sender is dropped or the server goes.
        tokio::spawn(connection);
        *current = Some(sender.clone());
        Ok(sender)
    }

    async fn send(
        &self,
        method: &str,
        message: &[u8],
        limit: Option<Duration>,
    ) -> Result<http::Response<Incoming>, Status> {
        let mut sender = self.sender().await?;
        let mut request = http::Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(limit) = limit {
            // At most eight digits.
            request = request.header("grpc-timeout", format!("{}m", limit.as_millis().min(99_999_999)));
        }
        let request = request
            .body(Full::new(framed(message)))
            .map_err(|e| Status::new(Code::Internal, format!("{method}: {e}")))?;
        let lost = |e: hyper::Error| Status::new(Code::Unavailable, format!("{method}: {e}"));
        let response = sender.send_request(request).await.map_err(lost)?;
        if response.status() != http::StatusCode::OK {
            let message = format!("{method}: unexpected HTTP status {}", response.status());
            return Err(Status::new(Code::Unknown, message));
        }
        match failure(response.headers()) {
            Some(status) => Err(status),
            None => Ok(response),
        }
    }

    /// One call with one answer. `method` is `package.Service/Method`; without a `limit` it may take for ever.
    ///
    /// # Errors
    /// The server's refusal; [`Code::Unavailable`] when it is not there; [`Code::DeadlineExceeded`] after `limit`.
    pub async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<A, Status> {
        let message = request.encode();
        let exchange = async {
            let response = self.send(method, &message, limit).await?;
            let body = response.into_body().collect().await;
            let body = body.map_err(|e| Status::new(Code::Unavailable, format!("{method}: {e}")))?;
            if let Some(status) = body.trailers().and_then(failure) {
                return Err(status);
            }
            let wrong = |e: &dyn std::fmt::Display| Status::new(Code::Internal, format!("{method}: {e}"));
            let answer = unframed(&mut BytesMut::from(body.to_bytes())).map_err(|e| wrong(&e))?;
            A::decode(answer.ok_or_else(|| wrong(&"an answer without a message"))?).map_err(|e| wrong(&e))
        };
        match limit {
            None => exchange.await,
            Some(limit) => tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                Err(Status::new(Code::DeadlineExceeded, format!("{method}: context deadline exceeded")))
            }),
        }
    }

    /// One call with many answers, for as long as the server sends them.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub async fn stream<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<MessageStream<A>, Status> {
        let response = self.send(method, &request.encode(), None).await?;
        Ok(MessageStream { body: response.into_body(), arrived: BytesMut::new(), kind: PhantomData })
    }
}

/// The answers of a call that has many.
#[derive(Debug)]
pub struct MessageStream<A> {
    body: Incoming,
    arrived: BytesMut,
    kind: PhantomData<fn() -> A>,
}

impl<A: Message> MessageStream<A> {
    /// The next answer; `None` when the server said that there are no more. Cancel-safe.
    ///
    /// # Errors
    /// The server's failure, or a connection that is lost.
    pub async fn next(&mut self) -> Result<Option<A>, Status> {
        loop {
            let wrong = |e: &dyn std::fmt::Display| Status::new(Code::Internal, e.to_string());
            if let Some(message) = unframed(&mut self.arrived).map_err(|e| wrong(&e))? {
                return A::decode(message).map(Some).map_err(|e| wrong(&e));
            }
            let frame = match self.body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(e)) => return Err(Status::new(Code::Unavailable, e.to_string())),
                None => return Ok(None),
            };
            match frame.into_data() {
                Ok(data) => self.arrived.put(data),
                Err(frame) => match frame.trailers_ref().and_then(failure) {
                    Some(status) => return Err(status),
                    None => return Ok(None),
                },
            }
        }
    }
}
