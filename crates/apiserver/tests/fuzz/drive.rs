//! Runs a target: a server in this process, inputs one after another, and what became of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coracle_auth::service_account::{ServiceAccountAuthenticator, TokenIssuer};
use coracle_auth::static_token::StaticTokens;
use coracle_auth::{Authenticator, pki};
use coracle_stdx::Clock;
use coracle_store::MemoryStore;
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::{ADMIN, Cluster, KeepAlive};

/// An input may take so long at the most, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The process may have had so much memory.
const MEMORY: u64 = 1 << 30;

/// A request.
pub struct Input {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Input {
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn with(mut self, kind: &str, body: Vec<u8>) -> Self {
        self.headers.push(("content-type", kind.as_bytes().to_vec()));
        self.body = body;
        self
    }

    fn text(&self) -> Vec<u8> {
        let mut head = format!("{} {}\n", self.method, self.target);
        for (key, value) in &self.headers {
            let _ = writeln!(head, "{key}: {}", String::from_utf8_lossy(value));
        }
        [head.as_bytes(), b"\n", &self.body].concat()
    }
}

/// What is fuzzed.
pub trait Target {
    /// The next input.
    fn next(&mut self, random: &mut StdRng) -> Input;
    /// An answer, from which the target may learn.
    fn learn(&mut self, _input: &Input, _code: u16, _body: &[u8]) {}
}

/// A server for a target.
pub struct Server {
    pub cluster: Cluster,
}

impl Server {
    async fn start() -> Self {
        let key = pki::generate_key().expect("a key");
        let issuer = TokenIssuer::new(
            &key,
            "https://kubernetes.default.svc",
            vec!["https://kubernetes.default.svc".into()],
        );
        let issuer = Arc::new(issuer.expect("a key"));
        let shared = issuer.clone();
        let cluster = Cluster::with(MemoryStore::new(), |config| {
            config.token_issuer = Some(issuer);
            config.admission = coracle_admission::plugins();
            config.authenticators = Box::new(move |reader| {
                let tokens =
                    StaticTokens::parse("admintoken,admin,admin,\"system:masters\"\n").expect("tokens");
                let accounts = ServiceAccountAuthenticator::new(shared, reader, Clock::system());
                vec![Arc::new(tokens) as Arc<dyn Authenticator>, Arc::new(accounts)]
            });
        });
        let server = Self { cluster: cluster.await };
        let account = serde_json::json!({ "metadata": { "name": "default" } });
        server.cluster.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        server
    }
}

/// How long a target runs.
pub fn seconds() -> u64 {
    std::env::var("CORACLE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20)
}

/// Where chance begins.
pub fn random() -> StdRng {
    let given = std::env::var("CORACLE_FUZZ_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("CORACLE_FUZZ_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Keeps the input at hand in case that the process ends.
pub fn keep(target: &str, input: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
    std::fs::write(&path, input).expect("a file for the input");
    path
}

/// The most memory that this process has had, in bytes.
pub fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Tells what was done, and holds the limits.
pub fn report(target: &str, inputs: u64, slowest: Duration, outcomes: &BTreeMap<String, u64>) {
    let peak = peak();
    println!("{target}: {inputs} inputs, slowest {slowest:?}, {} MB, {outcomes:?}", peak >> 20);
    assert!(inputs > 20, "hardly any input was tried");
    assert!(peak < MEMORY, "{} MB of memory", peak >> 20);
}

/// A target that makes itself ready.
pub type Making<'s, T> = Pin<Box<dyn Future<Output = T> + 's>>;

/// Runs a target for its time.
pub fn fuzz<T: Target>(name: &str, make: impl for<'s> FnOnce(&'s Server) -> Making<'s, T>) {
    // Threads as `coracle` has them, twice as deep: frames of a build for tests are larger.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        runtime.worker_threads(2).thread_stack_size(8 << 20).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = Server::start().await;
        let mut target = make(&server).await;
        run(name, &server, &mut target).await;
    });
}

async fn run(name: &str, server: &Server, target: &mut impl Target) {
    let mut random = random();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut inputs, mut slowest) = (0, Duration::ZERO);
    let until = Instant::now() + Duration::from_secs(seconds());
    let mut connection = server.cluster.keep_alive().await;
    while Instant::now() < until {
        let input = target.next(&mut random);
        let kept = keep(name, &input.text());
        let began = Instant::now();
        let answer = match tokio::time::timeout(PATIENCE, send(&mut connection, &input)).await {
            Ok(answer) => answer,
            Err(_) => {
                eprintln!("{name}: no answer for {PATIENCE:?} to the input in {}", kept.display());
                std::process::exit(101);
            }
        };
        let took = began.elapsed();
        if took > slowest {
            slowest = took;
            if took > Duration::from_secs(2) {
                keep(&format!("{name}-slow-{}ms", took.as_millis()), &input.text());
            }
        }
        inputs += 1;
        let outcome = match answer {
            Some((code, body)) => {
                let panicked = code == 500 && body.windows(18).any(|w| w == b"apiserver to panic");
                assert!(!panicked, "a panic; the input is in {}", kept.display());
                target.learn(&input, code, &body);
                // Not wrong by itself, but worth a look: upstream blames itself, too, for some input.
                let why =
                    |text: &[u8]| String::from_utf8_lossy(text).chars().skip(80).take(90).collect::<String>();
                if code == 500 { format!("500 {}", why(&body)) } else { code.to_string() }
            }
            None => {
                // Refused below HTTP, as a header of 100 KB is.
                connection = server.cluster.keep_alive().await;
                "closed".to_owned()
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    report(name, inputs, slowest, &outcomes);
    assert!(
        outcomes.keys().any(|code| code.starts_with('2')),
        "nothing got as far as to be accepted: {outcomes:?}"
    );
    assert!(outcomes.keys().any(|code| code.starts_with('4')), "nothing was refused: {outcomes:?}");
}

/// The code and body of the answer; `None` when the connection was closed.
async fn send(connection: &mut KeepAlive, input: &Input) -> Option<(u16, Bytes)> {
    let mut request = http::Request::builder().method(input.method.clone()).uri(&input.target);
    request = request.header("host", "localhost");
    if !input.headers.iter().any(|(key, _)| *key == "authorization") {
        request = request.header("authorization", format!("Bearer {ADMIN}"));
    }
    for (key, value) in &input.headers {
        request = request.header(*key, http::HeaderValue::from_bytes(value).ok()?);
    }
    connection.send(request, Bytes::from(input.body.clone())).await.ok()
}
