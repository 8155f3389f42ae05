//! Lanes: a thread for each processor with a runtime of its own, which keeps the connections it was given.
//!
//! TLS, framing and the reading of one object take microseconds. Where any thread may go on with any connection, waking
//! another thread costs as much again; so these stay on their lane. Whatever may take longer, or wait for something
//! that is computed, goes to the runtime that all share: a lane never keeps its other connections waiting.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Request};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Steps of connections after which a lane looks whose next bytes have come. Tokio's own 61 suits short steps: here
/// each may be a block of a long list, and a short request would wait for 61 of them before it is noticed.
const STEPS: u32 = 8;

/// The lanes of one listener. Dropping them ends their connections.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    next: AtomicUsize,
}

struct Lane {
    runtime: Handle,
    /// Dropped with the lane; its thread ends then.
    _ends: oneshot::Sender<()>,
}

impl Lanes {
    /// Starts so many.
    ///
    /// # Errors
    /// The system gives no more threads or descriptors.
    pub(super) fn start(count: usize) -> std::io::Result<Self> {
        let lanes = (0..count.max(1)).map(Lane::start).collect::<Result<_, _>>()?;
        Ok(Self { lanes, next: AtomicUsize::new(0) })
    }

    /// Gives a connection to the next lane, where `serve` keeps it until it ends.
    ///
    /// # Errors
    /// The connection cannot leave the runtime that accepted it.
    pub(super) fn give<F>(
        &self,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> std::io::Result<()>
    where
        F: Future<Output = ()> + Send,
    {
        let stream = stream.into_std()?;
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        self.lanes[next].runtime.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream).await,
                Err(e) => tracing::warn!(error = %e, "connection dropped"),
            }
        });
        Ok(())
    }
}

impl Lane {
    fn start(number: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().event_interval(STEPS).enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel();
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
            // An error is the end that was waited for.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { runtime: handle, _ends: ends })
    }
}

/// Whether a request is answered on its lane: the reading of one object.
pub(super) fn stays<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET && request.uri().query().is_none() && names_object(request.uri().path())
}

fn names_object(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/api/").or_else(|| {
        let (_group, rest) = path.strip_prefix("/apis/")?.split_once('/')?;
        Some(rest)
    }) else {
        return false;
    };
    let mut segments = rest.split('/');
    let (_version, first) = (segments.next(), segments.next());
    match segments.count() {
        1 => !matches!(first, Some("watch" | "proxy")),
        3 => first == Some("namespaces"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_the_reading_of_one_object_stays() {
        let get = |uri: &str| Request::get(uri).body(()).expect("a request");
        for uri in [
            "/api/v1/namespaces/n/pods/p",
            "/api/v1/namespaces/n",
            "/api/v1/nodes/n",
            "/apis/apps/v1/namespaces/n/deployments/d",
            "/apis/coordination.k8s.io/v1/namespaces/n/leases/l",
        ] {
            assert!(stays(&get(uri)), "{uri}");
        }
        for uri in [
            "/api/v1/pods",
            "/api/v1/namespaces/n/pods",
            "/api/v1/namespaces/n/pods/p/log",
            "/api/v1/nodes/n/proxy/metrics",
            "/api/v1/watch/pods",
            "/api/v1/watch/namespaces/n/pods",
            "/apis/apps/v1",
            "/apis/apps/v1/deployments",
            "/openapi/v3/apis/apps/v1",
            "/api/v1/namespaces/n/pods/p?watch=true",
            "/metrics",
        ] {
            assert!(!stays(&get(uri)), "{uri}");
        }
        let delete = Request::delete("/api/v1/namespaces/n/pods/p").body(()).expect("a request");
        assert!(!stays(&delete));
    }

    #[tokio::test]
    async fn connections_end_with_their_lanes_and_are_shared_among_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let lanes = Lanes::start(2).expect("lanes");
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(at).await.expect("a connection"));
            let (stream, _) = listener.accept().await.expect("a connection");
            let echo = |mut stream: TcpStream| async move {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                let _ = stream.write_all(name.as_bytes()).await;
                std::future::pending::<()>().await;
            };
            lanes.give(stream, echo).expect("given");
        }
        let mut names = Vec::new();
        for client in &mut clients {
            let mut name = [0; 6];
            client.read_exact(&mut name).await.expect("a name");
            names.push(String::from_utf8(name.to_vec()).expect("text"));
        }
        assert_eq!(names, ["lane-0", "lane-1"]);
        drop(lanes);
        for client in &mut clients {
            assert_eq!(client.read(&mut [0; 1]).await.ok(), Some(0), "closed");
        }
    }
}
