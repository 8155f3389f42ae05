//! PodResizeValidator: a pod cannot grow beyond what its node has.

use async_trait::async_trait;
use coracle_meta::quantity::Quantity;
use coracle_meta::{Reason, Status, pod};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::{Environment, Operation, Plugin, Request};

/// The plugin.
pub(super) struct PodResizeValidator;

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let pods = (request.resource.group, request.resource.plural) == ("", "pods");
        request.operation == Operation::Update && pods && request.subresource == "resize"
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some((new, old)) = request.object_as::<Pod>().zip(request.old_as::<Pod>()) else { return Ok(()) };
        let Some(name) = pod::node_name(new).filter(|_| new.metadata.generation != old.metadata.generation)
        else {
            return Ok(());
        };
        let found = env.reader.get("", "nodes", "", name);
        let Some(node) = found.as_deref().and_then(|obj| obj.downcast::<Node>()) else {
            return Err(request.forbidden(&format!("node {name:?} not found")));
        };
        match misfit(new, node) {
            None => Ok(()),
            Some((reason, why)) => Err(with_cause(&request.forbidden(&why), reason)),
        }
    }
}

/// Why the pod does not fit the node: the cause's reason and the message.
fn misfit(pod: &Pod, node: &Node) -> Option<(&'static str, String)> {
    let name = node.metadata.name.as_deref().unwrap_or("");
    let os = node.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os"));
    if let Some(os) = os.filter(|os| *os != "linux") {
        let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
        return Some(("UnsupportedPlatform", why));
    }
    let requests = pod::requests(pod);
    let has = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let has = |name: &str| has.and_then(|a| a.get(name)).map(Quantity::from_api).unwrap_or_default();
    let asked = |name: &str| requests.get(name).copied().unwrap_or_default();
    let mut parts = Vec::new();
    let (cpu, cpus) = (asked("cpu"), has("cpu"));
    if cpu > cpus {
        parts.push(format!("cpu, requested: {}, allocatable: {}", cpu.milli(), cpus.milli()));
    }
    let (memory, memories) = (asked("memory"), has("memory"));
    if memory > memories {
        parts.push(format!("memory, requested: {}, allocatable: {}", memory.value(), memories.value()));
    }
    let why = || format!("node didn't have enough allocatable resources: {}", parts.join("; "));
    (!parts.is_empty()).then(|| ("NodeCapacity", why()))
}

fn with_cause(status: &Status, reason: &str) -> Status {
    let mut details = status.details().cloned().unwrap_or_else(|| json!({}));
    details["causes"] = json!([{ "reason": reason }]);
    Status::new(status.code(), Reason::Forbidden, status.message(), Some(details))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_larger_than_their_node_are_a_misfit() {
        let pod: Pod = serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": [
            { "name": "c", "resources": { "requests": { "cpu": "2", "memory": "1Gi" } } }] } }))
        .unwrap();
        let node = |cpu: &str| -> Node {
            let status = json!({ "allocatable": { "cpu": cpu, "memory": "2Gi" } });
            serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": status })).unwrap()
        };
        let why = "node didn't have enough allocatable resources: cpu, requested: 2000, allocatable: 1000";
        assert_eq!(misfit(&pod, &node("1")), Some(("NodeCapacity", why.to_owned())));
        assert_eq!(misfit(&pod, &node("2")), None);
    }
}
