//! What the two webhook plugins share: which webhooks a request concerns, the review they are sent, and their answers.
//! Follows <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

mod hook;
mod review;

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{DynamicObject, GroupVersionKind, Object, Reason, Status};
use coracle_resources::def::ResourceDef;
use serde_json::Value;

pub(crate) use hook::{Hook, Kind, matches as rule_matches};
pub(crate) use review::{Answer, request_json};

use crate::{Environment, HookAsked, HookOutcome, Host, Operation, Request};

/// Where a webhook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its URL as configured or made of the service's name, without parameters.
    pub url: String,
    /// Namespace, name and port of the service behind it, if it is one.
    pub service: Option<(String, String, u16)>,
    /// PEM of the authorities that its certificate may come from; without it those of the machine.
    pub ca_bundle: Option<Vec<u8>>,
}

impl Target {
    /// Where a webhook is that a service stands before; the port is 443 unless given.
    pub fn of_service(
        namespace: &str,
        name: &str,
        port: Option<i32>,
        path: Option<&str>,
        ca_bundle: Option<Vec<u8>>,
    ) -> Self {
        let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(443);
        let path = path.unwrap_or("");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("https://{name}.{namespace}.svc:{port}{slash}{path}");
        Self { url, service: Some((namespace.to_owned(), name.to_owned(), port)), ca_bundle }
    }
}

/// Why a webhook could not be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// In the words of Go's HTTP client, or of client-go.
    pub why: String,
    /// The code of the answer; 503 when there was none.
    pub code: u16,
}

impl CallError {
    /// There was no answer that could be used.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self { why: why.into(), code: 503 }
    }
}

/// Why a webhook did not let a request pass.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be asked, or its answer could not be used: the failure policy decides.
    Calling(CallError),
    /// It refused.
    Rejected(Status),
    /// The request cannot be sent to it, or its patch does not fit.
    Internal(Status),
}

impl Failure {
    fn calling(why: impl Into<String>) -> Self {
        Self::Calling(CallError::unavailable(why))
    }

    /// The refusal that the client gets when the policy is to fail.
    pub(crate) fn status(self, hook: &str) -> Status {
        match self {
            Self::Calling(e) => Status::internal(format!("failed calling webhook {hook:?}: {}", e.why)),
            Self::Rejected(status) | Self::Internal(status) => status,
        }
    }
}

/// Notes what came of asking a webhook, for metrics.
pub(crate) fn observe(
    env: &Environment,
    operation: Operation,
    (hook, kind): (&Hook, Kind),
    failure: Option<&Failure>,
    took: Duration,
) {
    let outcome = match failure {
        None => HookOutcome::Passed,
        Some(Failure::Calling(e)) if hook.ignore_failure => HookOutcome::FailedOpen(e.code),
        Some(Failure::Calling(e)) => HookOutcome::FailedClosed(e.code),
        Some(Failure::Rejected(status)) => HookOutcome::Refused(status.code()),
        Some(Failure::Internal(_)) => HookOutcome::Internal,
    };
    let step = match kind {
        Kind::Mutating => "admit",
        Kind::Validating => "validating",
    };
    if let Some(host) = env.host() {
        host.observed_webhook(&HookAsked { name: &hook.name, step, operation, outcome, took });
    }
}

/// A webhook that a request concerns, and the version of the resource that it gets.
pub(crate) struct Invocation<'a> {
    pub(crate) hook: Hook,
    pub(crate) def: &'a ResourceDef,
}

/// Whether webhooks are asked about such requests at all: not about the configuration of admission itself, and not
/// about reviews.
pub(crate) fn concerns(request: &Request<'_>) -> bool {
    request.resource.group != "admissionregistration.k8s.io"
}

/// The webhooks of a kind, those of configurations with lesser names first.
pub(crate) fn all(env: &Environment, kind: Kind) -> Vec<Hook> {
    let configurations = env.reader.list("admissionregistration.k8s.io", kind.plural(), "");
    configurations.iter().flat_map(|obj| Hook::of(&**obj)).collect()
}

