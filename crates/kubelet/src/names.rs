//! Labels, annotations and paths by which pods and containers are known to the runtime and on disk.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use sha2::{Digest, Sha256};

/// Label: pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: pod uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: how often the container was restarted before this instance.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: hash of the parts of the container that cannot change in place.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: where the container writes its termination message.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the memory request that the container was started with, as text.
pub const MEMORY_REQUEST: &str = "io.coracle.container.memoryRequest";
/// Annotation: the pod's grace period, for pods that are gone from the API.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// `metadata.uid`, or the empty string.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}

/// `metadata.name`, or the empty string.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}

/// `metadata.namespace`, or the empty string.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("")
}

/// Annotation: where a pod comes from, `api`, `file` or `http`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: when this kubelet first saw a pod that is not from the API.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Annotation: identity of a pod that is not from the API; its uid.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation: marks an object of the API that mirrors such a pod; its value is that pod's hash.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// An annotation's value.
pub fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether the pod comes from a file or a URL of the node instead of the API.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// Whether the object only shows a static pod in the API.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// `name_namespace(uid)`: how messages of the kubelet name a pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// `coracle://<id>`: the form of a container id in the API.
pub fn container_id(id: &str) -> String {
    format!("coracle://{id}")
}

/// The runtime's id in an API container id.
pub fn runtime_id(id: &str) -> &str {
    id.strip_prefix("coracle://").unwrap_or(id)
}

/// Changes when the container must be replaced to follow its specification: name and image, as upstream.
pub fn container_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or("").as_bytes());
    coracle_stdx::hex(&hash.finalize()[..4])
}

/// Directory of a pod's logs.
pub fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

/// Directory of a pod's volumes and files.
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}
