//! DefaultTolerationSeconds: pods stay five minutes on a node that is not ready or unreachable.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::core::v1::{Pod, Toleration};

use crate::{Environment, Operation, Plugin, Request};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The plugin.
pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is("", "pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, _: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(spec) = request.object_mut::<Pod>().and_then(|pod| pod.spec.as_mut()) else { return Ok(()) };
        for taint in TAINTS {
            let covers = |t: &Toleration| {
                let key = t.key.as_deref().unwrap_or("");
                (key.is_empty() || key == taint)
                    && matches!(t.effect.as_deref().unwrap_or(""), "" | "NoExecute")
            };
            if !spec.tolerations.iter().flatten().any(covers) {
                spec.tolerations.get_or_insert_default().push(Toleration {
                    key: Some(taint.to_owned()),
                    operator: Some("Exists".to_owned()),
                    effect: Some("NoExecute".to_owned()),
                    toleration_seconds: Some(SECONDS),
                    value: None,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::testing::{admit, pod};

    #[test]
    fn tolerations_are_added_once() {
        let mut object = pod("a", |_| {});
        admit(&DefaultTolerationSeconds, &[], &mut object).expect("no refusal");
        admit(&DefaultTolerationSeconds, &[], &mut object).expect("no refusal");
        let spec = object.downcast::<Pod>().and_then(|p| p.spec.as_ref()).expect("a pod");
        assert_eq!(spec.tolerations.as_ref().map(Vec::len), Some(2));
    }
}
