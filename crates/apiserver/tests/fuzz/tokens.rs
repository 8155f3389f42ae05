//! Bearer tokens: of service accounts, changed in every part, and in reviews.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::drive::{Input, Server, Target};
use crate::mutate::{self, pick};

/// Tokens that the server gave out.
pub struct Tokens {
    seeds: Vec<String>,
}

impl Tokens {
    pub async fn new(server: &Server) -> Self {
        let mut seeds = vec!["admintoken".to_owned(), "abcdef.0123456789abcdef".to_owned()];
        for audiences in [json!([]), json!(["a", "b"])] {
            let request = json!({ "spec": { "audiences": audiences, "expirationSeconds": 3600 } });
            let answer = server
                .cluster
                .post("/api/v1/namespaces/default/serviceaccounts/default/token", &request)
                .await;
            let token = answer.json().pointer("/status/token").and_then(Value::as_str).map(str::to_owned);
            seeds.push(token.unwrap_or_else(|| panic!("{}", answer.json())));
        }
        Self { seeds }
    }
}

/// Changes the JSON of one part of a token.
fn part(random: &mut StdRng, part: &str) -> String {
    let Ok(text) = URL_SAFE_NO_PAD.decode(part) else { return mutate::word(random) };
    let Ok(mut value) = serde_json::from_slice::<Value>(&text) else {
        let mut bytes = text;
        mutate::bytes(random, &mut bytes, &[]);
        return URL_SAFE_NO_PAD.encode(bytes);
    };
    match random.random_range(0..10) {
        0 => return URL_SAFE_NO_PAD.encode(mutate::nested(random, &[("[", "]"), ("{\"a\":", "}")])),
        1 => value["alg"] = (*pick(random, &["none", "HS256", "RS256", "ES384", "EdDSA", "x"])).into(),
        2 => value["exp"] = mutate::leaf(random),
        3 => value["kubernetes.io"] = mutate::leaf(random),
        4 => value["kid"] = mutate::word(random).into(),
        _ => mutate::value(random, &mut value),
    }
    URL_SAFE_NO_PAD.encode(value.to_string())
}

impl Target for Tokens {
    fn next(&mut self, random: &mut StdRng) -> Input {
        let mut token = pick(random, &self.seeds).clone();
        match random.random_range(0..6) {
            0 => {
                let mut bytes = token.into_bytes();
                mutate::bytes(random, &mut bytes, &[".", "=", " ", "eyJ"]);
                token = String::from_utf8_lossy(&bytes).into_owned();
            }
            1 => {}
            _ => {
                let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
                let which = random.random_range(0..parts.len());
                parts[which] = part(random, &parts[which]);
                token = parts.join(".");
            }
        }
        if random.random_range(0..3) == 0 {
            let mut review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
            if random.random() {
                review["spec"]["audiences"] = json!([mutate::word(random)]);
            }
            let input = Input::new(Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews");
            return input.with("application/json", review.to_string().into_bytes());
        }
        let scheme = *pick(random, &["Bearer ", "Bearer ", "Bearer ", "bearer  ", "Basic ", ""]);
        let mut input = Input::new(Method::GET, "/api/v1/namespaces/default/configmaps");
        let value = format!("{scheme}{token}").into_bytes();
        // What HTTP itself refuses is not what is meant here.
        let value: Vec<u8> = value.into_iter().filter(|b| *b >= b' ' && *b != 127).collect();
        input.headers.push(("authorization", value));
        input
    }
}
