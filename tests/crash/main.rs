//! `coracle apiserver` is killed with SIGKILL under mixed writes, again and again at random moments, and nothing that
//! it acknowledged is lost: revisions never repeat or go back, and watches go on from where they were without gaps.
//!
//! `CORACLE_CRASHES`: how many times (default 12). `CORACLE_CRASH_SEED`: of the random moments; a failure tells it.

mod watcher;
mod writer;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_testkit::{Background, Https, Machine, coracle, retry};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use self::watcher::Watcher;
use self::writer::{Counter, Writer};

/// Where the objects are.
const PATH: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 5;
const WATCHERS: usize = 3;
/// How long any one request may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A revision and the number that the object has in its data.
type State = (u64, u64);

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn revision(object: &Value) -> u64 {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

fn name(object: &Value) -> String {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The number in an object's data; `None` for objects that are not this test's.
fn number(object: &Value) -> Option<u64> {
    object.pointer("/data/n")?.as_str()?.parse().ok()
}

/// What the test starts again and again.
struct Place {
    machine: Machine,
    tokens: PathBuf,
    address: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let machine = Machine::new("crash");
        let tokens = machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
        Self { machine, tokens, address: "127.0.0.1:7001".parse().expect("an address") }
    }

    fn spawn(&self) -> Background {
        let mut command = self.machine.lasting(&coracle());
        command.args(["apiserver", "--secure-port", &self.address.port().to_string(), "--data-dir"]);
        command.arg(self.machine.data("d")).arg("--token-auth-file").arg(&self.tokens);
        self.machine.background("server", &mut command)
    }

    fn connect(&self) -> std::io::Result<Https> {
        Https::connect(self.address, "admintoken", LIMIT)
    }

    /// A connection to the server, once it is ready.
    fn ready(&self) -> Https {
        retry("the server is ready", 120, || {
            let mut client = self.connect().map_err(|e| e.to_string())?;
            let ready = client.request("GET", "/readyz", "", &[]).map_err(|e| e.to_string())?;
            (ready.code == 200).then_some(client).ok_or_else(|| ready.code.to_string())
        })
    }
}

/// All of the test's objects, and the revision that they are current at.
fn list(client: &mut Https) -> std::io::Result<(BTreeMap<String, State>, u64)> {
    let reply = client.request("GET", PATH, "", &[])?;
    assert_eq!(reply.code, 200, "{}", String::from_utf8_lossy(&reply.body));
    let value = reply.json();
    let items = value["items"].as_array().expect("items");
    let own = items.iter().filter_map(|i| Some((name(i), (revision(i), number(i)?))));
    Ok((own.collect(), revision(&value)))
}

/// What everybody has seen.
#[derive(Default)]
struct History {
    /// The highest revision in any answer or event.
    highest: AtomicU64,
    /// The events by their revisions: the same one for every watcher, also after a crash.
    events: Mutex<BTreeMap<u64, Happened>>,
    over: AtomicBool,
}

/// Kind of an event, name of its object, and the number in it.
type Happened = (String, String, Option<u64>);

impl History {
    fn saw(&self, revision: u64) {
        self.highest.fetch_max(revision, Ordering::SeqCst);
    }

    /// An event at a revision.
    fn happened(&self, revision: u64, event: Happened) {
        self.saw(revision);
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let known = events.entry(revision).or_insert_with(|| event.clone());
        assert_eq!(*known, event, "revision {revision} was given out twice");
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Tells the watchers that it is over, also when a check fails.
struct End<'a>(&'a History);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

struct Crowd {
    history: Arc<History>,
    writers: Vec<Writer>,
    counter: Counter,
    watchers: Vec<Watcher>,
}

impl Crowd {
    /// Compares what is there after a start with what was acknowledged before, and with what watchers have.
    fn verify(&mut self, place: &Place, round: u64) {
        let mut client = place.ready();
        let (objects, at) = list(&mut client).expect("a list");
        let highest = self.history.highest.load(Ordering::SeqCst);
        assert!(at >= highest, "the revision went back from {highest} to {at}");
        for writer in &mut self.writers {
            writer.settle(&objects);
        }
        self.counter.settle(&objects);

        let mark =
            json!({ "metadata": { "name": format!("mark-{round}") }, "data": { "n": round.to_string() } });
        let made =
            client.request("POST", PATH, "application/json", mark.to_string().as_bytes()).expect("an answer");
        assert_eq!(made.code, 201, "{}", String::from_utf8_lossy(&made.body));
        let mark = revision(&made.json());
        assert!(mark > at, "revision {mark} was given out again");
        self.history.saw(mark);

        let (objects, _) = list(&mut client).expect("a list");
        let acknowledged: Vec<u64> =
            self.writers.iter().flat_map(|w| w.acknowledged.iter().copied()).collect();
        for watcher in &self.watchers {
            watcher.verify(mark, &objects, &acknowledged);
        }
    }

    /// All crashes, and what is there in the end. The server that runs last is yielded, as watchers are at it.
    fn go_through(&mut self, place: &Place, crashes: u64, random: &mut StdRng) -> Background {
        for crash in 0..crashes {
            if crash % 5 == 4 {
                // Killed while it starts.
                let mut server = place.spawn();
                thread::sleep(Duration::from_millis(random.random_range(0..400)));
                server.kill();
            }
            let mut server = place.spawn();
            self.verify(place, crash);
            self.write(place, &mut server, Duration::from_micros(random.random_range(1..600_000)));
        }
        let server = place.spawn();
        self.verify(place, crashes);
        server
    }

    /// Writes until the server is gone.
    fn write(&mut self, place: &Place, server: &mut Background, moment: Duration) {
        let Self { history, writers, counter, .. } = self;
        let (history, counter) = (&**history, &*counter);
        thread::scope(|scope| {
            for writer in writers {
                scope.spawn(|| writer.run(place, history, counter));
            }
            thread::sleep(moment);
            server.kill();
        });
    }
}

#[test]
fn what_was_acknowledged_outlives_sigkill_at_any_moment() {
    let crashes: u64 = from_environment("CORACLE_CRASHES").unwrap_or(12);
    let seed = from_environment("CORACLE_CRASH_SEED").unwrap_or_else(|| rand::rng().random());
    println!("{crashes} crashes, CORACLE_CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new();
    place.machine.enter();
    let history = Arc::new(History::default());
    let writers = (0..WRITERS).map(|w| Writer::new(w, random.random())).collect();
    let watchers: Vec<Watcher> = (0..WATCHERS).map(|_| Watcher::default()).collect();
    let mut crowd =
        Crowd { history: history.clone(), writers, counter: Counter::default(), watchers: watchers.clone() };
    thread::scope(|scope| {
        for watcher in &watchers {
            scope.spawn(|| watcher.run(&place, &history));
        }
        let end = End(&history);
        let _server = crowd.go_through(&place, crashes, &mut random);
        drop(end);
    });
    let relists: u64 = watchers.iter().map(Watcher::relists).sum();
    let resumed: u64 = watchers.iter().map(Watcher::resumed).sum();
    let acknowledged: usize = crowd.writers.iter().map(|w| w.acknowledged.len()).sum();
    println!(
        "{acknowledged} writes acknowledged with a revision, {} increments; watches resumed {resumed} times, listed anew \
         {relists} times",
        crowd.counter.acknowledged(),
    );
    assert!(acknowledged as u64 > crashes, "the load was none");
}
