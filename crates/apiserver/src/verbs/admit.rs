//! Admission around the verbs: one place makes the requests that plugins see, and hands on what they say.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coracle_admission::{
    CallError, HookAsked, HookOutcome, HookTarget, Host, Operation, Reinvocation, Request,
};
use coracle_auth::{Attributes, Decision};
use coracle_client::WriteOptions;
use coracle_meta::{Object, Status};
use coracle_resources::def::ResourceDef;
use serde_json::Value;

use super::{Caller, Input, Part};
use crate::http::metrics::families::{self, Counts};
use crate::registry::Resource;
use crate::server::Server;

/// Which passes of the chain run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Mutate,
    Validate,
    Both,
}

/// What is about to happen, and where.
#[derive(Clone, Copy)]
pub(crate) struct Act<'a> {
    pub(crate) operation: Operation,
    pub(crate) resource: &'a Resource,
    /// Path segment, or empty.
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) dry_run: bool,
}

impl Server {
    /// Runs the chain. Warnings and notes reach the client and the audit log also when it refuses; warnings are
    /// returned, too.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn admit(
        &self,
        caller: &Caller,
        pass: Pass,
        act: Act<'_>,
        object: Option<&mut Box<dyn Object>>,
        old: Option<&dyn Object>,
    ) -> Result<Vec<String>, Status> {
        let mut request = Request {
            operation: act.operation,
            resource: act.resource.def,
            subresource: act.subresource,
            namespace: act.namespace,
            name: act.name,
            user: &caller.user,
            object,
            old,
            dry_run: act.dry_run,
            warnings: Vec::new(),
            annotations: Vec::new(),
            options: &caller.options,
            reinvocation: Reinvocation::default(),
        };
        let mut verdict = Ok(());
        let step = |name: &'static str, refused: bool, started: Instant| {
            let labels = vec![act.operation.as_str().into(), said(refused), name.into()];
            self.metrics.counts.took(&families::ADMISSION_STEP, labels, started.elapsed());
        };
        if pass != Pass::Validate {
            let started = Instant::now();
            verdict = self.admission.mutate(&mut request).await;
            step("admit", verdict.is_err(), started);
        }
        if pass != Pass::Mutate && verdict.is_ok() {
            let started = Instant::now();
            verdict = self.admission.validate(&mut request).await;
            step("validate", verdict.is_err(), started);
        }
        let (warnings, annotations) = (request.warnings, request.annotations);
        caller.warn(&warnings);
        caller.note(annotations);
        verdict.map(|()| warnings)
    }
}

/// Counts that a webhook was asked.
fn count_webhook(counts: &Counts, asked: &HookAsked<'_>) {
    /// Greater codes count as this one, so that no webhook makes up series.
    const MOST: u16 = 600;
    let name = || Cow::<'static, str>::from(asked.name.to_owned());
    let (step, operation) = (Cow::from(asked.step), Cow::from(asked.operation.as_str()));
    let (code, error) = match asked.outcome {
        HookOutcome::Passed => (200, None),
        HookOutcome::Refused(code) => (code, Some("no_error")),
        HookOutcome::FailedClosed(code) => (code, Some("calling_webhook_error")),
        HookOutcome::FailedOpen(code) => {
            counts.add(&families::WEBHOOK_OPEN, vec![name(), step.clone()]);
            (code, None)
        }
        HookOutcome::Internal => (0, Some("apiserver_internal_error")),
    };
    let code = code.min(MOST).to_string();
    let rejected = said(error.is_some());
    let labels = vec![name(), operation.clone(), rejected.clone(), step.clone()];
    counts.took(&families::WEBHOOK, labels, asked.took);
    if let Some(error) = error {
        let labels = vec![error.into(), name(), operation.clone(), code.clone().into(), step.clone()];
        counts.add(&families::WEBHOOK_REJECTIONS, labels);
    }
    counts.add(&families::WEBHOOK_REQUESTS, vec![code.into(), name(), operation, rejected, step]);
}

/// The value of the label `rejected`.
fn said(refused: bool) -> Cow<'static, str> {
    if refused { "true" } else { "false" }.into()
}

