//! The authorizer: expressions ask whether a user may do something.

use std::fmt;
use std::sync::Arc;

use coracle_meta::names;

use super::Outcome;
use crate::value::{Fault, Value};

/// A question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The service account (namespace, name) in whose place to ask; `None` for the requesting user.
    pub service_account: Option<(String, String)>,
    /// A path outside resources; everything below is empty then.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Resource in plural.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Field selector, unparsed.
    pub field_selector: String,
    /// Label selector, unparsed.
    pub label_selector: String,
    /// API verb, or HTTP method in lower case for a path.
    pub verb: String,
}

/// What the authorizer answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong while deciding.
    pub error: Option<String>,
}

/// Who answers questions of expressions.
pub trait Authorizer: Send + Sync {
    /// Decides. Called while an expression is evaluated, so it must not block for long.
    fn decide(&self, question: &Question) -> Decision;
}

/// How far a question is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// The authorizer, or a check under construction.
#[derive(Clone)]
pub struct Access {
    stage: Stage,
    question: Question,
    authorizer: Arc<dyn Authorizer>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("stage", &self.stage).field("question", &self.question).finish()
    }
}

impl Access {
    /// The value of the variable `authorizer`.
    pub fn authorizer(authorizer: Arc<dyn Authorizer>) -> Value {
        let access = Self { stage: Stage::Authorizer, question: Question::default(), authorizer };
        Value::Access(Arc::new(access))
    }

    /// The value of the variable `authorizer.requestResource`; the question has all but the verb.
    pub fn resource(authorizer: Arc<dyn Authorizer>, question: Question) -> Value {
        Value::Access(Arc::new(Self { stage: Stage::Resource, question, authorizer }))
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }

    fn with(&self, stage: Stage, change: impl FnOnce(&mut Question)) -> Outcome {
        let mut next = Self { stage, ..self.clone() };
        change(&mut next.question);
        Ok(Value::Access(Arc::new(next)))
    }
}

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    if let [Value::Decision(decision)] = args {
        return Some(Ok(match function {
            "allowed" => Value::Bool(decision.allowed),
            "reason" => Value::string(&decision.reason),
            "errored" => Value::Bool(decision.error.is_some()),
            "error" => Value::string(decision.error.as_deref().unwrap_or("")),
            _ => return None,
        }));
    }
    let (Value::Access(access), Value::String(text)) = (args.first()?, args.get(1)?) else { return None };
    let word = text.to_string();
    Some(match (access.stage, function, &args[2..]) {
        (Stage::Authorizer, "path", []) if word.trim().is_empty() => {
            Err(Fault::new("path must not be empty"))
        }
        (Stage::Authorizer, "path", []) => access.with(Stage::Path, |q| q.path = Some(word)),
        (Stage::Authorizer, "group", []) => access.with(Stage::Group, |q| q.group = word),
        (Stage::Authorizer, "serviceAccount", [Value::String(name)]) => {
            if !names::dns1123_subdomain(name).is_empty() {
                return Some(Err(Fault::new("Invalid service account name")));
            }
            if !names::dns1123_label(&word).is_empty() {
                return Some(Err(Fault::new("Invalid service account namespace")));
            }
            let account = (word, name.to_string());
            access.with(Stage::Authorizer, |q| q.service_account = Some(account))
        }
        (Stage::Group, "resource", []) if word.trim().is_empty() => {
            Err(Fault::new("resource must not be empty"))
        }
        (Stage::Group, "resource", []) => access.with(Stage::Resource, |q| q.resource = word),
        (Stage::Resource, "subresource", []) => access.with(Stage::Resource, |q| q.subresource = word),
        (Stage::Resource, "namespace", []) => access.with(Stage::Resource, |q| q.namespace = word),
        (Stage::Resource, "name", []) => access.with(Stage::Resource, |q| q.name = word),
        (Stage::Resource, "fieldSelector", []) => access.with(Stage::Resource, |q| q.field_selector = word),
        (Stage::Resource, "labelSelector", []) => access.with(Stage::Resource, |q| q.label_selector = word),
        (Stage::Path | Stage::Resource, "check", []) => {
            let question = Question { verb: word, ..access.question.clone() };
            Ok(Value::Decision(Arc::new(access.authorizer.decide(&question))))
        }
        _ => return None,
    })
}
