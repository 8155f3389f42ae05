//! Definitions of custom resources with schemas of all shapes, and objects of those that were accepted.

use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use crate::drive::{Input, Server, Target};
use crate::mutate::{self, pick, word};

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const RULES: &[&str] = &[
    "self > 0",
    "self == oldSelf",
    "self.a == self.b",
    "self.all(x, x != '')",
    "has(self.a)",
    "size(self) < 10",
    "self.map(x, x + 1).exists(y, y in self)",
    "self.matches('^a+$')",
    "quantity(self).isGreaterThan(quantity('1'))",
    "self.",
    "self.all(a, self.all(b, self.all(c, a == b)))",
    "isURL(self) && url(self).getHost() == 'a'",
    "true",
    "1/0 == 1",
];
/// Definitions that are made in earnest.
const MADE: usize = 12;

/// Schemas, and what they are for.
pub struct Schemas {
    /// Accepted, to be made in earnest.
    wanted: Vec<Value>,
    made: usize,
    /// Schemas of definitions that exist, by their number.
    served: Vec<Value>,
}

impl Schemas {
    pub async fn new(_: &Server) -> Self {
        Self { wanted: Vec::new(), made: 0, served: Vec::new() }
    }
}

fn schema(random: &mut StdRng, depth: u32) -> Value {
    let mut out = Map::new();
    let kind = *pick(random, &["object", "object", "array", "string", "integer", "number", "boolean"]);
    let kind = if depth == 0 { *pick(random, &["string", "integer", "boolean"]) } else { kind };
    out.insert("type".into(), kind.into());
    match kind {
        "object" if random.random_range(0..3) == 0 => {
            out.insert("additionalProperties".into(), schema(random, depth - 1));
        }
        "object" => {
            let names = ["a", "b", "c", "spec", "status", "metadata", "x-y", "$ref"];
            let some = (0..random.random_range(0..4))
                .map(|_| ((*pick(random, &names)).to_owned(), schema(random, depth - 1)));
            out.insert("properties".into(), some.collect::<Map<_, _>>().into());
        }
        "array" => {
            out.insert("items".into(), schema(random, depth - 1));
            if random.random_range(0..3) == 0 {
                out.insert(
                    "x-kubernetes-list-type".into(),
                    (*pick(random, &["set", "map", "atomic", "x"])).into(),
                );
                out.insert("x-kubernetes-list-map-keys".into(), json!(["a"]));
            }
        }
        _ => {}
    }
    for _ in 0..random.random_range(0..3) {
        let (name, value) = keyword(random, depth);
        out.insert(name.into(), value);
    }
    out.into()
}

fn keyword(random: &mut StdRng, depth: u32) -> (&'static str, Value) {
    let number = Value::from(*pick(random, &[0, 1, -1, 5, 100, i64::MAX]));
    match random.random_range(0..20) {
        0 => ("nullable", random.random::<bool>().into()),
        1 => ("default", mutate::leaf(random)),
        2 => ("enum", json!([mutate::leaf(random), mutate::leaf(random)])),
        3 => ("pattern", word(random).into()),
        4 => (
            "format",
            (*pick(
                random,
                &["date-time", "byte", "int32", "uuid", "ipv4", "duration", "x", "email", "password"],
            ))
            .into(),
        ),
        5 => (*pick(random, &["minimum", "maximum", "multipleOf"]), number),
        6 => (
            *pick(
                random,
                &["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"],
            ),
            number,
        ),
        7 => ("required", json!(["a", word(random)])),
        8 => (*pick(random, &["allOf", "anyOf", "oneOf"]), json!([schema(random, depth.saturating_sub(1))])),
        9 => ("not", schema(random, depth.saturating_sub(1))),
        10 => ("x-kubernetes-int-or-string", true.into()),
        11 => ("x-kubernetes-preserve-unknown-fields", true.into()),
        12 => ("x-kubernetes-embedded-resource", true.into()),
        13 => ("uniqueItems", random.random::<bool>().into()),
        14 => (*pick(random, &["exclusiveMinimum", "exclusiveMaximum"]), true.into()),
        _ => {
            let rule = json!({ "rule": pick(random, RULES), "message": word(random), "messageExpression": "'a' + string(self)" });
            ("x-kubernetes-validations", json!([rule]))
        }
    }
}

