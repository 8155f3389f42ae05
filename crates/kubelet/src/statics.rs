//! Static pods: pods of this node that manifests describe, not the API. Each is shown in the API by a mirror.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::DeleteOptions;
use coracle_meta::{Reason, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::context::Context;
use crate::names;

/// Where a manifest is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// `kubernetes.io/config.source`: `file` or `http`.
    pub source: &'a str,
    /// Path or URL.
    pub place: &'a str,
    /// The node that it is for.
    pub node: &'a str,
}

/// The pods of a document: a Pod, or a PodList.
///
/// # Errors
/// The text is neither, or one of the pods cannot be; upstream refuses the whole, too.
pub fn parse_all(text: &str, origin: Origin<'_>, now: Timestamp) -> Result<Vec<Pod>, String> {
    let value: serde_json::Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    if value["kind"] != "PodList" || value["apiVersion"] != "v1" {
        return parse(text, origin, now).map(|pod| vec![pod]);
    }
    let items = value["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pod = |(index, item): (usize, &serde_json::Value)| {
        let mut item = item.clone();
        item["kind"] = "Pod".into();
        item["apiVersion"] = "v1".into();
        parse(&item.to_string(), origin, now).map_err(|e| format!("items[{index}]: {e}"))
    };
    items.iter().enumerate().map(pod).collect()
}

/// The pod that a manifest describes, as this node runs it. The uid follows from node, place and content: a changed
/// manifest is another pod.
///
/// # Errors
/// The text is no pod.
pub fn parse(text: &str, origin: Origin<'_>, now: Timestamp) -> Result<Pod, String> {
    let Origin { source, place, node } = origin;
    let value: serde_json::Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let kind = value["kind"].as_str().unwrap_or("");
    if kind != "Pod" || value["apiVersion"] != "v1" {
        return Err(format!("it describes {kind:?}, not a v1 Pod"));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("the pod has no name")?;
    let mut hash = Sha256::new();
    for part in [node.as_bytes(), place.as_bytes(), text.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    let uid = coracle_stdx::hex(&hash.finalize()[..16]);
    let uid = pod.metadata.uid.clone().filter(|u| !u.is_empty()).unwrap_or(uid);
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace =
        Some(meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into()));
    meta.uid = Some(uid.clone());
    let annotations = meta.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(names::CONFIG_HASH.to_owned(), uid);
    annotations.insert(names::CONFIG_SOURCE.to_owned(), source.to_owned());
    annotations.insert(names::CONFIG_SEEN.to_owned(), now.to_string());
    let spec = pod.spec.as_mut().ok_or("the pod has no specification")?;
    spec.node_name = Some(node.to_owned());
    // A taint does not move it away: there is nobody who would start it elsewhere.
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_with(Vec::new).push(everything);
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    Ok(pod)
}

/// The object that shows a static pod in the API.
pub fn mirror(pod: &Pod, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    let hash = names::annotation(pod, names::CONFIG_HASH).unwrap_or("").to_owned();
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.resource_version = None;
    meta.generation = None;
    meta.annotations.get_or_insert_with(BTreeMap::new).insert(names::CONFIG_MIRROR.to_owned(), hash);
    let node = crate::pod::spec(pod).node_name.clone().unwrap_or_default();
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node,
        uid: node_uid.to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror.status = None;
    mirror
}

/// Whether the object mirrors this very pod, and is to stay.
pub fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    names::annotation(mirror, names::CONFIG_MIRROR) == names::annotation(pod, names::CONFIG_HASH)
        && mirror.metadata.deletion_timestamp.is_none()
}

/// Deletes a mirror at once.
pub async fn remove_mirror(cx: Arc<Context>, mirror: Arc<Pod>) {
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: mirror.metadata.uid.clone(),
        ..DeleteOptions::default()
    };
    let (namespace, name) = (names::namespace(&mirror), names::name(&mirror));
    match cx.client.api::<Pod>().delete(namespace, name, options).await {
        Err(s) if !matches!(s.reason(), Reason::NotFound | Reason::Conflict) => {
            warn!(pod = names::full_name(&mirror), status = %s, "mirror not deleted");
        }
        _ => {}
    }
}

/// Creates the mirror of a static pod.
///
/// # Errors
/// The API's refusal.
pub async fn create_mirror(cx: &Context, pod: &Pod) -> Result<Arc<Pod>, Status> {
    let node = cx.client.api::<Node>().get("", &cx.config.node_name).await?;
    let mirror = mirror(pod, node.metadata.uid.as_deref().unwrap_or(""));
    cx.client.api::<Pod>().create(names::namespace(pod), mirror).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: a, image: i}\n";

    const ORIGIN: Origin<'_> = Origin { source: "file", place: "/m/web.yaml", node: "Node1" };

    fn make(text: &str) -> Result<Pod, String> {
        parse(text, ORIGIN, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_list_has_several_pods_and_one_that_is_wrong_spoils_it() {
        let item = |name: &str| serde_json::json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
        let list = |items: &[serde_json::Value]| {
            serde_json::json!({"kind": "PodList", "apiVersion": "v1", "items": items}).to_string()
        };
        let parse = |text: &str| parse_all(text, ORIGIN, Timestamp::UNIX_EPOCH);
        let pods = parse(&list(&[item("a"), item("b")])).expect("two pods");
        assert_eq!(pods.iter().map(names::name).collect::<Vec<_>>(), ["a-node1", "b-node1"]);
        let fewer = parse(&list(&[item("b")])).expect("a pod");
        assert_eq!(names::uid(&fewer[0]), names::uid(&pods[1]), "what it is does not hang on its neighbours");
        assert_eq!(parse(&list(&[item("a"), item("")])), Err("items[1]: the pod has no name".into()));
        assert_eq!(parse(&list(&[])), Ok(Vec::new()));
        assert_eq!(parse(MANIFEST).expect("a pod").len(), 1);
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node_whose_identity_is_its_content() {
        let pod = make(MANIFEST).expect("a pod");
        assert_eq!((names::name(&pod), names::namespace(&pod)), ("web-node1", "default"));
        assert!(names::is_static(&pod) && !names::is_mirror(&pod));
        assert_eq!(names::uid(&make(MANIFEST).expect("again")), names::uid(&pod));
        assert_ne!(names::uid(&make(&format!("{MANIFEST} ")).expect("changed")), names::uid(&pod));
        assert_eq!(
            make("kind: Service\napiVersion: v1"),
            Err("it describes \"Service\", not a v1 Pod".into())
        );
    }

    #[test]
    fn a_mirror_belongs_to_the_node_and_to_one_version_of_the_pod() {
        let pod = make(MANIFEST).expect("a pod");
        let mirror = mirror(&pod, "n");
        assert!(names::is_mirror(&mirror) && is_mirror_of(&mirror, &pod));
        let owner = &mirror.metadata.owner_references.as_ref().expect("owner")[0];
        assert_eq!((owner.kind.as_str(), owner.controller), ("Node", Some(true)));
        assert!(!is_mirror_of(&mirror, &make(&MANIFEST.replace("image: i", "image: j")).expect("pod")));
    }
}
