//! A plug-in server on a Unix socket, and values that go through it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Buf, BufMut, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

type Frames = StreamBody<futures::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

/// Encrypts by reversing and adding the number of its key.
struct Server {
    generation: AtomicUsize,
    well: AtomicBool,
    decrypted: AtomicUsize,
}

impl Server {
    fn answer(&self, method: &str, message: &[u8]) -> Vec<u8> {
        let key = format!("key-{}", self.generation.load(Ordering::SeqCst));
        let found = fields(message).unwrap();
        let get = |n: u64| {
            found.iter().find(|(number, _)| *number == n).map(|(_, v)| v.to_vec()).unwrap_or_default()
        };
        let mut out = Vec::new();
        match method {
            "/v2.KeyManagementService/Status" => {
                wire::text(&mut out, 1, "v2");
                wire::text(&mut out, 2, if self.well.load(Ordering::SeqCst) { "ok" } else { "sick" });
                wire::text(&mut out, 3, &key);
            }
            "/v2.KeyManagementService/Encrypt" => {
                let mut sealed = get(1);
                sealed.reverse();
                sealed.extend_from_slice(key.as_bytes());
                wire::bytes(&mut out, 1, &sealed);
                wire::text(&mut out, 2, &key);
                write_annotations(&mut out, 3, &[("a.example.com".to_owned(), b"1".to_vec())].into());
            }
            "/v2.KeyManagementService/Decrypt" => {
                self.decrypted.fetch_add(1, Ordering::SeqCst);
                assert_eq!(entry(&get(4)).unwrap(), Some(("a.example.com".to_owned(), b"1".to_vec())));
                let mut plain = get(1);
                plain.truncate(plain.len() - get(3).len());
                plain.reverse();
                wire::bytes(&mut out, 1, &plain);
            }
            other => panic!("{other}"),
        }
        out
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
        let method = request.uri().path().to_owned();
        let mut body = request.into_body().collect().await.unwrap().to_bytes();
        body.advance(5);
        let answer = self.answer(&method, &body);
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(answer.len()).unwrap());
        framed.put_slice(&answer);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = [Ok(Frame::data(framed.freeze())), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures::stream::iter(frames));
        Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    }

    /// Listens in a thread of its own.
    fn start(socket: &Path) -> Arc<Self> {
        let server = Arc::new(Self {
            generation: AtomicUsize::new(1),
            well: AtomicBool::new(true),
            decrypted: AtomicUsize::new(0),
        });
        let (listener, shared) = (std::os::unix::net::UnixListener::bind(socket).unwrap(), server.clone());
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        let service = service_fn(move |request| shared.clone().serve(request));
                        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
        });
        server
    }
}

fn client(socket: &Path) -> Arc<Kms> {
    let config =
        KmsConfig { name: "vault".into(), socket: socket.to_owned(), timeout: Duration::from_secs(30) };
    Kms::start(config).unwrap()
}

const KEY: &str = "/registry/core/secrets/default/a";

#[test]
fn a_value_goes_through_the_envelope_and_seeds_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let server = Server::start(&socket);
    let kms = client(&socket);
    let stored = kms.seal(KEY, b"hunter2").unwrap();
    assert!(stored.starts_with(b"k8s:enc:kms:v2:vault:"));
    assert!(!stored.windows(7).any(|w| w == b"hunter2"));
    assert_ne!(stored, kms.seal(KEY, b"hunter2").unwrap(), "each value has a key of its own");
    let rest = &stored[kms.prefix().len()..];
    assert_eq!(kms.open(KEY, rest).unwrap(), Opened { value: "hunter2".into(), stale: false });
    assert!(kms.open("/registry/core/secrets/default/b", rest).is_err(), "bound to its key");
    assert_eq!(server.decrypted.load(Ordering::SeqCst), 0, "its own seed is known");
    // Another process has to ask, once.
    let other = client(&socket);
    for _ in 0..2 {
        assert_eq!(&other.open(KEY, rest).unwrap().value[..], b"hunter2");
    }
    assert_eq!(server.decrypted.load(Ordering::SeqCst), 1);
    assert_eq!(other.trouble(), None);
}

#[test]
fn a_changed_key_makes_a_new_seed_and_old_values_stale() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let server = Server::start(&socket);
    let old = client(&socket).seal(KEY, b"x").unwrap();
    server.generation.store(2, Ordering::SeqCst);
    let kms = client(&socket);
    let fresh = kms.seal(KEY, b"x").unwrap();
    let skip = kms.prefix().len();
    assert!(kms.open(KEY, &old[skip..]).unwrap().stale);
    assert!(!kms.open(KEY, &fresh[skip..]).unwrap().stale);
}

#[test]
fn trouble_of_the_plugin_is_told_and_stops_writes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let absent = client(&socket);
    assert!(absent.trouble().is_some_and(|why| why.contains("code = Unavailable")));
    assert!(absent.seal(KEY, b"x").is_err());
    let server = Server::start(&socket);
    server.well.store(false, Ordering::SeqCst);
    let sick = client(&socket);
    assert_eq!(sick.trouble().as_deref(), Some("expected healthz status ok, got sick"));
}
