//! NodeRestriction: a kubelet changes only its own node, the pods bound to it, their tokens and its lease.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::{Environment, Operation, Plugin, Request};

const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASES: &str = "kube-node-lease";

/// The plugin.
pub(super) struct NodeRestriction;

/// The node behind a kubelet's user name.
fn node_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    let name = request.user.name.strip_prefix("system:node:")?;
    request.user.in_group("system:nodes").then_some(name)
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        node_of(request).is_some()
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(node) = node_of(request) else { return Ok(()) };
        if node.is_empty() {
            return Err(request.forbidden("could not determine node from user"));
        }
        let refusal = match (request.resource.group, request.resource.plural, request.subresource) {
            ("", "pods", "") => pod(env, request, node),
            ("", "pods", "status") => pod_status(request, node),
            ("", "pods", "eviction") => eviction(env, request, node),
            ("", "pods", other) => Some(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
            ("", "nodes", _) => own_node(request, node),
            ("", "serviceaccounts", "token") => token(env, request, node),
            ("coordination.k8s.io", "leases", _) => lease(request, node),
            _ => None,
        };
        refusal.map_or(Ok(()), |why| Err(request.forbidden(&why)))
    }
}

fn bound_to(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

fn pod(env: &Environment, request: &Request<'_>, node: &str) -> Option<String> {
    match request.operation {
        Operation::Create => new_pod(request.object_as()?, node),
        Operation::Delete => {
            let found = env.reader.get("", "pods", request.namespace, request.name);
            let pod = request.old_as::<Pod>().or_else(|| found.as_deref().and_then(|obj| obj.downcast()))?;
            (bound_to(pod) != node)
                .then(|| format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        Operation::Connect => None,
        Operation::Update => Some(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )),
    }
}

/// Kubelets create nothing but the mirrors of their static pods.
fn new_pod(pod: &Pod, node: &str) -> Option<String> {
    if pod.metadata.annotations.as_ref().is_none_or(|a| !a.contains_key(MIRROR)) {
        let why =
            format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
        return Some(why);
    }
    if bound_to(pod) != node {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    if owners.len() > 1 {
        return Some(format!(
            "node {node:?} can only create pods with a single owner reference set to itself"
        ));
    }
    if owners.iter().any(|o| o.kind != "Node" || o.api_version != "v1" || o.name != node) {
        return Some(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    let spec = pod.spec.as_ref()?;
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Some(format!("node {node:?} can not create pods that reference a service account"));
    }
    let volumes = || spec.volumes.iter().flatten();
    for (what, used) in [
        ("secrets", volumes().any(|v| v.secret.is_some())),
        ("configmaps", volumes().any(|v| v.config_map.is_some())),
        ("persistentvolumeclaims", volumes().any(|v| v.persistent_volume_claim.is_some())),
    ] {
        if used {
            return Some(format!("node {node:?} can not create pods that reference {what}"));
        }
    }
    None
}

fn pod_status(request: &Request<'_>, node: &str) -> Option<String> {
    if request.operation != Operation::Update {
        return Some(format!("unexpected operation {:?}", "CREATE"));
    }
    let (old, new) = (request.old_as::<Pod>()?, request.object_as::<Pod>()?);
    if bound_to(old) != node {
        return Some(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if old.metadata.labels != new.metadata.labels {
        return Some(format!("node {node:?} cannot update labels through pod status"));
    }
    None
}

fn eviction(env: &Environment, request: &Request<'_>, node: &str) -> Option<String> {
    let found = env.reader.get("", "pods", request.namespace, request.name)?;
    let pod = found.downcast::<Pod>()?;
    (bound_to(pod) != node)
        .then(|| format!("node {node} can only evict pods with spec.nodeName set to itself"))
}

fn own_node(request: &Request<'_>, node: &str) -> Option<String> {
    let name = if request.name.is_empty() {
        request.object_as::<Node>().and_then(|n| n.metadata.name.as_deref()).unwrap_or("")
    } else {
        request.name
    };
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let new = request.object_as::<Node>()?;
    let none = std::collections::BTreeMap::new();
    let labels = new.metadata.labels.as_ref().unwrap_or(&none);
    let old = request.old_as::<Node>();
    let before = old.and_then(|n| n.metadata.labels.as_ref()).unwrap_or(&none);
    if let Some(old) = old {
        let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        if taints(new) != taints(old) {
            return Some(format!("node {node:?} is not allowed to modify taints"));
        }
    }
    let changed = |key: &&String| labels.get(*key) != before.get(*key);
    let mut refused: Vec<&str> = labels
        .keys()
        .chain(before.keys().filter(|key| !labels.contains_key(*key)))
        .filter(changed)
        .map(String::as_str)
        .filter(|key| !may_set(key))
        .collect();
    refused.sort_unstable();
    let verb = if old.is_some() { "modify" } else { "set the following" };
    (!refused.is_empty()).then(|| match old {
        Some(_) => format!("is not allowed to {verb} labels: {}", refused.join(", ")),
        None => format!("node {node:?} is not allowed to {verb} labels: {}", refused.join(", ")),
    })
}

/// Labels a kubelet may give its node: any outside Kubernetes' own domains, and those it is known to set.
fn may_set(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    within("kubelet.kubernetes.io")
        || within("node.kubernetes.io")
        || matches!(
            key,
            "kubernetes.io/hostname"
                | "kubernetes.io/os"
                | "kubernetes.io/arch"
                | "beta.kubernetes.io/os"
                | "beta.kubernetes.io/arch"
                | "beta.kubernetes.io/instance-type"
                | "topology.kubernetes.io/zone"
                | "topology.kubernetes.io/region"
                | "failure-domain.beta.kubernetes.io/zone"
                | "failure-domain.beta.kubernetes.io/region"
        )
}

fn token(env: &Environment, request: &Request<'_>, node: &str) -> Option<String> {
    let asked = request.object_as::<TokenRequest>()?;
    let Some(bound) = asked.spec.as_ref().and_then(|s| s.bound_object_ref.as_ref()) else {
        return Some("node requested token not bound to a pod".to_owned());
    };
    if bound.kind.as_deref() != Some("Pod") || bound.api_version.as_deref() != Some("v1") {
        return Some("node requested token not bound to a pod".to_owned());
    }
    let uid = bound.uid.as_deref().unwrap_or("");
    if uid.is_empty() {
        return Some("node requested token with a pod binding without a uid".to_owned());
    }
    let name = bound.name.as_deref().unwrap_or("");
    let found = env.reader.get("", "pods", request.namespace, name);
    let Some(pod) = found.as_deref().and_then(|obj| obj.downcast::<Pod>()) else {
        return Some(format!("pod {name:?} not found"));
    };
    let present = pod.metadata.uid.as_deref().unwrap_or("");
    if present != uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object \
             might have been deleted and then recreated"
        );
        return Some(why);
    }
    if bound_to(pod) != node {
        return Some("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    None
}

fn lease(request: &Request<'_>, node: &str) -> Option<String> {
    if request.namespace != LEASES {
        return Some(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    let own = request.object.as_deref().map_or("", |obj| obj.name());
    let name = if request.operation == Operation::Create && !own.is_empty() { own } else { request.name };
    (name != node).then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

#[cfg(test)]
mod tests {
    use coracle_auth::UserInfo;

    use super::*;
    use crate::plugins::testing::{admit_as, pod};

    #[test]
    fn kubelets_create_only_mirror_pods() {
        let user = UserInfo::authenticated("system:node:n1", &["system:nodes"]);
        let refusal = admit_as(&NodeRestriction, &[], &user, &mut pod("a", |_| {})).expect_err("no mirror");
        let why = "pods \"a\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, \
                   node \"n1\" can only create mirror pods";
        assert_eq!(refusal.message(), why);
        let other = UserInfo::authenticated("jane", &[]);
        assert!(admit_as(&NodeRestriction, &[], &other, &mut pod("a", |_| {})).is_ok());
    }

    #[test]
    fn labels_of_the_restricted_domain_are_not_the_kubelets() {
        assert!(may_set("example.com/a") && may_set("kubernetes.io/hostname") && may_set("zone"));
        assert!(!may_set("node-restriction.kubernetes.io/a") && !may_set("kubernetes.io/x"));
    }
}