fn definition(name: &str, schema: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{name}s.f.example.com") },
        "spec": { "group": "f.example.com", "scope": "Namespaced", "names": { "plural": format!("{name}s"), "kind": name.to_uppercase() },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                "additionalPrinterColumns": [{ "name": "A", "type": "string", "jsonPath": ".spec.a" }],
                "selectableFields": [] }] },
    })
}

/// A value that a schema may be about.
fn value(random: &mut StdRng, schema: &Value, depth: u32) -> Value {
    if random.random_range(0..12) == 0 || depth > 8 {
        return mutate::leaf(random);
    }
    match schema["type"].as_str() {
        Some("object") => {
            let of = |random: &mut StdRng, s: &Value| value(random, s, depth + 1);
            let own = schema["properties"].as_object().into_iter().flatten();
            let mut out: Map<String, Value> = own.map(|(name, s)| (name.clone(), of(random, s))).collect();
            if schema["additionalProperties"].is_object() {
                out.insert(word(random), of(random, &schema["additionalProperties"]));
            }
            out.into()
        }
        Some("array") => {
            (0..random.random_range(0..4)).map(|_| value(random, &schema["items"], depth + 1)).collect()
        }
        Some("string") => word(random).into(),
        Some("integer") => random.random_range(-2..200).into(),
        Some("boolean") => true.into(),
        _ => mutate::leaf(random),
    }
}

impl Target for Schemas {
    fn next(&mut self, random: &mut StdRng) -> Input {
        if let Some(schema) = self.wanted.pop() {
            let definition = definition(&format!("t{}", self.made), &schema);
            self.made += 1;
            self.served.push(schema);
            return Input::new(Method::POST, PATH)
                .with("application/json", definition.to_string().into_bytes());
        }
        if !self.served.is_empty() && random.random_range(0..3) > 0 {
            let which = random.random_range(0..self.served.len());
            let mut object = value(random, &self.served[which], 0);
            if !object.is_object() || random.random_range(0..5) == 0 {
                object = json!({ "spec": object });
            }
            object["apiVersion"] = "f.example.com/v1".into();
            object["kind"] = format!("T{which}").into();
            object["metadata"] = json!({ "name": format!("o{}", random.random_range(0..50)) });
            for _ in 0..random.random_range(0..3) {
                mutate::value(random, &mut object);
            }
            let path = format!("/apis/f.example.com/v1/namespaces/default/t{which}s");
            let (method, path) = match random.random_range(0..4) {
                0 => (
                    Method::PATCH,
                    format!("{path}/o{}?fieldManager=f&force=true", random.random_range(0..50)),
                ),
                _ => (Method::POST, path),
            };
            let kind =
                if method == Method::PATCH { "application/apply-patch+yaml" } else { "application/json" };
            return Input::new(method, path).with(kind, object.to_string().into_bytes());
        }
        let mut top = schema(random, 5);
        top["type"] = "object".into();
        if random.random_range(0..4) == 0 {
            mutate::value(random, &mut top);
        }
        let mut body = definition("try", &top).to_string();
        if random.random_range(0..60) == 0 {
            let nested = mutate::nested(random, &[("{\"type\":\"object\",\"properties\":{\"a\":", "}}")])
                .replace('1', "{}");
            body = body.replace(&top.to_string(), &nested);
        }
        Input::new(Method::POST, format!("{PATH}?dryRun=All")).with("application/json", body.into_bytes())
    }

    fn learn(&mut self, input: &Input, code: u16, body: &[u8]) {
        if code != 201 || !input.target.ends_with("dryRun=All") || self.made >= MADE {
            return;
        }
        let made: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(schema) = made.pointer("/spec/versions/0/schema/openAPIV3Schema") else { return };
        // Small ones are accepted most, and least of all worth it.
        if schema.to_string().len() > 200 {
            self.wanted.push(schema.clone());
        }
    }
}
