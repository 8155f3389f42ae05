//! Creating, reading and listing: the plain rates of an API server.

use std::sync::Arc;

use super::{Namespace, Outcome};
use crate::http::{Call, NUMBER};
use crate::load::{LoadArgs, all, closed_loop};
use crate::objects::{config_map, pod, run_id};
use crate::target::{Failure, Target};

/// Nothing runs it; it only has to look like an image.
pub(super) const IMAGE: &str = "registry.k8s.io/pause:3.10";

/// A pod whose name ends in the request's number.
pub(super) fn numbered_pod() -> String {
    pod(&format!("o-{NUMBER}"), IMAGE, &[]).to_string()
}

/// Creates pods (not run by anything unless a scheduler and nodes are there).
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn create_pods(target: &Arc<Target>, load: &LoadArgs) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let call = Call::post(namespace.path("pods"), numbered_pod());
    let summary = closed_loop(target, load, "create-pods", &call).await?;
    Ok(namespace.outcome(summary, &["pods"]))
}

/// Creates ConfigMaps with `size` bytes of data.
///
/// # Errors
/// As [`create_pods`].
pub async fn create_config_maps(
    target: &Arc<Target>,
    load: &LoadArgs,
    size: usize,
) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let body = config_map(&format!("o-{NUMBER}"), size).to_string();
    let call = Call::post(namespace.path("configmaps"), body);
    let summary = closed_loop(target, load, "create-configmaps", &call).await?;
    Ok(namespace.outcome(summary, &["configmaps"]))
}

/// Reads one pod again and again.
///
/// # Errors
/// As [`create_pods`].
pub async fn get(target: &Arc<Target>, load: &LoadArgs) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let create = Call::post(namespace.path("pods"), pod("one", IMAGE, &[]).to_string());
    all(target, 1, 1, &create, |_| ()).await?;
    let summary = closed_loop(target, load, "get", &Call::get(namespace.path("pods/one"))).await?;
    Ok(namespace.outcome(summary, &["pods"]))
}

/// Lists `objects` pods again and again.
///
/// # Errors
/// As [`create_pods`].
pub async fn list(target: &Arc<Target>, load: &LoadArgs, objects: u64) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    all(target, 64, objects, &Call::post(namespace.path("pods"), numbered_pod()), |_| ()).await?;
    let mut summary = closed_loop(target, load, "list", &Call::get(namespace.path("pods"))).await?;
    summary.extra.insert("objects".into(), objects as f64);
    Ok(namespace.outcome(summary, &["pods"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_pod_keeps_its_hole_in_json() {
        let body: serde_json::Value =
            serde_json::from_str(&numbered_pod().replace(NUMBER, "00000007")).expect("json");
        assert_eq!(body["metadata"]["name"], "o-00000007");
    }
}
