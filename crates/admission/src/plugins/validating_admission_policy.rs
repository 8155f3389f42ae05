//! ValidatingAdmissionPolicy: policies in CEL refuse requests, warn about them, or note them for the audit log.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_cel::Value;
use coracle_meta::{Object, Reason, Status};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy as Policy, ValidatingAdmissionPolicyBinding as Binding,
    ValidatingAdmissionPolicySpec,
};
use serde_json::json;

use crate::policy::{self, BUDGET, Builder, Cache, Compiled, Input, Run};
use crate::{Environment, Plugin, Request};

const GROUP: &str = "admissionregistration.k8s.io";
/// Bytes of a message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;
/// Bytes of the value of an audit annotation.
const MAX_ANNOTATION: usize = 10 * 1024;

/// The plugin.
#[derive(Default)]
pub(super) struct ValidatingAdmissionPolicy {
    compiled: Cache,
}

/// Why a request is refused.
struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: Option<String>,
}

/// What one expression decided against the request.
struct Verdict {
    index: usize,
    message: String,
    reason: Option<String>,
}

#[async_trait]
impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        policy::concerns(request)
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let bindings = env.reader.list(GROUP, "validatingadmissionpolicybindings", "");
        if bindings.is_empty() {
            return Ok(());
        }
        let policies = env.reader.list(GROUP, "validatingadmissionpolicies", "");
        self.compiled.keep(&policies.iter().map(|policy| policy.name()).collect::<Vec<_>>());
        let mut denials = Vec::new();
        for object in &policies {
            let Some(policy) = object.downcast::<Policy>() else { continue };
            let own: Vec<&Binding> = bindings
                .iter()
                .filter_map(|binding| binding.downcast::<Binding>())
                .filter(|binding| binding.spec.policy_name == object.name())
                .collect();
            if let Some(spec) = policy.spec.as_ref().filter(|_| !own.is_empty()) {
                self.ask(env, request, (&**object, spec), &own, &mut denials)?;
            }
        }
        match denials.into_iter().next() {
            Some(denial) => Err(denial.status(request)),
            None => Ok(()),
        }
    }
}

impl ValidatingAdmissionPolicy {
    fn ask(
        &self,
        env: &Environment,
        request: &mut Request<'_>,
        (object, spec): (&dyn Object, &ValidatingAdmissionPolicySpec),
        bindings: &[&Binding],
        denials: &mut Vec<Denial>,
    ) -> Result<(), Status> {
        let mut asked = Asked { policy: object.name(), ignore: is_lenient(spec), denials };
        let Some(constraints) = &spec.match_constraints else {
            asked.misconfigured(None, "policy contained no match constraints, a required field".to_owned());
            return Ok(());
        };
        let def = match policy::matched(env, request, constraints) {
            Err(why) => {
                asked.misconfigured(None, why);
                return Ok(());
            }
            Ok(None) => return Ok(()),
            Ok(Some(def)) => def,
        };
        if let Some(kind) = spec.param_kind.as_ref().filter(|kind| !policy::is_known(env, kind)) {
            asked.misconfigured(None, policy::unknown(kind));
            return Ok(());
        }
        let compiled = self.compiled.get(object, || compile(spec));
        let mut input: Option<Input> = None;
        let mut annotations = Annotations::default();
        for binding in bindings {
            let (bound, name) = (&binding.spec, binding.metadata.name.as_deref().unwrap_or(""));
            let matched =
                bound.match_resources.as_ref().map(|resources| policy::matched(env, request, resources));
            match matched {
                Some(Err(why)) => {
                    asked.misconfigured(Some(name), why);
                    continue;
                }
                Some(Ok(None)) => continue,
                _ => {}
            }
            let found =
                policy::params(env, spec.param_kind.as_ref(), bound.param_ref.as_ref(), request.namespace);
            let params = match found {
                Ok(params) => params,
                Err(why) => {
                    asked.misconfigured(Some(name), why);
                    continue;
                }
            };
            let base = match &input {
                Some(input) => input,
                None => input.insert(Input::new(env, request, def)?),
            };
            let actions = &bound.validation_actions;
            for param in params {
                let json = param.map(|param| param.to_value());
                let judged = judge(spec, &compiled, &base.with_params(json.as_ref()));
                for verdict in judged.verdicts {
                    asked.act(request, name, actions, verdict);
                }
                for (key, value) in judged.annotations {
                    match value {
                        Ok(value) => annotations.add(key, value),
                        Err(_) if asked.ignore => {}
                        Err(message) => asked.deny(Some(name), message, None),
                    }
                }
            }
        }
        annotations.publish(object.name(), request);
        Ok(())
    }
}

fn is_lenient(spec: &ValidatingAdmissionPolicySpec) -> bool {
    spec.failure_policy.as_deref() == Some("Ignore")
}

/// A policy under evaluation and the refusals so far.
struct Asked<'a> {
    policy: &'a str,
    ignore: bool,
    denials: &'a mut Vec<Denial>,
}

