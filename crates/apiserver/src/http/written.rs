//! Bodies in YAML and patches, refused in the words of Go's readers.

use coracle_client::PatchKind;
use coracle_meta::{Reason, Status};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use super::yaml::{explain, first_document};
use crate::verbs::decode;

/// Parses a YAML body.
pub(super) fn yaml_body(text: &[u8], kind: &str) -> Result<Value, Status> {
    let value = first_document(text).map_err(|e| {
        let (shown, why) = (decode::excerpt(text), explain(text, &e));
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
        ))
    })?;
    decode::check_shape(&value, text, kind)?;
    Ok(value)
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
            let why = explain(text, &e);
            Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}"))
        })?;
        return match go_kind(&value) {
            None => Ok(value),
            Some(kind) => Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} \
                 into Go value of type map[string]interface {{}}"
            ))),
        };
    }
    // What reads strategic patches does not say that it does.
    let refused = |why: String| match kind {
        PatchKind::Strategic => Status::bad_request(why),
        PatchKind::Json => {
            let why = why.replace(
                "into Go value of type float64",
                "into Go struct field jsonPatchOp.value of type float64",
            );
            Status::bad_request(format!("error decoding patch: {why}"))
        }
        _ => Status::bad_request(format!("error decoding patch: {why}")),
    };
    let value: Value = serde_json::from_slice(text).map_err(|e| refused(decode::syntax_error(text, &e)))?;
    match (kind, go_kind(&value)) {
        (PatchKind::Merge, _) if value.is_null() => Err(Status::bad_request("Invalid JSON Patch")),
        (PatchKind::Merge | PatchKind::Strategic, Some(kind)) => Err(refused(format!(
            "json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
        ))),
        (PatchKind::Json, _) => match operation_fault(&value) {
            Some(why) => Err(refused(why)),
            None => Ok(value),
        },
        _ => Ok(value),
    }
}

/// What Go says of a JSON patch whose operations are none.
fn operation_fault(patch: &Value) -> Option<String> {
    patch.as_array()?.iter().find_map(|operation| {
        if let Some(kind) = go_kind(operation) {
            return Some(format!("json: cannot unmarshal {kind} into Go value of type handlers.jsonPatchOp"));
        }
        let wrong = |name: &&str| operation.get(name).is_some_and(|v| !v.is_string() && !v.is_null());
        let name = ["op", "path", "from"].into_iter().find(wrong)?;
        let kind = go_kind(&operation[name]).unwrap_or("object");
        Some(format!("json: cannot unmarshal {kind} into Go struct field jsonPatchOp.{name} of type string"))
    })
}

/// What a strict reader says of a JSON patch: fields of operations that stand twice, or that there are none of.
pub(super) fn json_patch_errors(text: &[u8], patch: &Value) -> Vec<String> {
    let mut out = coracle_meta::schema::duplicate_fields(text);
    for (i, operation) in patch.as_array().into_iter().flatten().enumerate() {
        let fields = operation.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let unknown = fields.filter(|name| !matches!(*name, "op" | "path" | "from" | "value"));
        out.extend(unknown.map(|name| format!("unknown field \"[{i}].{name}\"")));
    }
    out.into_iter().map(|why| format!("json patch {why}")).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_that_are_none_are_refused_in_the_words_of_their_readers() {
        let into = "into Go value of type map[string]interface {}";
        for (kind, text, wanted) in [
            (PatchKind::Strategic, "[]", format!("json: cannot unmarshal array {into}")),
            (PatchKind::Merge, "5", format!("error decoding patch: json: cannot unmarshal number {into}")),
            (
                PatchKind::Json,
                "[5]",
                "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp"
                    .to_owned(),
            ),
            (
                PatchKind::Json,
                "[{\"op\":\"add\",\"path\":[]}]",
                "error decoding patch: json: cannot unmarshal array into Go struct field jsonPatchOp.path of type \
                 string"
                    .to_owned(),
            ),
        ] {
            assert_eq!(patch_body(kind, text.as_bytes()).unwrap_err().message(), wanted);
        }
        assert!(patch_body(PatchKind::Json, b"[null]").is_ok(), "told of when it is applied");
    }
}
