//! Writers, each with objects of its own, so that it knows what must be there; and one object that all of them count up.

use std::collections::BTreeMap;
use std::sync::Mutex;

use coracle_testkit::{Https, Reply};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use crate::{History, PATH, Place, State, number, revision};

/// Objects of each writer.
const OBJECTS: u64 = 8;
/// The object that all count up.
const COUNTER: &str = "counter";

/// What is known of an object.
#[derive(Default)]
struct Known {
    /// As last acknowledged; `None`: not there.
    state: Option<State>,
    /// Sent and not answered: the number that it writes, or `None` if it deletes.
    unanswered: Option<Option<u64>>,
}

/// One client that creates, replaces, patches and deletes.
pub(crate) struct Writer {
    number: usize,
    random: StdRng,
    /// Different in each write.
    next: u64,
    objects: BTreeMap<String, Known>,
    /// The revisions of all acknowledged writes that tell theirs: deletions do not.
    pub(crate) acknowledged: Vec<u64>,
}

fn expect(reply: &Reply, code: u16, what: &str) {
    assert_eq!(reply.code, code, "{what}: {}", String::from_utf8_lossy(&reply.body));
}

impl Writer {
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { number, random, next: 0, objects: BTreeMap::new(), acknowledged: Vec::new() }
    }

    /// Writes until the connection ends.
    pub(crate) fn run(&mut self, place: &Place, history: &History, counter: &Counter) {
        let Ok(mut client) = place.connect() else { return };
        loop {
            let went = match self.random.random_range(0..8) {
                0 => counter.increment(&mut client, history),
                _ => self.write(&mut client, history),
            };
            if went.is_err() {
                return;
            }
        }
    }

    fn write(&mut self, client: &mut Https, history: &History) -> std::io::Result<()> {
        let name = format!("w{}-{}", self.number, self.random.random_range(0..OBJECTS));
        self.next += 1;
        let n = self.next;
        let known = self.objects.entry(name.clone()).or_default();
        let path = format!("{PATH}/{name}");
        let padding = "x".repeat(self.random.random_range(0..6000));
        let object =
            json!({ "metadata": { "name": name }, "data": { "n": n.to_string(), "padding": padding } });
        let json = "application/json";
        let (method, target, kind, code, body) = match (known.state, self.random.random_range(0..4)) {
            (None, _) => ("POST", PATH, json, 201, object.to_string()),
            (Some(_), 0) => ("DELETE", path.as_str(), json, 200, String::new()),
            (Some(_), 1) => {
                let patch = json!({ "data": { "n": n.to_string() } });
                ("PATCH", path.as_str(), "application/merge-patch+json", 200, patch.to_string())
            }
            (Some(_), _) => ("PUT", path.as_str(), json, 200, object.to_string()),
        };
        let deletes = method == "DELETE";
        known.unanswered = Some((!deletes).then_some(n));
        let reply = client.request(method, target, kind, body.as_bytes())?;
        expect(&reply, code, &format!("{method} {target}"));
        known.unanswered = None;
        if deletes {
            known.state = None;
            return Ok(());
        }
        let at = revision(&reply.json());
        let last = self.acknowledged.last().copied().unwrap_or(0);
        assert!(at > last, "{method} {target} got revision {at}, {last} was given out before");
        known.state = Some((at, n));
        self.acknowledged.push(at);
        history.saw(at);
        Ok(())
    }

    /// Compares what is there with what was acknowledged; what was not answered may have been done or not.
    pub(crate) fn settle(&mut self, objects: &BTreeMap<String, State>) {
        for (name, known) in &mut self.objects {
            let found = objects.get(name).copied();
            let done = known.unanswered.take().is_some_and(|wanted| match (found, wanted) {
                (Some((at, n)), Some(wanted)) => n == wanted && known.state.is_none_or(|(old, _)| at > old),
                (None, None) => true,
                _ => false,
            });
            assert!(done || found == known.state, "{name} is {found:?}, acknowledged was {:?}", known.state);
            known.state = found;
        }
    }
}

/// The object that all count up, each with the revision that it read.
#[derive(Default)]
pub(crate) struct Counter(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// The values of acknowledged writes with their revisions.
    acknowledged: BTreeMap<u64, u64>,
    /// Values that somebody sent and got no answer for.
    unanswered: Vec<u64>,
    /// The value that was there after the last crash.
    found: u64,
}

impl Counter {
    pub(crate) fn acknowledged(&self) -> usize {
        self.0.lock().expect("whole").acknowledged.len()
    }

    fn increment(&self, client: &mut Https, history: &History) -> std::io::Result<()> {
        let path = format!("{PATH}/{COUNTER}");
        let found = client.request("GET", &path, "", &[])?;
        let (method, target, value, metadata) = match found.code {
            404 => ("POST", PATH, 1, json!({ "name": COUNTER })),
            _ => {
                expect(&found, 200, COUNTER);
                let found = found.json();
                let metadata = json!({ "name": COUNTER, "resourceVersion": revision(&found).to_string() });
                ("PUT", path.as_str(), number(&found).expect("a number") + 1, metadata)
            }
        };
        let object = json!({ "metadata": metadata, "data": { "n": value.to_string() } }).to_string();
        match client.request(method, target, "application/json", object.as_bytes()) {
            Err(e) => {
                self.0.lock().expect("whole").unanswered.push(value);
                Err(e)
            }
            Ok(reply) if reply.code == 409 => Ok(()),
            Ok(reply) => {
                assert!(matches!(reply.code, 200 | 201), "{}", String::from_utf8_lossy(&reply.body));
                let at = revision(&reply.json());
                history.saw(at);
                let before = self.0.lock().expect("whole").acknowledged.insert(value, at);
                assert_eq!(before, None, "two were told that they counted up to {value}");
                Ok(())
            }
        }
    }

    /// The value that is there is the last one acknowledged, or one that was sent after it.
    pub(crate) fn settle(&self, objects: &BTreeMap<String, State>) {
        let mut counted = self.0.lock().expect("whole");
        let last = counted.acknowledged.last_key_value().map_or(0, |(value, _)| *value).max(counted.found);
        let found = objects.get(COUNTER).map_or(0, |(_, n)| *n);
        let unanswered = std::mem::take(&mut counted.unanswered);
        assert!(
            found == last || found > last && unanswered.contains(&found),
            "the counter is {found}, it was {last}, unanswered {unanswered:?}"
        );
        counted.found = found;
        for pair in counted.acknowledged.iter().zip(counted.acknowledged.iter().skip(1)) {
            assert!(pair.0.1 < pair.1.1, "counted up in the order of revisions: {pair:?}");
        }
    }
}