/// The server as plugins see it.
pub(crate) struct AdmissionHost(pub(crate) Arc<Server>);

#[async_trait]
impl Host for AdmissionHost {
    fn observed(
        &self,
        plugin: &'static str,
        operation: Operation,
        pass: &'static str,
        refused: bool,
        took: Duration,
    ) {
        let labels = vec![plugin.into(), operation.as_str().into(), said(refused), pass.into()];
        self.0.metrics.counts.took(&families::ADMISSION_CONTROLLER, labels, took);
    }

    async fn update_status(&self, group: &str, plural: &str, obj: Box<dyn Object>) -> Result<(), Status> {
        let server = &self.0;
        let resource = server.cache.registry.find(group, plural).ok_or_else(Status::no_such_path)?.clone();
        let (namespace, name) = (obj.namespace().to_owned(), obj.name().to_owned());
        let (caller, opts) = (Server::loopback(), WriteOptions::default());
        let input = Input::Object(Arc::from(obj));
        server.update(&caller, &resource, &namespace, &name, Part::Status, input, &opts).await.map(drop)
    }

    fn show(&self, def: &ResourceDef, obj: &dyn Object) -> Result<Value, Status> {
        let found = self.0.cache.registry.served(def.group, def.version, def.plural);
        let resource = found.ok_or_else(Status::no_such_path)?;
        self.0.fields.value_in(&resource, obj)
    }

    fn read(&self, def: &ResourceDef, value: Value) -> Result<Box<dyn Object>, Status> {
        let found = self.0.cache.registry.served(def.group, def.version, def.plural);
        let resource = found.ok_or_else(Status::no_such_path)?;
        let mut obj = self.0.decode_value(&resource, value, "Ignore")?.obj;
        resource.def.strategy.default(&mut *obj);
        Ok(obj)
    }

    fn merge(&self, def: &ResourceDef, object: Value, configuration: &Value) -> Result<Value, String> {
        self.0.fields.merged(def, object, configuration)
    }

    fn observed_webhook(&self, asked: &HookAsked<'_>) {
        count_webhook(&self.0.metrics.counts, asked);
    }

    async fn call(
        &self,
        target: &HookTarget,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        crate::hooks::post(&self.0, target, body, timeout).await
    }

    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        self.0.authorize(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_are_counted_by_upstreams_names_and_labels() {
        let counts = Counts::default();
        let asked = |outcome| HookAsked {
            name: "h.example.com",
            step: "validating",
            operation: Operation::Create,
            outcome,
            took: Duration::from_millis(3),
        };
        for outcome in [
            HookOutcome::Passed,
            HookOutcome::Refused(777),
            HookOutcome::FailedClosed(503),
            HookOutcome::FailedOpen(500),
            HookOutcome::Internal,
        ] {
            count_webhook(&counts, &asked(outcome));
        }
        let text = counts.text();
        let of = |name: &str, labels: &str| format!("apiserver_admission_webhook_{name}{{{labels}}} 1");
        let request = |code: &str, rejected: &str| {
            let labels = format!(
                "code=\"{code}\",name=\"h.example.com\",operation=\"CREATE\",rejected=\"{rejected}\",type=\"validating\""
            );
            of("request_total", &labels)
        };
        let rejection = |error: &str, code: &str| {
            let labels = format!(
                "error_type=\"{error}\",name=\"h.example.com\",operation=\"CREATE\",rejection_code=\"{code}\",\
                 type=\"validating\""
            );
            of("rejection_count", &labels)
        };
        for line in [
            request("200", "false"),
            request("600", "true"),
            request("503", "true"),
            request("500", "false"),
            request("0", "true"),
            rejection("no_error", "600"),
            rejection("calling_webhook_error", "503"),
            rejection("apiserver_internal_error", "0"),
            of("fail_open_count", "name=\"h.example.com\",type=\"validating\""),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
        let took = "apiserver_admission_webhook_admission_duration_seconds_count{name=\"h.example.com\",\
                    operation=\"CREATE\",rejected=\"true\",type=\"validating\"} 3";
        assert!(text.lines().any(|l| l == took), "{text}");
    }
}
