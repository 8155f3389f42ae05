//! MutatingAdmissionWebhook: webhooks change requests, one after the other.

use async_trait::async_trait;
use coracle_meta::Status;
use serde_json::{Value, json};
use tracing::warn;

use crate::webhook::{self, Failure, Invocation, Kind};
use crate::{Environment, Plugin, Request};

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
            match call(env, request, &invocation, &place).await {
                Ok(changed) => {
                    note(request, &invocation, &place, changed);
                    if changed {
                        request.reinvocation.require(NAME);
                        request.reinvocation.again = true;
                    }
                }
                Err(Failure::Calling(why)) if invocation.hook.ignore_failure => {
                    let name = &invocation.hook.name;
                    warn!(webhook = %name, %why, "failed calling webhook, failing open");
                    note(request, &invocation, &place, false);
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
    let patch: Value = serde_json::from_slice(&answer.patch)
        .map_err(|e| Failure::Calling(format!("received undecodable patch in webhook response: {e}")))?;
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    let (Some(object), Some(host)) = (request.object.as_deref_mut(), env.host()) else {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Failure::Rejected(Status::internal(why)));
    };
    if answer.patch_type != "JSONPatch" {
        return Err(Failure::Calling(format!("unsupported patch type {:?}", answer.patch_type)));
    }
    let new = webhook::patched(&host, invocation, &**object, &patch).map_err(Failure::Rejected)?;
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
