//! ValidatingAdmissionWebhook: webhooks refuse requests; all that a request concerns are asked at the same time.

use std::time::Instant;

use async_trait::async_trait;
use coracle_meta::Status;
use futures::future::join_all;
use tracing::warn;

use crate::webhook::{self, Failure, Kind};
use crate::{Environment, Plugin, Request};

/// The plugin.
pub(super) struct ValidatingWebhook;

#[async_trait]
impl Plugin for ValidatingWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        webhook::concerns(request)
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let mut invocations = Vec::new();
        for hook in webhook::all(env, Kind::Validating) {
            invocations.extend(webhook::invocation(env, request, hook)?);
        }
        if invocations.is_empty() {
            return Ok(());
        }
        let (asked, operation): (&Request<'_>, _) = (request, request.operation);
        let ask = async |one| {
            let started = Instant::now();
            (webhook::ask(env, asked, one, false).await, started.elapsed())
        };
        let answers = join_all(invocations.iter().map(ask)).await;
        let mut verdict = Ok(());
        for (index, (invocation, (answer, took))) in invocations.iter().zip(answers).enumerate() {
            let hook = &invocation.hook;
            let observe = |failure: Option<&Failure>| {
                webhook::observe(env, operation, (hook, Kind::Validating), failure, took);
            };
            let failure = match answer {
                Ok(answer) => {
                    for (key, value) in answer.audit {
                        request.annotate(&format!("{}/{key}", hook.name), value);
                    }
                    request.warnings.extend(answer.warnings);
                    if answer.allowed {
                        observe(None);
                        continue;
                    }
                    Failure::Rejected(webhook::denied(&hook.name, &answer.result))
                }
                Err(failure) => failure,
            };
            observe(Some(&failure));
            match failure {
                Failure::Calling(e) if hook.ignore_failure => {
                    warn!(webhook = %hook.name, why = e.why, "failed calling webhook, failing open");
                    let key =
                        format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    request.annotate(&key, hook.name.clone());
                }
                failure if verdict.is_ok() => verdict = Err(failure.status(&hook.name)),
                _ => {}
            }
        }
        verdict
    }
}
