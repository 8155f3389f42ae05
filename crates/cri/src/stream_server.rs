//! Where the URLs that CRI's Exec, Attach and PortForward give lead: an HTTP server on the loopback address.
//! A URL is good once, and for a minute.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use crate::remote::{self, Body, Job, Refusal, Target, Wanted, text};
use crate::streaming::Streaming;

/// How long a URL is good.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How many URLs may wait to be used.
const MOST: usize = 1000;

/// What a URL stands for.
enum Grant {
    Command(Job, Wanted),
    Ports(String),
}

/// The server; [`StreamServer::serve`] runs it.
pub struct StreamServer {
    streaming: Arc<dyn Streaming>,
    listener: TcpListener,
    address: SocketAddr,
    grants: Mutex<HashMap<String, (Grant, Instant)>>,
}

impl StreamServer {
    /// A server for streams of `streaming`, on a free port of the loopback address.
    ///
    /// # Errors
    /// No port.
    pub async fn open(streaming: Arc<dyn Streaming>) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok(Arc::new(Self { streaming, listener, address, grants: Mutex::default() }))
    }

    fn grant(&self, what: &str, grant: Grant) -> Option<String> {
        let token = coracle_stdx::random_hex(16);
        let mut grants = self.grants.lock();
        grants.retain(|_, (_, since)| since.elapsed() < GOOD_FOR);
        if grants.len() >= MOST {
            return None;
        }
        grants.insert(token.clone(), (grant, Instant::now()));
        Some(format!("http://{}/{what}/{token}", self.address))
    }

    /// A URL of a command's streams; `None` while too many wait to be used.
    pub fn command(&self, job: Job, wanted: Wanted) -> Option<String> {
        let what = if matches!(job, Job::Exec(_)) { "exec" } else { "attach" };
        self.grant(what, Grant::Command(job, wanted))
    }

    /// A URL of a sandbox's ports; `None` while too many wait to be used.
    pub fn ports(&self, sandbox: &str) -> Option<String> {
        self.grant("portforward", Grant::Ports(sandbox.to_owned()))
    }

    /// Serves until dropped; connections end with it.
    pub async fn serve(self: Arc<Self>) {
        let mut connections = JoinSet::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(self.clone().connection(stream));
                }
                Err(error) => {
                    // Out of descriptors, mostly: give others time to close theirs.
                    debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let answer = self.answer(request).unwrap_or_else(|(status, message)| text(status, message));
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            debug!(%error, "connection ended");
        }
    }

    fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let token = request.uri().path().rsplit('/').next().unwrap_or_default();
        let grant = self.grants.lock().remove(token).filter(|(_, since)| since.elapsed() < GOOD_FOR);
        match grant {
            Some((Grant::Command(job, wanted), _)) => remote::serve(&self.streaming, request, wanted, job),
            Some((Grant::Ports(sandbox), _)) => {
                let target = Target { streaming: self.streaming.clone(), pod: sandbox.clone(), sandbox };
                remote::forward(target, request)
            }
            None => Err((StatusCode::NOT_FOUND, "404 page not found".to_owned())),
        }
    }
}
