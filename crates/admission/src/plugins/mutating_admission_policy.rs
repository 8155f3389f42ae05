//! MutatingAdmissionPolicy: policies in CEL change requests, by apply configurations or JSON patches.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_cel::policy::Returns;
use coracle_cel::{Record, Value};
use coracle_meta::{DynamicObject, Object, Reason, Status};
use coracle_resources::def::ResourceDef;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy as Policy, MutatingAdmissionPolicyBinding as Binding,
    MutatingAdmissionPolicySpec, Mutation,
};
use serde_json::{Value as Json, json};

use crate::policy::{self, BUDGET, Builder, Cache, Compiled, Condition, Input, Run};
use crate::{Environment, Operation, Plugin, Request};

const NAME: &str = "MutatingAdmissionPolicy";
const GROUP: &str = "admissionregistration.k8s.io";

/// The plugin.
#[derive(Default)]
pub(super) struct MutatingAdmissionPolicy {
    compiled: Cache,
}

/// A policy to be evaluated with one parameter of one binding.
struct Invocation<'a> {
    name: &'a str,
    spec: &'a MutatingAdmissionPolicySpec,
    binding: &'a str,
    def: &'a ResourceDef,
    param: Option<Arc<dyn Object>>,
    compiled: Arc<Compiled>,
}

/// What went wrong with a policy.
struct Problem {
    message: String,
    ignore: bool,
    invalid: bool,
}

#[async_trait]
impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation != Operation::Delete && policy::concerns(request)
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let bindings = env.reader.list(GROUP, "mutatingadmissionpolicybindings", "");
        if bindings.is_empty() {
            return Ok(());
        }
        let policies = env.reader.list(GROUP, "mutatingadmissionpolicies", "");
        self.compiled.keep(&policies.iter().map(|policy| policy.name()).collect::<Vec<_>>());
        let mut problems = Vec::new();
        let mut invocations = Vec::new();
        for object in &policies {
            let spec = object.downcast::<Policy>().and_then(|policy| policy.spec.as_ref());
            let Some(spec) = spec else { continue };
            self.collect(env, request, (&**object, spec), &bindings, &mut invocations, &mut problems);
        }
        if !invocations.is_empty() {
            invoke_all(env, request, &invocations, &mut problems)?;
        }
        refuse(request, &problems)
    }
}

impl MutatingAdmissionPolicy {
    fn collect<'a>(
        &self,
        env: &Environment,
        request: &Request<'a>,
        (object, spec): (&'a dyn Object, &'a MutatingAdmissionPolicySpec),
        bindings: &'a [Arc<dyn Object>],
        invocations: &mut Vec<Invocation<'a>>,
        problems: &mut Vec<Problem>,
    ) {
        let name = object.name();
        let own: Vec<&Binding> = bindings
            .iter()
            .filter_map(|binding| binding.downcast::<Binding>())
            .filter(|b| b.spec.as_ref().is_some_and(|s| s.policy_name.as_deref() == Some(name)))
            .collect();
        if own.is_empty() {
            return;
        }
        let ignore = spec.failure_policy.as_deref() == Some("Ignore");
        let mut misconfigured = |binding: Option<&str>, why: String| {
            let message = match binding {
                Some(binding) => format!(
                    "policy '{name}' with binding '{binding}' denied request: failed to configure binding: {why}"
                ),
                None => format!("policy {name:?} denied request: failed to configure policy: {why}"),
            };
            problems.push(Problem { message, ignore, invalid: false });
        };
        let absent = || Err("policy contained no match constraints, a required field".to_owned());
        let constraints = spec.match_constraints.as_ref();
        let def = match constraints.map_or_else(absent, |resources| policy::matched(env, request, resources))
        {
            Err(why) => return misconfigured(None, why),
            Ok(None) => return,
            Ok(Some(def)) => def,
        };
        if let Some(kind) = spec.param_kind.as_ref().filter(|kind| !policy::is_known(env, kind)) {
            return misconfigured(None, policy::unknown(kind));
        }
        let compiled = self.compiled.get(object, || compile(spec));
        for binding in own {
            let (Some(bound), binding) =
                (binding.spec.as_ref(), binding.metadata.name.as_deref().unwrap_or(""))
            else {
                continue;
            };
            match bound.match_resources.as_ref().map(|resources| policy::matched(env, request, resources)) {
                Some(Err(why)) => {
                    misconfigured(Some(binding), why);
                    continue;
                }
                Some(Ok(None)) => continue,
                _ => {}
            }
            let params =
                policy::params(env, spec.param_kind.as_ref(), bound.param_ref.as_ref(), request.namespace);
            match params {
                Err(why) => misconfigured(Some(binding), why),
                Ok(params) => invocations.extend(params.into_iter().map(|param| Invocation {
                    name,
                    spec,
                    binding,
                    def,
                    param,
                    compiled: compiled.clone(),
                })),
            }
        }
    }
}

