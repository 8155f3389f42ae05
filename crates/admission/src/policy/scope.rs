//! The variables of expressions, and their evaluation within a budget.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coracle_auth::{Attributes, UserInfo};
use coracle_cel::{Access, Activation, Authorizer, Decision, Lookup, PER_CALL_LIMIT, Question, Value};
use coracle_meta::{Object, Status};
use coracle_resources::def::ResourceDef;
use serde_json::{Value as Json, json};

use super::compiled::{Compiled, Condition};
use crate::webhook::request_json;
use crate::{Environment, Host, Request};

/// What the budget's end is told with.
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The request as expressions see it.
pub(crate) struct Input {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    params: Value,
    authorizer: Option<Value>,
    resource: Option<Value>,
}

impl Input {
    /// Reads the request in `def`'s version.
    ///
    /// # Errors
    /// 500 when an object cannot be converted, 404 when the namespace is not there.
    pub(crate) fn new(env: &Environment, request: &Request<'_>, def: &ResourceDef) -> Result<Self, Status> {
        let mut review = request_json(env, request, def, "")?;
        let mut take = |key: &str| review.get_mut(key).map_or(Json::Null, Json::take);
        let (object, old) = (take("object"), take("oldObject"));
        let namespaces = request.resource.group.is_empty() && request.resource.plural == "namespaces";
        let namespace = if request.namespace.is_empty() || namespaces {
            Json::Null
        } else {
            let found = env.reader.get("", "namespaces", "", request.namespace);
            let found = found.ok_or_else(|| Status::not_found("", "namespaces", request.namespace))?;
            namespace_json(&*found)
        };
        let mut input = Self::of_json(&object, &old, review, None);
        input.namespace = Value::from_json(&namespace);
        if let Some(host) = env.host() {
            let asker: Arc<dyn Authorizer> = Arc::new(Asker { host, user: request.user.clone() });
            input.authorizer = Some(Access::authorizer(asker.clone()));
            input.resource = Some(Access::resource(
                asker,
                Question {
                    group: request.resource.group.to_owned(),
                    resource: request.resource.plural.to_owned(),
                    subresource: request.subresource.to_owned(),
                    namespace: request.namespace.to_owned(),
                    name: request.name.to_owned(),
                    ..Question::default()
                },
            ));
        }
        Ok(input)
    }

    /// From the JSON of a review.
    pub(super) fn of_json(
        object: &Json,
        old: &Json,
        mut review: Json,
        access: Option<(Value, Value)>,
    ) -> Self {
        if let Some(review) = review.as_object_mut() {
            for key in ["object", "oldObject", "uid"] {
                review.remove(key);
            }
        }
        let (authorizer, resource) = access.unzip();
        Self {
            object: Value::from_json(object),
            old: Value::from_json(old),
            request: Value::from_json(&review),
            namespace: Value::Null,
            params: Value::Null,
            authorizer,
            resource,
        }
    }

    /// The same with parameters, as JSON.
    pub(crate) fn with_params(&self, params: Option<&Json>) -> Arc<Self> {
        Arc::new(Self {
            object: self.object.clone(),
            old: self.old.clone(),
            request: self.request.clone(),
            namespace: self.namespace.clone(),
            params: params.map_or(Value::Null, Value::from_json),
            authorizer: self.authorizer.clone(),
            resource: self.resource.clone(),
        })
    }
}

/// A namespace as expressions see it: without what only its owner needs.
fn namespace_json(namespace: &dyn Object) -> Json {
    const META: &[&str] = &[
        "name",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "finalizers",
    ];
    let whole = namespace.to_value();
    let mut metadata = whole.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|key, _| META.contains(&key.as_str()));
    }
    let part = |name: &str| whole.get(name).cloned().unwrap_or_else(|| json!({}));
    json!({ "metadata": metadata, "spec": part("spec"), "status": part("status") })
}

/// Asks the server's authorizers on behalf of expressions.
struct Asker {
    host: Arc<dyn Host>,
    user: UserInfo,
}

