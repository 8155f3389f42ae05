//! Validating admission policy status: checks the expressions of a policy against the kinds that it is for, and writes
//! what does not fit into its status. It decides nothing: a policy with warnings works as it did.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cel::DeclType;
use coracle_cel::policy::{Compiler, Options, Returns};
use coracle_client::{ApiRequest, Client, Informer, PatchKind, ResourceId, Verb, WriteOptions};
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::admissionregistration::v1::{NamedRuleWithOperations, ValidatingAdmissionPolicy};
use serde_json::{Map, Value, json};

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};
use crate::served::Served;

pub(crate) const DESCRIPTOR: Descriptor =
    Descriptor { name: "validatingadmissionpolicy-status-controller", workers: 5 };
const MANAGER: &str = "validatingadmissionpolicy-status";

/// Kinds that one rule of a policy is checked against.
const MOST: usize = 10;

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let policies = cx.informers.get::<ValidatingAdmissionPolicy>();
    let reconciler = Arc::new(Check {
        policies: policies.clone(),
        client: cx.client(DESCRIPTOR.name),
        served: cx.served.clone(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&policies).run(reconciler).boxed()
}

/// Group, version and kind, in upstream's order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gvk {
    group: String,
    version: String,
    kind: String,
}

impl Gvk {
    fn of(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }

    /// Where the schemas of its version are.
    fn path(&self) -> String {
        match self.group.as_str() {
            "" => format!("/openapi/v3/api/{}", self.version),
            group => format!("/openapi/v3/apis/{group}/{}", self.version),
        }
    }
}

impl std::fmt::Display for Gvk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// A kind with its type; none where expressions cannot see one.
type Typed = (Gvk, Option<Arc<DeclType>>);

/// The parts of a rule, without those that are named by a wildcard.
fn named(rule: &NamedRuleWithOperations) -> Option<(Vec<String>, Vec<String>, Vec<String>)> {
    let sorted = |list: &Option<Vec<String>>| {
        let mut list = list.clone().unwrap_or_default();
        list.sort();
        list
    };
    let (groups, versions, mut resources) =
        (sorted(&rule.api_groups), sorted(&rule.api_versions), sorted(&rule.resources));
    if groups.iter().chain(&versions).any(|name| name.contains('*')) {
        return None;
    }
    resources.retain(|name| !name.contains(['*', '/']));
    Some((groups, versions, resources))
}

/// The kinds that a policy is for, as far as it names them.
fn kinds(policy: &ValidatingAdmissionPolicy, served: &Served) -> BTreeSet<Gvk> {
    let constraints = policy.spec.as_ref().and_then(|spec| spec.match_constraints.as_ref());
    let all = served.all();
    let mut found = BTreeSet::new();
    for rule in constraints.and_then(|c| c.resource_rules.as_ref()).into_iter().flatten() {
        let Some((groups, versions, resources)) = named(rule) else { continue };
        let mut left = MOST;
        for (group, version) in groups.iter().flat_map(|g| versions.iter().map(move |v| (g, v))) {
            for resource in &resources {
                let entry = all.iter().find(|e| e.id.group == group && e.id.resource == resource);
                let Some(entry) = entry else { continue };
                if left == 0 {
                    return found;
                }
                left -= 1;
                found.insert(Gvk {
                    kind: entry.kind.to_owned(),
                    ..Gvk::of(&format!("{group}/{version}"), "")
                });
            }
        }
    }
    found
}

/// The schema of a kind in a document of its version, with everything that it refers to.
fn schema_of(document: &Value, gvk: &Gvk) -> Option<Value> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let is = |of: &Value| {
        let names = of["x-kubernetes-group-version-kind"].as_array();
        names.into_iter().flatten().any(|name| {
            name["group"] == gvk.group.as_str()
                && name["version"] == gvk.version.as_str()
                && name["kind"] == gvk.kind.as_str()
        })
    };
    let root = schemas.values().find(|of| is(of))?;
    Some(resolved(root, schemas, &mut Vec::new()))
}

