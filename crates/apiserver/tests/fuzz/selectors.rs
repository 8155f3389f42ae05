//! Label and field selectors, and what else a query may say of a list.

use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::drive::{Input, Server, Target};
use crate::mutate::{self, escaped, pick};

const LABELS: &[&str] = &[
    "a=b",
    "a!=b",
    "a in (b,c)",
    "a notin (b, c)",
    "!a",
    "a",
    "a==b,c",
    "a>1",
    "a<1",
    "x/y=z",
    "a in ()",
    ",",
    "a in (b",
    "kubernetes.io/os=linux,!a,b notin (c),d>5",
];
const FIELDS: &[&str] = &[
    "metadata.name=a",
    "metadata.namespace!=b",
    "spec.nodeName=",
    "status.phase=Running",
    "metadata.name==a,status.phase!=x",
    "spec.x=y",
    "a\\,b=c",
    "a\\=b=c\\\\",
    "=",
    "metadata.name",
];
const PATHS: &[&str] =
    &["/api/v1/pods", "/api/v1/namespaces/default/configmaps", "/apis/apps/v1/deployments", "/api/v1/events"];

/// Queries.
pub struct Selectors;

impl Selectors {
    pub async fn new(_: &Server) -> Self {
        Self
    }
}

fn selector(random: &mut StdRng, seeds: &[&str]) -> String {
    let mut text = pick(random, seeds).as_bytes().to_vec();
    if random.random_range(0..4) == 0 {
        text.push(b',');
        text.extend(pick(random, seeds).bytes());
    }
    if random.random_range(0..30) == 0 {
        text = text.repeat(3000);
    }
    for _ in 0..random.random_range(0..3) {
        mutate::bytes(random, &mut text, &["(", ")", ",", "=", "!", " in ", " notin ", "<", ">", "\\"]);
    }
    escaped(&text)
}

impl Target for Selectors {
    fn next(&mut self, random: &mut StdRng) -> Input {
        let mut query = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let (name, value) = match random.random_range(0..10) {
                0..=3 => ("labelSelector", selector(random, LABELS)),
                4..=7 => ("fieldSelector", selector(random, FIELDS)),
                _ => {
                    let names = [
                        "limit",
                        "continue",
                        "resourceVersion",
                        "resourceVersionMatch",
                        "timeoutSeconds",
                        "pretty",
                        "%zz",
                    ];
                    (*pick(random, &names), escaped(mutate::word(random).as_bytes()))
                }
            };
            query.push(format!("{name}={value}"));
        }
        query.push("timeoutSeconds=1".to_owned());
        let method = if random.random_range(0..8) == 0 { Method::DELETE } else { Method::GET };
        Input::new(method, format!("{}?{}", pick(random, PATHS), query.join("&")))
    }
}
