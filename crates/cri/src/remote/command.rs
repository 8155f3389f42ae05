//! Exec and attach: starts the session and hands it to the client's wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tracing::debug;

use super::pump::{self, Input, Output, parse_sizes};
use super::query::Query;
use super::spdy::{Session, Stream};
use super::upgrade::{Transport, negotiate, switch, transport};
use super::websocket::{self, Dialect};
use super::{Body, Refusal};
use crate::service::CriError;
use crate::streaming::{ExecRequest, ExecSession, Streaming};

/// Sub-protocols of exec and attach over SPDY, best first.
const SPDY_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// How long a SPDY client may take to open its streams.
const STREAMS_LIMIT: Duration = Duration::from_secs(30);

/// Which streams the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of streams")]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// A terminal: then there is no stderr of its own.
    pub tty: bool,
}

impl Wanted {
    /// What a query says. Both upstream's names towards kubelets and those of the API are taken.
    ///
    /// # Errors
    /// It names no stream.
    pub fn of(query: &Query) -> Result<Self, Refusal> {
        let tty = query.is(&["tty"]);
        let wanted = Self {
            stdin: query.is(&["input", "stdin"]),
            stdout: query.is(&["output", "stdout"]),
            stderr: query.is(&["error", "stderr"]) && !tty,
            tty,
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            return Ok(wanted);
        }
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        Err((StatusCode::BAD_REQUEST, message.to_owned()))
    }
    /// Streams a SPDY client opens: those wanted, the error stream, and with a terminal the resize stream.
    fn count(self) -> usize {
        1 + [self.stdin, self.stdout, self.stderr, self.tty].iter().filter(|w| **w).count()
    }
}

/// What to start once the client is there.
#[derive(Clone, Debug)]
pub enum Job {
    /// A command.
    Exec(ExecRequest),
    /// The main process of a container is joined.
    Attach(String),
}

impl Job {
    async fn start(self, streaming: &dyn Streaming, wanted: Wanted) -> Result<ExecSession, CriError> {
        match self {
            Self::Exec(request) => streaming.exec(request).await,
            Self::Attach(id) => streaming.attach(&id, wanted.stdin, wanted.tty).await,
        }
    }
}

/// Answers a request for a command's streams by switching protocols; the streams go on behind it.
///
/// # Errors
/// A request that cannot be upgraded.
pub fn serve(
    streaming: &Arc<dyn Streaming>,
    request: Request<Incoming>,
    wanted: Wanted,
    job: Job,
) -> Result<Response<Body>, Refusal> {
    let transport = transport(request.headers())?;
    let known: &[&'static str] = match transport {
        Transport::WebSocket => &websocket::CHANNEL_PROTOCOLS,
        Transport::Spdy => &SPDY_PROTOCOLS,
    };
    let protocol = negotiate(request.headers(), transport, known)?;
    let (response, upgraded) = switch(request, transport, protocol)?;
    let streaming = streaming.clone();
    tokio::spawn(async move {
        let upgraded = match upgraded.await {
            Ok(upgraded) => upgraded,
            Err(e) => {
                debug!(error = %e, "client left before the upgrade");
                return;
            }
        };
        match transport {
            Transport::WebSocket => {
                over_websocket(&*streaming, upgraded, Dialect::of(protocol), wanted, job).await;
            }
            Transport::Spdy => over_spdy(&*streaming, upgraded, wanted, job).await,
        }
    });
    Ok(response)
}

/// Starts the session and pumps it; a failed start is reported as the result.
async fn run(
    streaming: &dyn Streaming,
    wanted: Wanted,
    job: Job,
    inputs: mpsc::Receiver<Input>,
    outputs: mpsc::Sender<Output>,
) {
    match job.start(streaming, wanted).await {
        Ok(session) => pump::pump(session, inputs, outputs).await,
        Err(e) => {
            let status = pump::failure(&format!("error executing command in container: {e}"));
            // A client that left does not miss it.
            let _ = outputs.send(Output::Status(status)).await;
        }
    }
}

async fn over_websocket(
    streaming: &dyn Streaming,
    upgraded: Upgraded,
    dialect: Dialect,
    wanted: Wanted,
    job: Job,
) {
    let socket = websocket::accept(upgraded).await;
    let (to_session, inputs) = mpsc::channel(pump::WINDOW);
    let (outputs, from_session) = mpsc::channel(pump::WINDOW);
    let work = run(streaming, wanted, job, inputs, outputs);
    let wire = websocket::carry(socket, dialect, to_session, from_session);
    tokio::join!(work, wire);
}

/// Waits for the streams the client said it would open.
async fn collect(session: &mut Session, count: usize) -> Option<HashMap<String, Stream>> {
    let mut streams = HashMap::new();
    let gather = async {
        while streams.len() < count {
            let stream = session.accept().await?;
            stream.reply().await;
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            streams.insert(kind, stream);
        }
        Some(())
    };
    tokio::time::timeout(STREAMS_LIMIT, gather).await.ok()??;
    Some(streams)
}

async fn over_spdy(streaming: &dyn Streaming, upgraded: Upgraded, wanted: Wanted, job: Job) {
    let mut session = Session::new(TokioIo::new(upgraded));
    let Some(mut streams) = collect(&mut session, wanted.count()).await else { return };
    let (to_session, inputs) = mpsc::channel(pump::WINDOW);
    let (outputs, from_session) = mpsc::channel(pump::WINDOW);
    let work = run(streaming, wanted, job, inputs, outputs);
    let stdin = streams.remove("stdin");
    let resize = streams.remove("resize");
    let wire = async {
        let end = tokio::select! {
            () = read_spdy(stdin, resize, to_session) => false,
            // New streams are not expected: `None` means that the client is gone.
            _ = session.accept() => false,
            () = write_spdy(&streams, from_session) => true,
        };
        if end {
            session.close().await;
        }
    };
    tokio::join!(work, wire);
}

/// Input until both streams and the session are gone. Ends only with the session: a client that closed its
/// input waits for output.
async fn read_spdy(stdin: Option<Stream>, resize: Option<Stream>, to: mpsc::Sender<Input>) {
    let input = to.clone();
    let from_stdin = async move {
        let Some(mut stream) = stdin else { return };
        while let Some(data) = stream.read().await {
            if input.send(Input::Stdin(data)).await.is_err() {
                return;
            }
        }
        let _ = input.send(Input::StdinClosed).await;
    };
    let sizes = to.clone();
    let from_resize = async move {
        let Some(mut stream) = resize else { return };
        let mut buffer = Vec::new();
        while let Some(data) = stream.read().await {
            buffer.extend_from_slice(&data);
            for size in parse_sizes(&mut buffer) {
                let _ = sizes.send(Input::Resize(size)).await;
            }
        }
    };
    tokio::join!(from_stdin, from_resize);
    std::future::pending::<()>().await;
}

async fn write_spdy(streams: &HashMap<String, Stream>, mut from: mpsc::Receiver<Output>) {
    while let Some(output) = from.recv().await {
        let (kind, data) = match output {
            Output::Stdout(data) => ("stdout", data),
            Output::Stderr(data) => ("stderr", data),
            Output::Status(status) => ("error", Bytes::from(status.to_string())),
        };
        if let Some(stream) = streams.get(kind)
            && !stream.write(data).await
        {
            return;
        }
    }
    for stream in streams.values() {
        stream.finish().await;
    }
}
