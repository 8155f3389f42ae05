//! MutatingAdmissionWebhook: webhooks change requests, one after the other.

use std::time::Instant;

use async_trait::async_trait;
use coracle_meta::Status;
use serde_json::{Value, json};
use tracing::warn;

use crate::webhook::{self, Failure, Invocation, Kind};
use crate::{CallError, Environment, Plugin, Request};

/// The plugin.
pub(super) struct MutatingWebhook;

const NAME: &str = "MutatingAdmissionWebhook";

#[async_trait]
impl Plugin for MutatingWebhook {
    fn name(&self) -> &'static str {
        NAME
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        webhook::concerns(request)
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let hooks = webhook::all(env, Kind::Mutating);
        if hooks.is_empty() {
            return Ok(());
        }
        let round = request.reinvocation.round;
        let shape = request.object.as_deref().map(|obj| obj.to_value());
        if round > 0 && request.reinvocation.changed_since(NAME, shape.as_ref()) {
            request.reinvocation.require(NAME);
        }
        for (index, hook) in hooks.into_iter().enumerate() {
            let Some(invocation) = webhook::invocation(env, request, hook)? else { continue };
            if round > 0 && !request.reinvocation.wants(NAME, &invocation.hook.uid) {
                continue;
            }
            let place = format!("round_{round}_index_{index}");
            let started = Instant::now();
            let called = call(env, request, &invocation, &place).await;
            let asked = (&invocation.hook, Kind::Mutating);
            webhook::observe(env, request.operation, asked, called.as_ref().err(), started.elapsed());
            note(request, &invocation, &place, called.as_ref().is_ok_and(|changed| *changed));
            match called {
                Ok(changed) => {
                    if changed {
                        request.reinvocation.require(NAME);
                        request.reinvocation.again = true;
                    }
                }
                Err(Failure::Calling(e)) if invocation.hook.ignore_failure => {
                    let name = &invocation.hook.name;
                    warn!(webhook = %name, why = e.why, "failed calling webhook, failing open");
                    let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
                    request.annotate(&key, name.clone());
                }
                Err(failure) => return Err(failure.status(&invocation.hook.name)),
            }
            if invocation.hook.again {
                request.reinvocation.invoked(NAME, &invocation.hook.uid);
            }
        }
        let shape = request.object.as_deref().map(|obj| obj.to_value());
        request.reinvocation.output(NAME, shape);
        Ok(())
    }
}

/// Asks the webhook and applies its patch; tells whether that changed the object.
async fn call(
    env: &Environment,
    request: &mut Request<'_>,
    invocation: &Invocation<'_>,
    place: &str,
) -> Result<bool, Failure> {
    let hook = &invocation.hook;
    let answer = webhook::ask(env, request, invocation, true).await?;
    for (key, value) in answer.audit {
        request.annotate(&format!("{}/{key}", hook.name), value);
    }
    request.warnings.extend(answer.warnings);
    if !answer.allowed {
        return Err(Failure::Rejected(webhook::denied(&hook.name, &answer.result)));
    }
    if answer.patch.is_empty() {
        return Ok(false);
    }
    let undecodable = |e| format!("received undecodable patch in webhook response: {e}");
    let patch: Value = serde_json::from_slice(&answer.patch)
        .map_err(|e| Failure::Calling(CallError::unavailable(undecodable(e))))?;
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let (Some(object), Some(host)) = (request.object.as_deref_mut(), env.host()) else {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Failure::Internal(Status::internal(why)));
    };
    if answer.patch_type != "JSONPatch" {
        let why = format!("unsupported patch type {:?}", answer.patch_type);
        return Err(Failure::Calling(CallError::unavailable(why)));
    }
    let new = webhook::patched(&host, invocation, &**object, &patch).map_err(Failure::Internal)?;
    let changed = new.to_value() != object.to_value();
    *object = new;
    let said = json!({
        "configuration": hook.configuration, "webhook": hook.name, "patch": patch, "patchType": "JSONPatch",
    });
    request.annotate(&format!("patch.webhook.admission.k8s.io/{place}"), said.to_string());
    Ok(changed)
}