/// A schema with its references replaced by what they refer to. `within` are those that it stands in: one that leads
/// back to them is an object that nothing more is known of.
fn resolved<'a>(schema: &'a Value, schemas: &'a Map<String, Value>, within: &mut Vec<&'a str>) -> Value {
    let Some(of) = schema.as_object() else { return schema.clone() };
    let only =
        of.get("allOf").and_then(Value::as_array).filter(|all| all.len() == 1).and_then(|all| all.first());
    let reference = of.get("$ref").or_else(|| only.and_then(|one| one.get("$ref"))).and_then(Value::as_str);
    if let Some(reference) = reference {
        let target = reference.strip_prefix("#/components/schemas/").and_then(|name| schemas.get(name));
        let Some(target) = target.filter(|_| !within.contains(&reference)) else {
            return json!({ "type": "object" });
        };
        within.push(reference);
        let mut whole = resolved(target, schemas, within);
        within.pop();
        if let (Some(default), Some(whole)) = (of.get("default"), whole.as_object_mut()) {
            whole.insert("default".to_owned(), default.clone());
        }
        return whole;
    }
    let mut whole = of.clone();
    if of.get("format").is_some_and(|format| format == "int-or-string") {
        whole.insert("x-kubernetes-int-or-string".to_owned(), Value::Bool(true));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = of.get(key) {
            whole.insert(key.to_owned(), resolved(below, schemas, within));
        }
    }
    if let Some(properties) = of.get("properties").and_then(Value::as_object) {
        let all = properties.iter().map(|(name, of)| (name.clone(), resolved(of, schemas, within)));
        whole.insert("properties".to_owned(), Value::Object(all.collect()));
    }
    Value::Object(whole)
}

/// What does not fit: the field and the text, as the status holds them.
fn warnings(policy: &ValidatingAdmissionPolicy, kinds: &[Typed], params: Option<&Typed>) -> Vec<Value> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let options = Options { params: params.is_some(), authorizer: true, patch_types: false };
    let check = |expression: &str| -> String {
        let said = kinds.iter().filter_map(|(gvk, object)| {
            let params = params.and_then(|(_, of)| of.clone());
            let mut compiler = Compiler::composed().typed(object.clone(), params);
            for variable in spec.variables.iter().flatten() {
                // One that does not compile has no type of its own, which is no fault of those that use it.
                let _ = compiler.add_variable(&variable.name, &variable.expression, options);
            }
            let why = compiler.compile(expression, options, Returns::Anything).err()?;
            let what = if why.internal { "type checking error: " } else { "" };
            let detail = why.detail.strip_prefix("compilation failed: ").unwrap_or(&why.detail);
            Some(format!("{gvk}: {what}{detail}\n"))
        });
        said.collect::<Vec<_>>().join("\n")
    };
    let mut found = Vec::new();
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let expressions = [
            ("expression", Some(&validation.expression)),
            ("messageExpression", validation.message_expression.as_ref()),
        ];
        for (field, expression) in expressions {
            let said = expression.filter(|text| !text.is_empty()).map(|text| check(text)).unwrap_or_default();
            if !said.is_empty() {
                found.push(json!({ "fieldRef": format!("spec.validations[{i}].{field}"), "warning": said }));
            }
        }
    }
    found
}

struct Check {
    policies: Informer<ValidatingAdmissionPolicy>,
    client: Client,
    served: Served,
}

impl Check {
    /// The type of a kind; `None` where there is no schema of it.
    async fn declared(&self, gvk: Gvk) -> Result<Option<Typed>, Status> {
        let document = match self.client.read(&gvk.path(), "").await {
            Err(status) if status.reason() == Reason::NotFound => return Ok(None),
            document => document?,
        };
        let Some(schema) = schema_of(&document, &gvk) else { return Ok(None) };
        let declared = DeclType::from_schema(&schema, true).map(|of| of.named(&gvk.kind));
        Ok(Some((gvk, declared)))
    }
}

