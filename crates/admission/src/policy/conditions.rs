//! Match conditions: whether a webhook or policy is to be asked at all.

use std::sync::Arc;

use coracle_cel::Value;
use coracle_cel::policy::Compiler;
use coracle_cel::policy::{Options, Returns};
use k8s_openapi::api::admissionregistration::v1::MatchCondition;
use serde_json::Value as Json;

use super::compiled::Builder;
use super::{CONDITIONS_BUDGET, Compiled, Condition, Input, Run};
use crate::{Environment, MatchConditions, Request};

/// Evaluates the match conditions of webhooks.
#[derive(Debug, Default)]
pub struct Conditions;

impl MatchConditions for Conditions {
    fn hold(
        &self,
        env: &Environment,
        request: &Request<'_>,
        conditions: &[MatchCondition],
        _: &Json,
    ) -> Result<bool, String> {
        let input =
            Input::new(env, request, request.resource).map_err(|status| status.message().to_owned())?;
        let options = Options { authorizer: true, ..Options::default() };
        let compile = |condition: &MatchCondition| Condition {
            expression: condition.expression.clone(),
            program: Compiler::plain()
                .compile(condition.expression.trim(), options, Returns::Bool)
                .map_err(|why| why.detail),
        };
        let compiled = Arc::new(Builder::new(false, &[], &[]).finish());
        let conditions: Vec<Condition> = conditions.iter().map(compile).collect();
        hold(&conditions, &input.with_params(None), &compiled)
    }
}

/// Whether all conditions hold. One that is false decides, whatever the others say.
///
/// # Errors
/// Those of the conditions, when none is false.
pub(super) fn hold(
    conditions: &[Condition],
    input: &Arc<Input>,
    compiled: &Arc<Compiled>,
) -> Result<bool, String> {
    let run = Run::new(input.clone(), compiled.clone(), true);
    let (mut budget, mut evaluations) = (CONDITIONS_BUDGET, Vec::with_capacity(conditions.len()));
    for condition in conditions {
        evaluations.push(run.evaluate(condition, &mut budget)?);
    }
    if evaluations.iter().any(|e| matches!(e, Ok(Value::Bool(false)))) {
        return Ok(false);
    }
    let errors: Vec<String> = evaluations.into_iter().filter_map(Result::err).collect();
    match errors.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

impl Compiled {
    /// Whether the policy's match conditions hold.
    ///
    /// # Errors
    /// Those of the conditions, when none is false.
    pub(crate) fn concerns(self: &Arc<Self>, input: &Arc<Input>) -> Result<bool, String> {
        hold(&self.match_conditions, input, self)
    }
}