fn note(request: &mut Request<'_>, invocation: &Invocation<'_>, place: &str, mutated: bool) {
    let hook = &invocation.hook;
    let said = json!({ "configuration": hook.configuration, "webhook": hook.name, "mutated": mutated });
    request.annotate(&format!("mutation.webhook.admission.k8s.io/{place}"), said.to_string());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use coracle_auth::{Attributes, Decision};
    use coracle_meta::Object;
    use coracle_resources::def::ResourceDef;
    use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace};

    use super::super::testing::{Said, admit_inside};
    use super::*;
    use crate::{HookTarget, Host};

    /// A server whose webhooks answer by their path.
    struct Fake;

    #[async_trait]
    impl Host for Fake {
        async fn update_status(&self, _: &str, _: &str, _: Box<dyn Object>) -> Result<(), Status> {
            Err(Status::no_such_path())
        }
        fn show(&self, _: &ResourceDef, obj: &dyn Object) -> Result<Value, Status> {
            Ok(obj.to_value())
        }
        fn read(&self, _: &ResourceDef, value: Value) -> Result<Box<dyn Object>, Status> {
            let map: ConfigMap = serde_json::from_value(value).map_err(Status::internal)?;
            Ok(Box::new(map))
        }
        async fn call(&self, target: &HookTarget, body: Vec<u8>, _: Duration) -> Result<Vec<u8>, CallError> {
            let review: Value = serde_json::from_slice(&body).unwrap();
            let uid = review["request"]["uid"].clone();
            let mut response = json!({ "uid": uid, "allowed": true });
            match target.url.rsplit('/').next() {
                Some("patch") => {
                    let patch = json!([{ "op": "add", "path": "/data", "value": { "k": "v" } }]).to_string();
                    response["patch"] = STANDARD.encode(patch).into();
                    response["patchType"] = "JSONPatch".into();
                    response["warnings"] = json!(["patched"]);
                }
                Some("deny") => {
                    response = json!({ "uid": uid, "allowed": false, "status": { "message": "no" } })
                }
                _ => return Err(CallError::unavailable("Post \"https://x\": connection refused")),
            }
            let kind = "AdmissionReview";
            let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": kind, "response": response });
            Ok(review.to_string().into_bytes())
        }
        fn merge(&self, _: &ResourceDef, _: Value, _: &Value) -> Result<Value, String> {
            Err("nothing is applied here".to_owned())
        }
        fn authorize(&self, _: &Attributes) -> (Decision, String) {
            (Decision::NoOpinion, String::new())
        }
    }

    fn run(path: &str, extra: Value) -> Result<(Value, Said), String> {
        let mut hook = json!({ "name": "h.example.com", "clientConfig": { "url": format!("https://h/{path}") },
            "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["configmaps"] }],
            "sideEffects": "None", "admissionReviewVersions": ["v1"] });
        hook.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let configuration: MutatingWebhookConfiguration =
            serde_json::from_value(json!({ "metadata": { "name": "c" }, "webhooks": [hook] })).unwrap();
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": "ns", "labels": { "a": "b" } } })).unwrap();
        let meta = json!({ "name": "m", "namespace": "ns" });
        let map: ConfigMap = serde_json::from_value(json!({ "metadata": meta })).unwrap();
        let mut object: Box<dyn Object> = Box::new(map);
        let host: Arc<dyn Host> = Arc::new(Fake);
        let objects: [Arc<dyn Object>; 2] = [Arc::new(configuration), Arc::new(namespace)];
        let said = admit_inside(&host, &MutatingWebhook, &objects, ("", "configmaps"), &mut object);
        let said = said.map_err(|status| status.message().to_owned())?;
        Ok((object.to_value()["data"].clone(), said))
    }

    #[test]
    fn patches_change_the_object_and_are_noted() {
        let (data, (warnings, notes)) = run("patch", json!({})).unwrap();
        assert_eq!((data, warnings), (json!({ "k": "v" }), vec!["patched".to_owned()]));
        let (key, said) = notes.last().unwrap();
        assert_eq!(key, "mutation.webhook.admission.k8s.io/round_0_index_0");
        assert_eq!(said, r#"{"configuration":"c","mutated":true,"webhook":"h.example.com"}"#);
    }

    #[test]
    fn refusals_and_failures_are_told_as_upstream_does() {
        let denied = "admission webhook \"h.example.com\" denied the request: no";
        assert_eq!(run("deny", json!({})).unwrap_err(), denied);
        let failed = "Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \
                      \"https://x\": connection refused";
        assert_eq!(run("down", json!({})).unwrap_err(), failed);
        let open = run("down", json!({ "failurePolicy": "Ignore" })).unwrap();
        assert!(
            open.1.1.iter().any(|(k, _)| k.starts_with("failed-open.mutation.webhook.admission.k8s.io/"))
        );
    }

    #[test]
    fn selectors_and_rules_decide_who_is_asked() {
        let none = |extra: Value| assert_eq!(run("deny", extra).unwrap().0, Value::Null);
        none(json!({ "namespaceSelector": { "matchLabels": { "a": "c" } } }));
        none(json!({ "objectSelector": { "matchLabels": { "x": "y" } } }));
        let rule = |key: &str, value: &str| {
            let mut rule = json!({ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["configmaps"] });
            rule[key] = if key == "scope" { value.into() } else { json!([value]) };
            json!({ "rules": [rule] })
        };
        none(rule("operations", "UPDATE"));
        none(rule("resources", "configmaps/status"));
        none(rule("scope", "Cluster"));
        assert!(run("deny", rule("resources", "*/*")).is_err());
    }
}