/// Whether and how the webhook is to be called.
///
/// # Errors
/// 404 when the namespace is not there, 403 when a match condition fails.
pub(crate) fn invocation<'a>(
    env: &Environment,
    request: &Request<'a>,
    hook: Hook,
) -> Result<Option<Invocation<'a>>, Status> {
    let in_namespace = namespace_matches(env, request, &hook);
    if matches!(in_namespace, Ok(false)) || !hook.selects(request) {
        return Ok(None);
    }
    let Some(def) = hook.version_for(request) else { return Ok(None) };
    in_namespace?;
    if !hook.conditions.is_empty() {
        let refused = |why: String| {
            Status::forbidden(request.resource.group, request.resource.plural, request.name, &why)
        };
        let Some(conditions) = &env.conditions else {
            return Err(refused("match conditions cannot be evaluated".to_owned()));
        };
        let review = request_json(env, request, def, "")?;
        if !conditions.hold(env, request, &hook.conditions, &review).map_err(refused)? {
            return Ok(None);
        }
    }
    Ok(Some(Invocation { hook, def }))
}

fn namespace_matches(env: &Environment, request: &Request<'_>, hook: &Hook) -> Result<bool, Status> {
    let own = request.resource.group.is_empty() && request.resource.plural == "namespaces";
    if (request.namespace.is_empty() && !own) || hook.namespaces.is_empty() {
        return Ok(true);
    }
    if own
        && request.subresource.is_empty()
        && let Some(object) = request.object.as_deref()
    {
        return Ok(hook.namespaces.matches_option(object.meta().labels.as_ref()));
    }
    let name = if own { request.name } else { request.namespace };
    let namespace = env.reader.get("", "namespaces", "", name);
    let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", name))?;
    Ok(hook.namespaces.matches_option(namespace.meta().labels.as_ref()))
}

/// Asks a webhook. `mutating`: its answer may carry a patch.
pub(crate) async fn ask(
    env: &Environment,
    request: &Request<'_>,
    invocation: &Invocation<'_>,
    mutating: bool,
) -> Result<Answer, Failure> {
    let hook = &invocation.hook;
    if request.dry_run && !matches!(hook.side_effects.as_str(), "None" | "NoneOnDryRun") {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Internal(Status::bad_request(why)));
    }
    let Some(version) = hook.review_versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1")) else {
        let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, \
                   v1beta1)";
        return Err(Failure::Calling(CallError { why: why.to_owned(), code: 400 }));
    };
    let uid = coracle_stdx::uuid();
    let body = request_json(env, request, invocation.def, &uid).map_err(Failure::Internal)?;
    let body = review::wrap(version, body).to_string().into_bytes();
    let host = env.host().ok_or_else(|| Failure::calling("the server is not ready"))?;
    let target = hook.target().map_err(Failure::calling)?;
    let failed = |e: CallError| {
        Failure::Calling(CallError { why: format!("failed to call webhook: {}", e.why), code: e.code })
    };
    let text = host.call(&target, body, hook.timeout).await.map_err(failed)?;
    review::verify(&text, &uid, version, mutating)
        .map_err(|why| Failure::calling(format!("received invalid webhook response: {why}")))
}

/// The refusal of a webhook, as clients see it.
pub(crate) fn denied(hook: &str, result: &Value) -> Status {
    let text = |key: &str| result.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
    let by = format!("admission webhook {hook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        (Some(message), _) => format!("{by}: {message}"),
        (None, Some(reason)) => format!("{by}: {reason}"),
        (None, None) => format!("{by} without explanation"),
    };
    let code = result.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok()).unwrap_or(0);
    let code = if code < 400 { 400 } else { code };
    let reason = Reason::named(text("reason").unwrap_or(""));
    Status::new(code, reason, message, result.get("details").filter(|d| d.is_object()).cloned())
}

/// The object with a webhook's patch applied.
///
/// # Errors
/// 500 when the patch does not fit the object, or the result does not decode.
pub(crate) fn patched(
    host: &Arc<dyn Host>,
    invocation: &Invocation<'_>,
    object: &dyn Object,
    patch: &Value,
) -> Result<Box<dyn Object>, Status> {
    let gvk = object.gvk();
    let internal = |status: Status| Status::internal(status.message());
    if object.downcast::<DynamicObject>().is_some() && gvk.kind != invocation.def.kind {
        let mut value = object.to_value();
        coracle_meta::patch::json_patch(&mut value, patch).map_err(internal)?;
        let gvk = GroupVersionKind::new(&gvk.group, &gvk.version, &gvk.kind);
        return Ok(Box::new(DynamicObject::from_value(gvk, value).map_err(Status::internal)?));
    }
    let mut value = host.show(invocation.def, object)?;
    coracle_meta::patch::json_patch(&mut value, patch).map_err(internal)?;
    host.read(invocation.def, value).map_err(internal)
}

/// How long a webhook may take if it does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
