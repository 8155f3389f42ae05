//! The scenarios, one file each kind of work.

pub mod api;
pub mod bare;
pub mod controllers;
pub mod crds;
mod fake_kubelets;
pub mod flood;
pub mod pod_links;
pub mod pod_start;
pub mod schedule;
pub mod size;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::http::{Call, Connection, NUMBER};
use crate::stats::Summary;
use crate::target::{Failure, Target};

/// What a scenario measured, and what it left on the server.
pub struct Outcome {
    /// The figures.
    pub summary: Summary,
    /// To be cleaned, unless the server goes anyway.
    pub leftovers: Leftovers,
}

/// What a run made and nobody has deleted yet. Deleting is not part of any figure, and upstream takes long over
/// it (100 pods per second): the figures are shown before.
pub struct Leftovers {
    namespace: Namespace,
    resources: &'static [&'static str],
    /// How names of nodes begin, and how many there are.
    nodes: Vec<(String, u64)>,
}

impl Leftovers {
    /// Deletes them. Best effort: the figures are known by then.
    pub async fn clean(self) {
        let target = self.namespace.target.clone();
        let Ok(mut connection) = Connection::open(&target).await else { return };
        for resource in self.resources {
            let call = Call::delete(self.namespace.path(resource));
            let _ = tokio::time::timeout(Duration::from_secs(300), connection.send(&call, false)).await;
        }
        for (prefix, n) in self.nodes {
            let call = Call::delete(format!("/api/v1/nodes/{prefix}{NUMBER}"));
            let _ = crate::load::all(&target, 16, n, &call, |_| ()).await;
        }
        let call = Call::delete(format!("/api/v1/namespaces/{}", self.namespace.name));
        let _ = tokio::time::timeout(Duration::from_secs(10), connection.send(&call, false)).await;
    }
}

/// A namespace of a run's own.
pub struct Namespace {
    target: Arc<Target>,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes `bench-<run>` with its service account `default` (nothing else makes it when no controllers
    /// run, and pods are refused without it).
    ///
    /// # Errors
    /// The server refuses.
    pub async fn make(target: &Arc<Target>, run: &str) -> Result<Self, Failure> {
        let name = format!("bench-{run}");
        let mut connection = Connection::open(target).await?;
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        connection.ensure(Call::post("/api/v1/namespaces", namespace.to_string())).await?;
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        connection.ensure(Call::post(path, account.to_string())).await?;
        Ok(Self { target: target.clone(), name })
    }

    /// The path of a resource in it.
    pub fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.name)
    }

    /// The path of a resource of the group `apps` in it.
    pub fn apps(&self, resource: &str) -> String {
        format!("/apis/apps/v1/namespaces/{}/{resource}", self.name)
    }

    /// The figures with this namespace and its objects of these resources as leftovers.
    fn outcome(self, summary: Summary, resources: &'static [&'static str]) -> Outcome {
        Outcome { summary, leftovers: Leftovers { namespace: self, resources, nodes: Vec::new() } }
    }
}

/// The newest resourceVersion of a list that should be short.
///
/// # Errors
/// The server refuses.
pub async fn resource_version(connection: &mut Connection, path: &str) -> Result<String, Failure> {
    let list = connection.json(Call::get(format!("{path}?limit=1"))).await?;
    let version = list["metadata"]["resourceVersion"].as_str();
    version.map(str::to_owned).ok_or_else(|| format!("the list at {path} has no resourceVersion"))
}
