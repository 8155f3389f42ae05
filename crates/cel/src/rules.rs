//! `x-kubernetes-validations`: the rules of custom resources. [`check`] looks at them when a definition is written,
//! [`Rules`] applies them to resources.
//!
//! Schemas are JSON in the form of `openAPIV3Schema`, structural and complete (defaults and references resolved).

mod apply;
mod check;
mod path;

use std::sync::Arc;

use serde_json::Value as Json;

use crate::env::Env;
use crate::eval::Program;
use crate::schema::DeclType;
use crate::types::Type;

pub use self::apply::{RUNTIME_BUDGET, Rules};
pub use self::check::check;

const FIELD: &str = "x-kubernetes-validations";
/// The name that the type of `self` gets; no message shows it.
const SELF_TYPE: &str = "selfType";

/// One rule as it is written.
#[derive(Debug)]
struct Rule<'s> {
    json: &'s Json,
    rule: &'s str,
    message: &'s str,
    message_expression: &'s str,
    reason: Option<&'s str>,
    field_path: &'s str,
    optional_old_self: Option<bool>,
}

fn rules_of(schema: &Json) -> Vec<Rule<'_>> {
    let list = schema.get(FIELD).and_then(Json::as_array);
    list.into_iter().flatten().map(Rule::read).collect()
}

impl<'s> Rule<'s> {
    fn read(json: &'s Json) -> Self {
        let text = |name: &str| json.get(name).and_then(Json::as_str).unwrap_or("");
        Self {
            json,
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: json.get("reason").and_then(Json::as_str),
            field_path: text("fieldPath"),
            optional_old_self: json.get("optionalOldSelf").and_then(Json::as_bool),
        }
    }

    fn is_optional(&self) -> bool {
        self.optional_old_self.unwrap_or(false)
    }
}

/// A rule compiled, as far as it compiles.
#[derive(Debug, Default)]
struct Compiled {
    program: Option<Program>,
    error: Option<String>,
    uses_old_self: bool,
    max_cost: u64,
    message: Option<Program>,
    message_error: Option<String>,
    message_max_cost: u64,
}

/// The environments of rules at a place: with `oldSelf` plain and optional.
struct Envs {
    plain: Env,
    optional: Env,
    declared: Arc<DeclType>,
}

impl Envs {
    fn new(declared: &Arc<DeclType>) -> Self {
        let named = declared.named(SELF_TYPE);
        let of = named.cel_type();
        let base = Env::new().with_declared("self", &named);
        Self {
            plain: base.clone().with_variable("oldSelf", of.clone()),
            optional: base.with_variable("oldSelf", Type::optional(of)),
            declared: declared.clone(),
        }
    }

    fn compile(&self, rule: &Rule<'_>) -> Compiled {
        let mut compiled = Compiled::default();
        if rule.rule.trim().is_empty() {
            return compiled;
        }
        let env = if rule.is_optional() { &self.optional } else { &self.plain };
        let failed = |error: String| Compiled { error: Some(error), ..Compiled::default() };
        let checked = match env.compile(rule.rule) {
            Ok(checked) => checked,
            Err(issues) => return failed(format!("compilation failed: {issues}")),
        };
        if *checked.output_type() != Type::Bool {
            return failed("cel expression must evaluate to a bool".to_owned());
        }
        compiled.uses_old_self = checked.uses("oldSelf");
        match checked.program() {
            Ok(program) => compiled.program = Some(program),
            Err(fault) => {
                compiled.error = Some(format!("program instantiation failed: {fault}"));
                return compiled;
            }
        }
        compiled.max_cost = checked.cost(&self.declared).max;
        if !rule.message_expression.is_empty() {
            match self.compile_message(env, rule.message_expression) {
                Ok((program, cost)) => {
                    compiled.message = Some(program);
                    compiled.message_max_cost = cost;
                }
                Err(why) => compiled.message_error = Some(why),
            }
        }
        compiled
    }

    fn compile_message(&self, env: &Env, expression: &str) -> Result<(Program, u64), String> {
        let checked = env
            .compile(expression)
            .map_err(|issues| format!("messageExpression compilation failed: {issues}"))?;
        if *checked.output_type() != Type::String {
            return Err("messageExpression must evaluate to a string".to_owned());
        }
        let program =
            checked.program().map_err(|fault| format!("messageExpression instantiation failed: {fault}"))?;
        Ok((program, checked.cost(&self.declared).max))
    }
}
