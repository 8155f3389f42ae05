//! Writes operations as OpenAPI v2 or v3.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::operations::{Operation, PathItem};
use super::params::Param;

/// Which document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    V2,
    V3,
}

impl Flavour {
    /// What a reference to a definition begins with.
    pub(super) fn definitions(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }
}

const ENCODINGS: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// All paths of a document.
pub(super) fn paths(items: &BTreeMap<String, PathItem>, flavour: Flavour) -> Value {
    let one = |item: &PathItem| -> Value {
        let mut out = Map::new();
        if !item.params.is_empty() {
            let params: Vec<Value> = item.params.iter().map(|p| param(p, flavour)).collect();
            out.insert("parameters".into(), params.into());
        }
        for operation in &item.operations {
            out.insert(operation.method.into(), self::operation(operation, flavour));
        }
        Value::Object(out)
    };
    items.iter().map(|(path, item)| (path.clone(), one(item))).collect::<Map<_, _>>().into()
}

fn param(param: &Param, flavour: Flavour) -> Value {
    let mut out = json!({ "name": param.name, "in": param.place, "description": param.description });
    match flavour {
        Flavour::V2 => {
            out["type"] = param.kind.into();
            out["uniqueItems"] = true.into();
        }
        Flavour::V3 => out["schema"] = json!({ "type": param.kind, "uniqueItems": true }),
    }
    if param.place == "path" {
        out["required"] = true.into();
    }
    out
}

fn operation(operation: &Operation, flavour: Flavour) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("{}{name}", flavour.definitions()) });
    let mut out = json!({
        "description": operation.description, "operationId": operation.id, "tags": [operation.tag],
    });
    let mut params: Vec<Value> = operation.params.iter().map(|p| param(p, flavour)).collect();
    let is_patch = operation.method == "patch" && operation.body.is_some();
    let consumes: &[&str] = match (is_patch, operation.custom) {
        (true, false) => &PATCHES,
        (true, true) => &CUSTOM_PATCHES,
        (false, false) => &["*/*"],
        (false, true) => &ENCODINGS[..2],
    };
    let produces: Vec<&str> = match (operation.action, &operation.answer) {
        _ if operation.custom => ENCODINGS[..2].to_vec(),
        (Some("connect"), _) => vec!["*/*"],
        (Some("list" | "watch" | "watchlist"), _) => [&ENCODINGS[..], &STREAMS[..]].concat(),
        (_, None) => [&["text/plain"], &ENCODINGS[..]].concat(),
        _ => ENCODINGS.to_vec(),
    };
    let answer = match &operation.answer {
        Some(name) => reference(name),
        None => json!({ "type": "string" }),
    };
    let content = |types: &[&str], schema: &Value| -> Value {
        types.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>().into()
    };
    let mut responses = Map::new();
    for code in operation.codes {
        let text = match *code {
            "201" => "Created",
            "202" => "Accepted",
            "401" => "Unauthorized",
            _ => "OK",
        };
        let mut response = json!({ "description": text });
        match flavour {
            _ if *code == "401" => {}
            Flavour::V2 => response["schema"] = answer.clone(),
            Flavour::V3 => response["content"] = content(&produces, &answer),
        }
        responses.insert((*code).to_owned(), response);
    }
    out["responses"] = responses.into();
    match (&operation.body, flavour) {
        (Some((name, required)), Flavour::V2) => {
            let mut body = json!({ "name": "body", "in": "body", "schema": reference(name) });
            if *required {
                body["required"] = true.into();
            }
            params.insert(0, body);
        }
        (Some((name, required)), Flavour::V3) => {
            let mut body = json!({ "content": content(consumes, &reference(name)) });
            if *required {
                body["required"] = true.into();
            }
            out["requestBody"] = body;
        }
        (None, _) => {}
    }
    if flavour == Flavour::V2 {
        out["consumes"] = json!(consumes);
        out["produces"] = json!(produces);
        out["schemes"] = json!(["https"]);
    }
    if !params.is_empty() {
        out["parameters"] = params.into();
    }
    if let Some(action) = operation.action {
        out["x-kubernetes-action"] = action.into();
    }
    if let Some(gvk) = &operation.gvk {
        out["x-kubernetes-group-version-kind"] =
            json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind });
    }
    out
}
