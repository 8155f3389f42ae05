//! Creating, reading and listing: the plain rates of an API server.

use std::sync::Arc;

use bytes::Bytes;

use super::Namespace;
use crate::http::Call;
use crate::load::{LoadArgs, all, closed_loop};
use crate::objects::{config_map, pod, run_id};
use crate::stats::Summary;
use crate::target::{Failure, Target};

/// Stands for the name in a body that is made once.
const NAME: &str = "@name@";

/// A body with a hole for the name, filled without parsing.
struct Template(String, String);

impl Template {
    fn new(body: &str) -> Self {
        let (before, after) = body.split_once(NAME).unwrap_or((body, ""));
        Self(before.to_owned(), after.to_owned())
    }
    fn with(&self, name: &str) -> Bytes {
        let mut body = String::with_capacity(self.0.len() + name.len() + self.1.len());
        body.push_str(&self.0);
        body.push_str(name);
        body.push_str(&self.1);
        body.into()
    }
}

/// Creates pods (not run by anything unless a scheduler and nodes are there).
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn create_pods(target: &Arc<Target>, load: &LoadArgs) -> Result<Summary, Failure> {
    create(target, load, "create-pods", "pods", &pod(NAME, "registry.k8s.io/pause:3.10", &[]).to_string())
        .await
}

/// Creates ConfigMaps with `size` bytes of data.
///
/// # Errors
/// As [`create_pods`].
pub async fn create_config_maps(
    target: &Arc<Target>,
    load: &LoadArgs,
    size: usize,
) -> Result<Summary, Failure> {
    create(target, load, "create-configmaps", "configmaps", &config_map(NAME, size).to_string()).await
}

async fn create(
    target: &Arc<Target>,
    load: &LoadArgs,
    scenario: &str,
    resource: &'static str,
    body: &str,
) -> Result<Summary, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let template = Template::new(body);
    let path = namespace.path(resource);
    let make = move |i| Call::post(path.clone(), template.with(&format!("o-{i}")));
    let (samples, elapsed) = closed_loop(target, load, make).await?;
    namespace.clean(&[resource]).await;
    Ok(samples.summary(scenario, elapsed))
}

/// Reads one pod again and again.
///
/// # Errors
/// As [`create_pods`].
pub async fn get(target: &Arc<Target>, load: &LoadArgs) -> Result<Summary, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let body = pod("one", "registry.k8s.io/pause:3.10", &[]).to_string();
    let path = namespace.path("pods");
    all(target, 1, 1, move |_| Call::post(path.clone(), body.clone())).await?;
    let path = namespace.path("pods/one");
    let (samples, elapsed) = closed_loop(target, load, move |_| Call::get(path.clone())).await?;
    namespace.clean(&["pods"]).await;
    Ok(samples.summary("get", elapsed))
}

/// Lists `objects` pods again and again; `probe` runs while they are there and its figures are reported.
///
/// # Errors
/// As [`create_pods`].
pub async fn list(
    target: &Arc<Target>,
    load: &LoadArgs,
    objects: u64,
    probe: impl FnOnce() -> Vec<(String, f64)>,
) -> Result<Summary, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let template = Template::new(&pod(NAME, "registry.k8s.io/pause:3.10", &[]).to_string());
    let path = namespace.path("pods");
    let make = move |i| Call::post(path.clone(), template.with(&format!("o-{i}")));
    all(target, 64, objects, make).await?;
    let path = namespace.path("pods");
    let (samples, elapsed) = closed_loop(target, load, move |_| Call::get(path.clone())).await?;
    let probed = probe();
    namespace.clean(&["pods"]).await;
    let mut summary = samples.summary("list", elapsed);
    summary.extra.extend(probed);
    summary.extra.insert("objects".into(), objects as f64);
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_fills_the_name_and_stays_json() {
        let template = Template::new(&pod(NAME, "i", &[]).to_string());
        let body: serde_json::Value = serde_json::from_slice(&template.with("o-7")).expect("json");
        assert_eq!(body["metadata"]["name"], "o-7");
    }
}