#[async_trait]
impl Reconciler for Check {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(policy) = self.policies.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let generation = policy.metadata.generation.unwrap_or(0);
        if policy.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0) >= generation {
            return Ok(Action::AwaitChange);
        }
        let mut typed = Vec::new();
        for gvk in kinds(&policy, &self.served) {
            typed.extend(self.declared(gvk).await?);
        }
        let kind = policy.spec.as_ref().and_then(|spec| spec.param_kind.as_ref());
        let params = match kind {
            Some(kind) => {
                let (api_version, kind) = (kind.api_version.as_deref(), kind.kind.as_deref());
                let gvk = Gvk::of(api_version.unwrap_or(""), kind.unwrap_or(""));
                Some(self.declared(gvk.clone()).await?.unwrap_or((gvk, None)))
            }
            None => None,
        };
        let warnings = warnings(&policy, &typed, params.as_ref());
        let checking =
            if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
        let status = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": { "name": key.name },
            "status": { "observedGeneration": generation, "typeChecking": checking },
        });
        let options =
            WriteOptions { field_manager: MANAGER.to_owned(), force: true, ..WriteOptions::default() };
        let request = ApiRequest {
            resource: ResourceId::of::<ValidatingAdmissionPolicy>(),
            namespace: String::new(),
            name: name_of(&*policy).to_owned(),
            subresource: "status",
            verb: Verb::Patch(PatchKind::Apply, status, options),
        };
        ignore_not_found(self.client.request(request).await)?;
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;

    use super::*;
    use crate::ResourceEntry;
    use crate::testing::{context_with, eventually};

    const DEPLOYMENTS: ResourceEntry = ResourceEntry {
        id: ResourceId { group: "apps", version: "v1", resource: "deployments" },
        namespaced: true,
        kind: "Deployment",
    };

    /// A document in the form of the API's own, cut down.
    fn document() -> Value {
        json!({ "components": { "schemas": {
            "Deployment": {
                "type": "object",
                "properties": {
                    "apiVersion": { "type": "string" }, "kind": { "type": "string" },
                    "metadata": { "default": {}, "allOf": [{ "$ref": "#/components/schemas/ObjectMeta" }] },
                    "spec": { "$ref": "#/components/schemas/Spec" },
                },
                "x-kubernetes-group-version-kind": [{ "group": "apps", "version": "v1", "kind": "Deployment" }],
            },
            "ObjectMeta": { "type": "object", "properties": {
                "name": { "type": "string" }, "generateName": { "type": "string" } } },
            "Spec": { "type": "object", "properties": {
                "replicas": { "type": "integer" },
                "surge": { "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] },
                "again": { "$ref": "#/components/schemas/Spec" } } },
        } } })
    }

    async fn status_of(spec: Value) -> Value {
        let fake = FakeTransport::new(Clock::system());
        fake.serve_path("/openapi/v3/apis/apps/v1", document());
        let policies = fake.client().api::<ValidatingAdmissionPolicy>();
        let policy = json!({ "metadata": { "name": "p" }, "spec": spec });
        let policy: ValidatingAdmissionPolicy = serde_json::from_value(policy).expect("a policy");
        policies.create("", policy).await.expect("created");
        let task = tokio::spawn(run(&context_with(&fake, vec![DEPLOYMENTS])));
        eventually(|| async { policies.get("", "p").await.is_ok_and(|p| p.status.is_some()) }).await;
        task.abort();
        serde_json::to_value(&policies.get("", "p").await.expect("there").status).expect("JSON")
    }

    fn spec(resources: &str, validations: Value) -> Value {
        let rule = json!({ "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"],
            "resources": [resources] });
        json!({ "matchConstraints": { "resourceRules": [rule] }, "validations": validations,
            "variables": [{ "name": "size", "expression": "object.spec.replicas" }] })
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_the_kind_is_told_with_its_place() {
        let bad = json!([
            { "expression": "object.replicas > 1" },
            { "expression": "variables.size > 1", "messageExpression": "'x' + 1" },
        ]);
        let status = status_of(spec("deployments", bad)).await;
        assert_eq!(status["observedGeneration"], 1);
        let warnings = status["typeChecking"]["expressionWarnings"].as_array().cloned().unwrap_or_default();
        let fields: Vec<_> = warnings.iter().map(|w| w["fieldRef"].as_str().unwrap_or("")).collect();
        assert_eq!(fields, ["spec.validations[0].expression", "spec.validations[1].messageExpression"]);
        assert_eq!(
            warnings[0]["warning"],
            "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n \
             | ......^\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_fits_or_is_for_anything_gives_no_warning() {
        let good = json!([{ "expression": "object.spec.replicas > 1 && object.spec.surge == '1'" }]);
        let status = status_of(spec("deployments", good)).await;
        assert_eq!(status, json!({ "observedGeneration": 1, "typeChecking": {} }));
        let loose = json!([{ "expression": "object.whatever" }]);
        let status = status_of(spec("*", loose)).await;
        assert_eq!(status, json!({ "observedGeneration": 1, "typeChecking": {} }));
    }

    #[test]
    fn a_schema_that_names_itself_ends() {
        let gvk = Gvk::of("apps/v1", "Deployment");
        let schema = schema_of(&document(), &gvk).expect("a schema");
        assert_eq!(schema.pointer("/properties/spec/properties/replicas/type"), Some(&json!("integer")));
        assert_eq!(schema.pointer("/properties/spec/properties/again"), Some(&json!({ "type": "object" })));
    }
}
