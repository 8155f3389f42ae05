//! A server on a Unix socket. A service is one function from a method's name and a message to an answer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use crate::frame::{framed, unframed};
use crate::message::Message;
use crate::status::{Code, Status};

/// Largest request; as gRPC's servers of Kubernetes.
const MOST: usize = 16 << 20;
/// What may be under way unread.
const WINDOW: u32 = 8 << 20;

/// What a call is answered with.
#[derive(Debug)]
pub enum Answer {
    /// One message.
    Message(Bytes),
    /// Messages as they come; the end of the channel is the end of the call, and so is the first failure. The
    /// receiver is dropped when the client leaves.
    Stream(mpsc::Receiver<Result<Bytes, Status>>),
    /// A refusal.
    Failed(Status),
}

impl Answer {
    /// Answers a call with one message in and one out.
    pub async fn unary<Q, A, E, F>(request: Bytes, call: impl FnOnce(Q) -> F) -> Self
    where
        Q: Message,
        A: Message,
        E: Into<Status>,
        F: Future<Output = Result<A, E>>,
    {
        match Q::decode(request) {
            Err(e) => Self::Failed(Status::new(Code::Internal, format!("cannot read the request: {e}"))),
            Ok(request) => match call(request).await {
                Ok(answer) => Self::Message(answer.encode()),
                Err(e) => Self::Failed(e.into()),
            },
        }
    }
    /// The refusal of a method that is not served.
    pub fn unimplemented(method: &str) -> Self {
        let (service, name) = method.rsplit_once('/').unwrap_or(("", method));
        let text = format!("unknown method {name} for service {service}");
        Self::Failed(Status::new(Code::Unimplemented, text))
    }
}

/// What is served.
pub trait Service: Send + Sync + 'static {
    /// Answers a call; `method` is `package.Service/Method`. A call that began is carried to its end, also when the
    /// client leaves.
    fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer>;
}

/// Listens at `path`, in place of whoever did before; only root and the file's group may connect.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves until dropped; connections end with it.
pub async fn serve(listener: UnixListener, service: Arc<dyn Service>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, service.clone()));
            }
            Err(error) => {
                // Out of descriptors, mostly: give others time to close theirs.
                debug!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: UnixStream, service: Arc<dyn Service>) {
    let handler = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(respond(service, request).await) }
    });
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(TokioIo::new(stream), handler);
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

async fn respond(service: Arc<dyn Service>, request: Request<Incoming>) -> Response<AnswerBody> {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let answer = match message(request).await {
        // In a task of its own: a client that leaves must not leave half a pod behind.
        Ok(message) => match tokio::spawn(service.call(method, message)).await {
            Ok(answer) => answer,
            Err(e) => Answer::Failed(Status::new(Code::Internal, e.to_string())),
        },
        Err(status) => Answer::Failed(status),
    };
    let body = match answer {
        Answer::Message(bytes) => AnswerBody { message: Some(bytes), more: None, end: Some(Ok(())) },
        Answer::Stream(more) => AnswerBody { message: None, more: Some(more), end: None },
        Answer::Failed(status) => AnswerBody { message: None, more: None, end: Some(Err(status)) },
    };
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

async fn message(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = Limited::new(request.into_body(), MOST).collect().await;
    let body = body.map_err(|e| Status::new(Code::ResourceExhausted, e.to_string()))?;
    let mut arrived = BytesMut::from(body.to_bytes());
    let message = unframed(&mut arrived).map_err(|e| Status::new(Code::Unimplemented, e.to_string()))?;
    message.ok_or_else(|| Status::new(Code::Internal, "a request without a message"))
}

/// Messages, then trailers with the call's result.
struct AnswerBody {
    message: Option<Bytes>,
    more: Option<mpsc::Receiver<Result<Bytes, Status>>>,
    end: Option<Result<(), Status>>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        if let Some(message) = body.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(framed(&message)))));
        }
        if let Some(more) = &mut body.more {
            match more.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(message))) => {
                    return Poll::Ready(Some(Ok(Frame::data(framed(&message)))));
                }
                Poll::Ready(Some(Err(status))) => body.end = Some(Err(status)),
                Poll::Ready(None) => body.end = Some(Ok(())),
            }
            body.more = None;
        }
        let Some(end) = body.end.take() else { return Poll::Ready(None) };
        let mut trailers = HeaderMap::new();
        match end {
            Ok(()) => {
                trailers.insert("grpc-status", HeaderValue::from(0));
            }
            Err(status) => status.write(&mut trailers),
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Channel;

    crate::messages! {
        Number { n: i64 = 1 }
    }

    struct Counter;

    impl Service for Counter {
        fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer> {
            Box::pin(async move {
                match method.as_str() {
                    "test.Counter/Twice" => {
                        Answer::unary(request, |q: Number| async move {
                            let refusal = Status::new(Code::InvalidArgument, "ä number below zero");
                            if q.n < 0 { Err(refusal) } else { Ok(Number { n: q.n * 2 }) }
                        })
                        .await
                    }
                    "test.Counter/Down" => {
                        let from = Number::decode(request).unwrap().n;
                        let (sender, receiver) = mpsc::channel(1);
                        tokio::spawn(async move {
                            for n in (1..=from).rev() {
                                let _ = sender.send(Ok(Number { n }.encode())).await;
                            }
                            let _ = sender.send(Err(Status::new(Code::OutOfRange, "zero"))).await;
                        });
                        Answer::Stream(receiver)
                    }
                    _ => Answer::unimplemented(&method),
                }
            })
        }
    }

    #[tokio::test]
    async fn calls_are_answered_refused_and_streamed_also_after_the_server_came_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let channel = Channel::unix(&path);
        let absent = channel.call::<_, Number>("test.Counter/Twice", &Number { n: 1 }, None).await;
        assert_eq!(absent.unwrap_err().code, Code::Unavailable);
        for _ in 0..2 {
            let server = tokio::spawn(serve(listen(&path).unwrap(), Arc::new(Counter)));
            let mut twice = channel.call::<_, Number>("test.Counter/Twice", &Number { n: 21 }, None).await;
            if twice.is_err() {
                // The first call after the server went may still find the old connection.
                twice = channel.call("test.Counter/Twice", &Number { n: 21 }, None).await;
            }
            assert_eq!(twice, Ok(Number { n: 42 }));
            let refused = channel.call::<_, Number>("test.Counter/Twice", &Number { n: -1 }, None).await;
            assert_eq!(refused, Err(Status::new(Code::InvalidArgument, "ä number below zero")));
            let unknown = channel.call::<_, Number>("test.Counter/Thrice", &Number { n: 1 }, None).await;
            assert_eq!(unknown.unwrap_err().code, Code::Unimplemented);
            let mut down = channel.stream::<_, Number>("test.Counter/Down", &Number { n: 2 }).await.unwrap();
            assert_eq!(down.next().await, Ok(Some(Number { n: 2 })));
            assert_eq!(down.next().await, Ok(Some(Number { n: 1 })));
            assert_eq!(down.next().await.unwrap_err().code, Code::OutOfRange);
            server.abort();
            let _ = server.await;
        }
    }
}
