//! PodTopologyLabels: pods carry the zone and region of their node from the moment they are bound.

use std::collections::BTreeMap;

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use crate::{Environment, Operation, Plugin, Request};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// The plugin.
pub(super) struct PodTopologyLabels;

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let pods = (request.resource.group, request.resource.plural) == ("", "pods");
        request.operation == Operation::Create && pods && matches!(request.subresource, "" | "binding")
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let binding = request.subresource == "binding";
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let node = if binding {
            let body = object.to_value();
            let target = |key: &str| body.pointer(key).and_then(Value::as_str).unwrap_or("").to_owned();
            if target("/target/kind") == "Node" { target("/target/name") } else { String::new() }
        } else {
            let spec = object.downcast::<Pod>().and_then(|pod| pod.spec.as_ref());
            spec.and_then(|s| s.node_name.clone()).unwrap_or_default()
        };
        if node.is_empty() {
            return Ok(());
        }
        let labels = topology(env, &node);
        if !labels.is_empty() {
            object.meta_mut().labels.get_or_insert_default().extend(labels);
        }
        Ok(())
    }
}

fn topology(env: &Environment, name: &str) -> BTreeMap<String, String> {
    let node = env.reader.get("", "nodes", "", name);
    let labels =
        node.as_deref().and_then(|obj| obj.downcast::<Node>()).and_then(|n| n.metadata.labels.as_ref());
    let known = |key: &&str| labels.and_then(|l| l.get(*key)).map(|value| ((*key).to_owned(), value.clone()));
    LABELS.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{admit, pod};
    use super::*;

    #[test]
    fn pods_made_on_a_node_get_its_zone_but_not_its_other_labels() {
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        let labels = [("topology.kubernetes.io/zone", "z"), ("other", "x")];
        node.metadata.labels = Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let mut pod = pod("p", |s| s.node_name = Some("n".into()));
        admit(&PodTopologyLabels, &[Arc::new(node)], &mut pod).unwrap();
        let want = BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "z".to_owned())]);
        assert_eq!(pod.meta().labels.as_ref(), Some(&want));
    }
}
