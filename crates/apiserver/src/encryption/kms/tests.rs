//! A plug-in server on a Unix socket, and values that go through it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use coracle_grpc::{Answer, Service, Status};
use futures::future::BoxFuture;

use super::plugin::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, SERVICE, StatusRequest, StatusResponse,
};
use super::*;

/// Encrypts by reversing and adding the number of its key.
struct Server {
    generation: AtomicUsize,
    well: AtomicBool,
    decrypted: AtomicUsize,
}

impl Server {
    fn key(&self) -> String {
        format!("key-{}", self.generation.load(Ordering::SeqCst))
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, Status> {
        let healthz = if self.well.load(Ordering::SeqCst) { "ok" } else { "sick" };
        Ok(StatusResponse { version: "v2".into(), healthz: healthz.into(), key_id: self.key() })
    }

    async fn encrypt(&self, request: EncryptRequest) -> Result<EncryptResponse, Status> {
        let mut sealed = request.plaintext.to_vec();
        sealed.reverse();
        sealed.extend_from_slice(self.key().as_bytes());
        let annotations = [("a.example.com".to_owned(), Bytes::from("1"))].into();
        Ok(EncryptResponse { ciphertext: sealed.into(), key_id: self.key(), annotations })
    }

    async fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, Status> {
        self.decrypted.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.annotations, [("a.example.com".to_owned(), Bytes::from("1"))].into());
        let mut plain = request.ciphertext.to_vec();
        plain.truncate(plain.len() - request.key_id.len());
        plain.reverse();
        Ok(DecryptResponse { plaintext: plain.into() })
    }

    /// Listens in a thread of its own.
    fn start(socket: &Path) -> Arc<Self> {
        let server = Arc::new(Self {
            generation: AtomicUsize::new(1),
            well: AtomicBool::new(true),
            decrypted: AtomicUsize::new(0),
        });
        let (ready, listens) = sync_channel(1);
        let (socket, shared) = (socket.to_owned(), server.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = coracle_grpc::listen(&socket).unwrap();
                ready.send(()).unwrap();
                coracle_grpc::serve(listener, shared).await;
            });
        });
        listens.recv().unwrap();
        server
    }
}

impl Service for Server {
    fn call(self: Arc<Self>, method: String, request: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match method.strip_prefix(SERVICE) {
                Some("/Status") => Answer::unary(request, |q| self.status(q)).await,
                Some("/Encrypt") => Answer::unary(request, |q| self.encrypt(q)).await,
                Some("/Decrypt") => Answer::unary(request, |q| self.decrypt(q)).await,
                _ => Answer::unimplemented(&method),
            }
        })
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