impl Authorizer for Asker {
    fn decide(&self, question: &Question) -> Decision {
        let user = match &question.service_account {
            Some((namespace, name)) => coracle_auth::service_account::user(namespace, name, ""),
            None => self.user.clone(),
        };
        let attributes = Attributes {
            user,
            verb: question.verb.clone(),
            group: question.group.clone(),
            version: if question.path.is_some() { String::new() } else { "*".to_owned() },
            resource: question.resource.clone(),
            subresource: question.subresource.clone(),
            namespace: question.namespace.clone(),
            name: question.name.clone(),
            path: question.path.clone().unwrap_or_default(),
            field_selector: question.field_selector.clone(),
            ..Attributes::default()
        };
        let (decision, reason) = self.host.authorize(&attributes);
        Decision { allowed: decision == coracle_auth::Decision::Allow, reason, error: None }
    }
}

/// The outcome of one expression: its value, or the message of its error.
pub(crate) type Evaluation = Result<Value, String>;

/// One pass over expressions that share their variables.
pub(crate) struct Run {
    input: Arc<Input>,
    variables: Arc<Variables>,
    with_authorizer: bool,
}

impl Run {
    /// Variables are evaluated when first used, at most once in a run.
    pub(crate) fn new(input: Arc<Input>, compiled: Arc<Compiled>, with_authorizer: bool) -> Self {
        let variables = Arc::new_cyclic(|me| Variables {
            me: me.clone(),
            input: input.clone(),
            compiled,
            with_authorizer,
            values: Mutex::default(),
            cost: AtomicI64::new(0),
        });
        Self { input, variables, with_authorizer }
    }

    /// Evaluates an expression; takes its cost and that of the variables it was first to use from the budget.
    ///
    /// # Errors
    /// The budget is used up: nothing more may be evaluated.
    pub(crate) fn evaluate(&self, condition: &Condition, budget: &mut i64) -> Result<Evaluation, String> {
        let program = match &condition.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let scope = Scope {
            input: &self.input,
            variables: Some(Value::Lookup(self.variables.clone())),
            with_authorizer: self.with_authorizer,
        };
        let outcome = program.eval(&scope, PER_CALL_LIMIT);
        let own = i64::try_from(outcome.cost).unwrap_or(i64::MAX);
        let cost = own.saturating_add(self.variables.cost.swap(0, Ordering::Relaxed));
        if cost > *budget {
            *budget = -1;
            return Err(OUT_OF_BUDGET.to_owned());
        }
        *budget -= cost;
        let told = |why| format!("expression '{}' resulted in error: {why}", condition.expression);
        Ok(outcome.result.map_err(told))
    }
}

struct Scope<'a> {
    input: &'a Input,
    variables: Option<Value>,
    with_authorizer: bool,
}

impl Activation for Scope<'_> {
    fn resolve(&self, name: &str) -> Option<Result<Value, String>> {
        let value = match name {
            "object" => &self.input.object,
            "oldObject" => &self.input.old,
            "request" => &self.input.request,
            "namespaceObject" => &self.input.namespace,
            "params" => &self.input.params,
            "variables" => self.variables.as_ref()?,
            "authorizer" if self.with_authorizer => self.input.authorizer.as_ref()?,
            "authorizer.requestResource" if self.with_authorizer => self.input.resource.as_ref()?,
            _ => return None,
        };
        Some(Ok(value.clone()))
    }
}

/// The variables of a policy, evaluated when asked for.
struct Variables {
    me: Weak<Self>,
    input: Arc<Input>,
    compiled: Arc<Compiled>,
    with_authorizer: bool,
    values: Mutex<HashMap<String, Result<Value, String>>>,
    /// What variables cost since it was last taken.
    cost: AtomicI64,
}

impl Lookup for Variables {
    fn get(&self, name: &str) -> Option<Result<Value, String>> {
        let program = self.compiled.variables.get(name)?;
        let known = self.values.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if known.is_some() {
            return known;
        }
        let value = match program {
            Err(why) => Err(format!("composited variable {name:?} fails to compile: {why}")),
            Ok(program) => {
                let variables = self.me.upgrade().map(|me| Value::Lookup(me));
                let scope = Scope { input: &self.input, variables, with_authorizer: self.with_authorizer };
                let outcome = program.eval(&scope, PER_CALL_LIMIT);
                let cost = i64::try_from(outcome.cost).unwrap_or(i64::MAX);
                self.cost.fetch_add(cost, Ordering::Relaxed);
                let told = |why| format!("composited variable {name:?} fails to evaluate: {why}");
                outcome.result.map_err(told)
            }
        };
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value.clone());
        Some(value)
    }
}
