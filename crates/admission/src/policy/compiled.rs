//! Compiled expressions, kept as long as the policy they come from does not change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_cel::Program;
use coracle_cel::policy::{Compiler, Options, Returns};
use coracle_meta::Object;
use k8s_openapi::api::admissionregistration::v1::{MatchCondition, Variable};

/// An expression, compiled or with the reason why not.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) expression: String,
    pub(crate) program: Result<Program, String>,
}

/// The variables and match conditions of a policy, and what compiles its other expressions.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) variables: BTreeMap<String, Result<Program, String>>,
    pub(crate) match_conditions: Vec<Condition>,
    /// Validations or mutations, in order.
    pub(crate) main: Vec<Condition>,
    /// Message expressions of the validations.
    pub(crate) messages: Vec<Option<Condition>>,
    /// Values of audit annotations.
    pub(crate) annotations: Vec<Condition>,
}

/// Compiles the expressions of one policy.
pub(crate) struct Builder {
    compiler: Compiler,
    options: Options,
    compiled: Compiled,
}

impl Builder {
    /// With the variables and match conditions.
    pub(crate) fn new(params: bool, variables: &[Variable], conditions: &[MatchCondition]) -> Self {
        let options = Options { params, authorizer: true, patch_types: false };
        let mut compiler = Compiler::composed();
        let mut compiled = Compiled {
            variables: BTreeMap::new(),
            match_conditions: Vec::new(),
            main: Vec::new(),
            messages: Vec::new(),
            annotations: Vec::new(),
        };
        for variable in variables {
            let program = compiler.add_variable(&variable.name, &variable.expression, options);
            compiled.variables.insert(variable.name.clone(), program.map_err(|why| why.detail));
        }
        let mut builder = Self { compiler, options, compiled };
        builder.compiled.match_conditions =
            conditions.iter().map(|c| builder.compile(&c.expression, Returns::Bool, options)).collect();
        builder
    }

    fn compile(&self, expression: &str, returns: Returns, options: Options) -> Condition {
        let program = self.compiler.compile(expression, options, returns).map_err(|why| why.detail);
        Condition { expression: expression.to_owned(), program }
    }

    /// Adds a validation with its message.
    pub(crate) fn validation(&mut self, expression: &str, message: Option<&str>) {
        let main = self.compile(expression, Returns::Bool, self.options);
        let plain = Options { authorizer: false, ..self.options };
        let message = message.filter(|m| !m.is_empty()).map(|m| self.compile(m, Returns::String, plain));
        self.compiled.main.push(main);
        self.compiled.messages.push(message);
    }

    /// Adds the value of an audit annotation.
    pub(crate) fn annotation(&mut self, expression: &str) {
        let value = self.compile(expression, Returns::StringOrNull, self.options);
        self.compiled.annotations.push(value);
    }

    /// Adds a mutation.
    pub(crate) fn mutation(&mut self, expression: &str, returns: Returns) {
        let options = Options { patch_types: true, ..self.options };
        let mutation = self.compile(expression, returns, options);
        self.compiled.main.push(mutation);
    }

    /// What was compiled.
    pub(crate) fn finish(self) -> Compiled {
        self.compiled
    }
}

/// Compiled policies by name, each with the version it was compiled from.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<HashMap<String, (String, Arc<Compiled>)>>);

impl Cache {
    /// The compiled form of a policy; made by `compile` if the policy is new or has changed.
    pub(crate) fn get(&self, policy: &dyn Object, compile: impl FnOnce() -> Compiled) -> Arc<Compiled> {
        let meta = policy.meta();
        let version = format!(
            "{}/{}",
            meta.uid.as_deref().unwrap_or(""),
            meta.resource_version.as_deref().unwrap_or("")
        );
        let name = policy.name();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((_, compiled)) = known.filter(|(of, _)| *of == version && version.len() > 1) {
            return compiled;
        }
        let compiled = Arc::new(compile());
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(name.to_owned(), (version, compiled.clone()));
        compiled
    }

    /// Forgets policies that are gone.
    pub(crate) fn keep(&self, names: &[&str]) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() > names.len() {
            cache.retain(|name, _| names.contains(&name.as_str()));
        }
    }
}
