//! Patches of all kinds on objects of several kinds, custom ones among them.

use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::drive::{Input, Server, Target};
use crate::mutate::{self, pick, word};

const KINDS: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Objects to patch.
pub struct Patches {
    /// Paths, and the objects there.
    objects: Vec<(String, Value)>,
}

fn objects() -> Vec<(&'static str, Value)> {
    let pod = json!({
        "containers": [
            { "name": "a", "image": "i", "env": [{ "name": "A", "value": "1" }], "ports": [{ "containerPort": 80 }],
              "volumeMounts": [{ "name": "v", "mountPath": "/v" }] },
            { "name": "b", "image": "i", "args": ["x", "y"] },
        ],
        "volumes": [{ "name": "v", "emptyDir": {} }], "tolerations": [{ "operator": "Exists" }],
    });
    let meta = json!({ "name": "a", "labels": { "a": "b" }, "annotations": { "c": "d" }, "finalizers": ["e.com/f"] });
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": pod });
    let thing = json!({
        "metadata": { "name": "things.e.com" },
        "spec": { "group": "e.com", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "spec": { "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "list": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                        "items": { "type": "object", "required": ["k"], "properties": { "k": { "type": "string" } } } },
                    "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
                    "n": { "type": "integer", "x-kubernetes-validations": [{ "rule": "self >= oldSelf" }] },
                } } } } } }] },
    });
    vec![
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", thing),
        ("/api/v1/namespaces/default/pods", json!({ "metadata": meta, "spec": pod })),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({ "metadata": meta, "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": template } }),
        ),
        (
            "/api/v1/namespaces/default/services",
            json!({ "metadata": meta, "spec": { "ports": [{ "name": "p", "port": 80 }, { "name": "q", "port": 81 }] } }),
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            json!({ "metadata": meta, "data": { "a": "b", "c": "d" } }),
        ),
        (
            "/apis/e.com/v1/namespaces/default/things",
            json!({ "apiVersion": "e.com/v1", "kind": "Thing", "metadata": { "name": "a" },
                "spec": { "list": [{ "k": "x" }, { "k": "y" }], "set": ["a", "b"], "n": 1, "free": { "a": [1, 2] } } }),
        ),
    ]
}

impl Patches {
    pub async fn new(server: &Server) -> Self {
        let mut made = Vec::new();
        for (path, object) in objects() {
            let answer = crate::support::eventually("kind", || async {
                let answer = server.cluster.post(path, &object).await;
                (answer.code != 404).then_some(answer)
            })
            .await;
            let object = answer.json();
            let name = object
                .pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{object}"));
            made.push((format!("{path}/{name}"), object.clone()));
        }
        Self { objects: made }
    }
}

/// A pointer into a value, or past it.
fn pointer(random: &mut StdRng, mut at: &Value) -> String {
    let mut out = String::new();
    loop {
        let (name, next) = match at {
            Value::Object(map) if !map.is_empty() => {
                let (name, next) = map.iter().nth(random.random_range(0..map.len())).expect("there is one");
                (name.replace('~', "~0").replace('/', "~1"), next)
            }
            Value::Array(items) if !items.is_empty() => {
                let which = random.random_range(0..items.len());
                (which.to_string(), &items[which])
            }
            _ => return out,
        };
        out = format!("{out}/{name}");
        at = next;
        match random.random_range(0..12) {
            0..=2 => return out,
            3 => {
                return format!(
                    "{out}/{}",
                    pick(random, &["-", "-1", "0", "99999999999999999999", "a", "~", "~2", ""])
                );
            }
            _ => {}
        }
    }
}

fn json_patch(random: &mut StdRng, object: &Value) -> Value {
    let operations = (0..random.random_range(1..6)).map(|_| {
        let op = *pick(random, &["add", "remove", "replace", "move", "copy", "test", "x"]);
        let mut operation = json!({ "op": op, "path": pointer(random, object) });
        if matches!(op, "move" | "copy") {
            operation["from"] = pointer(random, object).into();
        } else if op != "remove" {
            operation["value"] = mutate::leaf(random);
        }
        operation
    });
    operations.collect()
}

/// Adds what strategic merge patches know.
fn direct(random: &mut StdRng, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(|v| direct(random, v));
            let names: Vec<String> = map.keys().cloned().collect();
            match random.random_range(0..14) {
                0 => drop(
                    map.insert("$patch".into(), (*pick(random, &["delete", "replace", "merge", "x"])).into()),
                ),
                1 => drop(map.insert("$retainKeys".into(), names.into())),
                2 if !names.is_empty() => {
                    let name = pick(random, &names);
                    let list = map
                        .get(name)
                        .filter(|v| v.is_array())
                        .cloned()
                        .unwrap_or_else(|| mutate::leaf(random));
                    map.insert(format!("$setElementOrder/{name}"), list);
                }
                3 if !names.is_empty() => {
                    let list = json!([word(random)]);
                    map.insert(format!("$deleteFromPrimitiveList/{}", pick(random, &names)), list);
                }
                _ => {}
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| direct(random, v)),
        _ => {}
    }
}

impl Target for Patches {
    fn next(&mut self, random: &mut StdRng) -> Input {
        let (path, object) = pick(random, &self.objects);
        let kind = *pick(random, KINDS);
        let mut patch = match kind {
            "application/json-patch+json" => json_patch(random, object),
            _ => object.clone(),
        };
        if kind != KINDS[0] {
            for name in ["managedFields", "resourceVersion", "uid"] {
                if random.random_range(0..8) > 0 {
                    patch["metadata"].as_object_mut().map(|m| m.remove(name));
                }
            }
        }
        if kind == KINDS[2] {
            direct(random, &mut patch);
        }
        for _ in 0..random.random_range(0..4) {
            mutate::value(random, &mut patch);
        }
        let mut body = patch.to_string().into_bytes();
        match random.random_range(0..20) {
            0 => mutate::bytes(random, &mut body, &["{", "}", "[", "]", "\"$patch\":\"delete\"", "null"]),
            1 => {
                let nested =
                    mutate::nested(random, &[("{\"metadata\":", "}"), ("[", "]"), ("{\"a\":[", "]}")]);
                body = nested.into_bytes();
            }
            _ => {}
        }
        let part = pick(random, &["", "", "", "/status", "/scale"]);
        let force = pick(random, &["", "&force=true", "&force=x"]);
        let target = format!("{path}{part}?dryRun=All&fieldManager=m{}{force}", random.random_range(0..3));
        Input::new(Method::PATCH, target).with(kind, body)
    }
}
