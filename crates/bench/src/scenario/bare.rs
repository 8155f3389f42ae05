//! The ceiling of a machine: what hyper and rustls alone answer to the same load generator, with nothing behind them.
//! Where an API server comes close to it, the time goes to the kernel, to TLS, and to the generator beside it.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::cost::Meter;
use crate::http::{Call, Connection};
use crate::load::{LoadArgs, closed_loop};
use crate::process::Process;
use crate::stats::{Samples, Summary};
use crate::target::{Failure, Target};

/// Options of `bare`.
#[derive(clap::Args, Clone, Debug)]
pub struct BareArgs {
    /// Bytes of each answer.
    #[arg(long, default_value_t = 2700)]
    pub bytes: usize,
    /// Connections that take a stream of lines, as watches do.
    #[arg(long, default_value_t = 1000)]
    pub watchers: usize,
    /// Lines to each.
    #[arg(long, default_value_t = 1000)]
    pub lines: usize,
    /// Bytes of a line.
    #[arg(long, default_value_t = 1060)]
    pub line_bytes: usize,
}

/// Options of `bare-server`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServerArgs {
    /// Bytes of each answer.
    #[arg(long)]
    pub bytes: usize,
}

/// Runs both halves; two summaries.
///
/// # Errors
/// The server does not start.
pub async fn bare(load: &LoadArgs, args: &BareArgs) -> Result<[Summary; 2], Failure> {
    let dir = tempfile::Builder::new().prefix("coracle-bench-").tempdir().map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let options = ["bare-server".into(), "--bytes".into(), args.bytes.to_string()];
    let mut server = Process::start("bare-server", &program, &options, dir.path())?;
    let log = dir.path().join("bare-server.log");
    let port = loop {
        server.check()?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(port) = text.strip_suffix('\n') {
            break port.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let target = Target::insecure(&format!("https://127.0.0.1:{port}"), "none", &[server.pid()])?;
    let get = closed_loop(&target, load, "bare-get", &Call::get("/one")).await?;
    let streams = streams(&target, args).await?;
    server.stop();
    Ok([get, streams])
}

/// `watchers` connections take `lines` lines each, as fast as they come; time from the first request to the last line.
async fn streams(target: &Arc<Target>, args: &BareArgs) -> Result<Summary, Failure> {
    let path = format!("/lines?{}x{}", args.lines, args.line_bytes);
    let mut open = Vec::new();
    for _ in 0..args.watchers {
        open.push(Connection::open(target).await?);
    }
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    let mut all = JoinSet::new();
    for connection in open {
        let path = path.clone();
        all.spawn(async move {
            let mut samples = Samples::default();
            let mut lines = connection.watch(&path).await?;
            while let Some(line) = lines.next().await {
                samples.ok(start.elapsed(), line.len() as u64);
            }
            Ok::<_, Failure>(samples)
        });
    }
    let mut samples = Samples::default();
    while let Some(done) = all.join_next().await {
        samples.merge(done.map_err(|e| format!("a watcher failed: {e}"))??);
    }
    Ok(samples.summary("bare-stream", start.elapsed(), meter.stop()))
}

/// Serves until it is ended; writes its port to standard output.
///
/// # Errors
/// No port, no certificate.
pub fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("listen: {e}"))?;
    let port = listener.local_addr().map_err(|e| format!("listen: {e}"))?.port();
    let acceptor = TlsAcceptor::from(Arc::new(tls()?));
    let body = Bytes::from(vec![b'x'; args.bytes]);
    // A thread for each processor, each with its own connections: the fastest way there is.
    let lanes: Vec<_> =
        (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| lane()).collect();
    println!("{port}");
    std::io::stdout().flush().map_err(|e| format!("standard output: {e}"))?;
    for (i, stream) in listener.incoming().enumerate() {
        let stream = stream.map_err(|e| format!("accept: {e}"))?;
        let (acceptor, body) = (acceptor.clone(), body.clone());
        lanes[i % lanes.len()].spawn(async move {
            let _ = connection(stream, acceptor, body).await;
        });
    }
    Ok(())
}

fn lane() -> tokio::runtime::Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

fn tls() -> Result<ServerConfig, Failure> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let chain = vec![made.cert.der().clone()];
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).map_err(|e| e.to_string())
}

async fn connection(
    stream: std::net::TcpStream,
    acceptor: TlsAcceptor,
    body: Bytes,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(tokio::net::TcpStream::from_std(stream)?).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &body);
        async move { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

fn answer(request: &Request<Incoming>, body: &Bytes) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let lines = request.uri().query().and_then(|q| {
        let (n, bytes) = q.split_once('x')?;
        Some((n.parse::<usize>().ok()?, bytes.parse::<usize>().ok()?))
    });
    let Some((n, bytes)) = lines else { return Response::new(Full::new(body.clone()).boxed_unsync()) };
    let mut line = vec![b'x'; bytes];
    line.push(b'\n');
    let at_once = 64 * 1024 / line.len().max(1);
    let (full, rest) = (n / at_once, n % at_once);
    let pieces = stream::repeat(Bytes::from(line.repeat(at_once))).take(full);
    let last = stream::iter([Bytes::from(line.repeat(rest))]);
    let frames = pieces.chain(last).map(|bytes| Ok(Frame::data(bytes)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}
