//! Bodies of new objects, in each encoding.

use std::path::Path;

use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::drive::{Input, Server, Target};
use crate::generate::Kinds;
use crate::mutate;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &[&str] = &[
    "{", "}", "[", "]", ":", ",", "\"", "\\u0000", "\\ud800", "1e999999", "-", "null", "//", "/*", "\u{feff}",
];
const YAML: &[&str] = &[
    "&a ",
    "*a",
    "<<: *a",
    "- ",
    ": ",
    "? ",
    "|",
    ">-",
    "---\n",
    "...\n",
    "!!binary ",
    "!!float ",
    "!x ",
    "\t",
    "#",
    "{",
    "[",
    "%YAML 1.1\n",
    "yes",
    "0o17",
    ".inf",
    ".nan",
    "2026-01-01",
    "\"\\x\"",
    "'",
    "\u{85}",
    "\r",
];

/// How bodies are encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// Bodies of one encoding.
pub struct Bodies {
    kinds: Kinds,
    encoding: Encoding,
    /// Texts that were accepted, or recorded from elsewhere: paths and bodies.
    seeds: Vec<(String, Vec<u8>)>,
}

impl Bodies {
    pub async fn new(server: &Server, encoding: Encoding) -> Self {
        let kinds = Kinds::learn(server).await;
        let mut seeds = recorded(&kinds, encoding);
        if encoding == Encoding::Protobuf {
            for kind in &kinds.all {
                let mut object = serde_json::json!({ "apiVersion": kind.api_version, "kind": kind.kind });
                object["metadata"] = serde_json::json!({ "name": "a" });
                if let Some(spec) = minimal(&kind.kind) {
                    object["spec"] = spec;
                }
                let headers = [("content-type", "application/json"), ("accept", PROTOBUF)];
                let target = format!("{}?dryRun=All", kind.path);
                let answer = server.cluster.send(Method::POST, &target, &headers, &object.to_string()).await;
                // Also refusals: a Status is an envelope too.
                seeds.push((kind.path.clone(), answer.bytes.to_vec()));
            }
        }
        Self { kinds, encoding, seeds }
    }

    fn made(&self, random: &mut StdRng) -> (String, Vec<u8>) {
        let kind = self.kinds.pick(random);
        let mut object = self.kinds.object(random, kind);
        for _ in 0..random.random_range(0..3) {
            mutate::value(random, &mut object);
        }
        let text = match self.encoding {
            Encoding::Yaml => serde_yaml_ng::to_string(&object).unwrap_or_default(),
            _ => object.to_string(),
        };
        (kind.path.clone(), text.into_bytes())
    }
}

/// The smallest content that a few kinds of many fields take.
fn minimal(kind: &str) -> Option<Value> {
    let containers = serde_json::json!([{ "name": "c", "image": "i" }]);
    match kind {
        "Pod" => Some(serde_json::json!({ "containers": containers })),
        "Service" => Some(serde_json::json!({ "ports": [{ "port": 80 }] })),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => Some(serde_json::json!({
            "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": containers } },
        })),
        _ => None,
    }
}

/// The round-trip vectors beside the checkout, where they are.
fn recorded(kinds: &Kinds, encoding: Encoding) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/roundtrip");
    let wanted = if encoding == Encoding::Protobuf { "pb" } else { "json" };
    let mut out = Vec::new();
    for kind in &kinds.all {
        let group_version = kind.api_version.replace('/', ".");
        let name = if group_version.contains('.') { group_version } else { format!("core.{group_version}") };
        for name in
            [format!("{name}.{}.{wanted}", kind.kind), format!("{}.{}.{wanted}", kind.api_version, kind.kind)]
        {
            if let Ok(body) = std::fs::read(dir.join(name)) {
                out.push((kind.path.clone(), body));
            }
        }
    }
    out
}

impl Target for Bodies {
    fn next(&mut self, random: &mut StdRng) -> Input {
        let seeded =
            !self.seeds.is_empty() && (self.encoding == Encoding::Protobuf || random.random_range(0..3) == 0);
        let (path, mut body) =
            if seeded { mutate::pick(random, &self.seeds).clone() } else { self.made(random) };
        let (words, kind, brackets): (&[&str], _, &[(&str, &str)]) = match self.encoding {
            Encoding::Json => (JSON, "application/json", &[("[", "]"), ("{\"a\":", "}")]),
            Encoding::Yaml => {
                (YAML, "application/yaml", &[("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("!x ", "")])
            }
            Encoding::Protobuf => {
                (&["k8s\0", "\n", "\x12", "\u{7f}"], PROTOBUF, &[("\n\x7f", ""), ("\x1a\x02", "")])
            }
        };
        if random.random_range(0..40) == 0 {
            let nested = mutate::nested(random, brackets);
            let at = random.random_range(0..=body.len());
            body.splice(at..at, nested.into_bytes());
        } else {
            let many = if seeded { 1 } else { 0 };
            for _ in 0..random.random_range(many..4) {
                mutate::bytes(random, &mut body, words);
            }
        }
        let validation = mutate::pick(random, &["Strict", "Warn", "Ignore", "x"]);
        let accept = mutate::pick(
            random,
            &[
                "application/json",
                PROTOBUF,
                "application/yaml",
                "application/json;as=Table;v=v1;g=meta.k8s.io",
            ],
        );
        let mut input = Input::new(Method::POST, format!("{path}?dryRun=All&fieldValidation={validation}"))
            .with(kind, body);
        input.headers.push(("accept", accept.as_bytes().to_vec()));
        input
    }

    fn learn(&mut self, input: &Input, code: u16, _: &[u8]) {
        // What was accepted leads further than what was not.
        if code == 201 && self.seeds.len() < 2000 && input.body.len() < 100_000 {
            let path = input.target.split('?').next().unwrap_or_default().to_owned();
            self.seeds.push((path, input.body.clone()));
        }
    }
}
