//! Bodies in YAML and patches, refused in the words of Go's readers.

use coracle_client::PatchKind;
use coracle_meta::{Reason, Status};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize as _;
use serde_json::Value;

use crate::verbs::decode;

/// Parses a YAML body.
pub(super) fn yaml(text: &[u8], kind: &str) -> Result<Value, Status> {
    first_document(text).map_err(|e| {
        let (shown, why) = (decode::excerpt(text), yaml_error(&e));
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): yaml: {why} ({shown})"
        ))
    })
}

/// The first document of a YAML text; others are not looked at.
fn first_document(text: &[u8]) -> Result<Value, serde_yaml_ng::Error> {
    match serde_yaml_ng::Deserializer::from_slice(text).next() {
        Some(document) => Value::deserialize(document),
        None => Ok(Value::Null),
    }
}

/// The message of Go's scanner: the line in front, unless it is the first one, and no column.
fn yaml_error(e: &serde_yaml_ng::Error) -> String {
    let text = e.to_string();
    let why = text.split(" at line ").next().unwrap_or("");
    match e.location().map(|place| place.line()) {
        Some(line) if line > 1 => format!("line {line}: {why}"),
        _ => why.to_owned(),
    }
}

/// Which patch the content type says.
pub(super) fn patch_kind(headers: &HeaderMap) -> Result<PatchKind, Status> {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    match text.split(';').next().unwrap_or("").trim() {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => {
            let message = "415: Unsupported Media Type";
            Err(Status::new(415, Reason::UnsupportedMediaType, message, Some(serde_json::json!({}))))
        }
    }
}

/// Reads a patch.
pub(super) fn patch_body(kind: PatchKind, text: &[u8]) -> Result<Value, Status> {
    if kind == PatchKind::Apply {
        let value: Value = first_document(text).map_err(|e| {
            let why = yaml_error(&e);
            Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: yaml: {why}"))
        })?;
        return match go_kind(&value) {
            None => Ok(value),
            Some(kind) => Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} \
                 into Go value of type map[string]interface {{}}"
            ))),
        };
    }
    let value: Value = serde_json::from_slice(text).map_err(|e| {
        Status::bad_request(format!("error decoding patch: {}", decode::syntax_error(text, &e)))
    })?;
    match (kind, go_kind(&value)) {
        (PatchKind::Merge, _) if value.is_null() => Err(Status::bad_request("Invalid JSON Patch")),
        (PatchKind::Merge | PatchKind::Strategic, Some(kind)) => Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
        ))),
        _ => Ok(value),
    }
}

/// Go's name of a JSON type that is neither an object nor null.
fn go_kind(value: &Value) -> Option<&'static str> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::Array(_) => Some("array"),
        Value::String(_) => Some("string"),
        Value::Bool(_) => Some("bool"),
        Value::Number(_) => Some("number"),
    }
}
