//! Changes of values and bytes.

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

/// Texts that some field somewhere takes for something.
pub const WORDS: &[&str] = &[
    "",
    " ",
    "a",
    "A",
    "a.b",
    "-a",
    "a_b",
    "0",
    "1",
    "-1",
    "65536",
    "10.96.0.10",
    "0.0.0.0/0",
    "::1",
    "fd00::/108",
    "None",
    "1Gi",
    "100m",
    "1e3",
    "9e99999",
    "1E-400",
    "0x1f",
    "+1",
    "1n",
    "9223372036854775808",
    "25%",
    "101%",
    "%",
    "TCP",
    "UDP",
    "ClusterIP",
    "ExternalName",
    "NodePort",
    "Always",
    "Never",
    "OnFailure",
    "ClusterFirst",
    "RollingUpdate",
    "Recreate",
    "2026-01-01T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "0001-01-01T00:00:00.000000Z",
    "1h",
    "-5s",
    "* * * * *",
    "@every 1s",
    "*/0 * * * *",
    "kubernetes.io/metadata.name",
    "node.kubernetes.io/not-ready",
    "a=b,c!=d",
    "in (a,b)",
    "$(A)",
    "$$(A)",
    "/",
    "/a/../b",
    "..",
    "a/b/c",
    "\u{0}",
    "é",
    "日本",
    "\u{202e}",
    "[",
    "(?P<a>",
    "(a+)+$",
    "^(\\w+\\s?)*$",
    "{{.}}",
    "{.a.b}",
    "{.items[*]['x']}",
    "self.x > 0",
    "object.spec.a == 'b'",
    "true",
    "self.all(x, self.all(y, x == y))",
    "system:masters",
    "*",
    "get",
    "v1",
    "v1beta1",
    "apps/v1",
    "Pod",
    "Unconfined",
    "Localhost",
    "0777",
    "aGVsbG8=",
    "!!binary",
    "~",
    "null",
];

/// Numbers at which something ends.
const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    7,
    63,
    64,
    253,
    254,
    1024,
    30000,
    32767,
    65535,
    65536,
    1_000_000,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    i64::MAX,
    i64::MIN,
];

/// One of several.
pub fn pick<'a, T>(random: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

/// A text, mostly a known one.
pub fn word(random: &mut StdRng) -> String {
    match random.random_range(0..12) {
        0 => (0..random.random_range(0..12)).map(|_| random.random::<char>()).collect(),
        1 => "a".repeat(*pick(random, &[62, 63, 64, 253, 254, 300, 5000])),
        2 => format!("{}{}", pick(random, WORDS), pick(random, WORDS)),
        _ => (*pick(random, WORDS)).to_owned(),
    }
}

/// A small value of any kind.
pub fn leaf(random: &mut StdRng) -> Value {
    match random.random_range(0..10) {
        0 => Value::Null,
        1 => random.random::<bool>().into(),
        2 | 3 => (*pick(random, NUMBERS)).into(),
        4 => json!(*pick(random, &[0.5, -0.0, 1e300, 1.0, 9_007_199_254_740_993.0])),
        5 => json!([]),
        6 => json!({}),
        _ => word(random).into(),
    }
}

/// Changes a value in one place.
pub fn value(random: &mut StdRng, root: &mut Value) {
    let mut at = root;
    loop {
        let stop = random.random_range(0..4) == 0;
        let children = match at {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if stop || children == 0 {
            return change(random, at);
        }
        let which = random.random_range(0..children);
        at = match at {
            Value::Array(items) => &mut items[which],
            Value::Object(map) => map.values_mut().nth(which).expect("there is one"),
            _ => return,
        };
    }
}

fn change(random: &mut StdRng, at: &mut Value) {
    match (random.random_range(0..8), &mut *at) {
        (0, Value::Array(items)) if !items.is_empty() => {
            let copy = pick(random, items).clone();
            (0..*pick(random, &[1, 2, 40])).for_each(|_| items.push(copy.clone()));
        }
        (1, Value::Array(items)) if !items.is_empty() => {
            drop(items.remove(random.random_range(0..items.len())))
        }
        (2, Value::Array(items)) => items.push(leaf(random)),
        (0 | 1, Value::Object(map)) if !map.is_empty() => {
            let key = key(random, map);
            map.remove(&key);
        }
        (2, Value::Object(map)) if !map.is_empty() => {
            let value = map.remove(&key(random, map)).unwrap_or_default();
            map.insert(word(random), value);
        }
        (3, Value::Object(map)) => drop(map.insert(word(random), leaf(random))),
        (4, _) => *at = json!([at.take()]),
        (5, _) => *at = json!({ word(random): at.take() }),
        (6, Value::String(text)) => {
            let mut changed = std::mem::take(text).into_bytes();
            bytes(random, &mut changed, &[]);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        _ => *at = leaf(random),
    }
}

fn key(random: &mut StdRng, map: &Map<String, Value>) -> String {
    map.keys().nth(random.random_range(0..map.len())).cloned().unwrap_or_default()
}

/// Changes bytes in one place. `words` are what else may stand there.
pub fn bytes(random: &mut StdRng, text: &mut Vec<u8>, words: &[&str]) {
    let length = text.len();
    let from = random.random_range(0..=length);
    let to = (from + random.random_range(0..24)).min(length);
    match random.random_range(0..8) {
        0 if from < length => text[from] ^= 1 << random.random_range(0..8),
        1 if from < length => text[from] = random.random(),
        2 => drop(text.splice(from..from, [random.random()])),
        3 => drop(text.drain(from..to)),
        4 => {
            let piece = text[from..to].to_vec();
            let times = *pick(random, &[1, 2, 30, 1000]);
            drop(text.splice(from..from, piece.repeat(times)));
        }
        5 => text.truncate(from),
        6 if !words.is_empty() => drop(text.splice(from..to, pick(random, words).bytes())),
        _ => {
            let word = word(random);
            drop(text.splice(from..to, word.into_bytes()));
        }
    }
}

/// Opens and closes one of several things very often.
pub fn nested(random: &mut StdRng, brackets: &[(&str, &str)]) -> String {
    let (open, close) = *pick(random, brackets);
    let depth = *pick(random, &[20, 100, 500, 1001, 10_000, 100_000]);
    let closed = if random.random() { depth } else { 0 };
    format!("{}1{}", open.repeat(depth), close.repeat(closed))
}

/// Percent-encoded for a query.
pub fn escaped(text: &[u8]) -> String {
    use std::fmt::Write as _;
    text.iter().fold(String::new(), |mut out, b| {
        match b.is_ascii_alphanumeric() {
            true => out.push(char::from(*b)),
            false => drop(write!(out, "%{b:02X}")),
        }
        out
    })
}