impl Asked<'_> {
    fn deny(&mut self, binding: Option<&str>, message: String, reason: Option<String>) {
        let (policy, binding) = (self.policy.to_owned(), binding.map(str::to_owned));
        self.denials.push(Denial { policy, binding, message, reason });
    }

    fn misconfigured(&mut self, binding: Option<&str>, why: String) {
        if !self.ignore {
            let part = if binding.is_some() { "binding" } else { "policy" };
            self.deny(binding, format!("failed to configure {part}: {why}"), None);
        }
    }

    /// Does what the binding wants done about a verdict against the request.
    fn act(&mut self, request: &mut Request<'_>, binding: &str, actions: &[String], verdict: Verdict) {
        for action in actions {
            match action.as_str() {
                "Deny" => self.deny(Some(binding), verdict.message.clone(), verdict.reason.clone()),
                "Warn" => request.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{binding}': {}",
                    self.policy, verdict.message
                )),
                "Audit" => {
                    let noted = json!([{
                        "message": verdict.message,
                        "policy": self.policy,
                        "binding": binding,
                        "expressionIndex": verdict.index,
                        "validationActions": actions,
                    }]);
                    let key = "validation.policy.admission.k8s.io/validation_failure";
                    request.annotate(key, noted.to_string());
                }
                _ => {}
            }
        }
    }
}

impl Denial {
    fn status(self, request: &Request<'_>) -> Status {
        let (policy, message) = (&self.policy, &self.message);
        let message = match &self.binding {
            Some(binding) => format!(
                "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}"
            ),
            None => format!("ValidatingAdmissionPolicy '{policy}' denied request: {message}"),
        };
        let (code, reason) = match self.reason.as_deref() {
            Some("Forbidden") => (403, Reason::Forbidden),
            Some("Unauthorized") => (401, Reason::Unauthorized),
            Some("RequestEntityTooLarge") => (413, Reason::RequestEntityTooLarge),
            _ => (422, Reason::Invalid),
        };
        let forbidden = request.forbidden(&message);
        let mut details = forbidden.details().cloned().unwrap_or_else(|| json!({}));
        details["causes"] = json!([{ "message": message }]);
        Status::new(code, reason, forbidden.message(), Some(details))
    }
}

fn compile(spec: &ValidatingAdmissionPolicySpec) -> Compiled {
    let mut builder = Builder::new(
        spec.param_kind.is_some(),
        spec.variables.as_deref().unwrap_or_default(),
        spec.match_conditions.as_deref().unwrap_or_default(),
    );
    for validation in spec.validations.iter().flatten() {
        builder.validation(&validation.expression, validation.message_expression.as_deref());
    }
    for annotation in spec.audit_annotations.iter().flatten() {
        builder.annotation(annotation.value_expression.trim());
    }
    builder.finish()
}

/// What a policy says of a request with one parameter.
#[derive(Default)]
struct Judged {
    verdicts: Vec<Verdict>,
    /// Audit annotations by key, with their value or what went wrong with it.
    annotations: Vec<(String, Result<String, String>)>,
}

fn judge(spec: &ValidatingAdmissionPolicySpec, compiled: &Arc<Compiled>, input: &Arc<Input>) -> Judged {
    let failed = |message: String| {
        let verdict = Verdict { index: 0, message, reason: None };
        let verdicts = if is_lenient(spec) { Vec::new() } else { vec![verdict] };
        Judged { verdicts, annotations: Vec::new() }
    };
    match compiled.concerns(input) {
        Err(why) => return failed(why),
        Ok(false) => return Judged::default(),
        Ok(true) => {}
    }
    let run = Run::new(input.clone(), compiled.clone(), true);
    let (mut budget, mut results) = (BUDGET, Vec::with_capacity(compiled.main.len()));
    for condition in &compiled.main {
        match run.evaluate(condition, &mut budget) {
            Ok(result) => results.push(result),
            Err(why) => return failed(why),
        }
    }
    let messages = messages(compiled, input, budget);
    let mut judged = Judged::default();
    for (index, result) in results.into_iter().enumerate() {
        let Some(validation) = spec.validations.as_ref().and_then(|list| list.get(index)) else { continue };
        let verdict = match (result, &messages) {
            (Err(_), _) if is_lenient(spec) => continue,
            (Err(message), _) => Verdict { index, message, reason: None },
            (Ok(Value::Bool(true)), _) => continue,
            (Ok(_), Err(_)) if is_lenient(spec) => continue,
            (Ok(_), Err(why)) => {
                Verdict { index, message: format!("failed messageExpression: {why}"), reason: None }
            }
            (Ok(_), Ok(messages)) => {
                let made = messages.get(index).cloned().flatten();
                let plain = validation.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
                let fallback = || format!("failed expression: {}", validation.expression.trim());
                let message = made.or_else(|| plain.map(str::to_owned)).unwrap_or_else(fallback);
                Verdict { index, message, reason: validation.reason.clone() }
            }
        };
        judged.verdicts.push(verdict);
    }
    annotate(spec, compiled, input, &mut judged);
    judged
}

