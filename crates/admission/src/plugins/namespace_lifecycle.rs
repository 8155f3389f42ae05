//! NamespaceLifecycle: nothing is made in a namespace that is missing or going away, and the namespaces the
//! system lives in stay.

use async_trait::async_trait;
use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;

use crate::{Environment, Operation, Plugin, Request};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin.
pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation != Operation::Connect
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if request.resource.group.is_empty() && request.resource.plural == "namespaces" {
            let deletes = request.operation == Operation::Delete && request.subresource.is_empty();
            if deletes && IMMORTAL.contains(&request.name) {
                return Err(request.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        let review = request.resource.group == "authorization.k8s.io";
        if request.namespace.is_empty() || request.operation == Operation::Delete || review {
            return Ok(());
        }
        let Some(found) = env.reader.get("", "namespaces", "", request.namespace) else {
            return Err(Status::not_found("", "namespaces", request.namespace));
        };
        let phase = found.downcast::<Namespace>().and_then(|n| n.status.as_ref()?.phase.as_deref());
        if request.operation == Operation::Create && phase == Some("Terminating") {
            return Err(terminating(request));
        }
        Ok(())
    }
}

/// The refusal, with the cause that clients look for.
fn terminating(request: &Request<'_>) -> Status {
    let namespace = request.namespace;
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let plain = request.forbidden(&why);
    let mut details = plain.details().cloned().unwrap_or_else(|| json!({}));
    details["causes"] = json!([{
        "reason": "NamespaceTerminating",
        "message": format!("namespace {namespace} is being terminated"),
        "field": "metadata.namespace",
    }]);
    Status::new(403, Reason::Forbidden, plain.message(), Some(details))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_meta::Object;
    use k8s_openapi::api::core::v1::NamespaceStatus;

    use super::*;
    use crate::plugins::testing::{admit, pod};

    fn namespace(phase: &str) -> Arc<dyn Object> {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("ns".to_owned());
        namespace.status = Some(NamespaceStatus { phase: Some(phase.to_owned()), ..Default::default() });
        Arc::new(namespace)
    }

    #[track_caller]
    fn check(objects: &[Arc<dyn Object>], expected: Result<(), (u16, &str)>) {
        let outcome = admit(&NamespaceLifecycle, objects, &mut pod("a", |_| {}));
        let refusal = outcome.as_ref().err().map(|e| (e.code(), e.message()));
        assert_eq!(refusal, expected.err());
    }

    #[test]
    fn creation_needs_a_living_namespace() {
        check(&[namespace("Active")], Ok(()));
        check(&[], Err((404, "namespaces \"ns\" not found")));
        let why = "pods \"a\" is forbidden: unable to create new content in namespace ns because it is being \
                   terminated";
        check(&[namespace("Terminating")], Err((403, why)));
    }
}
