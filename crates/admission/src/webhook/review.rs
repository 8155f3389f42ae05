//! The AdmissionReview that a webhook gets, and the checks of the one it sends back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_meta::{DynamicObject, Object, Status};
use coracle_resources::def::ResourceDef;
use serde_json::{Value, json};

use crate::{Environment, Request};

/// A usable answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) allowed: bool,
    /// JSON patch; empty when there is none.
    pub(crate) patch: Vec<u8>,
    pub(crate) patch_type: String,
    /// The Status of a refusal.
    pub(crate) result: Value,
    pub(crate) warnings: Vec<String>,
    pub(crate) audit: Vec<(String, String)>,
}

/// The request of a review, with objects in `def`'s version.
///
/// # Errors
/// 500 when an object cannot be converted.
pub(crate) fn request_json(
    env: &Environment,
    request: &Request<'_>,
    def: &ResourceDef,
    uid: &str,
) -> Result<Value, Status> {
    let namespaces = request.resource.group.is_empty() && request.resource.plural == "namespaces";
    let namespace = if namespaces { request.name } else { request.namespace };
    let show = |obj: &dyn Object| -> Result<Value, Status> {
        if obj.downcast::<DynamicObject>().is_some() && obj.gvk().kind != def.kind {
            return Ok(obj.to_value());
        }
        match env.host() {
            Some(host) => host.show(def, obj),
            None => Ok(obj.to_value()),
        }
    };
    let object = request.object.as_deref().map(|obj| show(&**obj)).transpose()?;
    let old = request.old.map(show).transpose()?;
    let kind = |def: &ResourceDef| {
        // Options of connections, bindings and the like are of a kind of their own.
        let own = request.object.as_deref().map(|obj| obj.gvk()).filter(|gvk| {
            request.object.as_deref().is_some_and(|o| o.downcast::<DynamicObject>().is_some())
                && gvk.kind != def.kind
        });
        match own {
            Some(gvk) => json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind }),
            None => json!({ "group": def.group, "version": def.version, "kind": def.kind }),
        }
    };
    let resource =
        |def: &ResourceDef| json!({ "group": def.group, "version": def.version, "resource": def.plural });
    let operation = request.operation.as_str();
    let mut out = json!({
        "uid": uid,
        "kind": kind(def),
        "resource": resource(def),
        "requestKind": kind(request.resource),
        "requestResource": resource(request.resource),
        "operation": operation,
        "userInfo": request.user.to_json(),
        "object": object,
        "oldObject": old,
        "dryRun": request.dry_run,
        "options": request.options.to_value(request.operation, request.dry_run),
    });
    let texts = [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", request.name),
        ("namespace", namespace),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        out[key] = text.into();
    }
    Ok(out)
}

/// The review around a request.
pub(super) fn wrap(version: &str, request: Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request,
    })
}

/// Reads the answer to the review `uid`.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub(super) fn verify(text: &[u8], uid: &str, version: &str, mutating: bool) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let response = review.get("response").filter(|r| r.is_object()).ok_or("webhook response was absent")?;
    let get = |key: &str| response.get(key).and_then(Value::as_str);
    if version == "v1" {
        let got = get("uid").unwrap_or("");
        if got != uid {
            return Err(format!("expected response.uid={uid:?}, got {got:?}"));
        }
        let own = |key: &str| review.get(key).and_then(Value::as_str).unwrap_or("");
        let (api_version, kind) = (own("apiVersion"), own("kind"));
        if (api_version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
            ));
        }
    }
    let patch = get("patch").map(|p| STANDARD.decode(p)).transpose().map_err(|e| e.to_string())?;
    let patch = patch.unwrap_or_default();
    let kind = get("patchType");
    match (mutating, patch.is_empty(), kind) {
        (false, false, _) => return Err("validating webhook may not return response.patch".to_owned()),
        (false, _, Some(_)) => return Err("validating webhook may not return response.patchType".to_owned()),
        (true, false, None) if version == "v1" => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (true, true, Some(_)) if version == "v1" => {
            return Err("webhook returned response.patchType but not response.patch".to_owned());
        }
        (true, _, Some("")) => return Err("webhook returned invalid response.patchType of \"\"".to_owned()),
        _ => {}
    }
    let texts = |value: Option<&Value>| -> Vec<String> {
        let all = value.and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let audit = response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten();
    Ok(Answer {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        patch,
        patch_type: kind.unwrap_or("JSONPatch").to_owned(),
        result: response.get("status").or_else(|| response.get("result")).cloned().unwrap_or(Value::Null),
        warnings: texts(response.get("warnings")),
        audit: audit.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: &Value, mutating: bool) -> Result<Answer, String> {
        let review =
            json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
        verify(review.to_string().as_bytes(), "u", "v1", mutating)
    }

    #[test]
    fn answers_must_be_to_the_question_and_of_the_right_kind() {
        assert!(answer(&json!({ "uid": "u", "allowed": true }), false).unwrap().allowed);
        let other = answer(&json!({ "uid": "x", "allowed": true }), false).unwrap_err();
        assert_eq!(other, "expected response.uid=\"u\", got \"x\"");
        let patch = json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch" });
        assert_eq!(answer(&patch, false).unwrap_err(), "validating webhook may not return response.patch");
        assert_eq!(answer(&patch, true).unwrap().patch, b"[]");
        assert_eq!(verify(b"{}", "u", "v1", true).unwrap_err(), "webhook response was absent");
    }

    #[test]
    fn warnings_and_notes_are_read() {
        let response = json!({ "uid": "u", "allowed": false, "warnings": ["w"], "auditAnnotations": { "k": "v" },
            "status": { "code": 403, "message": "no" } });
        let got = answer(&response, true).unwrap();
        assert_eq!(got.warnings, ["w"]);
        assert_eq!(got.audit, [("k".to_owned(), "v".to_owned())]);
        let status = super::super::denied("h", &got.result);
        assert_eq!(
            (status.code(), status.message()),
            (403, "admission webhook \"h\" denied the request: no")
        );
    }
}