fn compile(spec: &MutatingAdmissionPolicySpec) -> Compiled {
    let mut builder = Builder::new(
        spec.param_kind.is_some(),
        spec.variables.as_deref().unwrap_or_default(),
        spec.match_conditions.as_deref().unwrap_or_default(),
    );
    for mutation in spec.mutations.iter().flatten() {
        let (expression, returns) = expression(mutation);
        builder.mutation(expression, returns);
    }
    builder.finish()
}

fn expression(mutation: &Mutation) -> (&str, Returns) {
    let patch = mutation.json_patch.as_ref().and_then(|p| p.expression.as_deref());
    let apply = mutation.apply_configuration.as_ref().and_then(|c| c.expression.as_deref());
    if mutation.patch_type == "JSONPatch" {
        (patch.unwrap_or("").trim(), Returns::JsonPatch)
    } else {
        (apply.unwrap_or("").trim(), Returns::Object)
    }
}

fn invoke_all(
    env: &Environment,
    request: &mut Request<'_>,
    invocations: &[Invocation<'_>],
    problems: &mut Vec<Problem>,
) -> Result<(), Status> {
    let again = request.reinvocation.round > 0;
    let shape = request.object.as_deref().map(|obj| obj.to_value());
    if again && request.reinvocation.changed_since(NAME, shape.as_ref()) {
        request.reinvocation.require(NAME);
    }
    for invocation in invocations {
        let ignore = invocation.spec.failure_policy.as_deref() == Some("Ignore");
        let mut problem = |why: String| {
            let message = format!(
                "policy '{}' with binding '{}' denied request: {why}",
                invocation.name, invocation.binding
            );
            problems.push(Problem { message, ignore, invalid: true });
        };
        let params = invocation.param.as_ref().map(|param| param.to_value());
        let input = Input::new(env, request, invocation.def)?.with_params(params.as_ref());
        match invocation.compiled.concerns(&input) {
            Err(_) if ignore => continue,
            Err(why) => {
                problem(why);
                continue;
            }
            Ok(false) => continue,
            Ok(true) => {}
        }
        let param = invocation.param.as_ref().map(|p| format!("{}/{}", p.namespace(), p.name()));
        let uid = format!("{}/{}/{}", invocation.name, invocation.binding, param.unwrap_or_default());
        if again && !request.reinvocation.wants(NAME, &uid) {
            continue;
        }
        let before = request.object.as_deref().map(|obj| obj.to_value());
        for (mutation, condition) in invocation.spec.mutations.iter().flatten().zip(&invocation.compiled.main)
        {
            if request.object.is_none() {
                break;
            }
            match mutate(env, request, invocation, (mutation, condition), params.as_ref()) {
                Ok(()) => {}
                Err(Failure::Policy(why)) => problem(why),
                Err(Failure::Server(status)) => return Err(status),
            }
        }
        if request.object.as_deref().map(|obj| obj.to_value()) != before {
            request.reinvocation.require(NAME);
            request.reinvocation.again = true;
        }
        if invocation.spec.reinvocation_policy.as_deref() == Some("IfNeeded") {
            request.reinvocation.invoked(NAME, &uid);
        }
    }
    let shape = request.object.as_deref().map(|obj| obj.to_value());
    request.reinvocation.output(NAME, shape);
    Ok(())
}

enum Failure {
    /// The policy's own fault.
    Policy(String),
    /// The request fails.
    Server(Status),
}

/// Evaluates one mutation and changes the object accordingly.
fn mutate(
    env: &Environment,
    request: &mut Request<'_>,
    invocation: &Invocation<'_>,
    (mutation, condition): (&Mutation, &Condition),
    params: Option<&Json>,
) -> Result<(), Failure> {
    if let Err(why) = &condition.program {
        return Err(Failure::Policy(why.clone()));
    }
    let input = Input::new(env, request, invocation.def).map_err(Failure::Server)?.with_params(params);
    let run = Run::new(input, invocation.compiled.clone(), true);
    let mut budget = BUDGET;
    let value = run.evaluate(condition, &mut budget).map_err(Failure::Policy)?.map_err(Failure::Policy)?;
    let host = env.host().ok_or_else(|| Failure::Server(Status::internal("the server is not ready")))?;
    let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
    let def = invocation.def;
    let foreign = object.downcast::<DynamicObject>().is_some() && object.gvk().kind != def.kind;
    let shown = if foreign { Ok(object.to_value()) } else { host.show(def, &**object) };
    let mut json = shown.map_err(Failure::Server)?;
    if mutation.patch_type == "JSONPatch" {
        let patch = json_patch(&value).map_err(Failure::Policy)?;
        match coracle_meta::patch::json_patch_operations(&mut json, &patch) {
            Ok(true) => {}
            // A test that fails is a way to say that there is nothing to do.
            Ok(false) => return Ok(()),
            Err(why) => return Err(Failure::Policy(format!("JSON Patch: {why}"))),
        }
    } else {
        let configuration = configuration(&value, &json).map_err(Failure::Policy)?;
        let merged = host.merge(def, json, &configuration);
        json = merged.map_err(|why| Failure::Policy(format!("error applying patch: {why}")))?;
    }
    *object = if foreign {
        let gvk = object.gvk();
        let read = DynamicObject::from_value(gvk, json);
        Box::new(read.map_err(|e| Failure::Server(Status::internal(e)))?)
    } else {
        host.read(def, json).map_err(|status| {
            // Only what Go's decoder says.
            let why = status.message();
            let why = why.split_once("cannot be handled as a ").and_then(|(_, rest)| rest.split_once(": "));
            Failure::Server(Status::internal(why.map_or(status.message(), |(_, why)| why)))
        })?
    };
    Ok(())
}

fn misnamed(record: &Record) -> Result<(), String> {
    let found = coracle_cel::misnamed(record);
    if found.is_empty() { Ok(()) } else { Err(format!("type mismatch: {}", found.join("\n"))) }
}

/// The operations that an expression made.
fn json_patch(value: &Value) -> Result<Vec<Json>, String> {
    let Value::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut operations = Vec::new();
    for item in list {
        let Value::Record(record) = item else {
            let of = item.type_of();
            return Err(format!(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {of}"
            ));
        };
        let text = |name: &str| record.fields.get(name).and_then(Value::as_str).unwrap_or("");
        let mut operation = json!({ "op": text("op"), "path": text("path") });
        if !text("from").is_empty() {
            operation["from"] = text("from").into();
        }
        if let Some(value) = record.fields.get("value") {
            if let Value::Record(object) = value {
                misnamed(object)?;
            }
            let json = value.to_json().map_err(|why| {
                format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {why}")
            })?;
            operation["value"] = json;
        }
        operations.push(operation);
    }
    Ok(operations)
}

/// The apply configuration that an expression made, as one for `object`.
fn configuration(value: &Value, object: &Json) -> Result<Json, String> {
    let Value::Record(record) = value else {
        let of = value.type_of();
        return Err(format!("unsupported return type from ApplyConfiguration expression: {of}"));
    };
    misnamed(record)?;
    let mut json = value.to_json()?;
    for key in ["apiVersion", "kind"] {
        if let Some(value) = object.get(key) {
            json[key] = value.clone();
        }
    }
    Ok(json)
}

/// The refusal for what went wrong, unless the policies concerned do not care.
fn refuse(request: &Request<'_>, problems: &[Problem]) -> Result<(), Status> {
    let counted: Vec<&Problem> = problems.iter().filter(|problem| !problem.ignore).collect();
    let Some(first) = counted.first() else { return Ok(()) };
    let forbidden = request.forbidden("");
    let mut details = forbidden.details().cloned().unwrap_or_else(|| json!({}));
    details["causes"] = counted.iter().map(|problem| json!({ "message": problem.message })).collect();
    let reason = if first.invalid { Reason::Invalid } else { Reason::Forbidden };
    Err(Status::new(403, reason, first.message.as_str(), Some(details)))
}
