//! TaintNodesByCondition: new Nodes start tainted not-ready, so no pod lands before they are.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{Environment, Operation, Plugin, Request};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

/// The plugin.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is("", "nodes") && request.operation == Operation::Create
    }

    async fn mutate(&self, _: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(node) = request.object_mut::<Node>() else { return Ok(()) };
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        if !taints.iter().any(|t| t.key == NOT_READY && t.effect == EFFECT) {
            taints.push(Taint { key: NOT_READY.to_owned(), effect: EFFECT.to_owned(), ..Taint::default() });
        }
        Ok(())
    }
}