/// The messages that expressions make, where they make usable ones.
fn messages(
    compiled: &Arc<Compiled>,
    input: &Arc<Input>,
    mut budget: i64,
) -> Result<Vec<Option<String>>, String> {
    let run = Run::new(input.clone(), compiled.clone(), false);
    let mut made = Vec::with_capacity(compiled.messages.len());
    for message in &compiled.messages {
        let Some(message) = message else {
            made.push(None);
            continue;
        };
        let text = match run.evaluate(message, &mut budget)? {
            Ok(Value::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        };
        made.push(text.filter(|t| !t.is_empty() && t.len() <= MAX_MESSAGE && !t.contains('\n')));
    }
    Ok(made)
}

fn annotate(
    spec: &ValidatingAdmissionPolicySpec,
    compiled: &Arc<Compiled>,
    input: &Arc<Input>,
    judged: &mut Judged,
) {
    let run = Run::new(input.clone(), compiled.clone(), true);
    let mut budget = BUDGET;
    for (annotation, condition) in spec.audit_annotations.iter().flatten().zip(&compiled.annotations) {
        let value = match run.evaluate(condition, &mut budget) {
            Err(why) | Ok(Err(why)) => Err(why),
            Ok(Ok(Value::String(text))) if text.trim().is_empty() => continue,
            Ok(Ok(Value::String(text))) => Ok(text.trim().to_owned()),
            Ok(Ok(Value::Null)) => continue,
            Ok(Ok(other)) => Err(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string \
                 or null.",
                annotation.value_expression,
                other.type_of()
            )),
        };
        judged.annotations.push((annotation.key.clone(), value));
    }
}

/// Values for the audit log by key; those of several bindings are joined.
#[derive(Default)]
struct Annotations(Vec<(String, Vec<String>)>);

impl Annotations {
    fn add(&mut self, key: String, mut value: String) {
        if value.len() > MAX_ANNOTATION {
            let end = (0..=MAX_ANNOTATION).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
            value.truncate(end);
        }
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => self.0.push((key, vec![value])),
        }
    }

    fn publish(self, policy: &str, request: &mut Request<'_>) {
        for (key, values) in self.0 {
            request.annotate(&format!("{policy}/{key}"), values.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value};

    use super::super::testing::{pod, validate};
    use super::*;

    fn policy(spec: Json) -> Arc<dyn Object> {
        let spec: ValidatingAdmissionPolicySpec = from_value(spec).expect("a spec");
        let mut policy = Policy { spec: Some(spec), ..Policy::default() };
        policy.metadata.name = Some("p".to_owned());
        Arc::new(policy)
    }

    fn binding(actions: &[&str]) -> Arc<dyn Object> {
        let spec = from_value(json!({ "policyName": "p", "validationActions": actions })).expect("a spec");
        let mut binding = Binding { spec, ..Binding::default() };
        binding.metadata.name = Some("b".to_owned());
        Arc::new(binding)
    }

    fn about_pods(validations: Json) -> Json {
        json!({
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {}, "objectSelector": {}, "matchPolicy": "Equivalent",
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                }],
            },
            "variables": [{ "name": "count", "expression": "size(object.spec.containers)" }],
            "validations": validations,
        })
    }

    fn check(validations: Json, expected: Result<(), (u16, &str)>) {
        let mut namespace = k8s_openapi::api::core::v1::Namespace::default();
        namespace.metadata.name = Some("ns".to_owned());
        let objects = [policy(about_pods(validations)), binding(&["Deny"]), Arc::new(namespace)];
        let found = validate(&ValidatingAdmissionPolicy::default(), &objects, &mut pod("x", |_| {}));
        let found = found.map_err(|status| (status.code(), status.message().to_owned()));
        assert_eq!(found, expected.map_err(|(code, message)| (code, message.to_owned())));
    }

    #[test]
    fn requests_pass_when_expressions_hold_and_are_refused_with_the_message_otherwise() {
        check(json!([{ "expression": "variables.count == 1" }]), Ok(()));
        let denied =
            "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request:";
        check(
            json!([{ "expression": "variables.count > 1", "messageExpression": "'only ' + string(variables.count)" }]),
            Err((422, &format!("{denied} only 1"))),
        );
        check(
            json!([{ "expression": "object.metadata.labels.a == 'b'", "reason": "Forbidden" }]),
            Err((
                422,
                &format!(
                    "{denied} expression 'object.metadata.labels.a == 'b'' resulted in error: no such key: labels"
                ),
            )),
        );
        check(
            json!([{ "expression": "false", "reason": "Forbidden" }]),
            Err((403, &format!("{denied} failed expression: false"))),
        );
    }
}
