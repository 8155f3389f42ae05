//! Objects of every kind that the server says it takes, made up after its OpenAPI documents.

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use crate::drive::Server;
use crate::mutate;

/// A kind that can be created.
pub struct Kind {
    /// Where, in the namespace `default`.
    pub path: String,
    pub api_version: String,
    pub kind: String,
    /// Which document, and the name of its type there.
    schema: (usize, String),
}

/// All kinds, and the documents that describe them.
pub struct Kinds {
    pub all: Vec<Kind>,
    documents: Vec<Map<String, Value>>,
}

impl Kinds {
    /// Asks the server.
    pub async fn learn(server: &Server) -> Self {
        let index = server.cluster.get("/openapi/v3").await.json();
        let mut kinds = Self { all: Vec::new(), documents: Vec::new() };
        let paths = index["paths"].as_object().expect("paths").values();
        for url in paths.filter_map(|entry| entry["serverRelativeURL"].as_str()) {
            let document = server.cluster.get(url).await.json();
            let schemas = document.pointer("/components/schemas").and_then(Value::as_object).cloned();
            kinds.documents.push(schemas.unwrap_or_default());
            for (path, item) in document["paths"].as_object().into_iter().flatten() {
                let Some(gvk) = item.pointer("/post/x-kubernetes-group-version-kind") else { continue };
                let body = item.pointer("/post/requestBody/content/*~1*/schema/$ref").and_then(Value::as_str);
                let Some(name) = body.and_then(|name| name.rsplit('/').next()) else { continue };
                let text = |key: &str| gvk[key].as_str().unwrap_or_default().to_owned();
                let (group, version) = (text("group"), text("version"));
                kinds.all.push(Kind {
                    path: path.replace("{namespace}", "default").replace("{name}", "a"),
                    api_version: if group.is_empty() { version } else { format!("{group}/{version}") },
                    kind: text("kind"),
                    schema: (kinds.documents.len() - 1, name.to_owned()),
                });
            }
        }
        assert!(kinds.all.len() > 60, "{} kinds", kinds.all.len());
        kinds
    }

    /// One of the kinds.
    pub fn pick(&self, random: &mut StdRng) -> &Kind {
        mutate::pick(random, &self.all)
    }

    /// An object of a kind.
    pub fn object(&self, random: &mut StdRng, kind: &Kind) -> Value {
        let (document, name) = &kind.schema;
        let schema = json!({ "$ref": format!("/{name}") });
        let mut object = self.value(random, *document, &schema, "", 0);
        if !object.is_object() {
            object = json!({});
        }
        object["apiVersion"] = kind.api_version.clone().into();
        object["kind"] = kind.kind.clone().into();
        if random.random_range(0..8) > 0 {
            object["metadata"] = json!({ "name": format!("n{}", random.random::<u16>()) });
        }
        object
    }

    fn value(&self, random: &mut StdRng, document: usize, schema: &Value, name: &str, depth: u32) -> Value {
        let inner = schema["$ref"].as_str().or_else(|| schema.pointer("/allOf/0/$ref")?.as_str());
        if let Some(inner) = inner.and_then(|r| r.rsplit('/').next()) {
            return match self.documents[document].get(inner) {
                Some(schema) if depth < 12 => self.value(random, document, schema, name, depth + 1),
                _ => Value::Null,
            };
        }
        if random.random_range(0..60) == 0 {
            return mutate::leaf(random);
        }
        match schema["type"].as_str() {
            Some("object") => self.map(random, document, schema, depth),
            Some("array") => {
                let many = if depth > 6 { 1 } else { random.random_range(0..3) };
                (0..many).map(|_| self.value(random, document, &schema["items"], name, depth + 1)).collect()
            }
            Some("boolean") => random.random::<bool>().into(),
            Some("integer" | "number") => match random.random_range(0..4) {
                0 => mutate::leaf(random),
                _ => random.random_range(0..200).into(),
            },
            Some("string") => match schema["enum"].as_array() {
                Some(known) if !known.is_empty() && random.random_range(0..10) > 0 => {
                    mutate::pick(random, known).clone()
                }
                _ => text(random, name),
            },
            _ => mutate::leaf(random),
        }
    }

    fn map(&self, random: &mut StdRng, document: usize, schema: &Value, depth: u32) -> Value {
        let mut out = Map::new();
        let required =
            |name: &str| schema["required"].as_array().is_some_and(|r| r.iter().any(|v| v == name));
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            let chance = if required(name) { 20 } else { 10_u32.saturating_sub(depth) / 3 };
            if random.random_range(0..20) < chance {
                out.insert(name.clone(), self.value(random, document, of, name, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() {
            let value = self.value(random, document, &schema["additionalProperties"], "", depth + 1);
            out.insert(mutate::word(random), value);
        }
        out.into()
    }
}

/// A text for a field of this name, which is often a good one.
fn text(random: &mut StdRng, name: &str) -> Value {
    if random.random() {
        return mutate::word(random).into();
    }
    let good = match name {
        "image" => "nginx:1",
        "protocol" => "TCP",
        "mountPath" | "path" | "hostPath" => "/data",
        "operator" => "Exists",
        "effect" => "NoSchedule",
        "apiGroup" => "rbac.authorization.k8s.io",
        "expression" => "object.metadata.name != ''",
        "schedule" => "*/5 * * * *",
        "topologyKey" => "kubernetes.io/hostname",
        "cidr" => "10.0.0.0/8",
        "ip" | "clusterIP" => "10.96.0.77",
        _ => "abc",
    };
    good.into()
}
